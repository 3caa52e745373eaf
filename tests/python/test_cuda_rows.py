"""Passes over rows on a GPU: norms, sums with dropout, gates, rotary embedding, losses; beside torch's functions."""

import json

import pytest
import torch
import torch.nn.functional as F  # noqa: N812

pytestmark = [pytest.mark.cuda, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")]

EXACT = {"bits": 8, "output_bits": 8, "smooth_bits": 8, "norm_bits": 8, "rounding": "nearest"}
DTYPES = [torch.float32, torch.bfloat16, torch.float16]


def run(steps, inputs, parameters, results, dtypes=None, options=EXACT):
    program = {"inputs": len(inputs), "steps": steps, "results": results}
    if dtypes is not None:
        program["dtypes"] = [str(dtype).removeprefix("torch.") for dtype in dtypes]
    text = json.dumps({"program": program, "options": options})
    return torch.ops.actnn.run_program(text, inputs, parameters, [], [], [])


def leaves(*shapes, dtype=torch.float32, scale=1.0):
    return [(torch.randn(shape, device="cuda") * scale).to(dtype).requires_grad_() for shape in shapes]


def gradients(result, tensors):
    weights = torch.linspace(-1, 1, result.numel(), device="cuda").view(result.shape)
    return torch.autograd.grad((result.float() * weights).sum(), tensors)


def assert_near(found, expected, tolerance):
    difference = (found.double() - expected.double()).norm() / expected.double().norm()
    assert difference < tolerance, difference


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(3, 40, 64), (257, 96), (5, 70, 1000), (130, 4096)])
@pytest.mark.parametrize("kind", ["layer_norm", "rms_norm"])
def test_norms(dtype, shape, kind):
    torch.manual_seed(0)
    x, weight, bias = leaves(shape, shape[-1:], shape[-1:], dtype=dtype)
    step = {"op": kind, "inputs": [0], "weight": 0, "dimensions": 1, "eps": 1e-5}
    parameters = [weight]
    if kind == "layer_norm":
        step["bias"], parameters = 1, [weight, bias]
        expected = F.layer_norm(x.float(), shape[-1:], weight.float(), bias.float())
    else:
        expected = F.rms_norm(x.float(), shape[-1:], weight.float(), 1e-5)
    (found,) = run([step], [x], parameters, [1])
    torch.testing.assert_close(found.float(), expected, rtol=1e-2, atol=2e-2 if dtype != torch.float32 else 1e-5)
    tensors = [x, *parameters]
    for ours, theirs in zip(gradients(found, tensors), gradients(expected, tensors), strict=True):
        assert_near(ours, theirs, 0.03)


@pytest.mark.parametrize("branch", DTYPES)
def test_a_residual_and_a_dropped_branch_are_one_pass(branch):
    torch.manual_seed(0)
    x, residual = torch.randn(4, 33, 64, device="cuda", dtype=branch), torch.randn(4, 33, 64, device="cuda")
    (weight, bias), probability = leaves((64, 64), (64,), scale=0.2), 0.3
    x.requires_grad_(), residual.requires_grad_()
    steps = [
        {"op": "linear", "inputs": [0], "weight": 0, "bias": 1},
        {"op": "dropout", "inputs": [2], "probability": probability},
        {"op": "add", "inputs": [3, 1]},
    ]
    dtypes = [branch, torch.float32, branch, branch, torch.float32]
    text = json.dumps({"program": {"inputs": 2, "steps": steps, "results": [4]}})
    assert json.loads(torch.ops.actnn.describe_program(text))["fusions"] == [{"name": "dropout_add", "steps": [1, 2]}]
    (found,) = run(steps, [x, residual], [weight, bias], [4], dtypes)
    product = F.linear(x, weight.to(branch), bias.to(branch))
    kept = (found - residual).abs() > 1e-6
    assert abs(kept.float().mean().item() - (1 - probability)) < 0.02
    expected = residual + product * kept / (1 - probability)
    torch.testing.assert_close(found, expected, rtol=1e-2, atol=1e-2)
    tensors = [x, residual, weight, bias]
    for ours, theirs in zip(gradients(found, tensors), gradients(expected, tensors), strict=True):
        assert_near(ours, theirs, 0.03)


@pytest.mark.parametrize("kind", ["silu", "gelu", "gelu_tanh"])
@pytest.mark.parametrize("width", [64, 100, 2048])
def test_gates_and_activations(kind, width):
    torch.manual_seed(0)
    function = {"silu": F.silu, "gelu": F.gelu, "gelu_tanh": lambda x: F.gelu(x, approximate="tanh")}[kind]
    x, *weights = leaves((300, 32), (width, 32), (width, 32), (16, width), scale=0.5)
    gated = [
        {"op": "linear", "inputs": [0], "weight": 0},
        {"op": "linear", "inputs": [0], "weight": 1},
        {"op": "activation", "inputs": [1], "kind": kind},
        {"op": "multiply", "inputs": [3, 2]},
        {"op": "linear", "inputs": [4], "weight": 2},
    ]
    (found,) = run(gated, [x], weights, [5])
    expected = (function(x @ weights[0].T) * (x @ weights[1].T)) @ weights[2].T
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-3)
    for ours, theirs in zip(gradients(found, [x, *weights]), gradients(expected, [x, *weights]), strict=True):
        assert_near(ours, theirs, 0.03)
    (bias,) = leaves((width,))
    plain = [
        {"op": "linear", "inputs": [0], "weight": 0, "bias": 1},
        {"op": "activation", "inputs": [1], "kind": kind},
        {"op": "linear", "inputs": [2], "weight": 2},
    ]
    parameters = [weights[0], bias, weights[2]]
    (found,) = run(plain, [x], parameters, [3])
    expected = function(F.linear(x, weights[0], bias)) @ weights[2].T
    for ours, theirs in zip(gradients(found, [x, *parameters]), gradients(expected, [x, *parameters]), strict=True):
        assert_near(ours, theirs, 0.03)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("size", [64, 6, 80])
@pytest.mark.parametrize("is_transposed", [False, True])
def test_rotary_embedding(dtype, size, is_transposed):
    torch.manual_seed(0)
    shape = (2, 40, 3, size) if is_transposed else (2, 3, 40, size)
    x = torch.randn(shape, device="cuda").to(dtype).requires_grad_()
    heads = x.transpose(1, 2) if is_transposed else x
    angles = torch.rand(1, 1, 40, size, device="cuda") * 6
    cosines, sines = angles.cos().to(dtype), angles.sin().to(dtype)
    steps = [{"op": "rotary", "inputs": [0, 1, 2]}]
    (found,) = run(steps, [heads, cosines, sines], [], [3])
    first, second = heads.float().chunk(2, -1)
    expected = heads.float() * cosines.float() + torch.cat((-second, first), -1) * sines.float()
    tolerance = {torch.float32: 1e-5, torch.float16: 2e-3, torch.bfloat16: 2e-2}[dtype]
    torch.testing.assert_close(found.float(), expected, rtol=tolerance, atol=tolerance)
    (ours,), (theirs,) = gradients(found, [x]), gradients(expected, [x])
    assert_near(ours, theirs, 10 * tolerance)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("classes", [1000, 50257, 1003])
def test_the_loss_of_a_language_model(dtype, classes):
    torch.manual_seed(0)
    x, weight, bias = leaves((500, 64), (classes, 64), (classes,), dtype=dtype, scale=0.3)
    target = torch.randint(classes, (500,), device="cuda")
    target[::7] = -100
    loss, logits = torch.ops.actnn.linear_cross_entropy_and_logits(x, weight, target, bias, -100, 0.1, 1e-3)
    exact = F.linear(x, weight, bias)
    torch.testing.assert_close(logits, exact, rtol=2e-2, atol=2e-2)
    log_sums = exact.float().logsumexp(-1)[target != -100]
    expected = F.cross_entropy(exact.float(), target, label_smoothing=0.1) + 1e-3 * log_sums.square().mean()
    torch.testing.assert_close(loss, expected, rtol=1e-3, atol=1e-3)
    tensors = [x, weight, bias]
    for ours, theirs in zip(
        torch.autograd.grad(loss, tensors), torch.autograd.grad(expected, tensors), strict=True
    ):  # fmt: skip
        assert_near(ours, theirs, 1e-3 if dtype == torch.float32 else 0.02)


def heads(value, first):
    """The steps that make heads [batch, heads, length, size] of [batch, length, channels], and their result."""
    steps = [{"op": "reshape", "inputs": [value], "sizes": [2, 64, 2, 32]},
             {"op": "permute", "inputs": [first], "dimensions": [0, 2, 1, 3]}]  # fmt: skip
    return steps, first + 1


@pytest.mark.parametrize("form", ["three products", "one product", "one product, rotated"])
def test_copies_that_neighbours_read_are_unpacked_once(form):
    """Query, key and value: of one input's copy, or shown by one product's, and rotated then."""
    torch.manual_seed(0)
    x, *parameters = leaves((2, 64, 64), *[shape for _ in range(3) for shape in ((64, 64), (64,))], scale=0.3)
    angles = torch.outer(torch.arange(64), 100 ** -torch.linspace(0, 1, 16)).repeat(1, 2).cuda()
    inputs = [x, angles.cos(), angles.sin()]
    is_one_product, is_rotated = form != "three products", form.endswith("rotated")
    if is_one_product:
        parameters = [torch.cat(parameters[i::2]).detach().requires_grad_() for i in (0, 1)]
        steps = [{"op": "linear", "inputs": [0], "weight": 0, "bias": 1},
                 {"op": "chunk", "inputs": [3], "chunks": 3, "dimension": -1}]  # fmt: skip
        parts, count = [4, 5, 6], 7
    else:
        steps = [{"op": "linear", "inputs": [0], "weight": 2 * i, "bias": 2 * i + 1} for i in range(3)]
        parts, count = [3, 4, 5], 6
    of_attention = []
    for part in parts:
        made, last = heads(part, count)
        if is_rotated and part != parts[-1]:
            made, last = [*made, {"op": "rotary", "inputs": [last, 1, 2]}], last + 1
        steps, of_attention, count = steps + made, [*of_attention, last], last + 1
    steps.append({"op": "attention", "inputs": of_attention})
    (found,) = run(steps, inputs, parameters, [count])
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
        ours = gradients(found, [x, *parameters])
        torch.cuda.synchronize()
    unpacked = sum("dequantize" in event.name for event in profile.events())
    assert unpacked == (2 if is_one_product else 4)  # the input, query, key and value or their product
    products = F.linear(x, *parameters).chunk(3, -1) if is_one_product else [
        F.linear(x, *parameters[2 * i : 2 * i + 2]) for i in range(3)]  # fmt: skip
    split = [product.view(2, 64, 2, 32).transpose(1, 2) for product in products]
    for place in range(2 if is_rotated else 0):
        first, second = split[place].chunk(2, -1)
        split[place] = split[place] * inputs[1] + torch.cat([-second, first], -1) * inputs[2]
    expected = F.scaled_dot_product_attention(*split)
    assert_near(found, expected, 1e-2)
    for one, other in zip(ours, gradients(expected, [x, *parameters]), strict=True):
        assert (one - other).norm() < 0.03 * other.norm() + 0.2


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("count", [1, 3, 6])
def test_biases_of_neighbours_are_summed_at_once(count, dtype):
    """Four at a time; those of more channels than rows of other passes have, too."""
    torch.manual_seed(0)
    x, weight, *biases = leaves((70, 8), (20000, 8), *[(20000,)] * count, dtype=dtype)
    steps = [{"op": "linear", "inputs": [0], "weight": 0, "bias": 1 + i} for i in range(count)]
    results = run(steps, [x], [weight, *biases], list(range(1, count + 1)))
    weights = [torch.randn_like(result) for result in results]
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
        found = torch.autograd.grad(results, biases, weights)
        torch.cuda.synchronize()
    assert sum("sum_rows_kernel" in event.name for event in profile.events()) == -(-count // 4)
    for one, of_result in zip(found, weights, strict=True):
        torch.testing.assert_close(one.float(), of_result.float().sum(0), rtol=1e-2, atol=1e-2)
