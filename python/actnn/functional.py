"""Compression of a model's functional calls, which no conversion of its layers can see.

with CompressFunctions(bits=2):
    loss = criterion(model(x), y)
loss.backward()
"""

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from . import _checks
from .redirected import BATCH_NORMS, EMBEDDINGS, REDIRECTED, takes


def linear_cross_entropy(
    input: Tensor,
    weight: Tensor,
    target: Tensor,
    bias: Tensor | None = None,
    *,
    ignore_index: int = -100,
    label_smoothing: float = 0.0,
    z_loss: float = 0.0,
    reduction: str = "mean",
) -> Tensor:
    """`F.cross_entropy(F.linear(input, weight, bias), target)`, the end of a language model, without its logits.

    They are computed for some rows at a time, and forward computes the gradients from them at once.

    Args:
        input: [..., features], float32, float16 or bfloat16.
        weight: [classes, features], of the same dtype; it may be an embedding's, too.
        target: int64, of the input's shape without the last dimension.
        bias: [classes].
        ignore_index: a target whose row counts for nothing.
        label_smoothing: the part of a target that is spread over all classes, in [0, 1].
        z_loss: times the squared log-sum-exp, added to each row's loss (PaLM, section 5).
        reduction: "mean" over the targets that are not ignored, or "sum".

    Returns a float32 scalar. Gradients are the exact ones; that of the weight is added up in float32. Kept for backward
    are those that are wanted. Double backward raises an error. Raises ValueError for shapes and options that make no
    sense, TypeError for targets of another dtype, IndexError for one that is no class (on a GPU, a device-side
    assertion).
    """
    return torch.ops.actnn.linear_cross_entropy(
        input, weight, target, bias, ignore_index, label_smoothing, z_loss, reduction
    )


class CompressFunctions(TorchFunctionMode):
    """Inside of it, calls of torch's functions go to the operations of actnn that keep less for backward.

    They are convolutions and transposed convolutions, linear, batch, layer, group, instance and RMS norms, relu, relu6,
    hardtanh, leaky_relu, prelu, gelu, silu, hardswish, sigmoid, tanh, softmax and log_softmax, dropout, embedding, and
    maximum and average pools, under all their names (in `torch.nn.functional`, in `torch`, as methods of tensors) but
    `sigmoid_` and `tanh_`. What torch.nn's layers call in their forward is among them. The results are torch's, and
    nothing is kept that a wanted gradient does not need; dropout draws its mask from another stream of the same
    generator.

    A call stays torch's own if its input is not a float32, float16 or bfloat16 tensor on a device that the library has
    kernels for, or if the operation lacks one of its arguments (`out`, padding "same" that is not symmetric, inputs
    without a batch). So do calls inside of torch.func's transforms, with forward-mode derivatives, and inside of other
    functions of torch, such as `multi_head_attention_forward`. torch.compile traces the calls as they are redirected.

    Args:
        bits: of a code, 1..8.
        group_size: elements that share a range, a positive multiple of 32.
        rounding: "dithered", "stochastic" or "nearest", as in `actnn.Config`.

    Raises ValueError for other numbers, TypeError for other types. The noise is from torch's generator of the device.
    """

    def __init__(self, bits: int = 4, group_size: int = 256, rounding: str = "dithered") -> None:
        super().__init__()
        bits = _checks.integer("CompressFunctions", "bits", bits, 1, 8)
        if not _checks.is_integer(group_size) or group_size <= 0 or group_size % 32 != 0:
            kind = ValueError if _checks.is_integer(group_size) else TypeError
            raise kind(f"CompressFunctions: group_size must be a positive multiple of 32, got {group_size!r}")
        rounding = _checks.rounding("CompressFunctions", rounding)
        self.quantization = {"bits": bits, "group_size": group_size, "rounding": rounding}

    def __torch_function__(
        self, function: Callable, types: Sequence[type], args: tuple = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        redirected = REDIRECTED.get(function)
        if redirected is not None and (function in EMBEDDINGS or takes(args[0] if args else kwargs.get("input"))):
            result = redirected(self.quantization, *args, **kwargs)
            if result is not None:
                return result
        return function(*args, **kwargs)


class FunctionsOfModel(CompressFunctions):
    """`CompressFunctions` as a configuration says, for the calls of a model of which some modules stay exact.

    It leaves calls that have a parameter or a buffer of one of those among their arguments to torch, and batch norms
    if the configuration does.
    """

    def __init__(self, config: Any, exact: Iterable[torch.nn.Module] = ()) -> None:
        super().__init__(config.activation_compression_bits[0], config.group_size, config.rounding)
        self.batch_norms = config.enable_quantized_bn
        self.exact = list(exact)
        self._own: frozenset[int] = frozenset()

    def __enter__(self):
        # Now: parameters may have been replaced since the last time.
        self._own = frozenset(
            id(own) for module in self.exact for own in (*module._parameters.values(), *module._buffers.values())
        )
        return super().__enter__()

    def __torch_function__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if (not self.batch_norms and function in BATCH_NORMS) or (self.exact and self._is_exact(args, kwargs)):
            return function(*args, **kwargs)
        return super().__torch_function__(function, types, args, kwargs)

    def _is_exact(self, args: tuple, kwargs: dict[str, Any]) -> bool:
        return any(isinstance(value, Tensor) and id(value) in self._own for value in (*args, *kwargs.values()))
