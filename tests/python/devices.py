"""The devices that tests run on, and comparisons between them.

A test that asks for the fixture `device` (conftest.py) runs on the CPU and on CUDA; a test marked `cuda` needs CUDA.
"""

import pytest
import torch

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.cuda)]


def why_no_cuda():
    """What keeps tests from running on CUDA; None where nothing does."""
    if not torch.cuda.is_available():
        return "no CUDA device"
    if not torch._C._dispatch_has_kernel_for_dispatch_key("actnn::quantize", "CUDA"):
        return "this libactnn.so was built without CUDA"
    return None


def rng(seed=1234, offset=0, device=None):
    """A random state; on the default device, which the fixture `device` sets."""
    return torch.tensor([seed, offset], dtype=torch.int64, device=device)


def bit_pattern(tensor):
    """The tensor's elements as integers, on the CPU."""
    tensor = tensor.detach().cpu()
    return tensor.view({1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}[tensor.element_size()])


def assert_same_bits(actual, expected, case=""):
    """Equal shape, strides, dtype and bits, on whatever device: told apart are -0 and 0, and one NaN and another."""
    assert (actual.shape, actual.stride(), actual.dtype) == (expected.shape, expected.stride(), expected.dtype), case
    assert torch.equal(bit_pattern(actual), bit_pattern(expected)), case
