"""Programs of blocks, and what they mean: each step as torch computes it."""

import json

import torch
import torch.nn.functional as F  # noqa: N812


class Program:
    """Collects steps with their parameters and buffers. Each method returns the number of the value that it makes."""

    def __init__(self, inputs=1, dtype=torch.float32):
        self.inputs, self.dtype = inputs, dtype
        self.steps, self.parameters, self.buffers = [], [], []

    def _append(self, **step):
        self.steps.append(step)
        return self.inputs + len(self.steps) - 1

    def _place(self, tensors, tensor):
        tensors.append(tensor)
        return len(tensors) - 1

    def parameter(self, *shape, low=-0.5, high=0.5):
        tensor = torch.empty(*shape, dtype=self.dtype).uniform_(low, high).requires_grad_()
        return self._place(self.parameters, tensor)

    def convolution(
        self, value, channels, out, size=1, stride=1, padding=None, groups=1, bias=False, dilation=1, dims=2
    ):
        weight = self.parameter(out, channels // groups, *[size] * dims)
        padding = size // 2 if padding is None else padding
        return self._append(op="convolution", inputs=[value], stride=[stride] * dims, padding=[padding] * dims,
                            parameters=[weight, self.parameter(out) if bias else None], dilation=[dilation] * dims,
                            groups=groups)  # fmt: skip

    def batch_norm(self, value, channels, momentum=0.1, affine=True, running=True):
        parameters = (
            [self.parameter(channels, low=-1.0, high=1.5), self.parameter(channels)] if affine else [None, None]
        )
        tensors = (
            [torch.zeros(channels, dtype=self.dtype), torch.ones(channels, dtype=self.dtype), torch.tensor(0)]
            if running
            else []
        )
        buffers = [self._place(self.buffers, tensor) for tensor in tensors]
        return self._append(op="batch_norm", inputs=[value], parameters=parameters, buffers=buffers,
                            momentum=momentum, eps=1e-5)  # fmt: skip

    def activation(self, value, kind="relu", slope=0.01):
        return self._append(op="activation", inputs=[value], kind=kind, slope=slope)

    def add(self, first, second):
        return self._append(op="add", inputs=[first, second])

    def max_pool(self, value, size=3, stride=2, padding=1):
        return self._append(op="max_pool", inputs=[value], kernel_size=[size] * 2, stride=[stride] * 2,
                            padding=[padding] * 2, dilation=[1, 1], ceil_mode=False)  # fmt: skip

    def json(self):
        return json.dumps({"inputs": self.inputs, "steps": self.steps})

    def norms(self):
        return sum(step["op"] == "batch_norm" for step in self.steps)

    def block(self, **options):
        return torch.classes.actnn.Block(self.json(), json.dumps(options))

    def run(self, block, *inputs, batch_statistics=True, buffers=None):
        buffers = self.buffers if buffers is None else buffers
        return block.run(list(inputs), self.parameters, buffers, [batch_statistics] * self.norms())

    def expected(self, *inputs, batch_statistics=True, buffers=None):
        """The result of torch's own functions."""
        buffers = self.buffers if buffers is None else buffers
        values = list(inputs)
        for step in self.steps:
            values.append(self._step(step, [values[i] for i in step["inputs"]], batch_statistics, buffers))
        return values[-1]

    def _step(self, step, inputs, batch_statistics, buffers):
        x = inputs[0]
        parameters = [None if place is None else self.parameters[place] for place in step.get("parameters", [])]
        match step["op"]:
            case "convolution":
                convolve = (F.conv1d, F.conv2d, F.conv3d)[x.dim() - 3]
                return convolve(x, *parameters, step["stride"], step["padding"], step["dilation"], step["groups"])
            case "batch_norm":
                running = [buffers[place] for place in step["buffers"]] or [None] * 3
                momentum = step["momentum"]
                if batch_statistics and running[2] is not None:
                    running[2].add_(1)
                    momentum = 1 / float(running[2]) if momentum is None else momentum
                return F.batch_norm(x, *running[:2], *parameters, batch_statistics, momentum or 0.0, step["eps"])
            case "activation":
                kinds = {"relu": F.relu, "relu6": F.relu6, "silu": F.silu, "hardswish": F.hardswish}
                kinds["leaky_relu"] = lambda z: F.leaky_relu(z, step["slope"])
                return kinds[step["kind"]](x)
            case "add":
                return inputs[0] + inputs[1]
            case "max_pool":
                return F.max_pool2d(x, *(step[key] for key in ("kernel_size", "stride", "padding", "dilation")))


def bottleneck(channels=16, width=8, stride=1, dtype=torch.float32):
    """1x1, 3x3, 1x1 with batch norms; the shortcut has a convolution where the shape changes."""
    p = Program(dtype=dtype)
    out = 4 * width
    y = p.activation(p.batch_norm(p.convolution(0, channels, width), width))
    y = p.activation(p.batch_norm(p.convolution(y, width, width, 3, stride), width))
    y = p.batch_norm(p.convolution(y, width, out), out)
    shortcut = 0
    if stride != 1 or channels != out:
        shortcut = p.batch_norm(p.convolution(0, channels, out, 1, stride), out)
    p.activation(p.add(y, shortcut))
    return p


def basic_block(channels=8, dtype=torch.float32, kind="relu"):
    p = Program(dtype=dtype)
    y = p.activation(p.batch_norm(p.convolution(0, channels, channels, 3), channels), kind)
    y = p.batch_norm(p.convolution(y, channels, channels, 3), channels)
    p.activation(p.add(0, y), kind)
    return p


def stem(kind="relu"):
    p = Program()
    p.max_pool(p.activation(p.batch_norm(p.convolution(0, 3, 16, 7, 2, bias=True), 16), kind))
    return p


def inverted_residual(channels=8, hidden=24, kind="relu6"):
    p = Program()
    y = p.activation(p.batch_norm(p.convolution(0, channels, hidden), hidden), kind)
    y = p.activation(p.batch_norm(p.convolution(y, hidden, hidden, 3, groups=hidden), hidden), kind)
    p.add(0, p.batch_norm(p.convolution(y, hidden, channels), channels))
    return p


def dense_layer(channels=24):
    """Norms in front of the convolutions."""
    p = Program()
    y = p.activation(p.batch_norm(0, channels))
    y = p.activation(p.batch_norm(p.convolution(y, channels, 16), 16), "leaky_relu", 0.2)
    p.convolution(y, 16, 8, 3)
    return p


def chain_1d():
    p = Program()
    y = p.activation(p.batch_norm(p.convolution(0, 6, 12, 3, dims=1), 12, momentum=None), "silu")
    y = p.batch_norm(p.convolution(y, 12, 12, 3, dims=1, groups=3, dilation=2, padding=2), 12, affine=False)
    p.activation(y, "leaky_relu", -0.5)
    return p


def two_inputs():
    """A sum in front of a norm, a value that is read twice, a norm without running statistics."""
    p = Program(inputs=2)
    z = p.add(0, 1)
    y = p.activation(p.batch_norm(p.convolution(z, 8, 8, 3), 8, running=False))
    p.activation(p.add(p.add(y, z), p.convolution(y, 8, 8)))
    return p


PROGRAMS = {
    "bottleneck": (bottleneck, [(4, 16, 7, 7)]),
    "identity bottleneck": (lambda: bottleneck(32), [(4, 32, 6, 5)]),
    "strided bottleneck": (lambda: bottleneck(stride=2), [(4, 16, 8, 8)]),
    "basic block": (basic_block, [(4, 8, 7, 6)]),
    "basic block with ReLU6": (lambda: basic_block(kind="relu6"), [(4, 8, 7, 6)]),
    "basic block with SiLU": (lambda: basic_block(kind="silu"), [(4, 8, 7, 6)]),
    "basic block with hardswish": (lambda: basic_block(kind="hardswish"), [(4, 8, 7, 6)]),
    "stem": (stem, [(4, 3, 20, 20)]),
    "stem with SiLU": (lambda: stem("silu"), [(4, 3, 20, 20)]),
    "inverted residual": (inverted_residual, [(4, 8, 7, 7)]),
    "inverted residual with hardswish": (lambda: inverted_residual(kind="hardswish"), [(4, 8, 7, 7)]),
    "inverted residual with SiLU": (lambda: inverted_residual(kind="silu"), [(4, 8, 7, 7)]),
    "dense layer": (dense_layer, [(4, 24, 6, 6)]),
    "1-D": (chain_1d, [(8, 6, 21)]),
    "two inputs": (two_inputs, [(4, 8, 6, 6), (4, 8, 6, 6)]),
}
