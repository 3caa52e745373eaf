"""Programs as the library takes them, computed with torch's functions: what the library's executor is held against.

`run_program` and `describe_program` have the signatures of the library's ops. Nothing is compressed: autograd keeps
what it keeps.
"""

import json

import torch
import torch.nn.functional as F  # noqa: N812

runs = []
"""The texts of the programs that have run, since somebody emptied the list."""


def run_program(text, inputs, parameters, buffers, copies, integers):
    """The results of a program, and an empty tensor for each one of an exported copy."""
    runs.append(text)
    whole = json.loads(text)
    program = whole["program"]
    assert program["inputs"] == len(inputs) and program.get("integers", 0) == len(integers)
    values = list(inputs)
    for step in program["steps"]:
        dtype = getattr(torch, program["dtypes"][len(values)])
        fields = {key: value for key, value in step.items() if key not in ("op", "inputs")}
        for name in ("weight", "bias"):
            if name in fields:
                fields[name] = None if fields[name] is None else parameters[fields[name]]
        for name in ("running_mean", "running_var", "num_batches_tracked"):
            if name in fields:
                fields[name] = None if fields[name] is None else buffers[fields[name]]
        for name in ("sizes", "size"):
            if fields.get(name) is not None:
                fields[name] = [integers[s["integer"]] if isinstance(s, dict) else s for s in fields[name]]
        result = STEPS[step["op"]](*(values[value] for value in step["inputs"]), **fields, dtype=dtype)
        values += result if isinstance(result, (tuple, list)) else [result]
    for value, name in zip(values, program["dtypes"], strict=True):
        assert value.dtype == getattr(torch, name), (value.dtype, name)
    exported = [values[value].new_empty(0) for value in whole.get("exports", []) for _ in range(TENSORS_OF_COPY)]
    assert len(copies) == TENSORS_OF_COPY * len(whole.get("imports", []))
    return [values[value] for value in program["results"]] + exported


TENSORS_OF_COPY = 2


def describe_program(text):
    """A plan in which convolutions, linear layers and attention keep copies of their inputs, and norms normalized
    ones."""
    whole = json.loads(text)
    program = whole["program"]
    imported = {entry["input"] for entry in whole.get("imports", [])}
    saves, seen = [], set()
    for index, step in enumerate(program["steps"]):
        form = "normalized" if step["op"].endswith("norm") else "copy"
        if step["op"] in ("convolution", "linear", "attention", "batch_norm", "layer_norm", "rms_norm", "group_norm"):
            for value in step["inputs"]:
                if value not in imported and (value, form) not in seen:
                    seen.add((value, form))
                    saves.append({"value": value, "form": form, "bits": 4, "step": index})
    ends = {*range(program["inputs"]), *program["results"]}
    copies = {
        str(save["value"]): {"copy": {"bits": save["bits"]}, "tensors": TENSORS_OF_COPY}
        for save in saves
        if save["form"] == "copy" and save["value"] in ends
    }
    return json.dumps({"saves": saves, "recomputes": [], "fusions": [], "copies": copies})


def _convolution(x, weight, bias, stride, padding, dilation, groups, transposed, output_padding, dtype):
    x, weight, bias = x.to(dtype), weight.to(dtype), None if bias is None else bias.to(dtype)
    return torch.convolution(x, weight, bias, stride, padding, dilation, transposed, output_padding or [0], groups)


def _linear(x, weight, bias, dtype):
    return F.linear(x.to(dtype), weight.to(dtype), None if bias is None else bias.to(dtype))


def _batch_norm(
    x, weight, bias, running_mean, running_var, training, momentum, eps, dtype, num_batches_tracked=None,
    group_name=None,
):  # fmt: skip
    if training and num_batches_tracked is not None:
        num_batches_tracked.add_(1)
        momentum = 1 / float(num_batches_tracked) if momentum is None else momentum
    momentum = momentum or 0.0
    return F.batch_norm(x, running_mean, running_var, weight, bias, training, momentum, eps).to(dtype)


def _layer_norm(x, weight, bias, dimensions, eps, dtype):
    return F.layer_norm(x.to(dtype), x.shape[x.dim() - dimensions :], weight, bias, eps)


def _rms_norm(x, weight, dimensions, eps, dtype):
    return F.rms_norm(x.to(dtype), x.shape[x.dim() - dimensions :], weight, eps)


def _activation(x, kind, dtype, slope=0.01):
    functions = {
        "relu": F.relu, "relu6": F.relu6, "silu": F.silu, "hardswish": F.hardswish, "gelu": F.gelu,
        "gelu_tanh": lambda x: F.gelu(x, approximate="tanh"), "sigmoid": torch.sigmoid, "tanh": torch.tanh,
        "leaky_relu": lambda x: F.leaky_relu(x, slope),
    }  # fmt: skip
    return functions[kind](x.to(dtype))


def _rotary(x, cos, sin, dtype):
    first, second = x.chunk(2, -1)
    return (x * cos + torch.cat((-second, first), -1) * sin).to(dtype)


def _pool(kind):
    def run(x, kernel_size, dtype, **fields):
        return getattr(F, f"{kind}_pool{len(kernel_size)}d")(x, kernel_size, **_without_absent(fields))

    return run


def _without_absent(fields):
    return {key: value for key, value in fields.items() if value is not None}


def _avg_pool(x, kernel_size, divisor_override, dtype, **fields):
    if len(kernel_size) > 1:
        fields["divisor_override"] = divisor_override
    return getattr(F, f"avg_pool{len(kernel_size)}d")(x, kernel_size, **fields)


def _upsample(x, mode, size, scale_factors, align_corners, dtype):
    align = align_corners if "linear" in mode or "cubic" in mode else None
    return F.interpolate(x, size, scale_factors, mode, align)


def _attention(
    q, k, v, mask=None, *, dtype, probability=0.0, causal=False, scale=None, grouped=False, mask_repeats=False
):
    q, k, v = q.to(dtype), k.to(dtype), v.to(dtype)
    if mask_repeats:
        mask = mask.repeat(q.shape[0] // mask.shape[0], 1, 1, 1)
    return F.scaled_dot_product_attention(q, k, v, mask, probability, causal, scale=scale, enable_gqa=grouped)


STEPS = {
    "convolution": _convolution,
    "linear": _linear,
    "batch_norm": _batch_norm,
    "layer_norm": _layer_norm,
    "rms_norm": _rms_norm,
    "group_norm": lambda x, weight, bias, groups, eps, dtype: F.group_norm(x.to(dtype), groups, weight, bias, eps),
    "instance_norm": lambda x, weight, bias, eps, dtype: F.instance_norm(x, None, None, weight, bias, eps=eps),
    "activation": _activation,
    "add": lambda a, b, dtype, broadcast=False: a.to(dtype) + b.to(dtype),
    "multiply": lambda a, b, dtype: a.to(dtype) * b.to(dtype),
    "concatenate": lambda *values, dimension, dtype: torch.cat([value.to(dtype) for value in values], dimension),
    "reshape": lambda x, sizes, dtype: x.reshape(sizes),
    "flatten": lambda x, start, end, dtype: x.flatten(start, end),
    "permute": lambda x, dimensions, dtype: x.permute(dimensions),
    "roll": lambda x, shifts, dimensions, dtype: x.roll(shifts, dimensions),
    "select": lambda x, dimension, index, dtype: x.select(dimension, index),
    "unsqueeze": lambda x, dimension, dtype: x.unsqueeze(dimension),
    "squeeze": lambda x, dimension, dtype: x.squeeze(dimension),
    "split": lambda x, sizes, dimension, dtype: x.split(sizes, dimension),
    "chunk": lambda x, chunks, dimension, dtype: x.chunk(chunks, dimension),
    "unbind": lambda x, count, dimension, dtype: x.unbind(dimension),
    "max_pool": _pool("max"),
    "avg_pool": _avg_pool,
    "adaptive_avg_pool": lambda x, output_size, dtype: getattr(F, f"adaptive_avg_pool{len(output_size)}d")(
        x, output_size
    ),
    "mean": lambda x, dimensions, keepdim, dtype: x.mean(dimensions, keepdim),
    "upsample": _upsample,
    "dropout": lambda x, probability, dtype: F.dropout(x, probability),
    "attention": _attention,
    "rotary": _rotary,
}
