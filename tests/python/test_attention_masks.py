"""Masks of attention that want a gradient, on every kernel: beside torch's function."""

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from block_programs import Program

pytestmark = pytest.mark.usefixtures("device")

SAMPLES, HEADS = 6, 2


def attention(*inputs, **fields):
    program = Program(inputs=4)
    program.step("attention", 0, 1, 2, 3, **fields)
    return program.run(*inputs)


def gradients(y, inputs):
    weights = torch.linspace(-1, 1, y.numel()).reshape(y.shape).to(y)
    return torch.autograd.grad((y * weights).sum(), inputs)


def error(actual, expected):
    return float((actual.double() - expected.double()).norm() / expected.double().norm())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize(("length", "size"), [(10, 8), (49, 32), (64, 32)])
@pytest.mark.parametrize("samples", [1, 3, SAMPLES])
@pytest.mark.parametrize("is_of_heads", [True, False])
def test_a_mask_has_torchs_gradient(dtype, length, size, samples, is_of_heads):
    heads = [torch.randn(SAMPLES, HEADS, length, size, dtype=dtype).requires_grad_() for _ in range(3)]
    mask = torch.randn(samples, HEADS if is_of_heads else 1, length, length, dtype=dtype).requires_grad_()
    inputs = [*heads, mask]
    y = attention(*inputs, mask_repeats=samples == 3)
    exact = [tensor.detach().double().requires_grad_() for tensor in inputs]
    expected = F.scaled_dot_product_attention(*exact[:3], exact[3].repeat(SAMPLES // samples, 1, 1, 1))
    tolerance = 1e-5 if dtype == torch.float32 else 2e-2
    assert error(y, expected) < tolerance
    for one, wanted in zip(gradients(y, inputs), gradients(expected, exact), strict=True):
        assert one.shape == wanted.shape and error(one, wanted) < tolerance


def test_a_mask_of_float32_goes_with_heads_of_bfloat16():
    inputs = [torch.randn(2, HEADS, 16, 8, dtype=torch.bfloat16).requires_grad_() for _ in range(3)]
    mask = torch.randn(HEADS, 16, 16).requires_grad_()
    y = attention(*inputs, mask)
    (grad,) = gradients(y, [mask])
    exact = [tensor.detach().double().requires_grad_() for tensor in (*inputs, mask)]
    (wanted,) = gradients(F.scaled_dot_product_attention(*exact), exact[3:])
    assert grad.dtype == torch.float32 and error(grad, wanted) < 2e-2


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("has_mask", [False, True])
def test_backward_drops_the_weights_that_forward_has_dropped(dtype, has_mask):
    size = 64
    query, key = (torch.randn(2, HEADS, size, size, dtype=dtype).requires_grad_() for _ in range(2))
    value = torch.eye(size, dtype=dtype).repeat(2, HEADS, 1, 1).requires_grad_()  # results are the weights
    mask = torch.zeros(1, 1, size, size, dtype=dtype).masked_fill(torch.rand(size, size) < 0.2, -torch.inf)
    inputs = [query, key, value, *([mask] if has_mask else [])]
    program = Program(inputs=len(inputs))
    program.step("attention", *range(len(inputs)), probability=0.25)
    y = program.run(*inputs)
    exact = [tensor.detach().double().requires_grad_() for tensor in (query, key, value)]
    scores = exact[0] @ exact[1].mT / size**0.5 + (mask.double() if has_mask else 0)
    kept = (y.detach() != 0).double()
    assert 0.5 < float(kept.mean()) < 0.8  # three quarters of what is not hidden
    expected = scores.softmax(-1) * kept / 0.75 @ exact[2]
    tolerance = 1e-4 if dtype == torch.float32 else 3e-2
    assert error(y, expected) < tolerance
    for one, wanted in zip(gradients(y, inputs[:3]), gradients(expected, exact), strict=True):
        assert error(one, wanted) < tolerance
