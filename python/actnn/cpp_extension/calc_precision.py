"""Bits for a budget: `actnn::allocate_bits` and `actnn::allocate_bits_dp` by the original's names."""

import math
from numbers import Real

import torch
from torch import Tensor

from .. import _checks


def calc_precision(b: Tensor, C: Tensor, w: Tensor, target: float) -> Tensor:
    """Lowers `b` greedily until the sum of w_i b_i is at most `target`, or all are 1, so that the sum of
    C_i / (2^b_i - 1)^2 rises least: one bit at a time, from the element where it rises least per weight.

    Args:
        b: [N], an integer dtype, values in 1..8: the bits to begin with. Changed in place.
        C: [N], float32 or float64: sensitivities. NaN counts as infinite, negative numbers as 0.
        w: [N], an integer dtype, values above 0: elements per bit.
        target: a finite number.

    All on one device, which need not be the CPU. Returns `b`. Raises TypeError and ValueError for anything else; to
    check the values, the host waits for the device.
    """
    where = "calc_precision"
    _checks.tensor(where, "b", b, _checks.INTEGER, 1)
    _checks.tensor(where, "C", C, (torch.float32, torch.float64))
    _checks.tensor(where, "w", w, _checks.INTEGER)
    for name, value in (("C", C), ("w", w)):
        _checks.shape(where, name, value, b.shape, b.device)
    if b.numel() and not 1 <= int(b.min()) <= int(b.max()) <= 8:
        raise ValueError(f"{where}: b must be in 1..8, got {int(b.min())}..{int(b.max())}")
    if w.numel() and int(w.min()) <= 0:
        raise ValueError(f"{where}: w must be above 0, got {int(w.min())}")
    # The sum is an integer: it is at most target if it is at most target rounded down.
    budget = math.floor(_finite(where, "target", target))
    budget = max(-(2**62), min(budget, 2**62))
    with torch.no_grad():
        return b.copy_(torch.ops.actnn.allocate_bits(b.to(torch.uint8), C.detach(), w.to(torch.int64), budget))


def calc_precision_dp(A: Tensor, C: Tensor, max_b: int, target: float, states: int) -> tuple[Tensor, Tensor]:
    """Bits b_i in 1..max_b and probabilities p_i in {1/states, ..., 1} that minimize the sum of

        A_i (1 - p_i) / p_i + C_i / (p_i (2^b_i - 1)^2)

    subject to: the sum of p_i b_i is at most N * target. Element i is kept with probability p_i, with b_i bits and
    scaled by 1 / p_i, and else dropped. See `actnn::allocate_bits_dp` (include/actnn/policy/bit_allocation_dp.h).

    Args:
        A: [N], float32 or float64: squared norms.
        C: [N], float32 or float64, on the device of `A`: sensitivities.
        max_b: 1..8.
        target: bits per element, at least 1 / states.
        states: 1..1024.

    Returns b and p, [N] with the dtype and device of `A`. Raises TypeError and ValueError for anything else.
    """
    where = "calc_precision_dp"
    _checks.tensor(where, "A", A, (torch.float32, torch.float64), 1)
    _checks.tensor(where, "C", C, (torch.float32, torch.float64))
    _checks.shape(where, "C", C, A.shape, A.device)
    max_b = _checks.integer(where, "max_b", max_b, 1, 8)
    states = _checks.integer(where, "states", states, 1, 1024)
    if _finite(where, "target", target) * states < 1:
        raise ValueError(f"{where}: target must be at least 1 / states, the cheapest choice, got {target}")
    bits, probability = torch.ops.actnn.allocate_bits_dp(A.detach(), C.detach(), max_b, float(target), states)
    return bits.to(A.dtype), probability


def _finite(where: str, name: str, value: float) -> float:
    if not isinstance(value, Real) or isinstance(value, bool):
        raise TypeError(f"{where}: {name} must be a number, got {_checks.describe(value)}")
    if not math.isfinite(value):
        raise ValueError(f"{where}: {name} must be finite, got {value}")
    return float(value) if not _checks.is_integer(value) else value
