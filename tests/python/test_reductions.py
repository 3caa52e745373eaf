"""Sums over each sample that policies choose bit widths from: squared ranges of groups, squared norms."""

import pytest
import torch

pytestmark = [
    pytest.mark.usefixtures("device"),
    pytest.mark.skipif(
        not hasattr(torch.ops.actnn, "group_range_squares"), reason="this libactnn.so has no group_range_squares"
    ),
]

ops = torch.ops.actnn
DTYPES = [torch.float32, torch.float16, torch.bfloat16]
SHAPES = [(1, 1), (1, 105), (3, 105), (2, 256), (2, 257), (5, 600), (3, 7, 11, 13), (1000, 33), (2, 100_003)]


def stored_samples(x):
    """[N, elements]: each sample's elements in the order in which they are packed."""
    outermost = x.stride() == torch.empty_like(x).stride() and x.stride(0) * x.shape[0] == x.numel()
    dense = x if outermost else x.contiguous()
    return torch.as_strided(dense, (x.shape[0], x.numel() // x.shape[0]), (x.numel() // x.shape[0], 1))


def range_squares(x, group_size):
    groups = stored_samples(x).double().split(group_size, dim=1)
    return sum((group.amax(1) - group.amin(1)).square() for group in groups)


def norms(x):
    return stored_samples(x).double().square().sum(1)


def assert_is(actual, expected):
    assert actual.dtype == torch.float32 and actual.shape == expected.shape and actual.device == expected.device
    torch.testing.assert_close(actual.double(), expected, rtol=1e-5, atol=0)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("dtype", DTYPES)
def test_they_are_the_float64_sums(shape, dtype):
    x = (torch.randn(shape) * 3 + 1).to(dtype)
    for group_size in (32, 64, 96, 128, 256, 512, 1024):
        assert_is(ops.group_range_squares(x, group_size), range_squares(x, group_size))
    assert_is(ops.square_norms(x), norms(x))


LAYOUTS = {
    "channels_last": lambda x: x.to(memory_format=torch.channels_last),
    "channels_last, all but the first": lambda x: x.to(memory_format=torch.channels_last)[1:],
    "all but the first": lambda x: x[1:],
    "an odd storage offset": lambda x: x.flatten()[7:].view(-1, 7)[: x.shape[0]],
    "samples not outermost": lambda x: x.transpose(0, 1),
    "with gaps": lambda x: x[:, :, ::2],
    "expanded": lambda x: x[:1].expand_as(x),
}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_layouts(layout, dtype):
    x = LAYOUTS[layout](torch.randn(6, 5, 14, 9).to(dtype))
    for group_size in (32, 96, 256):
        assert_is(ops.group_range_squares(x, group_size), range_squares(x, group_size))
    assert_is(ops.square_norms(x), norms(x))


def test_groups_are_those_of_storage_order():
    x = torch.arange(64.0).view(1, 2, 32, 1)  # channels 0..31 and 32..63
    assert ops.group_range_squares(x, 32).tolist() == [2 * 31.0**2]
    # In channels_last order the channels alternate: each group has 16 of both.
    interleaved = x.to(memory_format=torch.channels_last)
    assert ops.group_range_squares(interleaved, 32).tolist() == [2 * 47.0**2]


@pytest.mark.parametrize("dtype", DTYPES)
def test_two_runs_give_the_same_bits(dtype):
    x = torch.randn(3, 1_000_003).to(dtype)
    for reduction in (lambda: ops.group_range_squares(x, 256), lambda: ops.square_norms(x)):
        first = reduction()
        assert all(torch.equal(reduction(), first) for _ in range(5))


def test_constant_groups_have_no_range():
    x = torch.full((4, 700), 3.25)
    assert ops.group_range_squares(x, 256).tolist() == [0.0] * 4
    assert ops.square_norms(x).tolist() == [700 * 3.25**2] * 4


@pytest.mark.parametrize("poison", [torch.nan, torch.inf, -torch.inf])
def test_what_is_not_finite_stays_visible(poison):
    x = torch.randn(3, 700)
    x[1, 300] = poison
    for y in (ops.group_range_squares(x, 256), ops.square_norms(x)):
        assert y.isfinite().tolist() == [True, False, True]


def test_empty_batches_and_samples():
    for shape in ((0, 5), (4, 0)):
        for y in (ops.group_range_squares(torch.randn(shape), 256), ops.square_norms(torch.randn(shape))):
            assert y.shape == shape[:1] and y.dtype == torch.float32
            assert (y == 0).all()


@pytest.mark.parametrize(("call", "message"), [
    (lambda: ops.group_range_squares(torch.randn(2, 5), 31), "group_size must be a positive multiple of 32, got 31"),
    (lambda: ops.group_range_squares(torch.ones(2, 5, dtype=torch.int32), 32), "input must be float32"),
    (lambda: ops.group_range_squares(torch.tensor(1.0), 32), "input must have a sample dimension"),
    (lambda: ops.square_norms(torch.ones(2, 5, dtype=torch.float64)), "input must be float32"),
    (lambda: ops.square_norms(torch.tensor(1.0)), "input must have a sample dimension"),
])  # fmt: skip
def test_bad_arguments_get_a_sentence(call, message):
    with pytest.raises((ValueError, TypeError), match=message):
        call()
