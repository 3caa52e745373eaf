"""Programs under torch.compile, and on tensors without memory."""

import copy
import json

import pytest
import torch
from block_programs import (
    Program,
    attention_half,
    basic_block,
    dense_block,
    gated_half,
    squeeze_and_excitation,
    u_net,
)
from test_block import gradients, in_list, relative_error

ops = torch.ops.actnn

TO_NEAREST = {"rounding": "nearest", "bits": 8, "output_bits": 8, "smooth_bits": 8, "norm_bits": 8}
BUILDS = {
    "residual block": (basic_block, (4, 8, 6, 6)),
    "squeeze and excitation": (squeeze_and_excitation, (4, 8, 6, 6)),
    "attention": (lambda: attention_half(dropout=0.0), (3, 10, 16)),
    "gated": (gated_half, (3, 5, 16)),
    "dense block": (dense_block, (2, 8, 6, 6)),
    "U-Net": (u_net, (2, 3, 8, 8)),
}
EVERY_BUILD = pytest.mark.parametrize("name", BUILDS)


class Block(torch.nn.Module):
    """A program, and exact steps before and after it."""

    def __init__(self, program, **options):
        super().__init__()
        self.text = program.text(**options)
        self.weights = torch.nn.ParameterList(program.parameters)
        self.buffer_names = []
        for place, buffer in enumerate(program.buffers):
            self.register_buffer(f"buffer{place}", buffer)
            self.buffer_names.append(f"buffer{place}")

    def forward(self, x, *integers):
        buffers = [getattr(self, name) for name in self.buffer_names]
        results = ops.run_program(self.text, [x * 1.5], list(self.weights), buffers, [], list(integers))
        return [y + 0.5 for y in results]


def make(name, **options):
    build, shape = BUILDS[name]
    program = build()
    return Block(program, **{**TO_NEAREST, **options}), torch.randn(shape, requires_grad=True)


def outcome(module, call, *inputs):
    results = call(*inputs)
    found = gradients(results, [inputs[0], *module.parameters()])
    return [*(y.detach() for y in results), *found, *(b.clone() for b in module.buffers())]


def assert_compiled_is_eager(module, *inputs, backend, dynamic=None, steps=2):
    eager = copy.deepcopy(module)
    compiled = torch.compile(module, fullgraph=True, backend=backend, dynamic=dynamic)
    for _ in range(steps):
        for a, w in zip(outcome(module, compiled, *inputs), outcome(eager, eager, *inputs), strict=True):
            torch.testing.assert_close(a, w, rtol=1e-4, atol=1e-4)


@pytest.fixture(autouse=True)
def fresh_dynamo():
    torch._dynamo.reset()


@EVERY_BUILD
def test_compiled_programs_give_the_gradients_of_eager_ones(name):
    module, x = make(name)
    assert_compiled_is_eager(module, x, backend="aot_eager")


@pytest.mark.parametrize("name", ["residual block"])
def test_inductor(name):
    module, x = make(name)
    assert_compiled_is_eager(module, x, backend="inductor")


def test_evaluation_and_frozen_parts():
    program = basic_block()
    module, x = Block(program, training=False, **TO_NEAREST), torch.randn(4, 8, 6, 6, requires_grad=True)
    with torch.no_grad():
        expected = module(x)[0]
        torch.testing.assert_close(torch.compile(module, fullgraph=True, backend="aot_eager")(x)[0], expected)
    for parameter in list(module.parameters())[1:]:
        parameter.requires_grad_(False)
    y = torch.compile(module, fullgraph=True, backend="aot_eager")(x)[0]
    wanted = [x, module.weights[0]]
    for a, w in zip(gradients(y, wanted), gradients(module(x), wanted), strict=True):
        torch.testing.assert_close(a, w)


def test_autocast():
    module, x = make("residual block")
    expected = []
    for call in (module, torch.compile(module, fullgraph=True, backend="aot_eager")):
        with torch.autocast("cpu", torch.bfloat16):
            y = call(x)
        assert y[0].dtype == torch.bfloat16
        expected.append(gradients(y, [x, *module.parameters()]))
    for a, w in zip(*expected, strict=True):
        assert a.dtype == torch.float32 and relative_error(a, w) < 0.02


def test_sizes_that_change_take_one_more_compilation():
    program = attention_half(dropout=0.0, integers=1)
    module = Block(program, **TO_NEAREST)
    graphs = []

    def backend(graph, inputs):
        graphs.append(graph)
        return aot_eager(graph, inputs)

    aot_eager = torch._dynamo.lookup_backend("aot_eager")
    call = torch.compile(lambda x: module(x, x.shape[0]), fullgraph=True, backend=backend)
    for samples in (7, 9, 12, 8):  # 64 rows or more: columns
        x = torch.randn(samples, 10, 16, requires_grad=True)
        wanted = [x, *module.parameters()]
        for a, w in zip(gradients(call(x), wanted), gradients(module(x, samples), wanted), strict=True):
            torch.testing.assert_close(a, w)
    assert len(graphs) == 2


@pytest.mark.parametrize("name", ["residual block", "squeeze and excitation", "dense block", "U-Net", "gated"])
def test_image_sizes_that_change_take_one_compilation(name):
    module, x = make(name)
    call = torch.compile(module, fullgraph=True, backend="aot_eager", dynamic=True)
    fixed, many = (1, 3) if name != "gated" else (2, 2)  # dimensions
    for i, sizes in enumerate(((6, 12, 16), (7, 16, 12), (8, 20, 24))):
        shape = [*sizes[:1], x.shape[1], *sizes[1:]] if fixed == 1 else [*sizes[:many], x.shape[2]]
        x = torch.randn(shape, requires_grad=True)
        wanted = [x, *module.parameters()]
        with torch._dynamo.config.patch(error_on_recompile=i > 0):
            found = gradients(call(x), wanted)
        for a, w in zip(found, gradients(module(x), wanted), strict=True):
            torch.testing.assert_close(a, w, rtol=1e-4, atol=1e-4)


def test_noise_is_drawn_anew_at_each_call():
    module, x = make("residual block", rounding="dithered", bits=2)
    call = torch.compile(module, fullgraph=True, backend="aot_eager")
    first, second = (torch.autograd.grad(call(x)[0].square().sum(), x)[0] for _ in range(2))
    assert not torch.equal(first, second) and relative_error(first, second) < 1


def test_dropout_in_a_compiled_program():
    program = Program()
    program.step("dropout", 0, probability=0.4)
    module, x = Block(program), torch.ones(50, 40, requires_grad=True)
    y = torch.compile(module, fullgraph=True, backend="aot_eager")(x)[0]
    (gradient,) = torch.autograd.grad(y.sum(), x)
    torch.testing.assert_close(gradient, y.detach() - 0.5)
    assert abs(float((gradient == 0).double().mean()) - 0.4) < 0.06


def test_exports_and_imports_between_compiled_programs():
    first, second = basic_block(), basic_block()
    plan = json.loads(ops.describe_program(first.text(**TO_NEAREST)))["copies"]["7"]
    texts = (first.text(exports=[7], **TO_NEAREST),
             second.text(imports=[{"input": 0, "copy": plan["copy"]}], **TO_NEAREST))  # fmt: skip

    def run(x):
        between, *copies = ops.run_program(texts[0], [x], first.parameters, first.buffers, [], [])
        return ops.run_program(texts[1], [between], second.parameters, second.buffers, copies, [])

    x = torch.randn(4, 8, 6, 6, requires_grad=True)
    wanted = [x, *first.parameters, *second.parameters]
    compiled = torch.compile(run, fullgraph=True, backend="aot_eager")
    for a, w in zip(gradients(compiled(x), wanted), gradients(run(x), wanted), strict=True):
        torch.testing.assert_close(a, w)


def test_meta_tensors_have_the_shapes():
    for build, shape in BUILDS.values():
        program = build()
        expected = in_list(program.run(torch.randn(shape)))
        found = ops.run_program(program.text(), [torch.empty(shape, device="meta")],
                                [p.detach().to("meta") for p in program.parameters],
                                [b.to("meta") for b in program.buffers], [], [])  # fmt: skip
        for a, w in zip(found, expected, strict=True):
            assert (a.shape, a.stride(), a.dtype) == (w.shape, w.stride(), w.dtype)
