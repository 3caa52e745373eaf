"""What tests of layers compare: copies, saved bytes, means over draws."""

import torch
from devices import rng

ops = torch.ops.actnn
DTYPES = [torch.float32, torch.float16, torch.bfloat16]


def decoded(x, bits, group_size=256, state=None):
    """The copy of x that a layer with this state (default: rng()) keeps; advances the state."""
    packed = ops.quantize(x, bits, group_size, "dithered", rng() if state is None else state)
    dense = x if torch.ops.aten.is_non_overlapping_and_dense(x) else x.contiguous()
    return ops.dequantize(packed, dense.shape, dense.stride(), x.dtype, bits, group_size)


def packed_bytes(count, bits, group_size=256):
    return 16 + -(-4 * -(-count // group_size) // 16) * 16 + -(-count // 8) * bits


def saved_tensors(run):
    """What autograd holds for backward, a tensor for each storage, without parameters; and the result."""
    storages = {}

    def pack(t):
        storages[t.untyped_storage().data_ptr()] = t
        return t

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        result = run()
    return [t for t in storages.values() if not (t.is_leaf and t.requires_grad)], result


def saved_bytes(run):
    return sum(t.untyped_storage().nbytes() for t in saved_tensors(run)[0])


def assert_close_sums(actual, expected, dtype):
    """Of gradients of `dtype` over elements: torch's own kernels on CUDA may round them to it."""
    relative = {torch.float16: 2e-3, torch.bfloat16: 2e-2}.get(dtype) if actual.is_cuda else None
    torch.testing.assert_close(actual, expected, rtol=relative, atol=None if relative is None else 10 * relative)


def assert_unbiased(run, exact, parameters, draws=400, allowance=0.0):
    """The mean of the gradients of run(state) over draws is that of exact(), at 5 sigma.

    An element near a grid point goes to the other one so rarely that no draw may show it; an event as large as the
    largest seen is allowed for.
    """
    total = [torch.zeros_like(p, dtype=torch.float64) for p in parameters]
    square = [torch.zeros_like(p, dtype=torch.float64) for p in parameters]
    least, most = ([torch.full_like(p, sign * torch.inf) for p in parameters] for sign in (1, -1))
    for seed in range(draws):
        for i, g in enumerate(torch.autograd.grad(run(rng(seed)), parameters)):
            total[i] += g.double()
            square[i] += g.double() ** 2
            least[i], most[i] = torch.minimum(least[i], g), torch.maximum(most[i], g)
    wanted_gradients = torch.autograd.grad(exact(), parameters)
    for t, s, low, high, wanted in zip(total, square, least, most, wanted_gradients, strict=True):
        mean = t / draws
        error = ((s / draws - mean**2).clamp_min(0) / draws).sqrt()
        assert (error > 0).any()
        limit = 5 * error + 12 / draws * (high - low).max() + (allowance + 1e-6) * wanted.abs().max()
        assert ((mean - wanted).abs() <= limit).all(), ((mean - wanted).abs() / limit).max()
