"""Bits per sample for a budget, on both devices; tests/cpp/policy compares with the greedy definition."""

import pytest
import torch

pytestmark = pytest.mark.usefixtures("device")
ops = torch.ops.actnn


def problem(count):
    bits = torch.randint(1, 9, (count,), dtype=torch.uint8, device="cpu")
    sensitivity = torch.randn(count, device="cpu").mul(4).exp()
    sensitivity[::7] = 0
    weight = torch.randint(1, 1000, (count,), device="cpu")
    return bits, sensitivity, weight


@pytest.mark.parametrize("count", [1, 3, 64, 1000])
@pytest.mark.parametrize("share", [0.0, 0.2, 0.5, 0.9, 1.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_every_device_gives_the_bits_of_the_cpu(count, share, dtype, device):
    bits, sensitivity, weight = problem(count)
    sensitivity = sensitivity.to(dtype)
    target = int(share * int((bits * weight).sum()))
    expected = ops.allocate_bits(bits, sensitivity, weight, target)
    actual = ops.allocate_bits(bits.to(device), sensitivity.to(device), weight.to(device), target)
    assert actual.dtype == torch.uint8 and torch.equal(actual.cpu(), expected)
    total = int((expected * weight).sum())
    assert total <= max(target, int(weight.sum())) and (expected <= bits).all() and (expected >= 1).all()


@pytest.mark.parametrize("count", [1, 3, 64, 1000, 3000])
@pytest.mark.parametrize("initial", [1, 4, 8])
def test_bits_of_samples(count, initial, device):
    sensitivity = problem(count)[1]
    for share in (0.1, 0.3, 0.6, 1.0):
        total = max(count, int(share * count * initial))
        expected = ops.allocate_bits(torch.full((count,), initial, dtype=torch.uint8, device="cpu"), sensitivity,
                                     torch.ones(count, dtype=torch.int64, device="cpu"), total)  # fmt: skip
        found, bits = ops.allocate_sample_bits(sensitivity.to(device), None, 1.0, initial, total)
        assert torch.equal(found.cpu(), sensitivity) and torch.equal(bits.cpu(), expected)
        assert int(bits.sum()) == min(total, count * initial)


def test_what_is_more_sensitive_keeps_more_bits():
    bits = torch.full((4,), 8, dtype=torch.uint8)
    sensitivity = torch.tensor([1.0, 16.0, 256.0, 4096.0])
    assert ops.allocate_bits(bits, sensitivity, torch.full((4,), 10), 100).tolist() == [1, 2, 3, 4]


@pytest.mark.parametrize(("change", "message"), [
    ({"bits": torch.ones(3)}, "bits must be uint8"),
    ({"sensitivity": torch.ones(3, dtype=torch.int64)}, "sensitivity must be float32 or float64"),
    ({"weight": torch.ones(2, dtype=torch.int64)}, r"weight must have the shape of bits, \[3\], got \[2\]"),
])  # fmt: skip
def test_bad_arguments(change, message, device):
    arguments = {"bits": torch.ones(3, dtype=torch.uint8), "sensitivity": torch.ones(3),
                 "weight": torch.ones(3, dtype=torch.int64)} | change  # fmt: skip
    with pytest.raises((ValueError, TypeError), match=message):
        ops.allocate_bits(*(value.to(device) for value in arguments.values()), 3)
