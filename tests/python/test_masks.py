"""1-bit masks."""

import pytest
import torch

pytestmark = pytest.mark.usefixtures("device")

ops = torch.ops.actnn


@pytest.mark.parametrize("size", [0, 1, 7, 8, 9, 255, 256, 257, 100_001])
def test_round_trip_at_one_bit_per_element(size):
    mask = torch.rand(size) < 0.3
    packed = ops.pack_mask(mask)
    assert packed.dtype == torch.uint8 and packed.numel() == -(-size // 8)
    assert torch.equal(ops.unpack_mask(packed, mask.shape, mask.stride()), mask)


def test_bits_are_in_storage_order_lowest_first():
    assert ops.pack_mask(torch.tensor([True, False, False, False, False, False, False, True, True])).tolist() == [
        0x81,
        1,
    ]
    mask = torch.rand(2, 3, 4, 5) < 0.5
    channels_last = mask.to(memory_format=torch.channels_last)
    packed = ops.pack_mask(channels_last)
    assert torch.equal(packed, ops.pack_mask(torch.as_strided(channels_last, (120,), (1,))))
    unpacked = ops.unpack_mask(packed, mask.shape, channels_last.stride())
    assert torch.equal(unpacked, mask) and unpacked.stride() == channels_last.stride()


def test_apply_mask_follows_the_layout_of_the_mask():
    x = torch.randn(2, 3, 4, 5)
    mask = (torch.rand(2, 3, 4, 5) < 0.5).to(memory_format=torch.channels_last)
    packed = ops.pack_mask(mask)
    for layout in (x, x.to(memory_format=torch.channels_last), x.expand(2, 3, 4, 5)):
        assert torch.equal(ops.apply_mask(layout, packed, mask.stride()), x * mask)


@pytest.mark.parametrize(("call", "message"), [
    (lambda: ops.pack_mask(torch.ones(3)), "mask must be a bool tensor"),
    (lambda: ops.unpack_mask(torch.zeros(1, dtype=torch.uint8), [9], [1]), "packed must have 2 bytes .* got 1"),
    (lambda: ops.unpack_mask(torch.zeros(2, dtype=torch.uint8), [9], [2]), "stride must describe a dense tensor"),
    (lambda: ops.unpack_mask(torch.zeros(2, dtype=torch.uint8), [-9], [1]), "size must not be negative"),
    (lambda: ops.apply_mask(torch.ones(9), torch.zeros(1, dtype=torch.uint8), [1]), "mask must have 2 bytes"),
    (lambda: ops.relu_pack_(torch.ones(4, 4)[:, ::2]), "input must be dense"),
])  # fmt: skip
def test_bad_arguments_get_a_sentence(call, message):
    with pytest.raises((ValueError, TypeError), match=message):
        call()
