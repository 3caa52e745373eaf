"""How blocks keep their values, and what keeps them from running."""

from dataclasses import dataclass
from operator import attrgetter

from .. import _checks
from ..conf import Config

_NAMES = (
    "compress_activation", "training", "simulate", "swap", "pergroup", "debug_memory_op_forward",
    "debug_memory_op_backward", "debug_remove_bn", "debug_remove_relu", "empty_cache_threshold", "pipeline_threshold",
    "adaptive_conv_scheme", "adaptive_bn_scheme", "enable_quantized_bn",
)  # fmt: skip
_FLAGS = attrgetter(*_NAMES)
_NUMBERS = attrgetter("rounding", "group_size")
_WANTED = (True, True, False, False, True, False, False, False, False, None, None, False, False, True)


@dataclass(frozen=True)
class BlockOptions:
    """How blocks keep their values.

    Args:
        bits: of a code, 2..8; None: the configuration's.
        output_bits: of a code of a sum, 2..8; None: as many as `bits`.
        recompute: leave out what backward can compute from what is kept.
        norm_bits: of a norm in front of a sum that keeps a copy of its own, 1..8; None: one fewer than `bits`,
            2 at least.
        smooth_bits: of the copy that backward computes GELU, SiLU or, behind a norm, hardswish and their derivatives
            from, 2..8; None: 5, or as many as `bits` if those are more.
        attention_bits: of the copies of query, key and value that attention is computed again from, 5..8; 0: they and
            its result are kept exactly; None: 6, or as many as `bits` if those are more.
        recompute_attention: compute query, key and value again in backward, from a copy of what their products read
            that has `attention_bits`, instead of keeping copies of them. Smaller, slower, and noisier.
        recompute_mlp: compute what GELU, SiLU and their gates are functions of again in backward, likewise, from a copy
            that has `smooth_bits`.
        group_rows: rows whose elements of a channel have a grid of their own, where channels are innermost in memory:
            64, 128 or 256. Fewer have less noise, and more parameters (32 bits a group).
    """

    bits: int | None = None
    output_bits: int | None = None
    recompute: bool = True
    norm_bits: int | None = None
    smooth_bits: int | None = None
    attention_bits: int | None = None
    recompute_attention: bool = False
    recompute_mlp: bool = False
    group_rows: int = 256

    def __post_init__(self) -> None:
        for name in ("bits", "output_bits", "smooth_bits"):
            if getattr(self, name) is not None:
                _checks.integer("BlockOptions", name, getattr(self, name), 2, 8)
        if self.attention_bits not in (None, 0):
            _checks.integer("BlockOptions", "attention_bits", self.attention_bits, 5, 8)
        if self.norm_bits is not None:
            _checks.integer("BlockOptions", "norm_bits", self.norm_bits, 1, 8)
        for name in ("recompute", "recompute_attention", "recompute_mlp"):
            _checks.switch("BlockOptions", name, getattr(self, name))
        _checks.integer("BlockOptions", "group_rows", self.group_rows, 64, 256)
        if self.group_rows not in (64, 128, 256):
            raise ValueError(f"BlockOptions: group_rows must be 64, 128 or 256, got {self.group_rows}")


def state_of(config: Config) -> tuple:
    """What captured graphs, and whether there are any, depend on in a configuration."""
    return (tuple(config.activation_compression_bits), *_FLAGS(config), *_NUMBERS(config))


def why_not(config: Config, options: BlockOptions) -> str:
    """What in a configuration keeps blocks from running; empty if nothing does."""
    if config.adaptive_conv_scheme or config.adaptive_bn_scheme:
        return "the configuration allocates bits among layers"
    if options.bits is None and config.activation_compression_bits[0] < 2:
        return "activation_compression_bits must be at least 2"
    flags = _FLAGS(config)
    if flags == _WANTED:
        return ""
    values = zip(_NAMES, flags, _WANTED, strict=True)
    return ", ".join(f"{name} must be {wanted}" for name, value, wanted in values if value != wanted)
