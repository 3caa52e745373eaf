"""Bits and sampling probabilities for a budget: the best of all choices, by trying them all."""

import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

ops = torch.ops.actnn
POSITIVE = st.floats(0, 1e6, width=32)


def variance(norm, sensitivity, bits, probability):
    return norm * (1 - probability) / probability + sensitivity / (probability * (2**bits - 1) ** 2)


def best_of_all(norms, sensitivities, max_bits, target, states):
    choices = [(b, p) for b in range(1, max_bits + 1) for p in range(1, states + 1)]
    budget = target * len(norms) * states + 1e-9
    return min(
        sum(variance(n, s, b, p / states) for n, s, (b, p) in zip(norms, sensitivities, chosen, strict=True))
        for chosen in itertools.product(choices, repeat=len(norms))
        if sum(b * p for b, p in chosen) <= budget
    )


@settings(deadline=None, max_examples=60)
@given(st.lists(st.tuples(POSITIVE, POSITIVE), min_size=1, max_size=3), st.integers(1, 4),
       st.sampled_from([1, 1.5, 2, 3]), st.integers(1, 3))  # fmt: skip
def test_nothing_within_the_budget_is_better(elements, max_bits, target, states):
    norms, sensitivities = zip(*elements, strict=True)
    bits, probability = ops.allocate_bits_dp(
        torch.tensor(norms, dtype=torch.float64), torch.tensor(sensitivities, dtype=torch.float64), max_bits, target,
        states,
    )  # fmt: skip
    assert bits.dtype == torch.uint8 and probability.dtype == torch.float64
    assert (probability * bits).sum() <= target * len(norms) + 1e-9
    assert ((bits >= 1) & (bits <= max_bits)).all()
    steps = probability * states
    assert torch.equal(steps, steps.round()) and (steps >= 1).all() and (steps <= states).all()
    found = sum(map(variance, norms, sensitivities, bits.tolist(), probability.tolist()))
    assert math.isclose(found, best_of_all(norms, sensitivities, max_bits, target, states), rel_tol=1e-9, abs_tol=1e-9)


def test_with_one_state_nothing_is_dropped():
    bits, probability = ops.allocate_bits_dp(torch.zeros(3), torch.tensor([1.0, 100.0, 10000.0]), 8, 3, 1)
    assert bits.tolist() == [1, 3, 5] and probability.tolist() == [1, 1, 1]


def test_what_has_no_norm_is_dropped_for_what_has_one():
    _, probability = ops.allocate_bits_dp(torch.tensor([0.0, 1e4]), torch.tensor([1e-3, 10.0]), 4, 1, 4)
    assert probability[0] < probability[1]


def test_numbers_that_are_none_count_as_the_largest():
    bad = torch.tensor([math.nan, math.inf, -1.0, 1.0])
    bits, probability = ops.allocate_bits_dp(bad, bad, 8, 2, 2)
    assert min(bits[0], bits[1]) > max(bits[2], bits[3]) and (probability * bits).sum() <= 8


def test_no_elements_and_any_device(device):
    assert [t.shape for t in ops.allocate_bits_dp(torch.ones(0), torch.ones(0), 8, 2, 2)] == [(0,), (0,)]
    bits, probability = ops.allocate_bits_dp(torch.ones(3), torch.ones(3), 8, 100, 2)
    assert bits.device == probability.device == torch.ones(1).device
    assert bits.tolist() == [8, 8, 8] and probability.tolist() == [1, 1, 1]


@pytest.mark.parametrize(("change", "message"), [
    ({"square_norm": torch.ones(3).half()}, "square_norm must be float32 or float64, got Half"),
    ({"square_norm": torch.ones(3, 1)}, "square_norm must be 1-D"),
    ({"sensitivity": torch.ones(4)}, "sensitivity must be 1-D with 3 elements"),
    ({"sensitivity": torch.ones(3, device="meta")}, "sensitivity must be on the device of square_norm, cpu, got meta"),
    ({"max_bits": 9}, "max_bits must be in 1..8, got 9"),
    ({"max_bits": 0}, "max_bits must be in 1..8, got 0"),
    ({"states": 0}, "states must be in 1..1024, got 0"),
    ({"states": 1025}, "states must be in 1..1024, got 1025"),
    ({"target": 0.4}, "target must be finite and at least 1 / states"),
    ({"target": math.nan}, "target must be finite"),
    ({"target": math.inf}, "target must be finite"),
    ({"square_norm": torch.ones(10**5), "sensitivity": torch.ones(10**5)}, r"must be at most 2\^30"),
])  # fmt: skip
def test_bad_arguments(change, message):
    arguments = {"square_norm": torch.ones(3), "sensitivity": torch.ones(3), "max_bits": 8, "target": 2.0, "states": 2}
    with pytest.raises((ValueError, TypeError), match=message):
        ops.allocate_bits_dp(**(arguments | change))
