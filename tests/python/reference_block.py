"""A reference of what runs a block's program: the same steps with torch's functions, which keep everything exact."""

import torch.nn.functional as F  # noqa: N812

ACTIVATIONS = {"relu": F.relu, "relu6": F.relu6, "silu": F.silu, "hardswish": F.hardswish}


class ReferenceBlock:
    """Has the methods of `torch.classes.actnn.Block`."""

    runs = 0
    """Of all blocks, since a test set it."""

    def __init__(self, program, options):
        self.program, self.options = program, options

    def plan(self):
        return "[]"

    def run(self, inputs, parameters, buffers, batch_statistics):
        assert len(inputs) == self.program["inputs"]
        ReferenceBlock.runs += 1
        values, statistics = list(inputs), iter(batch_statistics)
        for step in self.program["steps"]:
            operands = [values[i] for i in step["inputs"]]
            tensors = [None if i is None else parameters[i] for i in step.get("parameters", [])]
            if step["op"] == "convolution":
                values.append(convolution(step, *operands, *tensors))
            elif step["op"] == "batch_norm":
                own = [None if i is None else buffers[i] for i in step["buffers"]]
                values.append(batch_norm(step, *operands, *tensors, *own, next(statistics)))
            elif step["op"] == "activation":
                values.append(activation(step, *operands))
            elif step["op"] == "add":
                values.append((operands[0] + operands[1]).to(operands[0].dtype if step.get("in_place") else None))
            elif step["op"] == "max_pool":
                window = [step[name] for name in ("kernel_size", "stride", "padding", "dilation", "ceil_mode")]
                values.append(F.max_pool2d(*operands, *window))
            else:
                raise ValueError(f"no such step: {step}")
        assert next(statistics, None) is None
        return values[self.program["output"]]


def convolution(step, x, weight, bias):
    function = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}[len(step["stride"])]
    return function(x, weight, bias, step["stride"], step["padding"], step["dilation"], step["groups"])


def batch_norm(step, x, weight, bias, mean, variance, count, batch_statistics):
    momentum = step["momentum"] or 0.0
    if batch_statistics and count is not None:
        count.add_(1)
        if step["momentum"] is None:
            momentum = 1.0 / float(count)
    return F.batch_norm(x, mean, variance, weight, bias, batch_statistics, momentum, step["eps"])


def activation(step, x):
    return F.leaky_relu(x, step["slope"]) if step["kind"] == "leaky_relu" else ACTIVATIONS[step["kind"]](x)
