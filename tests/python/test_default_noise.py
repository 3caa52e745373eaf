"""Without a random state, noise comes from torch's default generator of the device: it follows torch.manual_seed."""

import pytest
import torch
from devices import assert_same_bits, rng

pytestmark = pytest.mark.usefixtures("device")

ops = torch.ops.actnn
SAMPLES, ELEMENTS = 5, 400


def bits():
    return torch.arange(1, SAMPLES + 1, dtype=torch.uint8)


def dropped_in_place(x, state):
    y = x.clone()
    ops.dropout_forward_(y, 0.5, state)
    return y


# Each draws noise from the state for the elements of x.
RANDOMIZED = {
    "quantize": lambda x, state: ops.quantize(x, 2, 256, "dithered", state),
    "quantize_per_sample": lambda x, state: ops.quantize_per_sample(x, bits(), 1000, 256, "dithered", state),
    "dropout_forward": lambda x, state: ops.dropout_forward(x, 0.5, state)[0],
    "dropout_forward_": dropped_in_place,
    "dropout": lambda x, state: ops.dropout(x, 0.5, state),
}
randomized = pytest.mark.parametrize("draw", RANDOMIZED.values(), ids=RANDOMIZED)


@randomized
def test_the_same_seed_gives_the_same_noise_and_every_call_fresh_noise(draw):
    x = torch.randn(SAMPLES, ELEMENTS)
    torch.manual_seed(5)
    first, second, third = (draw(x, None) for _ in range(3))
    torch.manual_seed(5)
    assert_same_bits(draw(x, None), first)
    assert_same_bits(draw(x, None), second)
    assert not torch.equal(first, second) and not torch.equal(second, third) and not torch.equal(first, third)
    torch.manual_seed(6)
    assert not torch.equal(draw(x, None), first)


@randomized
def test_a_state_of_its_own_leaves_the_default_generator_alone(draw, device):
    x = torch.randn(SAMPLES, ELEMENTS)
    generator = torch.cuda.default_generators[0] if device == "cuda" else torch.default_generator
    before = generator.get_state()
    draw(x, rng())
    assert torch.equal(generator.get_state(), before)
    draw(x, None)
    assert not torch.equal(generator.get_state(), before)


@randomized
def test_the_default_generator_can_be_saved_and_restored(draw, device):
    x = torch.randn(SAMPLES, ELEMENTS)
    generator = torch.cuda.default_generators[0] if device == "cuda" else torch.default_generator
    draw(x, None)
    state = generator.get_state()
    expected = draw(x, None)
    draw(x, None)
    generator.set_state(state)
    assert_same_bits(draw(x, None), expected)


def test_torchs_own_numbers_are_not_the_same():
    # Under one seed, actnn's noise and torch's must not be two copies of the same random numbers.
    torch.manual_seed(5)
    drop = ops.dropout_forward(torch.ones(100_000), 0.5, None)[0] == 0
    torch.manual_seed(5)
    torchs = torch.nn.functional.dropout(torch.ones(100_000), 0.5) == 0
    assert 49_000 < (drop == torchs).sum() < 51_000


def test_dropout_returns_the_state_that_it_used():
    x = torch.randn(SAMPLES, ELEMENTS)
    y, state = ops.dropout_forward(x, 0.5, None)
    assert state.dtype == torch.int64 and state.shape == (2,) and state.device == x.device
    assert_same_bits(ops.apply_dropout(x, 0.5, state, x.stride()), y)
    z = x.clone()
    in_place_state = ops.dropout_forward_(z, 0.5, None)
    assert not torch.equal(in_place_state, state)
    assert_same_bits(ops.apply_dropout(x, 0.5, in_place_state, x.stride()), z)


def test_rounding_to_nearest_needs_no_state():
    x = torch.randn(SAMPLES, ELEMENTS)
    assert_same_bits(ops.quantize(x, 3, 256, "nearest", None), ops.quantize(x, 3, 256, "nearest", rng()))


def test_the_argument_may_be_left_out():
    x = torch.randn(SAMPLES, ELEMENTS)
    assert ops.quantize(x, 2, 256, "dithered").numel() == 48 + 2000 // 4
    assert ops.quantize_per_sample(x, bits(), 1000, 256, "dithered").numel() == 64 + 1000
    assert ops.dropout_forward(x, 0.5)[0].shape == x.shape
    assert ops.dropout_forward_(x, 0.5).shape == (2,)
