"""Conversion of a model, in place, and back."""

from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any

import torch
from torch import nn
from torch.nn.utils import parametrize

from .blocks import (
    CONFIG,
    BlockForward,
    BlockOptions,
    bits_of_steps,
    find_forwards,
    is_norm,
    is_norm_with_more,
    why_not,
)
from .conf import Config
from .conf import config as default_config
from .kept_bytes import bits_of
from .layers import CONVERSIONS, DTYPES, QuantizedLayer
from .layers.base import ATTRIBUTES, SAVES_NOTHING
from .report import CONVERTED, LEFT, TRAVERSED, Block, Entry, Report

Skip = Iterable[str | type[nn.Module]] | Callable[[str, nn.Module], bool]

UNKNOWN = "no compressed form of this layer is known"


def convert(
    model: nn.Module,
    config: Config | None = None,
    skip: Skip = (),
    verbose: bool = False,
    blocks: bool | BlockOptions = True,
) -> Report:
    """Gives the layers of a model their compressed forms, in place, and reports on every module.

    A converted layer is the same object, of a subclass of its type: parameters, buffers, dtype, device,
    `requires_grad`, hooks, training flags, tied weights and parametrizations, and whatever refers to it, stay. Keys of
    the state dictionary stay; the state of the bit allocation travels in its metadata. `restore` undoes it.

    What is not converted says why in the report: subclasses with a forward of their own, scripted and lazy modules,
    other dtypes, layers with an attribute `name`, `group`, `config` or `scheme`, which conversion would overwrite, and
    layers without a compressed form. Calls of functions inside a forward are not layers: `QModule` covers them, or
    `CompressFunctions`.

    Where a module's forward calls convolutions, batch norms, activations, additions and max-pools one after the other,
    these run as *blocks*, one node of autograd each. Such a module gets a forward of its instance; everything else
    about it stays.

    Args:
        model: any module; a single layer too.
        config: None: the process's `actnn.config`, if any flag of it was set; else `Config("L2")`, four bits.
        skip: paths ("layer1.0.conv1") or types of modules to leave alone, with everything below them, or a function of
            path and module.
        verbose: print the report.
        blocks: whether to form blocks, or how they keep their values.

    Raises TypeError for arguments of other types, ValueError if `skip` names a path that the model does not have. After
    an error nothing is converted.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"convert: model must be a torch.nn.Module, got {type(model).__name__}")
    if config is not None and not isinstance(config, Config):
        raise TypeError(f"convert: config must be an actnn.Config or None, got {type(config).__name__}")
    if not isinstance(blocks, (bool, BlockOptions)):
        raise TypeError(f"convert: blocks must be a bool or an actnn.BlockOptions, got {type(blocks).__name__}")
    if config is None:
        config = default_config if default_config.is_chosen else Config("L2")
    converter = _Converter(config, skipped_modules(model, skip))
    try:
        converter.visit("", model)
        if blocks:
            converter.form_blocks(model, BlockOptions() if blocks is True else blocks)
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
        _restore_forward(module)
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
        self.norms: list[nn.Module] = []
        self.with_blocks: list[nn.Module] = []

    def undo(self) -> None:
        for module in self.with_blocks:
            _restore_forward(module)
        for module in (*self.converted, *self.norms):
            _restore_layer(module)

    def visit(self, path: str, module: nn.Module) -> None:
        name = type(module).__name__
        if module in self.skipped:
            above = self.skipped[module]
            self._report(path, name, LEFT, reason=f"skipped with '{above}'" if above else "skipped")
        elif module in self.seen:
            outcome = CONVERTED if isinstance(module, QuantizedLayer) else TRAVERSED
            replacement = name if outcome == CONVERTED else ""
            remark = f"the same as '{self.seen[module]}'"
            self._report(path, name, outcome, replacement, remark, bits=bits_of(module))
            return
        else:
            self.seen[module] = path
            self._convert(path, module)
        if not isinstance(module, torch.jit.ScriptModule):
            for child_name, child in module.named_children():
                if not (parametrize.is_parametrized(module) and child_name == "parametrizations"):
                    self.visit(f"{path}.{child_name}" if path else child_name, child)

    def form_blocks(self, model: nn.Module, options: BlockOptions) -> None:
        """Gives modules a forward in which parts run as blocks."""
        if reason := self._why_no_blocks(options):
            if any(map(is_norm, model.modules())):
                self.report.without_blocks[""] = reason
            return
        for module in model.modules():
            if module not in self.skipped and not self._why_not_of_tensors(module) and self._is_norm_with_more(module):
                vars(module)[CONFIG] = self.config
                self.norms.append(module)
        for path, module, forward in find_forwards("", model, self.config, options, set(self.skipped)):
            self._form_blocks_in(path, module, forward)
        self.report.entries = [
            replace(entry, outcome=TRAVERSED, reason="its block computes it")
            if entry.block and entry.outcome == LEFT
            else entry
            for entry in self.report.entries
        ]

    def _is_norm_with_more(self, module: nn.Module) -> bool:
        return self.config.enable_quantized_bn and CONFIG not in vars(module) and is_norm_with_more(module)

    def _why_no_blocks(self, options: BlockOptions) -> str:
        if self.config.adaptive_conv_scheme or self.config.adaptive_bn_scheme:
            return "the configuration allocates bits among layers"
        return why_not(self.config, options)

    def _form_blocks_in(self, path: str, module: nn.Module, forward: BlockForward) -> None:
        found, plan = self.report, forward.plan()
        prefix, name = (f"{path}.", path) if path else ("", "(root)")
        described = [(f"{name}#{i}", block, stages) for i, (block, stages) in enumerate(forward.described())]
        found.without_blocks.update((f"{prefix}{layer}", reason) for layer, reason in plan.outside.items())
        if not described:
            found.without_blocks[path] = plan.reason or "nothing in its forward that blocks are made of"
            return
        places: dict[str, dict[str, Any]] = {}
        for name, block, stages in described:
            steps = [(f"{prefix}{step}" if is_layer else step, is_layer) for step, is_layer in block.steps]
            found.blocks.append(Block(name, tuple(step for step, _ in steps), stages))
            for (step, is_layer), bits in zip(steps, bits_of_steps(block.program, stages), strict=True):
                if is_layer:
                    places.setdefault(step, {"block": name, "bits": bits})
        found.entries = [replace(entry, **places.get(entry.path, {})) for entry in found.entries]
        vars(module)["forward"] = forward
        self.with_blocks.append(module)

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
        self._report(path, name, CONVERTED, compressed.__name__, bits=bits_of(module))

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
        return self._why_not_of_tensors(module)

    @staticmethod
    def _why_not_of_tensors(module: nn.Module) -> str:
        for key, tensor in [*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)]:
            if (tensor.is_floating_point() or tensor.is_complex()) and tensor.dtype not in DTYPES:
                return f"{key} is {str(tensor.dtype).removeprefix('torch.')}, not float32, float16 or bfloat16"
        return ""

    def _report(self, path: str, type_name: str, outcome: str, replacement: str = "", reason: str = "", **more) -> None:
        self.report.entries.append(Entry(path, type_name, outcome, replacement, reason, **more))


def _torch_layer(module: nn.Module) -> type[nn.Module] | None:
    """The layer of torch that the module computes, if there is a compressed form of it."""
    base = _base(module)
    return base if base in CONVERSIONS else None


def _base(module: nn.Module) -> type[nn.Module]:
    """The module's class, below the one that torch makes for a parametrized module."""
    return type(module).__bases__[0] if parametrize.is_parametrized(module) else type(module)


def _restore_forward(module: nn.Module) -> None:
    """Takes the forward with blocks away, if the module has one."""
    if isinstance(vars(module).get("forward"), BlockForward):
        del vars(module)["forward"]


def _restore_layer(module: nn.Module) -> None:
    """Turns a compressed layer into torch's, and forgets that a norm was part of blocks; other modules stay."""
    vars(module).pop(CONFIG, None)
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
