"""The configuration: one set of flags for the process, `config`, and others for who wants them.

The flags, their defaults, their checks and the levels are those of C++ (`actnn/policy/config.h`); a `Config` is a view
of the one that a policy has there.
"""

import copy
import functools
import warnings
from collections.abc import Callable, Iterable
from numbers import Number
from typing import Any

import torch

from . import _checks

LEVELS: tuple[str, ...] = tuple(torch.ops.actnn.level_names())
FLAGS: tuple[str, ...] = tuple(torch.ops.actnn.config_flags())


class Config:
    """What layers do with their activations; the flags are attributes.

    They are read when a layer is converted and at each of its forwards; a model that runs in blocks is captured anew
    when one that concerns it has changed. `Config("L1")` begins with another level than
    L3, and keyword arguments set flags: `Config(group_size=128)`. Each has a policy of its own, which allocates bits
    among the layers converted with it.

    ==============================  ==================================================================================
    compress_activation             keep compressed copies; False: exact activations
    training                        False: as compress_activation = False
    activation_compression_bits     average bits of a layer, by its `group`
    group_size                      elements that share a range, a positive multiple of 32
    pergroup                        False: one range for a tensor (for a sample, where samples have bits of their own)
    rounding                        "dithered": unbiased, the noise subtracted; "stochastic": without subtracting, of
                                    twice the variance; "nearest": to nearest, which biases gradients
    simulate                        keep the copies in floating point: the same numbers, no memory saved
    enable_quantized_bn             convert batch norms
    adaptive_conv_scheme            bits per sample in convolutions and linear layers
    adaptive_bn_scheme              bits per sample in batch norms
    initial_bits                    where the greedy allocation begins, 1..8
    perlayer                        bits per layer, anew after each backward
    adapt_interval                  steps of which one measures what bits are allocated by; in the others layers keep
                                    their bits, and samples share them evenly
    use_gradient                    a gradient norm per training sample instead of per layer; needs `QScheme.batch`
    noise_target                    instead of average bits: the fewest bytes whose predicted noise stays under it
    empty_cache_threshold           CUDA: release the allocator's cache when allocated / reserved falls under it
    pipeline_threshold              bytes above which a convolution's backward goes through the batch in parts
    cudnn_benchmark_conv2d          CUDA: cuDNN tries algorithms of 2-D convolutions; None: as torch.backends.cudnn
    swap                            CUDA: keep the data in pinned host memory
    debug_memory_model              QModule prints the memory in use around forward
    debug_speed                     QModule prints the time of each forward
    debug_memory_op_forward         each layer prints the memory in use after its forward
    debug_memory_op_backward        each layer prints the memory in use after its backward
    debug_remove_bn                 batch norms pass their input on
    debug_remove_relu               ReLUs pass their input on
    ==============================  ==================================================================================

    `stochastic` is the original's flag for rounding: reading says whether it is random; False sets "nearest", True
    "dithered" where it was not random. `is_chosen` says whether any flag was set since the configuration was made.

    Errors: ValueError for an unknown flag or a value out of range, TypeError for one of a wrong type.
    """

    is_chosen: bool

    def __init__(self, level: str = "L3", **flags: Any) -> None:
        object.__setattr__(self, "policy", _policy_of_level(level))
        object.__setattr__(self, "is_chosen", False)
        for name in FLAGS:
            self._read(name)
        for name, value in flags.items():
            setattr(self, name, value)

    @property
    def stochastic(self) -> bool:
        """Whether rounding is random."""
        return self.policy.get_flag("stochastic")

    def __setattr__(self, name: str, value: Any) -> None:
        value = _plain(value)
        if isinstance(value, Iterable) and not isinstance(value, (str, bytes)):
            value = [_plain(element) for element in value]
            if not value:
                raise ValueError(f"actnn::Config: {name} must not be an empty list")
        wrong_type = (
            f"actnn::Config: {name} must be a bool, number, list of ints or None, got {_checks.describe(value)}"
        )
        if not isinstance(value, (Number, str, list, type(None))):
            raise TypeError(wrong_type)
        try:
            self.policy.set_flag(name, value)
        except RuntimeError as error:  # torch knows no type for it
            raise TypeError(wrong_type) from error
        self._read("rounding" if name == "stochastic" else name)
        object.__setattr__(self, "is_chosen", True)  # somebody has set a flag
        if name in ONLY_CUDA and value != getattr(DEFAULT, name, value) and not torch.cuda.is_available():
            say_once(f"actnn: {name} acts on CUDA devices only, and there is none: it is kept, and does nothing here")

    def _read(self, name: str) -> None:
        value = self.policy.get_flag(name)
        object.__setattr__(self, name, _Watched(value, self, name) if isinstance(value, list) else value)

    def update(self, other: "Config") -> None:
        """Takes over all flags of `other`."""
        if not isinstance(other, Config):
            raise TypeError(f"actnn::Config: other must be an actnn.Config, got {_checks.describe(other)}")
        for name in FLAGS:
            setattr(self, name, getattr(other, name))

    def flags(self) -> dict[str, Any]:
        """All flags and their values."""
        return {name: list(v) if isinstance(v := getattr(self, name), list) else v for name in FLAGS}

    def __repr__(self) -> str:
        return f"Config({', '.join(f'{name}={value!r}' for name, value in self.flags().items())})"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Config) and self.flags() == other.flags()

    __hash__ = object.__hash__

    def __deepcopy__(self, memo: dict) -> "Config":
        # Copies of a model belong to the same policy. A copy of the flags alone: Config(**config.flags()).
        return self

    def __reduce__(self):
        return (_the_config, ()) if self is config else (_config_of, (self.flags(),))


class _Watched(list):
    """A list whose changes in place are changes of its flag."""

    def __init__(self, values: list, owner: Config, name: str) -> None:
        super().__init__(values)
        self._owner, self._name = owner, name

    def __reduce__(self):
        return list, (list(self),)

    def __deepcopy__(self, memo: dict) -> list:
        return copy.deepcopy(list(self), memo)


def _plain(value: Any) -> Any:
    """A tensor, or an array or a number of NumPy's, as Python's numbers and lists."""
    return value.tolist() if callable(getattr(value, "tolist", None)) else value


def _policy_of_level(level: str) -> torch.ScriptObject:
    if not isinstance(level, str):
        names = " ".join(LEVELS)
        raise TypeError(f"actnn: the optimization level must be one of {names}, got {_checks.describe(level)}")
    return torch.classes.actnn.Policy(level)


def _watched(name: str) -> Callable:
    """The method of lists that sets the flag, and changes the list only if the flag takes the new value."""

    @functools.wraps(getattr(list, name))
    def method(self: _Watched, *args: Any, **kwargs: Any) -> Any:
        changed = list(self)
        result = getattr(changed, name)(*args, **kwargs)
        setattr(self._owner, self._name, changed)
        super(_Watched, self).__init__(changed)
        return self if result is changed else result

    return method


for _name in ("__setitem__", "__delitem__", "__iadd__", "__imul__", "append", "clear", "extend", "insert", "pop",
              "remove", "reverse", "sort"):  # fmt: skip
    setattr(_Watched, _name, _watched(_name))


def _the_config() -> Config:
    return config


def _config_of(flags: dict[str, Any]) -> Config:
    return Config(**flags)


_said: set[str] = set()


def say_once(sentence: str) -> None:
    """Warns, the first time that this sentence comes up in the process."""
    if sentence not in _said:
        _said.add(sentence)
        warnings.warn(sentence, stacklevel=3)


ONLY_CUDA = frozenset({"empty_cache_threshold", "cudnn_benchmark_conv2d", "swap"})
DEFAULT: Config | None = None
DEFAULT = Config()
config = Config()
"""The flags that layers and `QModule` use unless they are given others."""

_OF_LEVELS = tuple(
    name
    for name in FLAGS
    if any(getattr(DEFAULT, name) != torch.classes.actnn.Policy(level).get_flag(name) for level in LEVELS)
)


def set_optimization_level(level: str, target: Config | None = None) -> None:
    """Sets the flags of `config` (or of `target`) that tell the levels apart; the others stay as they are.

    ======  ==========================================================================================================
    L0      nothing is converted
    L1      4-bit convolutions and linear layers, exact batch norms
    L2      4 bits everywhere
    L3      2 bits on average, allocated to samples and layers by sensitivity
    L3.1    L3, and less workspace: no cuDNN benchmarks, large backwards in parts, the allocator's cache released
    L4      L3.1, and the packed data swapped to host memory
    L5      L4, and an allocator that defragments (torch's expandable segments)
    swap    exact activations, swapped to host memory
    ======  ==========================================================================================================

    Call it before models are converted. Raises ValueError for another name.
    """
    target = config if target is None else target
    if not isinstance(target, Config):
        raise TypeError(
            f"set_optimization_level: target must be an actnn.Config or None, got {_checks.describe(target)}"
        )
    policy = _policy_of_level(level)
    for name in _OF_LEVELS:
        setattr(target, name, policy.get_flag(name))
    if setting := torch.ops.actnn.allocator_setting(level):
        if torch.cuda.is_available():
            torch.cuda.memory._set_allocator_settings(setting)
            say_once(f"actnn: level {level} set the CUDA allocator's option {setting}")
        else:
            say_once(f"actnn: level {level} sets the CUDA allocator's option {setting}, but there is no CUDA device")
