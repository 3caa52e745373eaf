"""A residual, a branch that may be dropped, and the norm of their sum: one pass, beside torch's functions."""

import json

import pytest
import torch
import torch.nn.functional as F  # noqa: N812

EXACT = {"bits": 8, "output_bits": 8, "norm_bits": 8, "rounding": "nearest"}
WIDTH = 64
X, RESIDUAL, PRODUCT = 0, 1, 2


def norm(kind, value, weight):
    step = {"op": kind, "inputs": [value], "weight": weight, "dimensions": 1, "eps": 1e-5}
    return step | ({"bias": weight + 1} if kind == "layer_norm" else {})


def program(kind, probability, reads_sum, dtypes):
    """A linear layer, perhaps dropped, a residual, a norm, and perhaps the sum again."""
    steps = [{"op": "linear", "inputs": [X], "weight": 0, "bias": 1}]
    value = PRODUCT
    if probability:
        steps.append({"op": "dropout", "inputs": [value], "probability": probability})
        value += 1
    steps.append({"op": "add", "inputs": [value, RESIDUAL]})
    steps.append(norm(kind, value + 1, 2))
    results = [value + 2, value + 1] if reads_sum else [value + 2]
    branch, stream = (str(dtype).removeprefix("torch.") for dtype in dtypes)
    types = [branch, stream, branch, *([branch] if probability else []), stream, stream]
    return {"inputs": 2, "steps": steps, "results": results, "dtypes": types}


def leaves(device, *shapes, dtype=torch.float32):
    return [torch.randn(shape, device=device, dtype=dtype).requires_grad_() for shape in shapes]


def losses(results):
    return sum((x.float() * torch.linspace(-1, 1, x.numel(), device=x.device).view(x.shape)).sum() for x in results)


@pytest.mark.parametrize("rows", [(3, 40), (257,)])
@pytest.mark.parametrize("dtypes", [(torch.float32, torch.float32), (torch.bfloat16, torch.float32),
                                    (torch.bfloat16, torch.bfloat16)])  # fmt: skip
@pytest.mark.parametrize("reads_sum", [False, True])
@pytest.mark.parametrize("probability", [0.0, 0.3])
@pytest.mark.parametrize("kind", ["layer_norm", "rms_norm"])
def test_it_is_one_pass(device, kind, probability, reads_sum, dtypes, rows):
    torch.manual_seed(0)
    branch, stream = dtypes
    (x,), (residual,) = leaves(device, (*rows, WIDTH), dtype=branch), leaves(device, (*rows, WIDTH), dtype=stream)
    weight, bias, scale, shift = leaves(device, (WIDTH, WIDTH), (WIDTH,), (WIDTH,), (WIDTH,))
    parameters = [weight, bias, scale, *([shift] if kind == "layer_norm" else [])]
    text = json.dumps({"program": program(kind, probability, reads_sum, dtypes), "options": EXACT})
    places = list(range(4 if probability else 3))[1:]
    assert json.loads(torch.ops.actnn.describe_program(text))["fusions"] == [{"name": "add_norm", "steps": places}]

    found = torch.ops.actnn.run_program(text, [x, residual], parameters, [], [], [])
    product = F.linear(x, weight.to(branch), bias.to(branch))
    if probability:
        # With the mask that is drawn from this seed: without a residual, what is dropped is 0.
        drawn = json.dumps({"program": program(kind, probability, True, dtypes), "options": EXACT})
        torch.manual_seed(1)
        found = torch.ops.actnn.run_program(text, [x, residual], parameters, [], [], [])
        torch.manual_seed(1)
        dropped = torch.ops.actnn.run_program(drawn, [x, residual * 0], parameters, [], [], [])[1] == 0
        assert abs(dropped.double().mean().item() - probability) < 0.05
        product = product * ~dropped / (1 - probability)
    sums = (residual + product).to(stream)
    if kind == "layer_norm":
        normalized = F.layer_norm(sums.float(), (WIDTH,), scale, shift, 1e-5)
    else:
        normalized = F.rms_norm(sums.float(), (WIDTH,), scale, 1e-5)
    expected = [normalized, sums] if reads_sum else [normalized]
    near = {"rtol": 1e-5, "atol": 1e-4} if branch == stream == torch.float32 else {"rtol": 2e-2, "atol": 5e-2}
    for ours, theirs in zip(found, expected, strict=True):
        assert ours.dtype == stream
        torch.testing.assert_close(ours.float(), theirs.float(), **near)
    tensors = [x, residual, *parameters]
    ours, theirs = (torch.autograd.grad(losses(results), tensors) for results in (found, expected))
    for one, other in zip(ours, theirs, strict=True):
        assert (one.double() - other.double()).norm() < 0.03 * other.double().norm()


@pytest.mark.parametrize("used", [[0], [1], [0, 1]], ids=["norm", "sum", "both"])
@pytest.mark.parametrize("wanted", [[0], [1], [4], [5], [1, 4]], ids=["x", "residual", "scale", "shift", "two"])
def test_gradients_are_the_same_whichever_are_wanted(device, wanted, used):
    torch.manual_seed(0)
    text = json.dumps({"program": program("layer_norm", 0.0, True, (torch.float32, torch.float32)), "options": EXACT})
    tensors = leaves(device, (40, WIDTH), (40, WIDTH), (WIDTH, WIDTH), (WIDTH,), (WIDTH,), (WIDTH,))

    def gradients(of):
        for i, tensor in enumerate(tensors):
            tensor.requires_grad_(i in of)
        torch.manual_seed(1)
        results = torch.ops.actnn.run_program(text, tensors[:2], tensors[2:], [], [], [])
        return torch.autograd.grad(losses([results[i] for i in used]), [tensors[i] for i in of], allow_unused=True)

    everything = gradients(range(len(tensors)))
    for i, found in zip(wanted, gradients(wanted), strict=True):
        if i >= 4 and used == [1]:  # the norm's parameters do nothing to the sum
            assert found is None or not found.any()
        else:
            torch.testing.assert_close(found, everything[i])
