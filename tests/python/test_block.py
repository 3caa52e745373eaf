"""Blocks: the results of torch's layers, unbiased gradients, what else a node of autograd must do."""

import json

import pytest
import reference_programs
import torch
from block_programs import OTHERS, PROGRAMS, Program, attention_half, basic_block, bottleneck, u_net
from torch.utils.checkpoint import checkpoint

ops = torch.ops.actnn
pytestmark = pytest.mark.usefixtures("device")

EIGHT_BITS = {"bits": 8, "output_bits": 8, "smooth_bits": 8, "norm_bits": 8}
EVALUATED = [name for name in PROGRAMS if name != "two inputs"]  # which has a norm without running statistics
RUNS = [
    *((name, {"training": True, "recompute": recompute}) for name in PROGRAMS for recompute in (True, False)),
    *((name, {"training": False}) for name in EVALUATED),
    *((name, {}) for name in OTHERS),
]


def make(name):
    """(program, inputs that want gradients)"""
    build, shapes = {**PROGRAMS, **OTHERS}[name]
    program = build()
    return program, [torch.randn(shape).requires_grad_() for shape in shapes]


def clones(tensors):
    return [tensor.clone() for tensor in tensors]


def in_list(results):
    return results if isinstance(results, list) else [results]


def gradients(results, tensors):
    """For a loss that weighs elements differently."""
    torch.manual_seed(7)
    results = in_list(results)
    weights = [torch.randn(y.shape, dtype=torch.float64).to(y) for y in results]
    return torch.autograd.grad(results, tensors, weights)


def relative_error(actual, expected):
    return float((actual.double() - expected.double()).norm() / expected.double().norm().clamp_min(1e-3))


@pytest.mark.parametrize(("name", "options"), RUNS)
def test_results_and_running_statistics_are_torchs(name, options):
    program, inputs = make(name)
    training = options.get("training", True)
    buffers = clones(program.buffers)
    for _ in range(2):
        y = program.run(*inputs, **options)
        expected = program.expected(*inputs, training=training, buffers=buffers)
        torch.testing.assert_close(y, expected, rtol=1e-4, atol=1e-4)
        for actual, wanted in zip(program.buffers, buffers, strict=True):
            torch.testing.assert_close(actual, wanted, rtol=1e-5, atol=1e-6)
    with torch.no_grad():
        again = program.run(*inputs, **options)
    torch.testing.assert_close(again, [z.detach() for z in y] if isinstance(y, list) else y.detach())
    assert not any(z.requires_grad for z in in_list(again))


@pytest.mark.parametrize(("name", "options"), RUNS)
def test_gradients_of_many_draws_are_torchs(name, options):
    program, inputs = make(name)
    tensors = [*inputs, *program.parameters]
    expected = gradients(program.expected(*inputs, training=options.get("training", True)), tensors)
    draws = 32
    drawn = []
    for seed in range(draws):
        torch.manual_seed(seed)
        y = program.run(*inputs, **options, **EIGHT_BITS)
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


@pytest.mark.parametrize(("name", "options"), [
    ("identity bottleneck", {"bits": 4}), ("identity bottleneck", {"bits": 4, "recompute": False}),
    ("bottleneck", {"bits": 3}), ("inverted residual", {"bits": 4}), ("inverted residual with SiLU", {"bits": 3}),
    ("basic block with ReLU6", {"bits": 4, "recompute": False}), ("basic block with hardswish", {"bits": 4}),
    ("squeeze and excitation", {"bits": 4}), ("dense block", {"bits": 3}), ("attention", {"bits": 3}),
    ("gated", {"bits": 3}), ("U-Net", {"bits": 3}),
])  # fmt: skip
def test_gradients_are_unbiased(name, options):
    program, inputs = make(name)
    tensors = [*inputs, *program.parameters]
    expected = torch.cat([g.flatten() for g in gradients(program.expected(*inputs), tensors)]).double()
    draws = 300
    projections = []
    for seed in range(draws):
        torch.manual_seed(seed)
        y = program.run(*inputs, output_bits=3, **options)
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
    y = program.run(x, **EIGHT_BITS)
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
        y = program.run(x, **EIGHT_BITS)
    expected = program.expected(x, dtype=torch.bfloat16)
    assert y.dtype == expected.dtype == torch.bfloat16
    torch.testing.assert_close(y, expected, rtol=5e-2, atol=1e-1)
    for tensor, actual in zip([x, *program.parameters], gradients(y, [x, *program.parameters]), strict=True):
        assert actual.dtype == tensor.dtype == torch.float32


def test_autocast_casts_a_shared_weight_and_biases(device):
    program = Program()
    first = program.convolution(0, 8, 8, 3, bias=True)
    program.convolution(first, 8, 8, 3, bias=True)
    program.steps[1]["weight"] = program.steps[0]["weight"]
    del program.parameters[2]
    program.steps[1]["bias"] = 2
    program.parameters[0] = program.parameters[0].detach().contiguous(memory_format=torch.channels_last)
    program.parameters[0].requires_grad_()
    x = torch.randn(4, 8, 6, 6, requires_grad=True)
    with torch.autocast(device, torch.bfloat16):
        y = program.run(x, bits=8)
    expected = program.expected(x, dtype=torch.bfloat16)
    grad = torch.randn_like(y)
    tensors = [x, *program.parameters]
    actual, wanted = (torch.autograd.grad(result, tensors, grad) for result in (y, expected))
    for tensor, a, w in zip(tensors, actual, wanted, strict=True):
        assert a.dtype == torch.float32 and a.shape == tensor.shape and relative_error(a, w) < 0.05
    assert actual[1].is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("shape", [(4, 8, 6, 6), (2, 8, 1, 1)])
def test_the_layout_is_that_of_layers(shape):
    program = basic_block()
    x = torch.randn(shape)
    for weights in (torch.contiguous_format, torch.channels_last):
        program.parameters[0] = program.parameters[0].detach().contiguous(memory_format=weights).requires_grad_()
        for inputs in (torch.contiguous_format, torch.channels_last):
            y = program.run(x.contiguous(memory_format=inputs))
            expected = torch.channels_last if torch.channels_last in (weights, inputs) else torch.contiguous_format
            assert y.is_contiguous(memory_format=expected)


def test_empty_batches():
    program = basic_block()
    x = torch.randn(0, 8, 6, 6, requires_grad=True)
    y = program.run(x)
    assert y.shape == x.shape
    grads = torch.autograd.grad(y.sum(), [x, *program.parameters])
    assert all(grad.eq(0).all() for grad in grads)
    assert program.buffers[0].eq(0).all() and program.buffers[1].eq(1).all()


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
    actual = gradients(program.run(x, **EIGHT_BITS), wanted)
    for a, w in zip(actual, gradients(program.expected(x), wanted), strict=True):
        assert relative_error(a, w) < 0.1


@pytest.mark.parametrize("build", [lambda: (attention_half(), (3, 10, 16)), lambda: (u_net(), (2, 3, 8, 8))])
def test_any_one_gradient_alone(build):
    program, shape = build()
    x = torch.randn(shape, requires_grad=True)
    tensors = [x, *program.parameters]
    everything = gradients(program.expected(x), tensors)
    for place, wanted in enumerate(everything):
        for number, tensor in enumerate(tensors):
            tensor.requires_grad_(number == place)
        (actual,) = gradients(program.run(x, **EIGHT_BITS), [tensors[place]])
        assert relative_error(actual, wanted) < 0.1


@pytest.mark.parametrize("training", [True, False])
def test_only_a_few_gradients_are_asked_for(training):
    program = bottleneck()
    x = torch.randn(4, 16, 7, 7, requires_grad=True)
    for tensor in (x, program.parameters[0], program.parameters[8]):
        y = program.run(x, **EIGHT_BITS, training=training)
        expected = program.expected(x, training=training)
        assert relative_error(*(gradients(r, [tensor])[0] for r in (y, expected))) < 0.1


@pytest.mark.parametrize("exact", [[], range(8)])
def test_retain_graph_and_its_end(exact):
    program = basic_block()
    x = torch.randn(4, 8, 6, 6, requires_grad=True)
    y = program.run(x, exact=list(exact))
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
    y = program.run(x, **EIGHT_BITS)
    other = x * 2
    (actual,) = torch.autograd.grad((y + other).square().sum(), x)
    (expected,) = torch.autograd.grad((program.expected(x) + x * 2).square().sum(), x)
    assert relative_error(actual, expected) < 0.05


def test_changed_weights_are_noticed():
    program = basic_block()
    y = program.run(torch.randn(4, 8, 6, 6))
    with torch.no_grad():
        program.parameters[0].add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()


def test_double_backward_is_refused():
    program = basic_block()
    x = torch.randn(4, 8, 6, 6, requires_grad=True)
    with pytest.raises(NotImplementedError, match="cannot be differentiated"):
        torch.autograd.grad(program.run(x).sum(), x, create_graph=True)


def test_checkpoint_around_a_block():
    program = basic_block()
    x = torch.randn(4, 8, 6, 6, requires_grad=True)
    torch.manual_seed(3)
    plain = gradients(program.run(x), [x, *program.parameters])
    torch.manual_seed(3)
    run = checkpoint(lambda input: program.run(input), x, use_reentrant=False)
    for a, b in zip(gradients(run, [x, *program.parameters]), plain, strict=True):
        torch.testing.assert_close(a, b)


def test_a_parameter_of_two_layers():
    program = basic_block()
    convolutions = [step for step in program.steps if step["op"] == "convolution"]
    convolutions[1]["weight"] = convolutions[0]["weight"]
    program.steps[4]["weight"], program.steps[4]["bias"] = 3, 4
    del program.parameters[3]
    x = torch.randn(4, 8, 6, 6, requires_grad=True)
    weight = program.parameters[0]
    actual = gradients(program.run(x, **EIGHT_BITS), [weight])[0]
    assert relative_error(actual, gradients(program.expected(x), [weight])[0]) < 0.05


def test_hooks_of_parameters_and_accumulation():
    program = basic_block()
    seen = []
    for number, parameter in enumerate(program.parameters):
        parameter.register_post_accumulate_grad_hook(lambda _, number=number: seen.append(number))
    for _ in range(2):
        program.run(torch.randn(4, 8, 6, 6)).sum().backward()
    assert sorted(seen) == sorted(2 * list(range(len(program.parameters))))


def test_results_without_gradients_count_as_zeros():
    program = u_net()
    x = torch.randn(2, 3, 8, 8, requires_grad=True)
    results, expected = program.run(x, **EIGHT_BITS), program.expected(x)
    for place in (0, 1):
        tensors = [x, *program.parameters[: 8 if place == 0 else 5]]
        actual, wanted = (
            torch.autograd.grad(y[place].square().sum(), tensors, retain_graph=True) for y in (results, expected)
        )
        for a, w in zip(actual, wanted, strict=True):
            assert relative_error(a, w) < 0.1


def test_results_that_are_views_are_memory_of_their_own():
    program = Program()
    first = program.step("chunk", 0, chunks=2, dimension=1, outputs=2)
    program.results = [program.step("reshape", 0, sizes=[-1]), first, first + 1, first]
    x = torch.randn(4, 6, requires_grad=True)
    flat, left, right, again = program.run(x)
    (flat.sum() + 2 * left.sum() + 3 * again.sum()).backward()
    assert x.grad.eq(torch.tensor([6.0, 6.0, 6.0, 1.0, 1.0, 1.0])).all()
    memory = {y.untyped_storage().data_ptr() for y in (x, flat, left, right, again)}
    assert len(memory) == 5
    before = x.detach().clone()
    with torch.no_grad():
        for y in (flat, left, right, again):
            y.zero_()
    assert torch.equal(x, before)


@pytest.mark.parametrize("probability", [0.0, 0.4])
def test_dropout_drops_in_backward_what_it_dropped_in_forward(probability):
    program = Program(inputs=2)
    program.add(program.step("dropout", 0, probability=probability), 1)
    x, y = torch.ones(2, 1000, 2, requires_grad=True).unbind()
    result = program.run(x, torch.zeros_like(y))
    (gradient,) = torch.autograd.grad(result.sum(), x)
    assert torch.equal(gradient, result.detach())
    assert abs(float(result.detach().eq(0).double().mean()) - probability) < 0.06


def test_copies_rounded_to_nearest_have_no_noise():
    program = basic_block()
    x = torch.randn(4, 8, 6, 6, requires_grad=True)
    runs = [gradients(program.run(x, rounding="nearest"), [x, *program.parameters]) for _ in range(2)]
    assert all(torch.equal(a, b) for a, b in zip(*runs, strict=True))


@pytest.mark.parametrize("kind", ["linear", "convolution", "hardswish"])
def test_the_noise_is_that_of_layers(kind):
    """Each step draws as the layer's op does."""
    program = Program()
    match kind:
        case "linear":
            x, place = torch.randn(6, 20), program.linear(0, 20, 30)
            layer = lambda: ops.linear(x, *program.parameters, 3)  # noqa: E731
        case "convolution":
            x, place = torch.randn(2, 4, 7, 7), program.convolution(0, 4, 8, 3, bias=True)
            layer = lambda: ops.convolution(  # noqa: E731
                x.contiguous(memory_format=torch.channels_last), *program.parameters, [1, 1], [1, 1], [1, 1], False,
                [0, 0], 1, None, None, 3,
            )  # fmt: skip
        case "hardswish":
            x, place = torch.randn(6, 20), program.activation(0, "hardswish")
            layer = lambda: ops.hardswish(x, 3)  # noqa: E731
    assert place == 1
    x.requires_grad_()
    found = []
    for run in (lambda: program.run(x, bits=3), layer):
        torch.manual_seed(5)
        found.append(gradients(run(), [x, *program.parameters]))
    for a, w in zip(*found, strict=True):
        torch.testing.assert_close(a, w)


def test_dtypes_of_single_values():
    """As autocast leaves them: a norm in float32 between products in bfloat16."""
    program = Program()
    y = program.layer_norm(program.linear(0, 8, 16), 16)
    program.results = [program.linear(y, 16, 4), y]
    x = torch.randn(5, 8, requires_grad=True)
    names = ["float32", "bfloat16", "float32", "bfloat16"]
    text = json.dumps({"program": {**program.json(), "dtypes": names}, "options": EIGHT_BITS})
    reference, actual = (
        run(text, [x], program.parameters, [], [], []) for run in (reference_programs.run_program, ops.run_program)
    )
    for a, w in zip(actual, reference, strict=True):
        assert a.dtype == w.dtype
        torch.testing.assert_close(a, w, rtol=1e-2, atol=1e-2)
    for tensor, a, w in zip(
        [x, *program.parameters], *(gradients(y, [x, *program.parameters]) for y in (actual, reference)), strict=True
    ):
        assert a.dtype == tensor.dtype and relative_error(a, w) < 0.1


def test_non_finite_values_are_seen():
    program = basic_block()
    x = torch.randn(4, 8, 6, 6)
    x[0, 0, 0, 0] = float("nan")
    y = program.run(x.requires_grad_())
    assert y.isnan().any()
    assert torch.autograd.grad(y.sum(), x)[0].isnan().any()


@pytest.mark.cuda
def test_a_graph_draws_new_noise_at_each_replay():
    with torch.device("cuda"):
        program = bottleneck(64, 16)
        x = torch.randn(8, 64, 14, 14, requires_grad=True)
    stream = torch.cuda.Stream()

    def step():
        return gradients_without_seed(program.run(x), [x, program.parameters[0]])

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
    program.run(x).sum().backward()
    torch.cuda.set_sync_debug_mode("error")
    try:
        program.run(x).sum().backward()
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_a_graph_of_many_blocks_is_freed_without_recursion():
    program = Program()
    program.activation(0)
    y = torch.rand(1, 8, requires_grad=True)
    for _ in range(30_000):
        y = program.run(y)
    del y  # a recursion so deep would overflow the stack of the process
