"""Attention that backward computes again from copies, where scores are large: weights stay normalized."""

import pytest
import torch
from block_programs import Program

FEATURES, HEADS, LENGTH = 64, 2, 128
SIZE = FEATURES // HEADS
OUTLIERS = [2, 9, 18, 25]
"""The channels of a head whose keys have large biases, as in Qwen2."""


def attention(gain, bias, dropout, rotated):
    """Query, key and value of linear layers, whose scores and the keys' biases are so large; with its inputs."""
    program = Program(inputs=3)
    heads = []
    for name in ("query", "key", "value"):
        linear = program.linear(0, FEATURES, FEATURES)
        weight, offset = program.parameters[-2:]
        torch.nn.init.normal_(weight, 0.0, (1.0 if name == "value" else gain) / FEATURES**0.5)
        torch.nn.init.zeros_(offset)
        if name == "key":
            with torch.no_grad():
                offset.view(HEADS, SIZE)[:, OUTLIERS] = bias * torch.tensor([1.0, -1.0, 1.0, -1.0])
        split = program.step("reshape", linear, sizes=[-1, LENGTH, HEADS, SIZE])
        heads.append(program.step("permute", split, dimensions=[0, 2, 1, 3]))
        if rotated and name != "value":
            heads[-1] = program.step("rotary", heads[-1], 1, 2)
    program.step("attention", *heads, probability=dropout, causal=True)
    angles = torch.outer(torch.arange(LENGTH), 100 ** -torch.linspace(0, 1, SIZE // 2)).repeat(1, 2)
    return program, [torch.randn(2, LENGTH, FEATURES, requires_grad=True), angles.cos(), angles.sin()]


def gradients(program, inputs, attention_bits):
    torch.manual_seed(1)  # the same dropout: copies that are rounded to the nearest draw nothing
    result = program.run(*inputs, attention_bits=attention_bits, rounding="nearest", bits=8)
    weights = torch.randn(result.shape, generator=torch.Generator().manual_seed(2), device="cpu").to(result)
    parts = torch.autograd.grad((result * weights).sum(), [inputs[0], *program.parameters[:4]])
    return torch.cat([part.flatten() for part in parts]).double()


# Of weights that were not normalized: 1.6 to 1e19 times the gradient.
@pytest.mark.parametrize(
    ("gain", "bias", "rotated", "most"),
    [(1, 0, False, 0.06), (4, 0, False, 0.2), (10, 0, False, 0.6), (1, 40, False, 0.1), (1, 40, True, 0.1)],
)
@pytest.mark.parametrize("dropout", [0.0, 0.1])
def test_gradients_of_copies_are_near_exact_ones(device, gain, bias, rotated, dropout, most):
    torch.manual_seed(0)
    program, inputs = attention(gain, bias, dropout, rotated)
    # With exact inputs other numbers are drawn for dropout.
    exact, copied = (gradients(program, inputs, bits) for bits in (8 if dropout else 0, 6))
    assert (copied - exact).norm() < most * exact.norm()


@pytest.mark.parametrize("dropout", [0.0, 0.1])
def test_gradients_of_huge_scores_are_finite(device, dropout):
    torch.manual_seed(0)
    program, inputs = attention(100, 0, dropout, False)
    exact, copied = (gradients(program, inputs, bits) for bits in (0, 6))
    assert exact.isfinite().all() and copied.isfinite().all()
    assert dropout or copied.norm() < 2 * exact.norm()
