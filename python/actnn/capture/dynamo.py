"""TorchDynamo as this library uses it: one code object of its own for each converted module, and what Dynamo says.

Dynamo keeps what it captured, counts captures, and learns which sizes vary by code object: with one each, converted
models do not share caches and limits. It calls back for a frame that it has no valid code for; around that, and nothing
else, stand the settings that a capture needs, and what makes an error of Dynamo's no error of the model's.
"""

import itertools
import os
import threading
import types
import warnings
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import fx, nn

from .backend import Root, Settings, compile_graph
from .compilation import Compilation
from .records import WITHOUT_GRADIENTS, Graph, Record
from .synchronized import synchronized_norms
from .traceable import WithSaidOnce, plain_isinstance
from .versions import why_capture_is_wrong

ATTEMPTS = 3
"""How often a call may turn out impossible to capture, until calls are no longer captured."""
NESTED_LIMIT = 256
"""How often code of the user's that runs between graph breaks is captured for one module."""

PACKAGE = os.path.dirname(os.path.dirname(__file__)) + os.sep
_number = itertools.count()
_local = threading.local()


class NotCapturedError(Exception):
    """A call cannot be captured; nothing of it has run."""

    def __init__(self, reason: str, has_work: bool = True) -> None:
        super().__init__(reason)
        self.has_work = has_work
        """Whether there is anything in the call that a graph could have."""


def is_capturing() -> bool:
    """Whether a module's graph is being captured on this thread."""
    return getattr(_local, "depth", 0) > 0


def call_torchs(module: nn.Module, *args: Any, **kwargs: Any) -> Any:
    """Calls a converted module as if it were none."""
    return type(module)._call_impl(module, *args, **kwargs)


class Dynamo:
    """The captured graphs of one module, which has this path in the converted one: its own, and those that are part of
    somebody else's compilation."""

    def __init__(self, module: nn.Module, settings: Settings, record: Record, path: str = "") -> None:
        self._module, self._settings, self._record, self._path = weakref.ref(module), settings, record, path
        self._captures: list[tuple[Compilation | None, Capture]] = []

    def capture_in(self, compilation: Compilation | None) -> "Capture":
        """The graphs that are part of this compilation."""
        for known, capture in self._captures:  # backends may have no hash
            if known == compilation:
                return capture
        capture = Capture(self._module(), self._settings, self._record, self._path, compilation)
        self._captures.append((compilation, capture))
        return capture


class Capture:
    """The captured graphs of one module in one compilation, or in none."""

    def __init__(
        self, module: nn.Module, settings: Settings, record: Record, path: str, compilation: Compilation | None
    ) -> None:
        name = type(module).__name__
        self._module, self._path = weakref.ref(module), path
        self.settings = settings if compilation is None else replace(settings, compile=compilation.backend)
        self.record, self.compilation = record, compilation
        self._is_whole = compilation is not None and compilation.is_whole
        self._code = call_torchs.__code__.replace(co_name=f"{name}_{next(_number)}")
        self._backend = _Backend(self)
        self._skipped: list[types.CodeType] = []
        self._plain: set[tuple] = set()
        """Kinds of calls between graph breaks that run as they are."""
        self._cause, self._root = "", Root(path=path)
        self._misses = 0
        self._breaks: dict[str, str] = {}
        """Of the call that is going on: what raises an error looks like a break."""
        self._entry: Callable | None = None

    def run(self, module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> Any:
        """Calls the module. Raises NotCapturedError if that cannot be captured, and the module's own errors."""
        try:
            result = (self._entry or self._make_entry())(module, *args, **kwargs)
        except NotCapturedError:
            self._breaks.clear()
            raise
        except BaseException:
            self._breaks.clear()
            self._forget_skipped()
            raise
        if self._breaks:
            self.record.breaks.update(self._breaks)
            self._breaks.clear()
        return result

    def missed(self, reason: str, has_work: bool) -> None:
        """After a call that could not be captured, and had no error when it ran by itself."""
        self._misses += 1
        if self.record.fallback:
            return
        if has_work:
            self.record.note(reason)
        if self._misses < ATTEMPTS:
            return
        if has_work:
            self.stop(f"calls of it could not be captured {self._misses} times, the last time: {reason}")
        else:
            self.record.fallback = reason

    def stop(self, reason: str) -> None:
        """Calls are not captured any more."""
        self.record.fallback = reason
        warnings.warn(
            f"actnn: {self._code.co_name.rpartition('_')[0]} runs without blocks from now on, its layers and functions "
            f"are compressed one by one: {reason}",
            stacklevel=2,
        )

    def _make_entry(self) -> Callable:
        if reason := why_capture_is_wrong(self._module()):
            self.stop(reason)
            raise NotCapturedError(reason)
        context = torch._dynamo.optimize(self._backend, nopython=self._is_whole)
        if not hasattr(context, "callback"):
            self.record.fallback = "TorchDynamo is disabled in this process"
            raise NotCapturedError(self.record.fallback)
        context.callback = _Callback(context.callback, self)
        self._entry = context(types.FunctionType(self._code, call_torchs.__globals__))
        return self._entry

    def convert_frame(self, convert: Callable, frame: Any, cache_entry: Any, frame_state: dict) -> Any:
        """What Dynamo's callback does."""
        is_entry = frame.f_code is self._code
        if not is_entry and frame.f_code.co_filename.startswith(PACKAGE):
            return _skip(with_callees=True)  # what it calls may be captured by others, and is not by this one
        if (kind := _kind_of(frame)) in self._plain:
            return _as_it_is(frame)
        with (
            torch._dynamo.convert_frame.compile_lock,
            self._settings(self._limit_of(frame.f_code)),
            self._notes_breaks(),
        ):
            self._cause = _why_anew(frame, self._backend)
            self._root = Root(path=self._path) if is_entry else self._root_of(frame)
            graphs, breaks = len(self.record.graphs), len(torch._dynamo.output_graph.graph_break_reasons)
            try:
                result = convert(frame, cache_entry, frame_state)
            except torch._dynamo.exc.FailOnRecompileLimitHit:
                self.stop(
                    f"it would have to be captured anew more often than torch._dynamo.config.recompile_limit = "
                    f"{torch._dynamo.config.recompile_limit} times, the last time because {self._cause}"
                )
                return self._not_captured(is_entry, self.record.fallback, self.record.fallback)
            except Exception as error:
                if self._is_whole:
                    raise
                reason = f"{type(error).__name__}: {_one_line(str(error))}"
                return self._not_captured(is_entry, reason, f"{frame.f_code.co_name}: {reason}")
            is_cut = len(torch._dynamo.output_graph.graph_break_reasons) > breaks
        if not is_entry and not is_cut and self._is_plain(frame, self.record.graphs[graphs:]):
            del self.record.graphs[graphs:]
            self._plain.add(kind)
            return _as_it_is(frame)
        if result.guarded_code is None:
            if is_entry:
                raise NotCapturedError("it has no operations that TorchDynamo captures", has_work=False)
            self._skipped.append(frame.f_code)
        return result

    def _is_plain(self, frame: Any, graphs: list[Graph]) -> bool:
        """Whether a function that was captured without a break is to run as it is from now on: nothing in it is saved
        for backward, and code that does not know that it is captured may do better. Masks of transformers, say, are
        left out then where attention is just causal."""
        return (
            self.settings.compile is None
            and bool(graphs)
            and all(graph.reason == WITHOUT_GRADIENTS for graph in graphs)
            and not any(isinstance(value, nn.Module) for value in frame.f_locals.values())
        )

    def _not_captured(self, is_entry: bool, reason: str, trouble: str) -> Any:
        """Of the module's own call nothing has run yet; what runs between graph breaks runs this once as it is."""
        if is_entry:
            raise NotCapturedError(reason) from None
        self.record.note(trouble)
        return torch._dynamo.types.ConvertFrameReturn(apply_to_code=False)

    def _limit_of(self, code: types.CodeType) -> int:
        """How many captures of some code Dynamo is to allow, which counts those for other modules, too: all layers of a
        model that are cut from one another share their forward."""
        limit = torch._dynamo.config.recompile_limit
        if code is self._code:
            return limit
        return max(limit, NESTED_LIMIT) + sum(entry.backend is not self._backend for entry in _entries_of(code))

    @contextmanager
    def _settings(self, limit: int) -> Iterator[None]:
        config = torch._dynamo.config
        _local.depth = getattr(_local, "depth", 0) + 1
        try:
            with (
                synchronized_norms(),
                plain_isinstance(),
                config.patch(
                    optimize_ddp=False,  # programs reduce by themselves; its splitter asserts on small buckets
                    fail_on_recompile_limit_hit=True,
                    suppress_errors=False,
                    skip_tensor_guards_with_matching_dict_tags=False,  # parameters that are frozen, or no longer
                    skip_nnmodule_hook_guards=False,  # hooks that come later
                    ignore_logging_functions=WithSaidOnce(config.ignore_logging_functions),
                    recompile_limit=limit,
                    accumulated_recompile_limit=max(config.accumulated_recompile_limit, 4 * limit),
                ),
            ):
                yield
        finally:
            _local.depth -= 1

    @contextmanager
    def _notes_breaks(self) -> Iterator[None]:
        reasons = torch._dynamo.output_graph.graph_break_reasons
        count = len(reasons)
        yield
        for reason in reasons[count:]:
            where = reason.user_stack[-1] if reason.user_stack else None
            place = f"{where.filename}:{where.lineno}" if where else "(unknown place)"
            self._breaks[place] = _one_line(reason.reason)

    def compile(self, graph: fx.GraphModule, inputs: list) -> Callable:
        """Dynamo's backend."""
        return compile_graph(graph, inputs, self.settings, self.record, self._cause, self._root)

    def _root_of(self, frame: Any) -> Root:
        """The module that a frame between graph breaks is of, if it is one of the model's."""
        whole = Root(path=self._path)
        paths = {module: path for path, module in self._module().named_modules()}
        for name, value in frame.f_locals.items():
            if isinstance(value, nn.Module) and value in paths:
                return Root(name, whole.under(paths[value]))
        return whole

    def _forget_skipped(self) -> None:
        """Code that Dynamo skips because the user's code raised an error in it may be captured the next time."""
        while self._skipped:
            torch._C._dynamo.eval_frame.reset_code(self._skipped.pop())


def _skip(with_callees: bool) -> Any:
    """Dynamo's answer for a frame that runs as it is, this once."""
    types = torch._dynamo.types
    actions = types.FrameAction
    strategy = types.FrameExecStrategy(actions.SKIP, actions.SKIP if with_callees else actions.DEFAULT)
    return types.ConvertFrameReturn(frame_exec_strategy=strategy, apply_to_code=False)


def _as_it_is(frame: Any) -> Any:
    """With what it calls, unless it is a wrapper, whose code is that of wrappers of other functions, too."""
    return _skip(with_callees=not frame.f_code.co_freevars)


def _kind_of(frame: Any) -> tuple[types.CodeType, frozenset[str]]:
    """Its code, and which of its locals require a gradient."""
    tensors = {name: value for name, value in frame.f_locals.items() if isinstance(value, torch.Tensor)}
    return frame.f_code, frozenset(name for name, tensor in tensors.items() if tensor.requires_grad)


class _Callback:
    def __init__(self, inner: Callable, capture: Capture) -> None:
        self._torchdynamo_orig_backend = inner  # where Dynamo looks for the backend, by which it tells caches apart
        self._capture = weakref.ref(capture)
        self.actnn_compilation = capture.compilation

    def __call__(self, frame: Any, cache_entry: Any, frame_state: dict) -> Any:
        capture = self._capture()
        if capture is None:
            return self._torchdynamo_orig_backend(frame, cache_entry, frame_state)
        return capture.convert_frame(self._torchdynamo_orig_backend, frame, cache_entry, frame_state)


class _Backend:
    """Dynamo keeps each backend for good: this one keeps nothing alive."""

    def __init__(self, capture: Capture) -> None:
        self._capture = weakref.ref(capture)

    def __call__(self, graph: fx.GraphModule, inputs: list) -> Callable:
        capture = self._capture()
        return graph.forward if capture is None else capture.compile(graph, inputs)


def _entries_of(code: types.CodeType) -> list:
    """What Dynamo has captured of some code, for whomever."""
    return torch._C._dynamo.eval_frame._debug_get_cache_entry_list(code)


def _why_anew(frame: Any, backend: Callable) -> str:
    """What was different from the last capture of a frame; empty for the first."""
    # Code between graph breaks is captured for others, too.
    entry = next((entry for entry in _entries_of(frame.f_code) if entry.backend is backend), None)
    if entry is None:
        return ""
    try:
        reason = torch._dynamo.guards.get_guard_fail_reason(
            entry.guard_manager, entry.code, frame.f_locals, entry.compile_id, backend, True
        )
    except Exception:
        reason = ""
    # An identifier stands in front of the reason, and behind it the code that asked for the guard.
    return _one_line(reason.partition(": ")[2].partition("  #")[0]) or "something that it depends on has changed"


def _one_line(text: str, length: int = 240) -> str:
    line = " ".join(text.split())
    return line if len(line) <= length else f"{line[: length - 3]}..."
