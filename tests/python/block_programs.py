"""Programs of blocks: their steps, parameters and buffers, and what torch's functions make of them."""

import json

import reference_programs
import torch

ops = torch.ops.actnn


def only(results):
    return results[0] if len(results) == 1 else results


class Program:
    """Collects steps with their parameters and buffers. Each method returns the number of the value that it makes, or
    of the first one."""

    def __init__(self, inputs=1, dtype=torch.float32, integers=0):
        self.inputs, self.dtype, self.integers = inputs, dtype, integers
        self.steps, self.parameters, self.buffers = [], [], []
        self.values, self.results = inputs, None

    def step(self, op, *inputs, outputs=1, **fields):
        self.steps.append({"op": op, "inputs": list(inputs), **fields})
        self.values += outputs
        return self.values - outputs

    def parameter(self, *shape, low=-0.5, high=0.5):
        tensor = torch.empty(*shape, dtype=self.dtype).uniform_(low, high).requires_grad_()
        self.parameters.append(tensor)
        return len(self.parameters) - 1

    def affine(self, channels):
        return {"weight": self.parameter(channels, low=-1.0, high=1.5), "bias": self.parameter(channels)}

    def convolution(
        self, value, channels, out, size=1, stride=1, padding=None, groups=1, bias=False, dilation=1, dims=2,
        transposed=False,
    ):  # fmt: skip
        weight = (channels, out // groups) if transposed else (out, channels // groups)
        padding = size // 2 if padding is None else padding
        return self.step("convolution", value, weight=self.parameter(*weight, *[size] * dims), stride=[stride] * dims,
                         bias=self.parameter(out) if bias else None, padding=[padding] * dims,
                         dilation=[dilation] * dims, groups=groups, transposed=transposed,
                         output_padding=[0] * dims if transposed else [])  # fmt: skip

    def linear(self, value, features, out, bias=True):
        return self.step("linear", value, weight=self.parameter(out, features),
                         bias=self.parameter(out) if bias else None)  # fmt: skip

    def batch_norm(self, value, channels, momentum=0.1, affine=True, running=True):
        fields = self.affine(channels) if affine else {"weight": None, "bias": None}
        names = ("running_mean", "running_var", "num_batches_tracked")
        if running:
            self.buffers += [torch.zeros(channels, dtype=self.dtype), torch.ones(channels, dtype=self.dtype),
                             torch.tensor(0)]  # fmt: skip
        places = range(len(self.buffers) - 3, len(self.buffers)) if running else [None] * 3
        return self.step("batch_norm", value, **fields, **dict(zip(names, places, strict=True)), training=True,
                         momentum=momentum, eps=1e-5)  # fmt: skip

    def layer_norm(self, value, features):
        return self.step("layer_norm", value, **self.affine(features), dimensions=1, eps=1e-5)

    def activation(self, value, kind="relu", slope=0.01):
        return self.step("activation", value, kind=kind, slope=slope)

    def add(self, first, second):
        return self.step("add", first, second)

    def max_pool(self, value, size=3, stride=2, padding=1):
        return self.step("max_pool", value, kernel_size=[size] * 2, stride=[stride] * 2, padding=[padding] * 2,
                         dilation=[1, 1], ceil_mode=False)  # fmt: skip

    def json(self, training=True):
        """`training`: of the batch norms."""
        steps = [{**step, "training": training} if "training" in step else step for step in self.steps]
        return {"inputs": self.inputs, "integers": self.integers, "steps": steps,
                "results": self.results or [self.values - 1]}  # fmt: skip

    def text(self, training=True, imports=(), exports=(), **options):
        return json.dumps(
            {"program": self.json(training), "options": options, "imports": list(imports), "exports": list(exports)}
        )

    def description(self, **options):
        return json.loads(ops.describe_program(self.text(**options)))

    def run(self, *inputs, buffers=None, integers=(), copies=(), **options):
        """The result; a list where there are several, or copies are exported."""
        buffers = self.buffers if buffers is None else buffers
        return only(
            ops.run_program(self.text(**options), list(inputs), self.parameters, buffers, list(copies), list(integers))
        )

    def expected(self, *inputs, training=True, buffers=None, integers=(), dtype=None):
        """The result of torch's functions; `dtype`: of all values, where it is not the inputs'."""
        inputs = [x.to(dtype) if dtype and x.is_floating_point() else x for x in inputs]
        names = [str(x.dtype) for x in inputs]
        dtypes = names + [str(dtype or inputs[0].dtype)] * (self.values - self.inputs)
        program = {**self.json(training), "dtypes": [name.removeprefix("torch.") for name in dtypes]}
        buffers = self.buffers if buffers is None else buffers
        with torch.autocast(inputs[0].device.type, enabled=False):
            return only(
                reference_programs.run_program(
                    json.dumps({"program": program}), inputs, self.parameters, buffers, [], list(integers)
                )
            )


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


def squeeze_and_excitation(channels=8, hidden=24, squeezed=4):
    """An inverted residual block of EfficientNet."""
    p = Program()
    y = p.activation(p.batch_norm(p.convolution(0, channels, hidden), hidden), "silu")
    y = p.activation(p.batch_norm(p.convolution(y, hidden, hidden, 3, groups=hidden), hidden), "silu")
    gate = p.step("mean", y, dimensions=[2, 3], keepdim=True)
    gate = p.activation(p.convolution(gate, hidden, squeezed, bias=True), "silu")
    gate = p.activation(p.convolution(gate, squeezed, hidden, bias=True), "sigmoid")
    y = p.convolution(p.step("multiply", y, gate), hidden, channels)
    p.add(p.batch_norm(y, channels), 0)
    return p


def dense_layer(channels=24):
    """Norms in front of the convolutions."""
    p = Program()
    y = p.activation(p.batch_norm(0, channels))
    y = p.activation(p.batch_norm(p.convolution(y, channels, 16), 16), "leaky_relu", 0.2)
    p.convolution(y, 16, 8, 3)
    return p


def dense_block(channels=8, growth=4, layers=3):
    """Convolutions that read all that was made before them, side by side."""
    p = Program()
    parts = [0]
    for layer in range(layers):
        together = p.step("concatenate", *parts, dimension=1)
        y = p.convolution(together, channels + layer * growth, growth, 3)
        parts.append(p.activation(p.batch_norm(y, growth)))
    p.step("concatenate", *parts, dimension=1)
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


def attention_half(features=16, heads=4, length=10, dropout=None, integers=0):
    """The first half of a transformer's layer. With an integer, the number of samples comes from outside."""
    p = Program(integers=integers)
    samples, width = {"integer": 0} if integers else -1, features // heads
    qkv = p.linear(p.layer_norm(0, features), features, 3 * features)
    qkv = p.step("reshape", qkv, sizes=[samples, length, 3, heads, width])
    q = p.step("unbind", p.step("permute", qkv, dimensions=[2, 0, 3, 1, 4]), count=3, dimension=0, outputs=3)
    y = p.step("attention", q, q + 1, q + 2, probability=0.0, causal=True, scale=None, grouped=False)
    y = p.step("permute", y, dimensions=[0, 2, 1, 3])
    y = p.linear(p.step("reshape", y, sizes=[samples, length, features]), features, features)
    if dropout is not None:
        y = p.step("dropout", y, probability=dropout)
    p.add(0, y)
    return p


def window_half(features=16, heads=4, length=10):
    """The first half of Swin's layer: shifted windows, each with its own part of the second input, a learned mask."""
    p = Program(inputs=2)
    width = features // heads
    x = p.step("roll", p.layer_norm(0, features), shifts=[-3], dimensions=[1])
    qkv = p.step("reshape", p.linear(x, features, 3 * features), sizes=[-1, length, 3, heads, width])
    q = p.step("unbind", p.step("permute", qkv, dimensions=[2, 0, 3, 1, 4]), count=3, dimension=0, outputs=3)
    y = p.step("attention", q, q + 1, q + 2, 1, mask_repeats=True)
    y = p.step("reshape", p.step("permute", y, dimensions=[0, 2, 1, 3]), sizes=[-1, length, features])
    p.add(0, p.step("roll", p.linear(y, features, features), shifts=[3], dimensions=[1]))
    return p


def gated_half(features=16, hidden=24):
    """The second half of a LLaMA's layer."""
    p = Program()
    x = p.step("rms_norm", 0, weight=p.parameter(features), dimensions=1, eps=1e-6)
    gate = p.activation(p.linear(x, features, hidden, bias=False), "silu")
    p.add(0, p.linear(p.step("multiply", gate, p.linear(x, features, hidden, bias=False)), hidden, features))
    return p


def u_net(channels=8):
    """Down, up, and side by side with what was there before; two results."""
    p = Program()
    x = p.convolution(0, 3, channels, 3, bias=True)
    x = p.activation(p.step("group_norm", x, **p.affine(channels), groups=2, eps=1e-5), "gelu")
    low = p.convolution(p.max_pool(x), channels, channels, 3)
    up = p.convolution(low, channels, channels, 2, 2, padding=0, transposed=True)
    wide = p.step("upsample", low, mode="nearest", size=None, scale_factors=[2.0, 2.0], align_corners=False)
    y = p.convolution(p.step("concatenate", x, up, wide, dimension=1), 3 * channels, 4)
    p.results = [y, low]
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
"""With batch norms, and nothing else that mixes samples."""

OTHERS = {
    "squeeze and excitation": (squeeze_and_excitation, [(4, 8, 7, 7)]),
    "dense block": (dense_block, [(4, 8, 6, 6)]),
    "attention": (attention_half, [(3, 10, 16)]),
    "windows": (window_half, [(6, 10, 16), (3, 4, 10, 10)]),
    "gated": (gated_half, [(3, 5, 16)]),
    "U-Net": (u_net, [(2, 3, 8, 8)]),
}
