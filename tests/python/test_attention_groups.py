"""Heads of the query that share those of key and value, on kernels that take groups and on others."""

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from block_programs import Program

SIZE = 64, 16  # of a head


def attention(*inputs, **fields):
    program = Program(inputs=3)
    program.step("attention", 0, 1, 2, **fields, scale=None, grouped=True)
    return program.run(*inputs)


@pytest.mark.parametrize("dropout", [0.0, 0.2])
def test_groups_that_no_kernel_takes_are_expanded_for_one(device, dropout):
    """In float32: a matrix of weights for all pairs of words would be larger than all else together."""
    if dropout and device == "cpu":
        pytest.skip("no kernel of the CPU drops")
    torch.manual_seed(0)
    inputs = [torch.randn(2, heads, *SIZE, device=device, requires_grad=True) for heads in (4, 2, 2)]
    weights = torch.randn(2, 4, *SIZE, device=device)
    with torch.profiler.profile() as profiler:
        found = attention(*inputs, probability=dropout, causal=True)
        gradients = torch.autograd.grad((found * weights).sum(), inputs)
    names = {event.key for event in profiler.key_averages()}
    assert any(kernel in name for name in names for kernel in ("flash", "efficient", "cudnn"))
    assert not any("softmax" in name for name in names)
    # The result is linear in the values, with what is dropped, too.
    torch.testing.assert_close((found * weights).sum(), (inputs[2] * gradients[2]).sum(), rtol=1e-2, atol=0.5)
    if not dropout:
        expected = F.scaled_dot_product_attention(*inputs, is_causal=True, enable_gqa=True)
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
        for ours, theirs in zip(gradients, torch.autograd.grad((expected * weights).sum(), inputs), strict=True):
            assert (ours - theirs).norm() < 0.05 * theirs.norm()
