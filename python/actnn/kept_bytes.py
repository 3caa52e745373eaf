"""How many bytes each module, and each block, keeps for backward."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, fx, nn

from . import _checks
from ._unchanged import unchanged
from .capture.backend import COUNTED_IN, watch
from .capture.call import call_of
from .capture.frozen_weights import FrozenWeight
from .capture.records import Record
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
    autograd keeps as it is does, and so do the inputs of a checkpoint (`actnn.checkpoint`, `torch.utils.checkpoint`),
    packed or as they are, but not what it computes again. Sparse tensors are not seen. While it is measured, captured
    graphs run node by node, and without their compiler.

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
    flags = module._actnn_config
    return module._copy_bits() if flags.compress_activation and flags.training else None


class _Meter:
    def __init__(self, model: nn.Module) -> None:
        self.found = KeptBytes()
        self.paths = {module: path for path, module in model.named_modules()}
        self.records: dict[int, str] = {}
        self.place: tuple[dict[str, int], str] | None = None
        """Of the node of a captured graph that is running: where its bytes count, and under which name."""
        own = [_local(tensor) for tensor in (*model.parameters(), *model.buffers())]
        # By address; whose memory is not free for another tensor before all is counted.
        self.counted = {_address(tensor): tensor for tensor in own if tensor.layout == torch.strided}
        self.sharded = [
            (module, name) for module in model.modules() for name, p in module._parameters.items() if _local(p) is not p
        ]

    def keep(self, tensor: Tensor) -> Tensor:
        """What autograd calls with each tensor that it saves."""
        tensor = tensor.detach()  # saved as it is, an output would keep its own graph alive
        if size := self._new_bytes(tensor):
            kept, name = self.place or (self.found.modules, self._caller())
            if name is None:
                self.found.elsewhere += size
            else:
                kept[name] = kept.get(name, 0) + size
        return tensor

    @contextmanager
    def watches_blocks(self) -> Iterator[None]:
        """Tells what nodes of captured graphs keep from one another."""
        calls = {call_of(module): path for module, path in self.paths.items() if call_of(module) is not None}
        self.records = {id(call.record): path for call, path in calls.items()}
        before, watch.run = watch.run, self._run_graph
        try:
            yield
        finally:
            watch.run = before

    def _run_graph(self, record: Record, graph: fx.GraphModule, inputs: tuple) -> Any:
        prefix = self.records.get(id(record))
        return graph(*inputs) if prefix is None else _NodeByNode(graph, self, prefix).run(*inputs)

    def _new_bytes(self, tensor: Tensor) -> int:
        """The bytes of a tensor's memory, if nobody else keeps it. A frozen weight has none but the model's."""
        if isinstance(tensor, FrozenWeight):
            return 0
        tensor = _local(tensor)
        if (
            tensor.layout != torch.strided
            or (address := _address(tensor)) in self.counted
            or self._is_gathered(address)
        ):
            return 0
        self.counted[address] = tensor
        return tensor.untyped_storage().nbytes()

    def _is_gathered(self, address: int) -> bool:
        """Whether this is the memory of a sharded parameter while it is whole: of `fully_shard`, which frees it."""
        return any(_address(_local(getattr(module, name))) == address for module, name in self.sharded)

    def _caller(self) -> str | None:
        """The path of the innermost module of the model whose call is going on in this thread."""
        frame = sys._getframe(1)
        while frame is not None:
            if frame.f_code is _CALL and (path := self.paths.get(frame.f_locals["self"])) is not None:
                return path
            frame = frame.f_back
        return None


class _NodeByNode(fx.Interpreter):
    """Runs a captured graph, and says which of its nodes is running."""

    def __init__(self, graph: fx.GraphModule, meter: _Meter, prefix: str) -> None:
        super().__init__(graph)
        self.meter, self.prefix = meter, prefix

    def run_node(self, node: fx.Node) -> Any:
        in_program, name = node.meta.get(COUNTED_IN, (False, ""))
        kept = self.meter.found.blocks if in_program else self.meter.found.modules
        self.meter.place = kept, ".".join(filter(None, (self.prefix, name)))
        try:
            return super().run_node(node)
        finally:
            self.meter.place = None


def _local(tensor: Tensor | None) -> Tensor | None:
    """The part of a DTensor that is here; other tensors as they are."""
    return getattr(tensor, "_local_tensor", tensor)


def _address(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()


@contextmanager
def _same_bits(model: nn.Module) -> Iterator[None]:
    """Puts the state of the bit allocation back at the end."""
    layers = [m for m in model.modules() if isinstance(m, QuantizedLayer) and m._actnn_scheme is not None]
    states = [layer._actnn_scheme.state() for layer in layers]
    try:
        yield
    finally:
        for layer, state in zip(layers, states, strict=True):
            layer._actnn_scheme.load_state(state)
