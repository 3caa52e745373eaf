"""What all layers share: configuration, scheme, debugging, the constructor."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from .. import _checks
from ..conf import Config
from ..conf import config as default_config
from ..qscheme import QScheme
from ..redirected import DTYPES, is_transformed
from ..utils import get_memory_usage

ops = torch.ops.actnn
METADATA = "actnn"
"""Where a state dictionary's metadata has a scheme's state."""
ATTRIBUTES = ("_actnn_group", "_actnn_config", "_actnn_name", "_actnn_scheme")
"""What a compressed layer has besides its parent's attributes."""

SAVES_NOTHING = (
    nn.Identity,
    nn.Flatten,
    nn.Unflatten,
    nn.Upsample,
    nn.PixelShuffle,
    nn.PixelUnshuffle,
    nn.ConstantPad1d,
    nn.ConstantPad2d,
    nn.ConstantPad3d,
    nn.ReflectionPad1d,
    nn.ReflectionPad2d,
    nn.ReflectionPad3d,
    nn.ReplicationPad1d,
    nn.ReplicationPad2d,
    nn.ReplicationPad3d,
    nn.Fold,
    nn.Unfold,
    nn.ChannelShuffle,
)
"""Layers of torch whose backward needs shapes only."""

CONVERSIONS: dict[type[nn.Module], type[nn.Module]] = {}
"""The compressed form of each of torch's layers that has one."""


class _Readable:
    """An attribute of a compressed layer, unless the layer has one of that name of its own."""

    def __init__(self, attribute: str) -> None:
        self.attribute = attribute

    def __set_name__(self, owner: type, name: str) -> None:
        self.name = name

    def __get__(self, layer: nn.Module | None, owner: type) -> Any:
        if layer is None:
            return self
        for own in (layer._parameters, layer._buffers, layer._modules):
            if self.name in own:
                return own[self.name]
        return getattr(layer, self.attribute)


class QuantizedLayer(nn.Module):
    """What all of the layers are besides torch's.

    Each kind of layer has a forward of its own, alike as they are: beside layers with a scheme, torch.compile compiles
    each forward by itself, and a forward that all kinds shared would exceed its limit of recompilations.
    """

    has_bits = True
    """False for layers that keep a mask, positions, a random state or nothing, whatever the configured bits."""
    fewest_bits = 1
    """Of the copy, whatever the configured bits."""
    group = _Readable("_actnn_group")
    config = _Readable("_actnn_config")
    name = _Readable("_actnn_name")
    scheme = _Readable("_actnn_scheme")

    def _init_quantization(self, group: int = 0, config: Config | None = None, name: str | None = None) -> None:
        """Sets the `ATTRIBUTES` that conversion adds to a layer of torch's. Without `config`: the process's."""
        where = type(self).__name__
        config = default_config if config is None else config
        if not isinstance(config, Config):
            raise TypeError(f"{where}: config must be an actnn.Config or None, got {_checks.describe(config)}")
        bits = config.activation_compression_bits
        if not _checks.is_integer(group) or not 0 <= group < len(bits):
            kind = ValueError if _checks.is_integer(group) else TypeError
            raise kind(
                f"{where}: group must be an index into activation_compression_bits = {list(bits)}, got {group!r}"
            )
        self._actnn_group, self._actnn_config, self._actnn_name = int(group), config, name or where
        self._actnn_scheme = self._make_scheme()

    def _make_scheme(self) -> QScheme | None:
        return None

    def _quantization(self, input: Tensor) -> dict[str, Any]:
        """bits, group_size, rounding for `input`, without a scheme."""
        flags = self._actnn_config
        return {
            "bits": flags.activation_compression_bits[self._actnn_group],
            # Without `pergroup`, one group has all elements.
            "group_size": flags.group_size if flags.pergroup else max(32, -(-input.numel() // 32) * 32),
            "rounding": flags.rounding,
        }

    def _copy_bits(self) -> float:
        """Of an element of the copy, on average."""
        if self._actnn_scheme is not None:
            return self._actnn_scheme.bits
        return max(self._actnn_config.activation_compression_bits[self._actnn_group], self.fewest_bits)

    def _takes(self, input: Tensor) -> bool:
        if not isinstance(input, Tensor):
            raise TypeError(f"{type(self).__name__}: input must be a tensor, got {type(input).__name__}")
        return input.dtype in DTYPES and not is_transformed()

    def _quantizes(self, input: Tensor) -> bool:
        """Whether a layer that can only keep a quantized copy does."""
        return self._takes(input) and self._actnn_config.compress_activation and self._actnn_config.training

    def _shown(self, output: Tensor) -> Tensor:
        """What the debugging flags print."""
        flags = self._actnn_config
        if flags.debug_memory_op_forward:
            print(f"{self._actnn_name} forward: {get_memory_usage() / 2**20:.2f} MiB in use")
        if flags.debug_memory_op_backward and output.requires_grad:
            output.grad_fn.register_hook(
                lambda *_: print(f"{self._actnn_name} backward: {get_memory_usage() / 2**20:.2f} MiB in use")
            )
        return output

    def extra_repr(self) -> str:
        inherited = super().extra_repr()
        if not self.has_bits:
            return inherited
        return f"{inherited}{', ' if inherited else ''}bits={self._copy_bits():g}"

    def _save_to_state_dict(self, destination, prefix, keep_vars):
        super()._save_to_state_dict(destination, prefix, keep_vars)
        metadata = getattr(destination, "_metadata", {}).get(prefix[:-1])
        if self._actnn_scheme is not None and metadata is not None:
            metadata[METADATA] = self._actnn_scheme.state()

    def _load_from_state_dict(self, state_dict, prefix, local_metadata, *args):
        super()._load_from_state_dict(state_dict, prefix, local_metadata, *args)
        if self._actnn_scheme is not None and METADATA in local_metadata:
            self._actnn_scheme.load_state(local_metadata[METADATA])


class PlannedLayer(QuantizedLayer):
    """A layer that keeps its input and whose bits a scheme may choose."""

    def _call(self, op: Callable[..., Tensor], input: Tensor, wants_copy: bool, *args: Any, **kwargs: Any) -> Tensor:
        """`op(input, *args, ...)` with what says how the input is kept."""
        wants_copy = wants_copy and torch.is_grad_enabled()
        if wants_copy and self._actnn_scheme is not None:
            return self._call_planned(op, input, *args, **kwargs)
        flags = self._actnn_config
        if wants_copy and flags.empty_cache_threshold is not None:
            ops.release_cache(input.device, flags.empty_cache_threshold)
        output = op(
            input,
            *args,
            **kwargs,
            **self._quantization(input),
            compress=flags.compress_activation and flags.training,
            simulate=flags.simulate,
            offload=flags.swap,
        )
        if wants_copy and flags.empty_cache_threshold is not None:
            device, threshold = input.device, flags.empty_cache_threshold

            def release(*_: Any) -> None:
                ops.release_cache(device, threshold)

            output.grad_fn.register_hook(release)
        return self._shown(output)

    @torch.compiler.disable
    def _call_planned(self, op: Callable[..., Tensor], input: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        plan = self._actnn_scheme.plan(input)
        output = op(input, *args, **kwargs, **plan)
        self._actnn_scheme.observe(output)
        return self._shown(output)


def compressed_form_of(parent: type[nn.Module]) -> Callable[[type], type]:
    """Gives a layer the constructor of its parent with `group` and `config` besides."""

    def decorate(cls: type) -> type:
        def __init__(self, *args, group: int = 0, config: Config | None = None, **kwargs) -> None:  # noqa: N807
            parent.__init__(self, *args, **kwargs)
            self._init_quantization(group, config)

        cls.__init__ = __init__
        CONVERSIONS[parent] = cls
        return cls

    return decorate
