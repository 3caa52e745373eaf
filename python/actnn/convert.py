"""Conversion of a model, in place, and back."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

import torch
from torch import nn
from torch.nn.utils import parametrize

from .conf import Config
from .conf import config as default_config
from .layers import CONVERSIONS, DTYPES, QuantizedLayer
from .layers.base import ATTRIBUTES

Skip = Iterable[str | type[nn.Module]] | Callable[[str, nn.Module], bool]

CONVERTED, TRAVERSED, LEFT = "converted", "traversed", "left alone"
UNKNOWN = "no compressed form of this layer is known"

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


@dataclass(frozen=True)
class Entry:
    """What became of one module."""

    path: str
    """As in state dictionaries; empty for the root."""
    type: str
    """"Conv2d"."""
    outcome: str
    """"converted", "traversed" (stays, its children were looked at) or "left alone"."""
    replacement: str = ""
    """"QConv2d"; empty unless converted."""
    reason: str = ""
    """Why it was left alone, or a remark."""


@dataclass
class Report:
    """What `convert` did: one entry per module, parents before children."""

    entries: list[Entry] = field(default_factory=list)

    def __getitem__(self, path: str) -> Entry:
        """The entry of a path. Raises KeyError if the model has none."""
        for entry in self.entries:
            if entry.path == path:
                return entry
        raise KeyError(path)

    def count(self, outcome: str) -> int:
        """How many modules had this outcome."""
        return sum(entry.outcome == outcome for entry in self.entries)

    @property
    def converted(self) -> list[Entry]:
        return [entry for entry in self.entries if entry.outcome == CONVERTED]

    @property
    def left_alone(self) -> list[Entry]:
        return [entry for entry in self.entries if entry.outcome == LEFT]

    def __str__(self) -> str:
        rows = [
            (entry.path or "(root)", entry.type, entry.replacement or entry.outcome, entry.reason)
            for entry in self.entries
        ]
        widths = [max(map(len, column)) for column in list(zip(*rows, strict=True))[:3]] if rows else []
        lines = ["  ".join(cell.ljust(w) for cell, w in zip(row, [*widths, 0], strict=True)).rstrip() for row in rows]
        summary = f"{self.count(CONVERTED)} converted, {self.count(LEFT)} left alone"
        return "\n".join([*lines, summary])


def convert(model: nn.Module, config: Config | None = None, skip: Skip = (), verbose: bool = False) -> Report:
    """Gives the layers of a model their compressed forms, in place, and reports on every module.

    A converted layer is the same object, of a subclass of its type: parameters, buffers, dtype, device,
    `requires_grad`, hooks, training flags, tied weights and parametrizations, and whatever refers to it, stay. Keys of
    the state dictionary stay; the state of the bit allocation travels in its metadata. `restore` undoes it.

    What is not converted says why in the report: subclasses with a forward of their own, scripted and lazy modules,
    other dtypes, layers with an attribute `name`, `group`, `config` or `scheme`, which conversion would overwrite, and
    layers without a compressed form. Calls of functions inside a forward are not layers: `QModule` covers them, or
    `CompressFunctions`.

    Args:
        model: any module; a single layer too.
        config: None: the process's `actnn.config`.
        skip: paths ("layer1.0.conv1") or types of modules to leave alone, with everything below them, or a function of
            path and module.
        verbose: print the report.

    Raises TypeError for arguments of other types, ValueError if `skip` names a path that the model does not have. After
    an error nothing is converted.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"convert: model must be a torch.nn.Module, got {type(model).__name__}")
    if config is not None and not isinstance(config, Config):
        raise TypeError(f"convert: config must be an actnn.Config or None, got {type(config).__name__}")
    converter = _Converter(config or default_config, skipped_modules(model, skip))
    try:
        converter.visit("", model)
    except BaseException:
        converter.undo()
        raise
    if verbose:
        print(converter.report)
    return converter.report


def restore(model: nn.Module) -> None:
    """Turns the layers that `convert` converted back into torch's, in place. Layers made as `QConv2d(...)` too.

    Raises TypeError if `model` is no module.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"restore: model must be a torch.nn.Module, got {type(model).__name__}")
    for module in model.modules():
        _restore_layer(module)


def skipped_modules(model: nn.Module, skip: Skip) -> dict[nn.Module, str]:
    """The modules that `skip` names, by whichever of their paths, and those below them, with the path of what was named
    ("(root)" for the model); empty for what was named itself."""
    is_skipped = _skip_function(model, skip)
    found: dict[nn.Module, str] = {}
    for path, module in model.named_modules(remove_duplicate=False):
        if is_skipped(path, module):
            found[module] = ""
            for below in module.modules():
                found.setdefault(below, path or "(root)")
    return found


def _skip_function(model: nn.Module, skip: Skip) -> Callable[[str, nn.Module], bool]:
    if callable(skip) and not isinstance(skip, (type, nn.Module)):
        return skip
    if isinstance(skip, (str, type)):
        skip = [skip]
    if not isinstance(skip, Iterable) or isinstance(skip, nn.Module):
        raise TypeError(
            "convert: skip must be paths and types of modules, or a function of path and module, got "
            f"{type(skip).__name__}"
        )
    skip = list(skip)
    for entry in skip:
        if not isinstance(entry, str) and not (isinstance(entry, type) and issubclass(entry, nn.Module)):
            raise TypeError(f"convert: skip must hold paths and types of modules, got {entry!r}")
    paths = {entry for entry in skip if isinstance(entry, str)}
    types = tuple(entry for entry in skip if isinstance(entry, type))
    known = {name for name, _ in model.named_modules(remove_duplicate=False)}
    if unknown := sorted(paths - known):
        raise ValueError(f"convert: skip must name modules of the model, got {unknown}")
    return lambda path, module: path in paths or isinstance(module, types)


class _Converter:
    def __init__(self, config: Config, skipped: dict[nn.Module, str]) -> None:
        self.config, self.skipped, self.report = config, skipped, Report()
        self.seen: dict[nn.Module, str] = {}
        self.converted: list[nn.Module] = []

    def undo(self) -> None:
        for module in self.converted:
            _restore_layer(module)

    def visit(self, path: str, module: nn.Module) -> None:
        name = type(module).__name__
        if module in self.skipped:
            above = self.skipped[module]
            self._report(path, name, LEFT, reason=f"skipped with '{above}'" if above else "skipped")
        elif module in self.seen:
            outcome = CONVERTED if isinstance(module, QuantizedLayer) else TRAVERSED
            replacement = name if outcome == CONVERTED else ""
            self._report(path, name, outcome, replacement, f"the same as '{self.seen[module]}'")
            return
        else:
            self.seen[module] = path
            self._convert(path, module)
        if not isinstance(module, torch.jit.ScriptModule):
            for child_name, child in module.named_children():
                if not (parametrize.is_parametrized(module) and child_name == "parametrizations"):
                    self.visit(f"{path}.{child_name}" if path else child_name, child)

    def _convert(self, path: str, module: nn.Module) -> None:
        name = type(module).__name__
        parent = _torch_layer(module)
        reason = self._why_not(module, parent)
        if reason == UNKNOWN and any(True for _ in module.children()):
            remark = "attention itself keeps exact activations" if isinstance(module, nn.MultiheadAttention) else ""
            self._report(path, name, TRAVERSED, reason=remark)
            return
        if reason:
            self._report(path, name, LEFT, reason=reason)
            return
        compressed = CONVERSIONS[parent]
        _rebase(module, compressed)
        self.converted.append(module)
        module._init_quantization(config=self.config, name=path or parent.__name__)
        self._report(path, name, CONVERTED, compressed.__name__)

    def _why_not(self, module: nn.Module, parent: type[nn.Module] | None) -> str:
        flags = self.config
        if isinstance(module, QuantizedLayer):
            return "already compressed"
        if isinstance(module, torch.jit.ScriptModule):
            return "a scripted module"
        if isinstance(module, SAVES_NOTHING):
            return "keeps no activation"
        if isinstance(module, nn.modules.lazy.LazyModuleMixin):
            return "a lazy module, whose shapes are not known before its first forward"
        if parent is None:
            if base := next((base for base in type(module).__mro__ if base in CONVERSIONS), None):
                own = " with a forward of its own" if type(module).forward is not base.forward else ""
                return f"a subclass of {base.__name__}{own}"
            return UNKNOWN
        if taken := next((name for name in ATTRIBUTES if hasattr(module, name)), None):
            return f"its attribute '{taken}' would be overwritten"
        if not flags.compress_activation and not flags.swap:
            return "the configuration neither compresses nor swaps activations"
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and not flags.enable_quantized_bn:
            return "enable_quantized_bn is off"
        for key, tensor in [*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)]:
            if (tensor.is_floating_point() or tensor.is_complex()) and tensor.dtype not in DTYPES:
                return f"{key} is {str(tensor.dtype).removeprefix('torch.')}, not float32, float16 or bfloat16"
        return ""

    def _report(self, path: str, type_name: str, outcome: str, replacement: str = "", reason: str = "") -> None:
        self.report.entries.append(Entry(path, type_name, outcome, replacement, reason))


def _torch_layer(module: nn.Module) -> type[nn.Module] | None:
    """The layer of torch that the module computes, if there is a compressed form of it."""
    base = _base(module)
    return base if base in CONVERSIONS else None


def _base(module: nn.Module) -> type[nn.Module]:
    """The module's class, below the one that torch makes for a parametrized module."""
    return type(module).__bases__[0] if parametrize.is_parametrized(module) else type(module)


def _restore_layer(module: nn.Module) -> None:
    """Turns a compressed layer into torch's; other modules stay."""
    parent = next((parent for parent, compressed in CONVERSIONS.items() if compressed is _base(module)), None)
    if parent is not None:
        _rebase(module, parent)
        for name in ATTRIBUTES:
            module.__dict__.pop(name, None)


def _rebase(module: nn.Module, base: type[nn.Module]) -> None:
    """Puts `base` in the place of `_base(module)`.

    Torch removes a parametrization from the module's class itself, and sets that to the class's base in the end: so a
    parametrized module gets a class with everything that its present one has, on top of `base`.
    """
    if parametrize.is_parametrized(module):
        own = {name: value for name, value in vars(type(module)).items() if name not in ("__dict__", "__weakref__")}
        base = type(f"Parametrized{base.__name__}", (base,), own)
    module.__class__ = base
