"""What a converted module is called through."""

import sys
import threading
import warnings
import weakref
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import nn
from torch._C._dynamo.eval_frame import set_eval_frame
from torch._higher_order_ops.wrap import dynamo_bypassing_wrapper
from torch.fx._symbolic_trace import is_fx_symbolic_tracing

from ..functional import FunctionsOfModel
from ..redirected import is_transformed
from .backend import Settings
from .block_bits import BlockBits, ValueBits
from .compilation import Compilation, compilation_of, run_uncompiled
from .dynamo import Dynamo, NotCapturedError, call_torchs
from .options import state_of, why_not
from .records import Record
from .synchronized import group_of_all
from .traced import AS_IT_IS, NOT_AT_ALL, WITH_PROGRAMS, lowered_for, name_of_call, traced_as
from .versions import IS_CURRENT

PLACE = "_call_impl"
"""Where a converted module's dictionary has its `CapturedCall`.

`nn.Module.__call__` calls what is there; torch's own goes on below it. In this place it is copied and pickled with the
module, `module.compile()` compiles it, and TorchDynamo does not go past it to `forward` when somebody compiles a
function that calls the module.
"""
COMPILED = "_compiled_call_impl"
"""Where `module.compile()` leaves what is called instead."""

_local = threading.local()
"""What compresses the functions that are called here and now: `around`."""


class _Call:
    """What `nn.Module.__call__` calls in the place of torch's own.

    It refers to its module weakly: a cycle would keep the module's memory until garbage is collected.
    """

    _dynamo: Dynamo

    def __init__(self, module: nn.Module) -> None:
        self._actnn_module = weakref.ref(module)

    @property
    def module(self) -> nn.Module | None:
        """The module that it was made for, if that is still there."""
        return self._actnn_module()

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if torch.compiler.is_dynamo_compiling():  # this very code is being traced
            return self._traced(args, kwargs)
        callback, caller = set_eval_frame(None), sys._getframe(1).f_locals.get("self")
        try:
            return self._run(caller, compilation_of(callback), args, kwargs)
        finally:
            set_eval_frame(callback)

    def _run_graph(
        self, whole: "CapturedCall", compilation: Compilation | None, args: tuple, kwargs: dict[str, Any]
    ) -> Any:
        module, capture = self._actnn_module(), self._dynamo.capture_in(compilation)
        try:
            return capture.run(module, args, kwargs)
        except NotCapturedError as error:
            reason, has_work = str(error), error.has_work  # the error itself would keep this frame alive
        result = whole.call_without_capture(module, args, kwargs)
        capture.missed(reason, has_work)
        return result


run_uncompiled(_Call.__call__.__code__)


class CapturedCall(_Call):
    """Runs a module's captured graph, or, where there can be none, its layers and functions, compressed.

    Replicas and shallow copies have their original's; a call of theirs runs what they are.
    """

    def __init__(self, module: nn.Module, settings: Settings) -> None:
        super().__init__(module)
        self.record = Record()
        self.parts: list[PartialCall] = []
        self.name = name_of_call(self)
        self.lowered = lowered_for(self.name)
        self.use(settings)

    def use(self, settings: Settings) -> None:
        """Captures anew at the next call."""
        self.settings = settings
        self.settings.bits.forget_graphs()
        self.record.clear()
        for call in self.parts:
            call.use(settings)
        self._state = self._state_now()
        self._dynamo = Dynamo(self.module, settings, self.record)
        self._functions: FunctionsOfModel | None = None
        self.record.fallback = why_not(settings.config, settings.options)

    def use_bits(self, of_blocks: Mapping[str, ValueBits]) -> None:
        """Changes the bits of single values; captured graphs stay, unless a compiler has compiled them."""
        if not self.settings.bits.use(of_blocks):
            self.use(self.settings)

    def _state_now(self) -> tuple:
        """What captured graphs depend on, and TorchDynamo does not see."""
        return (*state_of(self.settings.config), group_of_all())

    def install(self, parts: Iterable[tuple[str, nn.Module]]) -> None:
        """Puts it into its module, in the place of what `module.compile()` left there, and for calls of the module's
        parts (`named_modules`) by themselves one into each of them."""
        torch.compiler.assume_constant_result(traced_as)
        attributes = vars(self.module)
        if attributes.pop(COMPILED, None) is not None:
            warnings.warn(
                "actnn: the module was compiled with module.compile(), which is undone: "
                "convert(model, compile='inductor') compiles it with its blocks",
                stacklevel=4,
            )
        attributes[PLACE] = self
        for path, part in parts:
            takes_part = path not in self.settings.skipped and COMPILED not in vars(part) and PLACE not in vars(part)
            if takes_part and not isinstance(part, torch.jit.ScriptModule):
                vars(part)[COMPILED] = call = PartialCall(part, path, self)
                self.parts.append(call)

    def _run(self, caller: Any, compilation: Compilation | None, args: tuple, kwargs: dict[str, Any]) -> Any:
        module = self._actnn_module()
        if caller is not module and isinstance(caller, nn.Module):
            return self.call_without_capture(caller, args, kwargs)
        if module is None:
            raise ReferenceError("the module of this call is gone")
        if not self.may_capture():
            return self.call_without_capture(module, args, kwargs)
        return self._run_graph(self, compilation, args, kwargs)

    def _traced(self, args: tuple, kwargs: dict[str, Any]) -> Any:
        module, how = self._actnn_module(), traced_as(self.name)
        if how == NOT_AT_ALL:
            torch._dynamo.graph_break("a shallow copy of a converted module finds out at run time whose call it has")
        if how == AS_IT_IS or not self.compresses():
            return type(module)._call_impl(module, *args, **kwargs)
        if how == WITH_PROGRAMS and not self.record.fallback:
            return dynamo_bypassing_wrapper(self.lowered, call_torchs, module, *args, **kwargs)
        with self._functions_of(module):
            return type(module)._call_impl(module, *args, **kwargs)

    def remove_parts(self) -> None:
        """Takes away what `install` put into parts of the module."""
        for call in self.parts:
            module = call.module
            if module is not None and vars(module).get(COMPILED) is call:
                del vars(module)[COMPILED]
        self.parts = []

    def may_capture(self) -> bool:
        """Whether a call here and now can run captured graphs; those of other settings are forgotten."""
        if self._state_now() != self._state:
            self.use(self.settings)
        if self.record.fallback or not (
            IS_CURRENT or self.record.graphs or threading.current_thread() is threading.main_thread()
        ):
            return False
        return not (
            torch._C._get_tracing_state()
            or is_fx_symbolic_tracing()
            or torch._C._len_torch_dispatch_stack()
            or is_transformed()
            or torch.compiler.is_exporting()
            or self._is_lazy()
        )

    def _is_lazy(self) -> bool:
        """Whether a module has no shapes yet: its first call gives it some."""
        if self.record.graphs:
            return False
        return any(isinstance(m, nn.modules.lazy.LazyModuleMixin) and m.has_uninitialized_params()
                   for m in self.module.modules())  # fmt: skip

    def call_without_capture(self, module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> Any:
        """Calls the module itself; its functions keep compressed activations, if somebody may want gradients."""
        call = type(module)._call_impl
        is_traced = torch._C._get_tracing_state() or is_fx_symbolic_tracing() or torch.compiler.is_exporting()
        if is_traced or _compresses_functions(self) or not self.compresses():
            return call(module, *args, **kwargs)
        around = getattr(_local, "around", None)
        with self._functions_of(module):
            _local.around = self
            try:
                return call(module, *args, **kwargs)
            finally:
                _local.around = around

    def compresses(self) -> bool:
        """Whether anything is saved for backward here and now, and is to be compressed."""
        flags = self.settings.config
        return flags.compress_activation and flags.training and torch.is_grad_enabled()

    def _functions_of(self, module: nn.Module) -> FunctionsOfModel:
        if module is not self._actnn_module() and self.settings.skipped:  # a replica has tensors of its own
            return FunctionsOfModel(self.settings.config, self._skipped_modules(module))
        if self._functions is None:
            self._functions = FunctionsOfModel(self.settings.config, self._skipped_modules(self.module))
        return self._functions

    def _skipped_modules(self, model: nn.Module) -> list[nn.Module]:
        if not self.settings.skipped:
            return []
        return [m for path, m in model.named_modules(remove_duplicate=False) if path in self.settings.skipped]

    def __deepcopy__(self, memo: dict) -> "CapturedCall":
        copied = memo.get(id(self.module))
        if copied is None:
            return self
        parts = [(path, memo[id(part)]) for path, part in self._named_parts() if id(part) in memo]
        settings = replace(self.settings, bits=BlockBits(self.settings.bits.of_blocks))
        return _in(copied, settings, parts)

    def __reduce__(self) -> tuple:
        return _in, (self.module, self.settings, self._named_parts())

    def _named_parts(self) -> list[tuple[str, nn.Module]]:
        return [(call.path, call.module) for call in self.parts if call.module is not None]


class PartialCall(_Call):
    """The same for a module inside of a converted one that is called by itself, by the user or between graph breaks.

    Where a graph is not broken, TorchDynamo goes on past these calls.
    """

    def __init__(self, module: nn.Module, path: str, whole: CapturedCall) -> None:
        super().__init__(module)
        self._whole, self.path = weakref.ref(whole), path
        self.use(whole.settings)
        self._is_layer = _is_layer(module)

    def use(self, settings: Settings) -> None:
        """Captures anew at the next call."""
        if self.module is not None:
            self._dynamo = Dynamo(self.module, settings, self._whole().record, self.path)

    def _traced(self, args: tuple, kwargs: dict[str, Any]) -> Any:
        return call_torchs(self._actnn_module(), *args, **kwargs)

    def _run(self, caller: Any, compilation: Compilation | None, args: tuple, kwargs: dict[str, Any]) -> Any:
        module, whole = self._actnn_module(), self._whole()
        if caller is not module or whole is None:
            return type(caller)._call_impl(caller, *args, **kwargs)
        has_own_graph = not self._is_layer and (compilation is not None or whole.compresses())
        if not has_own_graph or _compresses_functions(whole) or not whole.may_capture():
            return whole.call_without_capture(module, args, kwargs)
        return self._run_graph(whole, compilation, args, kwargs)


def _is_layer(module: nn.Module) -> bool:
    """Whether its forward is that of one of torch's layers, which TorchDynamo does not capture between graph breaks."""
    forward = getattr(type(module).forward, "__module__", None) or ""
    return forward.startswith("torch.nn.") and not any(True for _ in module.children())


def _compresses_functions(call: CapturedCall) -> bool:
    """Whether that happens here and now: inside of it, parts get no graphs."""
    return getattr(_local, "around", None) is call


def call_of(module: nn.Module) -> CapturedCall | None:
    """The module's own; None for a module that is not converted, or is a shallow copy of one."""
    call = vars(module).get(PLACE)
    return call if isinstance(call, CapturedCall) and call.module is module else None


def remove_call(module: nn.Module) -> None:
    """Takes away what `install` put there."""
    call = vars(module).get(PLACE)
    if isinstance(call, CapturedCall):
        del vars(module)[PLACE]
        if call.module is module:
            call.remove_parts()
    if isinstance(vars(module).get(COMPILED), PartialCall):
        del vars(module)[COMPILED]


def _in(module: nn.Module, settings: Settings, parts: list[tuple[str, nn.Module]]) -> CapturedCall:
    """For a copy of a module, which is there already, without its attributes, and its parts."""
    call = CapturedCall(module, settings)
    call.install(parts)
    return call
