"""Calls every operation with arguments that are wrong in one or two places, in a process of its own (test_fuzz.py).

python fuzz_ops.py FILE EXAMPLES [OP ...]: writes each call to FILE before it is made, so that it is there if the
process dies; prints what came as another exception than a sentence about the arguments.
"""

import random
import sys
import traceback
import warnings

import actnn  # noqa: F401
import torch
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from test_opcheck import GROUP, SAMPLES

ops = torch.ops.actnn
PROGRAM = '{"program": {"inputs": 1, "steps": [{"op": "activation", "inputs": [0], "kind": "gelu"}], "results": [1]}}'
MORE = {
    "adaptive_avg_pool2d": [lambda: (torch.randn(2, 3, 8, 8), [2, 3])],
    "adaptive_avg_pool3d": [lambda: (torch.randn(2, 3, 8, 8, 8), [2, 3, 1])],
    "avg_pool2d": [lambda: (torch.randn(2, 3, 8, 8), [2, 2], [2, 2], [1, 1], True, True, None)],
    "avg_pool3d": [lambda: (torch.randn(2, 3, 8, 8, 8), [2, 2, 2], [2, 2, 2], [1, 1, 1], True, True, None)],
    "dropout": [lambda: (torch.randn(5, 7), 0.3, torch.tensor([1, 0]))],
    "dropout_": [lambda: (torch.randn(5, 7), 0.3, torch.tensor([1, 0]))],
    "relu": [lambda: (torch.randn(5, 7),)],
    "relu_": [lambda: (torch.randn(5, 7),)],
    "max_pool2d": [lambda: (torch.randn(2, 3, 8, 8), [2, 2], [2, 2], [1, 1], [1, 1], True)],
    "max_pool2d_with_indices": [lambda: (torch.randn(2, 3, 8, 8), [2, 2], [2, 2], [1, 1], [1, 1], True)],
    "release_cache": [lambda: (torch.device("cpu"), 0.5)],
    "allocator_setting": [lambda: ("L5",)],
    "config_flags": [lambda: ()],
    "describe_program": [lambda: (PROGRAM,)],
    "program_steps": [lambda: ()],
    "format_version": [lambda: ()],
    "level_names": [lambda: ()],
}
DTYPES = [torch.float32, torch.float16, torch.bfloat16, torch.float64, torch.uint8, torch.int32, torch.int64,
          torch.bool, torch.complex64]  # fmt: skip
# Sizes that are refused at once, or cheap: nothing in between.
INTEGERS = st.one_of(st.integers(-3, 40), st.sampled_from([64, 256, 2**31, -(2**31) - 1, 2**62, 2**63 - 1, -(2**63)]))
SMALL = st.integers(-2, 9)
FLOATS = st.one_of(st.floats(), st.sampled_from([0.0, 1.0, -1.0, 0.5, 1e300]))
ALLOWED = (ValueError, TypeError, RuntimeError, IndexError)  # NotImplementedError is a RuntimeError
INTERNAL = ("INTERNAL ASSERT", "vector::", "basic_string", "bad_alloc", "std::", "stoi")


def tensor(draw, original):
    """Another tensor in the place of this one."""
    shape = st.lists(st.integers(0, 5), max_size=5)
    kind = draw(st.sampled_from(["dtype", "shape", "meta", "strided", "values", "empty", "none", "both", "sparse"]))
    usable = isinstance(original, torch.Tensor) and original.layout == torch.strided and original.device.type == "cpu"
    base = original.detach() if usable else torch.randn(3, 4)
    if kind == "dtype":
        return base.to(draw(st.sampled_from(DTYPES)))
    if kind == "shape":
        return torch.ones(draw(shape)).to(base.dtype)
    if kind == "meta":
        return base.to("meta")
    if kind == "strided":
        return base.repeat_interleave(2, dim=-1)[..., ::2] if base.dim() else base.expand(2)
    if kind == "values":
        return torch.randint(0, 256, base.shape).to(base.dtype)
    if kind == "empty":
        return base.new_empty(0)
    if kind == "both":
        return torch.ones(draw(shape)).to(draw(st.sampled_from(DTYPES))).requires_grad_(False)
    if kind == "sparse":
        return base.to_sparse() if base.dim() else base
    return None


def wrong(draw, value, type_name):
    """Another argument of the type that the schema has."""
    if "Tensor" in type_name:
        return tensor(draw, value)
    if "List[int]" in type_name or "List[SymInt]" in type_name or "[]" in type_name:
        return draw(st.lists(st.one_of(SMALL, st.sampled_from([2**31, 2**62, -(2**63)])), max_size=6))
    if type_name.startswith("Optional") and draw(st.booleans()):
        return None
    if "bool" in type_name:
        return draw(st.booleans())
    if "float" in type_name:
        return draw(FLOATS)
    if "str" in type_name:
        return draw(st.sampled_from(["", "tanh", "none", "L3", GROUP, "x" * 100]))
    if "Device" in type_name:
        return torch.device(draw(st.sampled_from(["cpu", "meta", "cuda:7"])))
    if isinstance(value, torch.dtype):
        return draw(st.sampled_from(DTYPES))
    return draw(INTEGERS)


def describe(value):
    if isinstance(value, torch.Tensor):
        return f"<{value.dtype} {list(value.shape)} {value.layout} {value.device} {value.requires_grad}>"
    return repr(value)


def call(name, arguments):
    """None, or what is wrong with the exception that came."""
    try:
        result = getattr(ops, name)(*arguments)
        outputs = [r for r in (result if isinstance(result, tuple) else [result]) if isinstance(r, torch.Tensor)]
        if outputs and outputs[0].requires_grad and outputs[0].device.type != "meta":
            outputs[0].float().sum().backward()
    except ALLOWED as error:
        if not str(error).strip() or any(word in str(error) for word in INTERNAL):
            return f"{type(error).__name__}: {str(error).splitlines()[:2]}"
    except BaseException:
        return traceback.format_exc(limit=1)
    return None


def fuzz(name, samples, log, examples):
    schema = getattr(ops, name).default._schema
    found = []

    @settings(
        max_examples=examples, derandomize=True, deadline=None, database=None, phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )  # fmt: skip
    @given(st.data())
    def run(data):
        draw = data.draw
        torch.manual_seed(0)
        arguments = list(draw(st.sampled_from(samples))())
        if arguments:
            for _ in range(draw(st.integers(1, 2))):
                # Arguments that the sample left to their defaults too.
                i = draw(st.integers(0, len(schema.arguments) - 1))
                arguments += [argument.default_value for argument in schema.arguments[len(arguments) : i + 1]]
                arguments[i] = wrong(draw, arguments[i], str(schema.arguments[i].type))
        text = f"{name}({', '.join(map(describe, arguments))})"
        log.seek(0)
        log.write(text + "\n")
        log.truncate()
        log.flush()
        if problem := call(name, arguments):
            found.append(f"{text}\n    {problem}")

    run()
    return found


def main(path, examples, *names):
    warnings.simplefilter("ignore")
    random.seed(0)
    torch.set_num_threads(1)
    cases = SAMPLES | MORE
    found = []
    with open(path, "w", encoding="utf-8") as log:
        for name in names or sorted(cases):
            found += fuzz(name, cases[name], log, int(examples))
    for problem in found:
        print(problem)


if __name__ == "__main__":
    main(*sys.argv[1:])
