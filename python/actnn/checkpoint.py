"""Gradient checkpointing whose inputs are kept as packed copies."""

from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint as exact_checkpoint

from . import _checks
from .redirected import takes

_ops = torch.ops.actnn
_GROUP, _FEWEST_ELEMENTS = 256, 1024
_FEWEST_ROWS, _FEWEST_CHANNELS = 64, 8  # of a tensor in columns, as of the library's other copies


@torch.compiler.disable(reason="actnn.checkpoint decides by the tensors what it keeps")
def checkpoint(function: Callable, *args: Any, bits: int = 8, use_reentrant: bool = False, **kwargs: Any) -> Any:
    """`function(*args, **kwargs)`, of which only the inputs are kept, packed; backward computes it again from those.

    It is `torch.utils.checkpoint.checkpoint(function, *args, use_reentrant=False, **kwargs)` with unbiased copies of
    `bits` bits, and 0.125 bits of parameters, in the place of the positional arguments that

    * require a gradient and are no leaves: a parameter is there in any case, and what requires none, such as a mask or
      the tables of a rotary embedding, is mostly small, or shared by all layers;
    * are float32, float16 or bfloat16, of 1024 elements or more, fill their memory without gaps, and share it with no
      other argument.

    Other arguments are kept as they are, and so are keyword arguments and tensors inside of lists and dictionaries. A
    tensor that many checkpoints are given, such as an encoder's result, would be packed by each: hand it over as a
    keyword. Given twice in one call it is packed once. In backward copies have the dtype, shape and strides of the
    tensors, and the function may write to them.

    Forward is exact. Gradients are those of the function at the decoded inputs: unbiased where they are linear in them,
    as a linear layer's weight gradient is, else with a bias of the order of the copies' variance. Copies are in column
    groups if they are [N, C], [N, L, C] or channels_last, else in groups of 256 elements in storage order.

    Random numbers are drawn again as they were. The copies' noise is drawn in front of them, from torch's generator of
    the device. Without gradients this is a plain call. Second derivatives are computed from the same copies. Under
    `torch.compile` the graph breaks here, and the call runs as it does without a compiler.

    Args:
        function: called once in forward, and again for each backward. It must do the same each time.
        args: of the function.
        bits: of a code, 4..8.
        use_reentrant: False, so that calls of torch's checkpoint need no change.
        kwargs: of the function, but for `preserve_rng_state`, `context_fn`, `determinism_check`, `debug` and
            `early_stop`, which are torch's.

    Raises TypeError and ValueError for other arguments; in backward torch's CheckpointError if the function saves
    other tensors than in forward. Computing again: Chen et al. 2016, arXiv:1604.06174.
    """
    if not callable(function):
        raise TypeError(f"checkpoint: function must be callable, got {_checks.describe(function)}")
    bits = _checks.integer("checkpoint", "bits", bits, 4, 8)
    if _checks.switch("checkpoint", "use_reentrant", use_reentrant):
        raise ValueError("checkpoint: use_reentrant must be False, for there is no reentrant one")
    once = {id(arg): arg for arg in args}
    memory = Counter(value.untyped_storage().data_ptr() for value in once.values() if _is_dense(value))
    layouts = [
        _Layout.of(value, bits) if _is_packed(value) and memory[value.untyped_storage().data_ptr()] == 1 else None
        for value in once.values()
    ]
    kept = [layout.pack(value) if layout else value for value, layout in zip(once.values(), layouts, strict=True)]
    places = {key: place for place, key in enumerate(once)}
    call = _Call(function, args, [places[id(arg)] for arg in args], layouts)
    return exact_checkpoint(call, *kept, use_reentrant=False, **kwargs)


class _Call:
    """Calls the function: at first with its arguments, which are let go, and then with what has been kept of them."""

    def __init__(self, function: Callable, args: tuple, places: Sequence[int], layouts: Sequence["_Layout | None"]):
        self.function, self.args, self.places, self.layouts = function, args, places, layouts

    def __call__(self, *kept: Any, **kwargs: Any) -> Any:
        args, self.args = self.args, None
        if args is None:
            values = [layout.unpack(x) if layout else x for x, layout in zip(kept, self.layouts, strict=True)]
            args = [values[place] for place in self.places]
        return self.function(*args, **kwargs)


class _Layout(NamedTuple):
    """How a tensor lies in memory, and how it is packed."""

    shape: torch.Size
    stride: tuple[int, ...]
    dtype: torch.dtype
    channels: int  # 0: in storage order
    bits: int

    @classmethod
    def of(cls, tensor: Tensor, bits: int) -> "_Layout":
        innermost = _by_stride(tensor)[-1]
        channels = tensor.shape[innermost]
        in_columns = channels >= _FEWEST_CHANNELS and tensor.numel() >= _FEWEST_ROWS * channels
        if not in_columns or (tensor.dim() > 3 and innermost != 1):
            channels = 0
        return cls(tensor.shape, tensor.stride(), tensor.dtype, channels, bits)

    def pack(self, tensor: Tensor) -> Tensor:
        memory = tensor.detach().as_strided((tensor.numel(),), (1,))
        if self.channels:
            return _ops.quantize_columns(memory.view(-1, self.channels), self.bits, _GROUP)
        return _ops.quantize(memory, self.bits, _GROUP)

    def unpack(self, packed: Tensor) -> Tensor:
        count = self.shape.numel()
        if self.channels:
            rows = count // self.channels
            memory = _ops.dequantize_columns(packed, rows, self.channels, self.dtype, self.bits, _GROUP).view(count)
        else:
            memory = _ops.dequantize(packed, [count], [1], self.dtype, self.bits, _GROUP)
        # Neither a leaf nor a leaf's view, for autograd: nobody may write to those.
        return torch.ops.aten._unsafe_view(memory.requires_grad_(), [count]).as_strided(self.shape, self.stride)


def _is_dense(value: Any) -> bool:
    return isinstance(value, Tensor) and value.layout == torch.strided


def _is_packed(value: Any) -> bool:
    return (
        type(value) is Tensor
        and torch.is_grad_enabled()
        and value.requires_grad
        and not value.is_leaf
        and takes(value)
        and value.numel() >= _FEWEST_ELEMENTS
        and value.permute(_by_stride(value)).is_contiguous()
    )


def _by_stride(tensor: Tensor) -> list[int]:
    """The dimensions, as they lie in memory; the innermost is the last."""
    return sorted(range(tensor.dim()), key=lambda d: (tensor.stride(d), tensor.shape[d]), reverse=True)
