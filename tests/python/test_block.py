"""Blocks: the results of torch's layers, unbiased gradients, what is kept, what else a node of autograd must do."""

import json

import pytest
import torch
from block_programs import PROGRAMS, Program, basic_block, bottleneck, inverted_residual, stem
from torch.utils.checkpoint import checkpoint

pytestmark = pytest.mark.usefixtures("device")

EVERY_PROGRAM = pytest.mark.parametrize("name", PROGRAMS)


def make(name):
    """(program, inputs that want gradients)"""
    build, shapes = PROGRAMS[name]
    program = build()
    return program, [torch.randn(shape).requires_grad_() for shape in shapes]


def clones(tensors):
    return [tensor.clone() for tensor in tensors]


def gradients(y, tensors):
    """For a loss that weighs elements differently."""
    torch.manual_seed(7)
    return torch.autograd.grad(y, tensors, torch.randn(y.shape, dtype=torch.float64).to(y))


def relative_error(actual, expected):
    return float((actual.double() - expected.double()).norm() / expected.double().norm().clamp_min(1e-3))


@EVERY_PROGRAM
@pytest.mark.parametrize("batch_statistics", [True, False])
@pytest.mark.parametrize("recompute", [True, False])
def test_results_and_running_statistics_are_torchs(name, batch_statistics, recompute):
    program, inputs = make(name)
    if not batch_statistics and any(step.get("buffers") == [] for step in program.steps):
        pytest.skip("a norm without running statistics always takes those of the batch")
    buffers = clones(program.buffers)
    block = program.block(recompute=recompute)
    for _ in range(2):
        y = program.run(block, *inputs, batch_statistics=batch_statistics)
        expected = program.expected(*inputs, batch_statistics=batch_statistics, buffers=buffers)
        torch.testing.assert_close(y, expected, rtol=1e-4, atol=1e-4)
        for actual, wanted in zip(program.buffers, buffers, strict=True):
            torch.testing.assert_close(actual, wanted, rtol=1e-5, atol=1e-6)
    with torch.no_grad():
        again = program.run(block, *inputs, batch_statistics=batch_statistics)
    torch.testing.assert_close(again, y.detach(), rtol=1e-5, atol=1e-5)
    assert not again.requires_grad


@EVERY_PROGRAM
@pytest.mark.parametrize("batch_statistics", [True, False])
@pytest.mark.parametrize("recompute", [True, False])
def test_gradients_of_many_draws_are_torchs(name, batch_statistics, recompute):
    program, inputs = make(name)
    if not batch_statistics and any(step.get("buffers") == [] for step in program.steps):
        pytest.skip("a norm without running statistics always takes those of the batch")
    block = program.block(bits=8, output_bits=8, recompute=recompute, norm_bits=7)
    tensors = [*inputs, *program.parameters]
    expected = gradients(program.expected(*inputs, batch_statistics=batch_statistics), tensors)
    draws = 32
    drawn = []
    for seed in range(draws):
        torch.manual_seed(seed)
        y = program.run(block, *inputs, batch_statistics=batch_statistics)
        drawn.append(gradients(y, tensors))
    largest = max(float(g.norm()) for g in expected)
    for tensor, *all_drawn, wanted in zip(tensors, *drawn, expected, strict=True):
        assert all_drawn[0].shape == tensor.shape
        stack = torch.stack(all_drawn).double()
        noise = float(stack.var(0).sum().sqrt())
        assert noise < 0.6 * float(wanted.norm()) + 1e-3 * largest
        # A convolution's bias in front of a norm has gradient 0.
        error = float((stack.mean(0) - wanted).norm())
        assert error < 2 * noise / draws**0.5 + 1e-3 * float(wanted.norm()) + 1e-3 * largest


@pytest.mark.parametrize(("name", "bits"), [
    ("identity bottleneck", 4), ("bottleneck", 3), ("inverted residual", 4), ("inverted residual with hardswish", 4),
    ("inverted residual with SiLU", 3), ("basic block with ReLU6", 4), ("basic block with SiLU", 4),
])  # fmt: skip
@pytest.mark.parametrize("recompute", [True, False])
def test_gradients_are_unbiased(name, bits, recompute):
    program, inputs = make(name)
    block = program.block(bits=bits, output_bits=3, recompute=recompute)
    tensors = [*inputs, *program.parameters]
    expected = torch.cat([g.flatten() for g in gradients(program.expected(*inputs), tensors)]).double()
    draws = 300
    projections = []
    for seed in range(draws):
        torch.manual_seed(seed)
        y = program.run(block, *inputs)
        drawn = torch.cat([g.flatten() for g in gradients(y, tensors)]).double()
        projections.append(float(drawn @ expected / (expected @ expected)))
    mean = sum(projections) / draws
    deviation = (sum((p - mean) ** 2 for p in projections) / (draws - 1)) ** 0.5
    assert deviation > 0
    # Noise that a norm's statistics share with its input leaves a bias of the order of 1 / rows.
    assert abs(mean - 1) < 4 * deviation / draws**0.5 + 5e-3


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision(dtype):
    program = bottleneck(dtype=dtype)
    x = torch.randn(4, 16, 7, 7, dtype=dtype).requires_grad_()
    block = program.block(bits=8, output_bits=8, norm_bits=7)
    y = program.run(block, x)
    expected = program.expected(x)
    assert y.dtype == dtype
    torch.testing.assert_close(y, expected, rtol=5e-2, atol=5e-2)
    actual, wanted = (gradients(result, [x, *program.parameters]) for result in (y, expected))
    for a, w in zip(actual, wanted, strict=True):
        assert a.dtype == w.dtype and relative_error(a, w) < 0.15


def test_autocast(device):
    program = bottleneck()
    x = torch.randn(4, 16, 7, 7, requires_grad=True)
    with torch.autocast(device, torch.bfloat16):
        y = program.run(program.block(bits=8, output_bits=8), x)
        expected = program.expected(x)
    assert y.dtype == expected.dtype == torch.bfloat16
    torch.testing.assert_close(y, expected, rtol=5e-2, atol=1e-1)
    for tensor, actual in zip([x, *program.parameters], gradients(y, [x, *program.parameters]), strict=True):
        assert actual.dtype == tensor.dtype == torch.float32


def test_autocast_casts_a_shared_weight_and_biases(device):
    program = Program()
    first = program.convolution(0, 8, 8, 3, bias=True)
    program.convolution(first, 8, 8, 3, bias=True)
    program.steps[1]["parameters"][0] = program.steps[0]["parameters"][0]
    del program.parameters[2]
    program.steps[1]["parameters"][1] = 2
    program.parameters[0] = program.parameters[0].detach().contiguous(memory_format=torch.channels_last)
    program.parameters[0].requires_grad_()
    x = torch.randn(4, 8, 6, 6, requires_grad=True)
    with torch.autocast(device, torch.bfloat16):
        y = program.run(program.block(bits=8), x)
        expected = program.expected(x)
    grad = torch.randn_like(y)
    tensors = [x, *program.parameters]
    actual, wanted = (torch.autograd.grad(result, tensors, grad) for result in (y, expected))
    for tensor, a, w in zip(tensors, actual, wanted, strict=True):
        assert a.dtype == torch.float32 and a.shape == tensor.shape and relative_error(a, w) < 0.05
    assert actual[1].is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("shape", [(4, 8, 6, 6), (2, 8, 1, 1)])
def test_the_layout_is_that_of_layers(shape):
    program = basic_block()
    block = program.block()
    x = torch.randn(shape)
    for weights in (torch.contiguous_format, torch.channels_last):
        program.parameters[0] = program.parameters[0].detach().contiguous(memory_format=weights).requires_grad_()
        for inputs in (torch.contiguous_format, torch.channels_last):
            y = program.run(block, x.contiguous(memory_format=inputs))
            expected = torch.channels_last if torch.channels_last in (weights, inputs) else torch.contiguous_format
            assert y.is_contiguous(memory_format=expected)


def test_empty_batches():
    program = basic_block()
    x = torch.randn(0, 8, 6, 6, requires_grad=True)
    y = program.run(program.block(), x)
    assert y.shape == x.shape
    grads = torch.autograd.grad(y.sum(), [x, *program.parameters])
    assert all(grad.eq(0).all() for grad in grads)
    assert program.buffers[0].eq(0).all() and program.buffers[1].eq(1).all()


def test_the_plan_says_what_is_kept():
    program = bottleneck(32)
    plan = json.loads(program.block(bits=4, output_bits=3).plan())
    stages = [(stage["stage"], stage.get("bits"), stage.get("recomputes")) for stage in plan]
    assert stages == [
        ("copy", 4, None),
        ("convolution", None, None),
        ("batch_norm + relu", 4, None),
        ("convolution", None, None),
        ("batch_norm + relu", 4, None),
        ("convolution", None, None),
        ("batch_norm + add + relu", 3, 7),
    ]
    stored = json.loads(program.block(recompute=False).plan())
    assert stored[-1]["stage"] == "batch_norm + add + relu" and stored[-1]["normalized_bits"] == 2
    assert [len(stored), stored[-1]["bits"]] == [len(plan), 4]
    # Two bits are too coarse to compute a convolution again from.
    coarse = json.loads(program.block(bits=2).plan())
    assert all("recomputes" not in stage for stage in coarse)
    chosen = json.loads(program.block(value_bits={"0": 8, "3": 2, "10": 5}).plan())
    assert [stage["bits"] for stage in chosen if "bits" in stage] == [8, 2, 4, 5]


def kept_by(program, **options):
    keys = ("stage", "keeps", "bits", "derivative_bits", "recomputes")
    plan = json.loads(program.block(**options).plan())
    return [tuple(stage[key] for key in keys if key in stage) for stage in plan if stage["stage"] != "convolution"]


def test_activations_with_derivatives_are_in_the_pass_of_their_norm():
    assert kept_by(inverted_residual(), bits=4) == [
        ("copy", "copy", 4),
        ("batch_norm + relu6", "sides and copy", 4, 1),
        ("batch_norm + relu6", "sides and copy", 4, 1),
        ("batch_norm + add", 7),
    ]
    # Whoever reads the result of a smooth activation has a copy of its own; 7 bits are the most of a derivative.
    assert kept_by(inverted_residual(kind="silu"), bits=8, value_bits={"2": 5, "6": 3}) == [
        ("copy", "copy", 8),
        ("copy", "copy", 8),
        ("copy", "copy", 3),
        ("batch_norm + silu", "normalized and derivative", 5, 7),
        ("batch_norm + silu", "normalized and derivative", 8, 3),
        ("batch_norm + add", 7),
    ]
    # Of a sum only the derivative; where the norm keeps its input in a packing of its own, the activation is by itself.
    assert kept_by(basic_block(kind="hardswish"))[-1] == ("batch_norm + add + hardswish", "derivative", 4, 4)
    assert kept_by(basic_block(kind="relu6"))[-1] == ("batch_norm + add + relu6", "sides and copy", 4, 1, 4)
    assert kept_by(basic_block(kind="silu"), recompute=False)[-2:] == [
        ("batch_norm + add",),
        ("activation", "derivative", 4),
    ]


@pytest.mark.parametrize("kind", ["relu6", "silu", "hardswish"])
def test_activations_behind_no_norm_are_passes_of_their_own(kind):
    program = Program()
    program.activation(program.convolution(0, 3, 8, bias=True), kind)
    assert json.loads(program.block().plan())[-1]["stage"] == "activation"
    x = torch.randn(4, 3, 6, 6, requires_grad=True)
    expected = program.expected(x)
    y = program.run(program.block(bits=8), x)
    torch.testing.assert_close(y, expected, rtol=1e-4, atol=1e-4)
    for a, w in zip(gradients(y, [x]), gradients(expected, [x]), strict=True):
        assert relative_error(a, w) < 0.05


def test_kept_bytes_of_derivatives():
    pixels = 4 * 16 * 16
    x = torch.randn(4, 8, 16, 16, requires_grad=True)
    for kind, bits in (("relu6", 2 * 32 * (4 + 1)), ("silu", 2 * 32 * (4 + 4 + 4.125))):
        program = inverted_residual(hidden=32, kind=kind)
        block = program.block(bits=4)
        program.run(block, x)
        total = pixels * (8 * 4.125 + bits)
        assert total / 8 < block.kept_bytes() < 1.1 * total / 8


def test_kept_bytes():
    program = bottleneck(32)
    x = torch.randn(4, 32, 16, 16, requires_grad=True)
    block = program.block(bits=4, output_bits=3)
    assert block.kept_bytes() == 0
    program.run(block, x)
    pixels = 4 * 16 * 16
    bits = pixels * (32 * 4 + 8 * 4 + 8 * 4 + 32 * 3)
    assert bits / 8 < block.kept_bytes() < 1.2 * bits / 8


def test_kept_bytes_with_normalized_inputs():
    program = bottleneck(32)
    x = torch.randn(4, 32, 16, 16, requires_grad=True)
    blocks = [program.block(recompute=recompute) for recompute in (True, False)]
    for block in blocks:
        program.run(block, x)
    two_bits = 4 * 16 * 16 * 32 * 2 / 8
    assert two_bits < blocks[1].kept_bytes() - blocks[0].kept_bytes() < 1.2 * two_bits


def test_blocks_share_the_copy_between_them():
    first, second = bottleneck(32), bottleneck(32)
    x = torch.randn(4, 32, 16, 16, requires_grad=True)
    blocks = first.block(), second.block()
    between = first.run(blocks[0], x)
    second.run(blocks[1], between)
    assert blocks[0].kept_bytes() - blocks[1].kept_bytes() > 4 * 16 * 16 * 32 * 4 / 8
    second.run(blocks[1], between.clone())
    assert blocks[0].kept_bytes() == blocks[1].kept_bytes()


@pytest.mark.parametrize("frozen", ["input", "weights", "norms", "all but one"])
def test_frozen_parameters(frozen):
    program = bottleneck(32)
    x = torch.randn(4, 32, 7, 7, requires_grad=frozen != "input")
    for tensor in program.parameters:
        is_norm = tensor.dim() == 1
        tensor.requires_grad_({"weights": is_norm, "norms": not is_norm, "all but one": False}.get(frozen, True))
    if frozen == "all but one":
        x.requires_grad_(False)
        program.parameters[3].requires_grad_()
    wanted = [tensor for tensor in [x, *program.parameters] if tensor.requires_grad]
    actual = gradients(program.run(program.block(bits=8, output_bits=8), x), wanted)
    for a, w in zip(actual, gradients(program.expected(x), wanted), strict=True):
        assert relative_error(a, w) < 0.1


@pytest.mark.parametrize("batch_statistics", [True, False])
def test_only_a_few_gradients_are_asked_for(batch_statistics):
    program = bottleneck()
    x = torch.randn(4, 16, 7, 7, requires_grad=True)
    for tensor in (x, program.parameters[0], program.parameters[8]):
        y = program.run(program.block(bits=8, output_bits=8), x, batch_statistics=batch_statistics)
        expected = program.expected(x, batch_statistics=batch_statistics)
        assert relative_error(*(gradients(r, [tensor])[0] for r in (y, expected))) < 0.1


def test_retain_graph_and_its_end():
    program = basic_block()
    x = torch.randn(4, 8, 6, 6, requires_grad=True)
    y = program.run(program.block(), x)
    gradient = torch.randn_like(y)
    before = gradient.clone()
    first = torch.autograd.grad(y, [x, *program.parameters], gradient, retain_graph=True)
    second = torch.autograd.grad(y, [x, *program.parameters], gradient)
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    assert torch.equal(gradient, before), "the caller's gradient stays as it is"
    with pytest.raises(RuntimeError, match="second time"):
        torch.autograd.grad(y, x, gradient)


def test_an_incoming_gradient_that_others_read_stays():
    """The sum hands one tensor to both branches."""
    program = basic_block()
    x = torch.randn(4, 8, 6, 6, requires_grad=True)
    y = program.run(program.block(bits=8, output_bits=8), x)
    other = x * 2
    (actual,) = torch.autograd.grad((y + other).square().sum(), x)
    (expected,) = torch.autograd.grad((program.expected(x) + x * 2).square().sum(), x)
    assert relative_error(actual, expected) < 0.05


def test_changed_weights_are_noticed():
    program = basic_block()
    y = program.run(program.block(), torch.randn(4, 8, 6, 6))
    with torch.no_grad():
        program.parameters[0].add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()


def test_double_backward_is_refused():
    program = basic_block()
    x = torch.randn(4, 8, 6, 6, requires_grad=True)
    with pytest.raises(NotImplementedError, match="cannot be differentiated"):
        torch.autograd.grad(program.run(program.block(), x).sum(), x, create_graph=True)


def test_checkpoint_around_a_block():
    program = basic_block()
    block = program.block()
    x = torch.randn(4, 8, 6, 6, requires_grad=True)
    torch.manual_seed(3)
    plain = gradients(program.run(block, x), [x, *program.parameters])
    torch.manual_seed(3)
    run = checkpoint(lambda input: program.run(block, input), x, use_reentrant=False)
    for a, b in zip(gradients(run, [x, *program.parameters]), plain, strict=True):
        torch.testing.assert_close(a, b)


def test_a_parameter_of_two_layers():
    program = basic_block()
    convolutions = [step for step in program.steps if step["op"] == "convolution"]
    convolutions[1]["parameters"] = convolutions[0]["parameters"]
    x = torch.randn(4, 8, 6, 6, requires_grad=True)
    weight = program.parameters[0]
    actual = gradients(program.run(program.block(bits=8, output_bits=8), x), [weight])[0]
    assert relative_error(actual, gradients(program.expected(x), [weight])[0]) < 0.05


def test_hooks_of_parameters_and_accumulation():
    program = basic_block()
    seen = []
    for number, parameter in enumerate(program.parameters):
        parameter.register_post_accumulate_grad_hook(lambda _, number=number: seen.append(number))
    block = program.block()
    for _ in range(2):
        program.run(block, torch.randn(4, 8, 6, 6)).sum().backward()
    assert sorted(seen) == sorted(2 * list(range(len(program.parameters))))


def test_a_block_survives_pickling():
    import copy

    program = stem()
    block = copy.deepcopy(program.block(bits=5, output_bits=2))
    assert json.loads(block.options())["bits"] == 5
    x = torch.randn(2, 3, 20, 20)
    torch.testing.assert_close(program.run(block, x), program.run(program.block(), x))


def test_non_finite_values_are_seen():
    program = basic_block()
    x = torch.randn(4, 8, 6, 6)
    x[0, 0, 0, 0] = float("nan")
    y = program.run(program.block(), x.requires_grad_())
    assert y.isnan().any()
    assert torch.autograd.grad(y.sum(), x)[0].isnan().any()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda p, a: a[0].append(a[0][0]), "inputs must have 1 entries, got 2"),
        (lambda p, a: a[1].pop(), "parameters must have 6 entries, got 5"),
        (lambda p, a: a[2].pop(), "buffers must have 6 entries"),
        (lambda p, a: a[3].append(True), "batch_statistics must have 2 entries"),
        (lambda p, a: a[0].__setitem__(0, a[0][0].double()), "must be float32, float16 or bfloat16"),
        (lambda p, a: a[0].__setitem__(0, a[0][0].bfloat16()), "must have the inputs' dtype"),
        (lambda p, a: a[0].__setitem__(0, torch.randn(3)), r"must have shape \[N, C\]"),
        (lambda p, a: a[0].__setitem__(0, torch.randn(4, 5, 6, 6)), "expected input.* to have 8 channels"),
    ],
)
def test_wrong_arguments(change, message):
    program = basic_block()
    arguments = [[torch.randn(4, 8, 6, 6)], list(program.parameters), list(program.buffers), [True, True]]
    change(program, arguments)
    with pytest.raises(Exception, match=message):
        program.block().run(*arguments)


@pytest.mark.parametrize(
    ("program", "options", "message"),
    [
        ("{", {}, "not a program"),
        ('{"inputs": 1, "steps": []}', {}, "must have steps"),
        ('{"inputs": 0, "steps": []}', {}, "must have an input"),
        ('{"inputs": 1, "steps": [{"op": "add", "inputs": [0]}]}', {}, "add must have 2 inputs"),
        ('{"inputs": 1, "steps": [{"op": "add", "inputs": [0, 1]}]}', {}, "must read values in 0..0"),
        ('{"inputs": 1, "steps": [{"op": "gelu", "inputs": [0]}]}', {}, 'got "gelu"'),
        ('{"inputs": 1, "steps": [{"op": "activation", "inputs": [0], "kind": "x"}]}', {}, 'got "x"'),
        (None, {"bits": 1}, "bits must be in 2..8, got 1"),
        (None, {"output_bits": 9}, "output_bits must be in 2..8"),
        (None, {"norm_bits": 8}, "norm_bits must be in 2..7, got 8"),
        (None, {"value_bits": {"99": 4}}, "must name values in 0"),
        (None, {"colour": 4}, 'got "colour"'),
    ],
)
def test_wrong_programs_and_options(program, options, message):
    with pytest.raises(Exception, match=message):
        torch.classes.actnn.Block(program or basic_block().json(), json.dumps(options))


@pytest.mark.cuda
def test_a_graph_draws_new_noise_at_each_replay():
    with torch.device("cuda"):
        program = bottleneck(64, 16)
        x = torch.randn(8, 64, 14, 14, requires_grad=True)
    block = program.block()
    stream = torch.cuda.Stream()

    def step():
        return gradients_without_seed(program.run(block, x), [x, program.parameters[0]])

    def gradients_without_seed(y, tensors):
        return torch.autograd.grad(y, tensors, torch.ones_like(y))

    with torch.cuda.stream(stream):
        for _ in range(3):
            step()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        results = step()
    graph.replay()
    first = [result.clone() for result in results]
    graph.replay()
    assert all(not torch.equal(a, b) and relative_error(a, b) < 1 for a, b in zip(first, results, strict=True))


@pytest.mark.cuda
def test_nothing_waits_for_the_device():
    with torch.device("cuda"):
        program = bottleneck(64, 16)
        x = torch.randn(8, 64, 14, 14, requires_grad=True)
    block = program.block()
    program.run(block, x).sum().backward()
    torch.cuda.set_sync_debug_mode("error")
    try:
        program.run(block, x).sum().backward()
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_a_graph_of_many_blocks_is_freed_without_recursion():
    program = Program()
    program.activation(0)
    block = program.block()
    y = torch.rand(1, 8, requires_grad=True)
    for _ in range(50_000):
        y = program.run(block, y)
    del y  # a recursion so deep would overflow the stack of the process
