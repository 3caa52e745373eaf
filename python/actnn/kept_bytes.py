"""How many bytes each module, and each block, keeps for backward."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from . import _checks
from ._unchanged import unchanged
from .blocks import BlockForward
from .layers import QuantizedLayer

_CALL = nn.Module._call_impl.__code__


@dataclass
class KeptBytes:
    """What `measure_kept_bytes` found, in bytes."""

    modules: dict[str, int] = field(default_factory=dict)
    """By the path of the innermost module in whose call something was kept, without what blocks keep."""
    blocks: dict[str, int] = field(default_factory=dict)
    """By the name of the block, as in the report of `convert`."""
    elsewhere: int = 0
    """In no call of the model's modules: by the loss, for example."""

    @property
    def total(self) -> int:
        """All of it."""
        return sum(self.modules.values()) + sum(self.blocks.values()) + self.elsewhere


def measure_kept_bytes(model: nn.Module, run: Callable[[], object]) -> KeptBytes:
    """The bytes that are kept for backward by what `run` runs of the model, by module and by block.

    Memory counts once, for whoever keeps it first: a copy that a block shares with the layer behind it is the block's.
    It counts wherever it is, on a device or, offloaded, on the host. Parameters and buffers do not count; an input that
    autograd keeps as it is does. Of blocks the packed copies, masks and positions count, not their few numbers per
    channel. What a checkpoint (`torch.utils.checkpoint`) keeps is not seen, nor are sparse tensors.

    Gradients, buffers, bits of adaptive layers and torch's random state are put back afterwards. Nothing of this runs
    during training.

    Args:
        model: converted or not, in the mode (`train()`) that is to be measured.
        run: calls the model, and perhaps a loss; a backward is not needed. If it calls the model several times,
            everything counts.

    Raises TypeError for arguments of other types.
    """
    where = "measure_kept_bytes"
    if not isinstance(model, nn.Module):
        raise TypeError(f"{where}: model must be a torch.nn.Module, got {_checks.describe(model)}")
    if not callable(run):
        raise TypeError(f"{where}: run must be a function, got {_checks.describe(run)}")
    meter = _Meter(model)
    devices = {tensor.device for tensor in (*model.parameters(), *model.buffers()) if tensor.is_cuda}
    with (
        unchanged(model.parameters(), model.buffers()),
        _same_bits(model),
        torch.random.fork_rng(devices),
        meter.watches_blocks(),
        torch.autograd.graph.saved_tensors_hooks(meter.keep, lambda tensor: tensor),
    ):
        run()
    return meter.found


def bits_of(module: nn.Module) -> float | None:
    """Bits of an element of the packed copy that a layer keeps by itself, on average; None if it keeps none."""
    if not isinstance(module, QuantizedLayer) or not module.has_bits:
        return None
    flags = module.config
    if not (flags.compress_activation and flags.training):
        return None
    return flags.activation_compression_bits[module.group] if module.scheme is None else module.scheme.bits


class _Meter:
    def __init__(self, model: nn.Module) -> None:
        self.found = KeptBytes()
        self.paths = {module: path for path, module in model.named_modules()}
        own = [tensor for tensor in (*model.parameters(), *model.buffers()) if tensor.layout == torch.strided]
        # By address; whose memory is not free for another tensor before all is counted.
        self.counted = {tensor.untyped_storage().data_ptr(): tensor for tensor in own}

    def keep(self, tensor: Tensor) -> Tensor:
        """What autograd calls with each tensor that it saves."""
        tensor = tensor.detach()  # saved as it is, an output would keep its own graph alive
        if size := self._new_bytes(tensor):
            path = self._caller()
            if path is None:
                self.found.elsewhere += size
            else:
                self.found.modules[path] = self.found.modules.get(path, 0) + size
        return tensor

    @contextmanager
    def watches_blocks(self) -> Iterator[None]:
        """Counts what blocks keep."""
        forwards = [f for module in self.paths if isinstance(f := vars(module).get("forward"), BlockForward)]
        try:
            for forward in forwards:
                forward.observer = self._keep_block
            yield
        finally:
            for forward in forwards:
                forward.observer = None

    def _keep_block(self, module: nn.Module, index: int, executor: Any, result: Tensor) -> None:
        size = executor.kept_bytes() if result.requires_grad else 0
        name = f"{self.paths[module] or '(root)'}#{index}"
        self.found.blocks[name] = self.found.blocks.get(name, 0) + size
        for tensor in torch.ops.actnn.shared_copy(result):  # for the layers behind the block
            self._new_bytes(tensor)

    def _new_bytes(self, tensor: Tensor) -> int:
        """The bytes of a tensor's memory, if nobody else keeps it."""
        if tensor.layout != torch.strided or (address := tensor.untyped_storage().data_ptr()) in self.counted:
            return 0
        self.counted[address] = tensor
        return tensor.untyped_storage().nbytes()

    def _caller(self) -> str | None:
        """The path of the innermost module of the model whose call is going on in this thread."""
        frame = sys._getframe(1)
        while frame is not None:
            if frame.f_code is _CALL and (path := self.paths.get(frame.f_locals["self"])) is not None:
                return path
            frame = frame.f_back
        return None


@contextmanager
def _same_bits(model: nn.Module) -> Iterator[None]:
    """Puts the state of the bit allocation back at the end."""
    layers = [m for m in model.modules() if isinstance(m, QuantizedLayer) and m.scheme is not None]
    states = [layer.scheme.state() for layer in layers]
    try:
        yield
    finally:
        for layer, state in zip(layers, states, strict=True):
            layer.scheme.load_state(state)
