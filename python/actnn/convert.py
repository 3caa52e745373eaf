"""Conversion of a model, in place, and back."""

import sys
from collections.abc import Callable, Iterable

import torch
from torch import nn
from torch.nn.utils import parametrize

from .capture.backend import Settings, check_compiler
from .capture.call import CapturedCall, remove_call
from .capture.options import BlockOptions, why_not
from .capture.records import Record
from .conf import Config
from .conf import config as default_config
from .kept_bytes import bits_of
from .layers import CONVERSIONS, DTYPES, QuantizedLayer
from .layers.base import ATTRIBUTES, SAVES_NOTHING
from .report import CONVERTED, LEFT, TRAVERSED, Entry, Report

Skip = Iterable[str | type[nn.Module]] | Callable[[str, nn.Module], bool]

UNKNOWN = "no compressed form of this layer is known"
NO_LAYER = "no layer of torch's; what it calls is in the graph"


def convert(
    model: nn.Module,
    config: Config | None = None,
    skip: Skip = (),
    verbose: bool = False,
    blocks: bool | BlockOptions = True,
    compile: str | Callable | None = None,
) -> Report:
    """Makes a model keep compressed activations, in place, and reports on it. `restore` undoes it.

    The graph of the model's operations is captured at its first call, by TorchDynamo, and again when what its Python
    depends on changes: arguments, options, modes, sizes that vary. Runs of operations become *blocks*, one node of
    autograd each, and single functions their compressed forms. The model stays as it is: its class, modules,
    parameters, hooks and attributes, its state dictionary. What cannot be captured runs with compressed functions, or
    exact; the report says so, and fills when the graph has been captured.

    Parts of the model that are called by themselves (`model.encoder(...)`, or in a method of the model such as
    `forward_features`) get graphs of their own, and single layers their compressed forms. What such a method computes
    between modules, in functions, is exact there.

    With `blocks=False`, and with configurations that no blocks can have (bits allocated among layers, offloading,
    debugging), layers get compressed forms instead. Such a layer is the same object, of a subclass of its type:
    parameters, buffers, hooks, and whatever refers to it, stay. Subclasses with a forward of their own, scripted and
    lazy modules and layers without a compressed form are not converted. Calls of functions inside a forward are not
    layers: `QModule` covers them, or `CompressFunctions`.

    A model that is converted already is converted anew; layers that an earlier conversion has replaced stay replaced
    until `restore`. Copies of a converted model, and what is loaded from a file of it, are converted.

    Args:
        model: any module; a single layer too.
        config: None: the process's `actnn.config`, if any flag of it was set; else `Config("L2")`, four bits.
        skip: paths ("layer1.0.conv1") or types of modules to leave alone, with everything below them, or a function of
            path and module.
        verbose: print the report.
        blocks: whether to form blocks, or how they keep their values.
        compile: a backend of `torch.compile` that compiles the graphs with their blocks, such as "inductor".

    Raises TypeError for arguments of other types, ValueError if `skip` names a path that the model does not have, if
    torch knows no such backend, or for one without blocks. After an error nothing is converted.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"convert: model must be a torch.nn.Module, got {type(model).__name__}")
    if config is not None and not isinstance(config, Config):
        raise TypeError(f"convert: config must be an actnn.Config or None, got {type(config).__name__}")
    if not isinstance(blocks, (bool, BlockOptions)):
        raise TypeError(f"convert: blocks must be a bool or an actnn.BlockOptions, got {type(blocks).__name__}")
    if config is None:
        config = default_config if default_config.is_chosen else Config("L2")
    if isinstance(model, getattr(sys.modules.get("torch._dynamo"), "OptimizedModule", ())):
        model = model._orig_mod  # what torch.compile made of it calls that
    skipped = skipped_modules(model, skip)
    options = BlockOptions() if isinstance(blocks, bool) else blocks
    reason = "" if blocks is False else _why_no_blocks(model, config, options)
    if compile is not None:
        _check_compile(compile, "blocks is False" if blocks is False else reason)
    if blocks is False or reason:
        report = _converted_layers(model, config, skipped)
        report.layers_only = reason
    else:
        report = _captured(model, Settings(config, options, _paths_of(model, skipped), compile), skipped)
    if verbose:
        print(report)
    return report


def restore(model: nn.Module) -> None:
    """Takes everything away that `convert` put into a model or a part of it, and turns compressed layers back into
    torch's, in place. Layers made as `QConv2d(...)` too.

    Raises TypeError if `model` is no module.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"restore: model must be a torch.nn.Module, got {type(model).__name__}")
    for module in model.modules():
        remove_call(module)
        _restore_layer(module)


def _captured(model: nn.Module, settings: Settings, skipped: dict[nn.Module, str]) -> Report:
    call = CapturedCall(model, settings)
    report = _Survey(settings.config, skipped, call.record).report_on(model)
    for module in model.modules():
        remove_call(module)
    call.install([(path, part) for path, part in model.named_modules() if part is not model])
    return report


def _converted_layers(model: nn.Module, config: Config, skipped: dict[nn.Module, str]) -> Report:
    converter = _Converter(config, skipped)
    try:
        report = converter.report_on(model)
    except BaseException:
        converter.undo()
        raise
    for module in model.modules():
        remove_call(module)
    return report


def _why_no_blocks(model: nn.Module, config: Config, options: BlockOptions) -> str:
    if isinstance(model, torch.jit.ScriptModule):
        return "a scripted module"
    return why_not(config, options)


def _check_compile(compile: str | Callable, reason: str) -> None:
    if not isinstance(compile, str) and not callable(compile):
        raise TypeError(f"convert: compile must be the name of a backend, or one, got {type(compile).__name__}")
    if reason:
        raise ValueError(f"convert: compile needs blocks, and there are none: {reason}")
    check_compiler(compile)


def _paths_of(model: nn.Module, modules: dict[nn.Module, str]) -> frozenset[str]:
    """All paths of these modules."""
    return frozenset(path for path, module in model.named_modules(remove_duplicate=False) if module in modules)


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


class _Survey:
    """Goes through a model's modules, and says of each whether it has a compressed form."""

    def __init__(self, config: Config, skipped: dict[nn.Module, str], record: Record | None = None) -> None:
        self.config, self.skipped, self.report = config, skipped, Report(record=record)
        self.seen: dict[nn.Module, str] = {}

    def report_on(self, model: nn.Module) -> Report:
        self._visit("", model)
        return self.report

    def _visit(self, path: str, module: nn.Module) -> None:
        name = type(module).__name__
        if module in self.skipped:
            above = self.skipped[module]
            self._report(path, name, LEFT, reason=f"skipped with '{above}'" if above else "skipped")
        elif module in self.seen:
            first = self.report[self.seen[module]]
            outcome = first.outcome if first.outcome == CONVERTED else TRAVERSED
            remark = f"the same as '{self.seen[module]}'"
            self._report(path, name, outcome, first.replacement, remark, bits=first.bits)
            return
        else:
            self.seen[module] = path
            self._look_at(path, module)
        if not isinstance(module, torch.jit.ScriptModule):
            for child_name, child in module.named_children():
                if not (parametrize.is_parametrized(module) and child_name == "parametrizations"):
                    self._visit(f"{path}.{child_name}" if path else child_name, child)

    def _look_at(self, path: str, module: nn.Module) -> None:
        name = type(module).__name__
        parent = self._layer_of(module)
        reason = self._why_not(module, parent)
        if reason == UNKNOWN and any(True for _ in module.children()):
            self._report(path, name, TRAVERSED, reason=self._remark(module))
        elif reason:
            self._report(path, name, LEFT, reason=reason)
        else:
            self._report(path, name, CONVERTED, **self._convert(path, module, parent))

    def _layer_of(self, module: nn.Module) -> type[nn.Module] | None:
        return _torch_layer(module) or _sharded_layer(module)

    def _remark(self, module: nn.Module) -> str:
        return ""

    def _convert(self, path: str, module: nn.Module, parent: type[nn.Module]) -> dict:
        """Nothing: the captured graph has its functions."""
        return {}

    def _why_not(self, module: nn.Module, parent: type[nn.Module] | None) -> str:
        if isinstance(module, QuantizedLayer):
            return "already compressed"
        if isinstance(module, torch.jit.ScriptModule):
            return "a scripted module"
        if isinstance(module, SAVES_NOTHING):
            return "keeps no activation"
        if parent is None:
            return self._why_not_of_type(module)
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and not self.config.enable_quantized_bn:
            return "enable_quantized_bn is off"
        return _why_not_of_tensors(module)

    def _why_not_of_type(self, module: nn.Module) -> str:
        is_of_torch = type(module).__module__.startswith("torch.nn.")
        return UNKNOWN if is_of_torch or any(True for _ in module.children()) else NO_LAYER

    def _report(self, path: str, type_name: str, outcome: str, replacement: str = "", reason: str = "", **more) -> None:
        self.report.entries.append(Entry(path, type_name, outcome, replacement, reason, **more))


class _Converter(_Survey):
    """Gives layers their compressed forms on the way."""

    def __init__(self, config: Config, skipped: dict[nn.Module, str]) -> None:
        super().__init__(config, skipped)
        self.converted: list[nn.Module] = []

    def undo(self) -> None:
        for module in self.converted:
            _restore_layer(module)

    def _layer_of(self, module: nn.Module) -> type[nn.Module] | None:
        return _torch_layer(module)

    def _remark(self, module: nn.Module) -> str:
        return "attention itself keeps exact activations" if isinstance(module, nn.MultiheadAttention) else ""

    def _convert(self, path: str, module: nn.Module, parent: type[nn.Module]) -> dict:
        compressed = CONVERSIONS[parent]
        _rebase(module, compressed)
        self.converted.append(module)
        module._init_quantization(config=self.config, name=path or parent.__name__)
        return {"replacement": compressed.__name__, "bits": bits_of(module)}

    def _why_not(self, module: nn.Module, parent: type[nn.Module] | None) -> str:
        if isinstance(module, nn.modules.lazy.LazyModuleMixin):
            return "a lazy module, whose shapes are not known before its first forward"
        reason = super()._why_not(module, parent)
        if not reason and not self.config.compress_activation and not self.config.swap:
            return "the configuration neither compresses nor swaps activations"
        return reason

    def _why_not_of_type(self, module: nn.Module) -> str:
        if base := next((base for base in type(module).__mro__ if base in CONVERSIONS), None):
            own = " with a forward of its own" if type(module).forward is not base.forward else ""
            return f"a subclass of {base.__name__}{own}"
        return UNKNOWN


def _why_not_of_tensors(module: nn.Module) -> str:
    for key, tensor in [*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)]:
        if (tensor.is_floating_point() or tensor.is_complex()) and tensor.dtype not in DTYPES:
            return f"{key} is {str(tensor.dtype).removeprefix('torch.')}, not float32, float16 or bfloat16"
    return ""


def _torch_layer(module: nn.Module) -> type[nn.Module] | None:
    """The layer of torch that the module computes, if there is a compressed form of it."""
    base = _base(module)
    return base if base in CONVERSIONS else None


def _sharded_layer(module: nn.Module) -> type[nn.Module] | None:
    """The same for a layer that `fully_shard` has given a class of its own."""
    is_sharded = isinstance(module, getattr(sys.modules.get("torch.distributed.fsdp"), "FSDPModule", ()))
    base = type(module).__bases__[-1]
    return base if is_sharded and base in CONVERSIONS else None


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
