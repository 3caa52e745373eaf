"""What ops on a GPU allocate: their results, and no temporary copies."""

import gc
import math

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from devices import rng
from test_cuda_streams import WINDOW, results
from test_per_sample import code_bytes

pytestmark = pytest.mark.cuda

ops = torch.ops.actnn
GPU = "cuda"


def requested_bytes(function):
    """The most bytes that tensors made by `function` had at a time, and what it returned."""
    gc.collect()  # what would be freed meanwhile
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_stats()["requested_bytes.all.current"]
    returned = function()
    torch.cuda.synchronize()
    return torch.cuda.memory_stats()["requested_bytes.all.peak"] - before, returned


SMALL = 4096  # for random states and the like


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("group_size", [256, 160])
@pytest.mark.parametrize("with_state", [True, False])
def test_quantization_allocates_its_result_and_nothing_else(dtype, group_size, with_state):
    x, state = torch.randn(8_000_003, device=GPU).to(dtype), rng(device=GPU) if with_state else None
    for bits in (1, 3, 8):
        peak, packed = requested_bytes(lambda bits=bits: ops.quantize(x, bits, group_size, "dithered", state))
        assert packed.numel() <= peak <= packed.numel() + SMALL
        layout = x.shape, x.stride(), dtype, bits, group_size
        peak, decoded = requested_bytes(lambda packed=packed, layout=layout: ops.dequantize(packed, *layout))
        assert decoded.nbytes <= peak <= decoded.nbytes + SMALL


def test_quantization_per_sample_allocates_its_result_and_an_offset_a_sample():
    x, bits = torch.randn(1000, 5003, device=GPU), torch.randint(1, 9, (1000,), device=GPU, dtype=torch.uint8)
    state, room = rng(device=GPU), code_bytes(x, bits.cpu())
    peak, packed = requested_bytes(lambda: ops.quantize_per_sample(x, bits, room, 256, "dithered", state))
    assert peak <= packed.numel() + 8 * 1001 + SMALL
    layout = x.shape, x.stride(), x.dtype, 256
    peak, decoded = requested_bytes(lambda: ops.dequantize_per_sample(packed, bits, *layout))
    assert peak <= decoded.nbytes + 8 * 1001 + SMALL


def test_the_other_ops_allocate_their_results_and_nothing_else():
    x, state = torch.randn(8, 16, 200, 200, device=GPU), rng(device=GPU)
    mask = ops.pack_mask(x > 0)
    output, positions = ops.max_pool2d_pack(x, *WINDOW)
    for function in (
        lambda: ops.relu_pack(x),
        lambda: ops.relu_pack_(x),
        lambda: ops.apply_mask(x, mask, x.stride()),
        lambda: ops.unpack_mask(mask, x.shape, x.stride()),
        lambda: ops.dropout_forward(x, 0.5, state),
        lambda: ops.dropout_forward_(x, 0.5, state),
        lambda: ops.apply_dropout(x, 0.5, state, x.stride()),
        lambda: ops.max_pool2d_pack(x, *WINDOW),
        lambda: ops.max_pool2d_pack_backward(output, positions, x.shape, False, *WINDOW),
        lambda: ops.max_pool2d_indices(positions, x.shape, False, *WINDOW),
        lambda: ops.group_range_squares(x, 256),
        lambda: ops.square_norms(x),
    ):
        peak, returned = requested_bytes(function)
        assert peak <= sum(t.nbytes for t in results(returned)) + SMALL


def test_a_layer_holds_its_packed_input_only():
    x, weight = torch.randn(4096, 1024, device=GPU), torch.randn(1024, 1024, device=GPU, requires_grad=True)
    ops.linear(x, weight, None, 2)  # allocates the libraries' workspaces
    torch.cuda.synchronize()

    def run(layer):
        before = torch.cuda.memory_stats()["requested_bytes.all.current"]
        y = layer(F.relu(x))  # nobody else keeps this input
        torch.cuda.synchronize()
        return torch.cuda.memory_stats()["requested_bytes.all.current"] - before - y.nbytes, y

    groups = math.ceil(x.numel() / 256)
    assert run(lambda t: ops.linear(t, weight, None, 2))[0] <= x.numel() // 4 + 4 * groups + SMALL
    assert run(lambda t: F.linear(t, weight))[0] >= x.nbytes
