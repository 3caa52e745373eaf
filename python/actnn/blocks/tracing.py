"""The graph of a module's own forward, as far as a graph can stand for it.

What torch.fx records of a forward may be less than what the forward does: `+=` becomes an addition, tensors that it
draws become constants, what it asks of its arguments is answered by proxies. The tracer here records the first, and
refuses the rest.
"""

import inspect
import operator
import random
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from operator import iadd, iand, imul, ior, isub, itruediv
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.overrides import TorchFunctionMode, resolve_name

from ..layers.base import QuantizedLayer

Kind = type[Tensor] | tuple[type, int]
"""What an argument is: a tensor, or (list or tuple, how many tensors)."""


class UntraceableError(Exception):
    """No graph can stand for the forward; the message says why."""

    asked: frozenset[int] = frozenset()
    """As of `Trace`."""


@dataclass(frozen=True)
class Trace:
    """The graph of a forward. Its leaves are layers, and modules with a forward of their own."""

    graph: fx.Graph
    asked: frozenset[int]
    """The tensors among the arguments of which the forward asks for the type, or that it takes for a list."""
    containers: list[nn.Module]
    """Modules whose children are called instead of them."""


def trace(module: nn.Module, kinds: tuple[Kind, ...]) -> Trace:
    """The graph of `module`'s forward for arguments of these kinds, in training and in evaluation alike.

    The graph has a placeholder for each tensor, of lists and tuples one after the other.

    Raises UntraceableError. The module is as it was afterwards.
    """
    training, evaluation = traces(module, kinds)
    if _structure(training.graph) != _structure(evaluation.graph):
        raise UntraceableError("its forward differs between training and evaluation")
    return training


def traces(module: nn.Module, kinds: tuple[Kind, ...]) -> list[Trace]:
    """The graphs of training and of evaluation, as `trace`."""
    forward = type(module).forward
    if any(p.kind in (p.VAR_POSITIONAL, p.VAR_KEYWORD, p.KEYWORD_ONLY) for p in _parameters(forward)):
        raise UntraceableError("its forward takes *args, **kwargs, or arguments by keyword alone")
    modes = {m: m.training for m in module.modules() if not isinstance(m, torch.jit.ScriptModule)}
    found = []
    try:
        for training in (True, False):
            for m in modes:
                m.training = training
            found.append(_trace(module, kinds))
    finally:
        for m, training in modes.items():
            m.training = training
    return found


def is_looked_through(module: nn.Module) -> bool:
    """Whether a module is part of the forward that calls it: a plain container of compressed layers, or of nothing."""
    children = list(module.children())
    return is_plain_container(module) and (
        not children or any(isinstance(child, QuantizedLayer) or is_looked_through(child) for child in children)
    )


def is_plain_container(module: nn.Module) -> bool:
    """Whether calling a module is calling its children one after the other."""
    return (
        type(module).forward is nn.Sequential.forward
        and type(module).__call__ is nn.Module.__call__
        and not is_hooked(module)
        and "forward" not in vars(module)
    )


def is_hooked(module: nn.Module) -> bool:
    """Whether more happens around a module's forward and backward than these."""
    own = vars(module)
    return bool(
        own["_forward_hooks"] or own["_forward_pre_hooks"] or own["_backward_hooks"] or own["_backward_pre_hooks"]
    )


@lru_cache(maxsize=1024)
def arguments_of(forward: Callable) -> tuple[tuple[str, ...], int]:
    """The names of a forward's arguments by position, and how many of them have no default."""
    own = [p for p in _parameters(forward) if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    return tuple(p.name for p in own), sum(p.default is p.empty for p in own)


def _parameters(forward: Callable) -> list[inspect.Parameter]:
    return list(inspect.signature(forward).parameters.values())[1:]


def kind_of(value: Any) -> Kind | None:
    """The kind of an argument; None if it has none."""
    if isinstance(value, Tensor):
        return Tensor
    is_list = type(value) in (list, tuple) and all(isinstance(element, Tensor) for element in value)
    return (type(value), len(value)) if is_list else None


def _trace(module: nn.Module, kinds: tuple[Kind, ...]) -> Trace:
    before, chances = _own_state(module), _random_state()
    asked: set[int] = set()
    try:
        return _trace_once(module, before, chances, _Tracer(arguments_of(type(module).forward)[0], kinds, asked))
    except UntraceableError as error:
        error.asked = frozenset(asked)
        raise


def _trace_once(module: nn.Module, before: dict[str, tuple[Any, Any]], chances: tuple, tracer: "_Tracer") -> Trace:
    try:
        with torch.set_grad_enabled(torch.is_grad_enabled()), _RefuseConstants():
            graph = tracer.trace(module)
        traced = Trace(graph, frozenset(tracer.asked), tracer.containers)
    except UntraceableError:
        raise
    except Exception as error:  # whatever a forward may raise when its arguments are no tensors
        raise UntraceableError(
            f"its forward cannot be traced: {(str(error).splitlines() or [type(error).__name__])[0]}"
        ) from error
    finally:
        changed = _restore_state(module, before)
        vars(tracer).clear()  # it is part of cycles, and would keep the module until garbage is collected
    if chances != _random_state():
        raise UntraceableError("its forward draws random numbers")
    if changed:
        raise UntraceableError(f"its forward changes its attribute '{changed}'")
    return traced


class _Value(fx.Proxy):
    """A value of the forward. In-place operators are recorded as such."""

    @property
    def __class__(self) -> type:
        # isinstance() asks for this. Only what the user's forward asks counts: torch.fx asks all the time.
        asker = sys._getframe(1).f_globals.get("__name__", "")
        return type(self) if asker.startswith(("torch.", "actnn.")) else self.tracer.type_of(self.node)

    def __len__(self) -> int:
        self.tracer.note(self.node)
        return super().__len__()


def _in_place(operator: Callable) -> Callable:
    def method(self: _Value, other: Any) -> fx.Proxy:
        return self.tracer.create_proxy("call_function", operator, (self, other), {})

    return method


for _operator in (iadd, isub, imul, itruediv, iand, ior):
    setattr(_Value, f"__{_operator.__name__.strip('_')}__", _in_place(_operator))


class _Tracer(fx.Tracer):
    proxy_buffer_attributes = True

    def __init__(self, names: tuple[str, ...], kinds: tuple[Kind, ...], asked: set[int]) -> None:
        super().__init__()
        self.arguments, self.asked = tuple(zip(names, kinds, strict=False)), asked
        self.places: dict[fx.Node, int] = {}
        self.containers: list[nn.Module] = []
        self.surroundings = _surroundings()

    def is_leaf_module(self, module: nn.Module, path: str) -> bool:
        if is_looked_through(module):
            self.containers.append(module)
            return False
        return True

    def create_args_for_root(self, function: Callable, is_module: bool, concrete_args: Any = None) -> tuple:
        arguments = [self._argument(place, name, kind) for place, (name, kind) in enumerate(self.arguments)]
        lists = [argument for argument in arguments if isinstance(argument, list)]
        before = [list(argument) for argument in lists]

        def forward(*args: Any) -> Any:
            result = function(*args)
            if any(len(a) != len(b) or any(map(operator.is_not, a, b)) for a, b in zip(lists, before, strict=True)):
                raise UntraceableError("its forward changes a list that is its argument")
            if _holds(result, lists):
                raise UntraceableError("its forward returns a list that is its argument")
            return result

        return forward, [self.root, *arguments]

    def _argument(self, place: int, name: str, kind: Kind) -> Any:
        if isinstance(kind, tuple):
            collection, count = kind
            return collection([self.create_proxy("placeholder", f"{name}_{i}", (), {}) for i in range(count)])
        proxy = self.create_proxy("placeholder", name, (), {})
        self.places[proxy.node] = place
        return proxy

    def call_module(self, module: nn.Module, forward: Callable, args: tuple, kwargs: dict[str, Any]) -> Any:
        given = (*args, *kwargs.values())
        if any(isinstance(value, (list, dict, set)) for value in given) and not is_looked_through(module):
            path = self.path_of_module(module)
            raise UntraceableError(f"its forward gives '{path}' a collection, which that may change")
        return super().call_module(module, forward, args, kwargs)

    def iter(self, value: fx.Proxy) -> Any:
        self.note(value.node)
        return super().iter(value)

    def proxy(self, node: fx.Node) -> fx.Proxy:
        return _Value(node, self)

    def create_arg(self, value: Any) -> Any:
        is_tensor = not isinstance(value, fx.Proxy) and isinstance(value, Tensor)
        if is_tensor and not isinstance(value, nn.Parameter) and value not in self.tensor_attrs:
            raise UntraceableError("its forward uses a tensor that is neither its argument nor its attribute")
        return super().create_arg(value)

    def create_node(self, *args: Any, **kwargs: Any) -> fx.Node:
        if _surroundings() != self.surroundings:
            raise UntraceableError("its forward changes the mode of autograd, autocast or saved tensors")
        return super().create_node(*args, **kwargs)

    def type_of(self, node: fx.Node) -> type:
        if node.op != "placeholder":
            raise UntraceableError("its forward asks for the type of a value")
        self.note(node)
        return Tensor

    def note(self, node: fx.Node) -> None:
        """Somebody asks what this value is, an argument or a part of one."""
        while node.op == "call_function" and node.target is operator.getitem:
            node = node.args[0]
        if node in self.places:
            self.asked.add(self.places[node])


def _holds(result: Any, lists: list[list]) -> bool:
    """Whether one of the lists is in a result."""
    if isinstance(result, dict):
        return any(_holds(value, lists) for value in result.values())
    if not isinstance(result, (list, tuple)):
        return False
    return any(result is one for one in lists) or any(_holds(value, lists) for value in result)


class _RefuseConstants(TorchFunctionMode):
    """A call of torch's without a proxy is done once, while tracing, instead of at each forward."""

    def __torch_function__(self, function, types, args=(), kwargs=None):
        if not any(issubclass(kind, fx.Proxy) for kind in types):
            name = resolve_name(function) or getattr(function, "__name__", repr(function))
            raise UntraceableError(f"its forward calls {name} without one of its arguments")
        return function(*args, **(kwargs or {}))


def _surroundings() -> tuple:
    return (
        torch.is_grad_enabled(),
        torch.is_inference_mode_enabled(),
        *((torch.is_autocast_enabled(device), torch.get_autocast_dtype(device)) for device in ("cpu", "cuda")),
        torch._C._autograd._top_saved_tensors_default_hooks(True),
    )


def _random_state() -> tuple:
    """Python's and NumPy's; what torch draws is refused at the call."""
    numpy = sys.modules.get("numpy")
    _, keys, place, *_ = numpy.random.get_state() if numpy else (None, b"", 0)
    return random.getstate(), bytes(keys), place


def _own_state(module: nn.Module) -> dict[str, tuple[Any, Any]]:
    """The attributes, and copies of those that are collections."""
    return {
        name: (value, value.copy() if isinstance(value, (list, dict, set)) else None)
        for name, value in vars(module).items()
    }


def _restore_state(module: nn.Module, before: dict[str, tuple[Any, Any]]) -> str:
    """Undoes what tracing changed, and returns the name of a changed attribute, or nothing."""
    own, changed = vars(module), ""
    for name in [name for name in own if name not in before]:
        del own[name]
        changed = name
    for name, (value, contents) in before.items():
        if own.get(name, before) is not value:
            own[name] = value
            changed = name
        if contents is not None and not _same_contents(value, contents):
            value.clear()
            value.extend(contents) if isinstance(value, list) else value.update(contents)
            changed = name
    return changed


def _same_contents(now: Any, before: Any) -> bool:
    now, before = (sorted(map(id, c.values() if isinstance(c, dict) else c)) for c in (now, before))
    return now == before


def _structure(graph: fx.Graph) -> list[tuple]:
    """What two graphs of the same forward have in common."""
    numbers = {node: f"value {i}" for i, node in enumerate(graph.nodes)}
    arguments = [str(fx.map_arg((node.args, node.kwargs), numbers.__getitem__)) for node in graph.nodes]
    return [(node.op, node.target, text) for node, text in zip(graph.nodes, arguments, strict=True)]
