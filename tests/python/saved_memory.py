"""What autograd holds for backward."""

import torch


def saved_bytes(run):
    """(bytes that autograd holds for backward after `run()`, without parameters; what `run` returned)."""
    storages = {}

    def pack(t):
        storages[t.untyped_storage().data_ptr()] = (t, t.untyped_storage().nbytes())
        return t

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        result = run()
    return sum(size for t, size in storages.values() if not (t.is_leaf and t.requires_grad)), result


def packed_bytes(count, bits, group_size=256):
    """Bytes of a packed activation with one bit width."""
    return 16 + -(-4 * -(-count // group_size) // 16) * 16 + -(-count // 8) * bits
