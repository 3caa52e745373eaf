"""Steps of a block's program: which nodes of a graph the library's executor can compute, and how they are written."""

import operator
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812
from torch import fx, nn

from .. import layers as q
from ..conf import Config
from ..functional import expand
from ..layers.base import QuantizedLayer
from . import norm_act
from .tracing import is_hooked

ANY_RANK = frozenset(range(1, 6))


class UnsupportedError(Exception):
    """A layer or call that no step computes; the message says why."""


@dataclass(frozen=True)
class Step:
    """What one node computes."""

    op: str
    fields: Mapping[str, Any] = field(default_factory=dict)
    """What the program says of it besides op, inputs, parameters and buffers."""
    layer: nn.Module | None = None
    in_place: bool = False
    """Whether the model overwrites the first input with the result."""
    ranks: frozenset[int] = ANY_RANK
    """Dimensions that its inputs may have."""
    behind: tuple[tuple[fx.Node, "Step"], ...] = ()
    """What a layer computes of the step's result, with the nodes of the layer's own graph."""

    @property
    def parts(self) -> tuple["Step", ...]:
        """The step, and those behind it."""
        return (self, *(step for _, step in self.behind))


def step_of(node: fx.Node, owner: nn.Module, config: Config) -> Step | None:
    """The step that a node of `owner`'s graph is; None for nodes that are no layers of torch's nor known calls.

    Raises UnsupportedError for a layer of `config` that is no step, and for known calls with other arguments.
    """
    if node.op == "call_module":
        return _step_of_layer(node, owner.get_submodule(node.target), config)
    if node.op == "call_function":
        read = FUNCTIONS.get(node.target)
    else:
        read = METHODS.get(node.target) if node.op == "call_method" else None
    return read(node) if read else None


def operands(node: fx.Node) -> list[fx.Node]:
    """The values that a step is computed from; the first is the one that it may overwrite."""
    return [value for value in (*node.args, *node.kwargs.values()) if isinstance(value, fx.Node)]


def attributes_of(layer: nn.Module) -> tuple:
    """Everything that a layer's step is made of, besides its type."""
    return ATTRIBUTES[type(layer)](layer) if type(layer) in ATTRIBUTES else ()


def _step_of_layer(node: fx.Node, layer: nn.Module, config: Config) -> Step | None:
    describe = _norm_with_more if norm_act.CONFIG in vars(layer) else LAYERS.get(type(layer))
    if describe is None:
        return None
    if "forward" in vars(layer):
        raise UnsupportedError("its forward was replaced")
    if is_hooked(layer):
        raise UnsupportedError("it has hooks")
    if isinstance(layer, QuantizedLayer) and (layer.config is not config or layer.group != 0):
        raise UnsupportedError("it has a configuration or a group of its own")
    if vars(layer).get(norm_act.CONFIG, config) is not config:
        raise UnsupportedError("it has a configuration of its own")
    if getattr(layer, "scheme", None) is not None:
        raise UnsupportedError("its bits are allocated")
    if len(node.args) + len(node.kwargs) != 1:
        raise UnsupportedError("it is called with more than its input")
    return describe(layer)


def _convolution(layer: nn.Module) -> Step:
    count = len(layer.kernel_size)
    if layer.padding_mode != "zeros":
        raise UnsupportedError(f"its padding_mode is {layer.padding_mode}")
    both = [d * (size - 1) for d, size in zip(layer.dilation, layer.kernel_size, strict=True)]
    if layer.padding == "same" and any(size % 2 for size in both):
        raise UnsupportedError("its padding is not symmetric")
    _check_parameters(layer)
    named = {"valid": [0] * count, "same": [size // 2 for size in both]}
    fields = {
        "stride": list(layer.stride),
        "padding": named[layer.padding] if isinstance(layer.padding, str) else list(layer.padding),
        "dilation": list(layer.dilation),
        "groups": layer.groups,
    }
    return Step("convolution", fields, layer, ranks=frozenset({count + 2}))


def _batch_norm(layer: nn.Module, ranks: frozenset[int]) -> Step:
    own = layer._buffers
    if layer.track_running_stats != (own.get("running_mean") is not None and own.get("running_var") is not None):
        raise UnsupportedError("its running statistics are not as track_running_stats says")
    _check_parameters(layer)
    fields = {"momentum": layer.momentum, "eps": layer.eps}
    return Step("batch_norm", fields, layer, ranks=ranks)


def _norm_with_more(layer: nn.Module) -> Step:
    nodes = norm_act.nodes_behind(layer)
    if nodes is None:
        raise UnsupportedError("its forward is no batch norm any more")
    steps = [(node, step_of(node, layer, vars(layer)[norm_act.CONFIG])) for node in nodes]
    if unknown := next((node for node, step in steps if step is None or len(operands(node)) != 1), None):
        raise UnsupportedError(f"blocks have no '{unknown.name}', which is part of it")
    of_norm = _batch_norm(layer, RANKS_OF_NORMS[q.QBatchNorm2d])
    return replace(of_norm, behind=tuple((node, step) for node, step in steps if step.op != "identity"))


def _check_parameters(layer: nn.Module) -> None:
    if not {"weight", "bias"} <= layer._parameters.keys():
        raise UnsupportedError("its weight or bias is no parameter")


def _max_pool(layer: nn.Module) -> Step:
    if layer.return_indices:
        raise UnsupportedError("it returns indices")
    window = (layer.kernel_size, layer.stride, layer.padding, layer.dilation, layer.ceil_mode)
    return _pool_step(*window, layer=layer)


def _pool_step(kernel_size, stride, padding, dilation, ceil_mode, layer=None) -> Step:
    if not _are_constant(kernel_size, stride, padding, dilation, ceil_mode):
        raise UnsupportedError("its window is computed")
    sizes = {"kernel_size": kernel_size, "stride": stride or kernel_size, "padding": padding, "dilation": dilation}
    fields = {name: expand(value, 2) for name, value in sizes.items()} | {"ceil_mode": bool(ceil_mode)}
    return Step("max_pool", fields, layer, ranks=frozenset({4}))


def _are_constant(*values: Any) -> bool:
    return not any(isinstance(value, fx.Node) for v in values for value in (v if isinstance(v, (tuple, list)) else [v]))


def _activation(kind: str) -> Callable:
    def describe(layer: nn.Module) -> Step:
        fields = {"kind": kind} | ({"slope": layer.negative_slope} if kind == "leaky_relu" else {})
        return Step("activation", fields, layer, layer.inplace)

    return describe


def _identity(layer: nn.Module) -> Step:
    if isinstance(layer, nn.Dropout) and layer.p != 0:
        raise UnsupportedError("its p is not 0")
    return Step("identity", layer=layer)


RANKS_OF_NORMS: dict[type[nn.Module], frozenset[int]] = {
    q.QBatchNorm1d: frozenset({2, 3}),
    q.QBatchNorm2d: frozenset({4}),
    q.QBatchNorm3d: frozenset({5}),
    q.QSyncBatchNorm: ANY_RANK - {1},
}
"""Dimensions that the inputs of batch norms may have."""
LAYERS: dict[type[nn.Module], Callable[[nn.Module], Step]] = {
    **dict.fromkeys((q.QConv1d, q.QConv2d, q.QConv3d), _convolution),
    **{kind: partial(_batch_norm, ranks=ranks) for kind, ranks in RANKS_OF_NORMS.items()},
    q.QReLU: _activation("relu"),
    q.QReLU6: _activation("relu6"),
    q.QLeakyReLU: _activation("leaky_relu"),
    q.QSiLU: _activation("silu"),
    q.QHardswish: _activation("hardswish"),
    q.QMaxPool2d: _max_pool,
    q.QDropout: _identity,
    nn.Identity: _identity,
}
_OF_QUANTIZED = ("config", "group", "scheme")
ATTRIBUTES: dict[type[nn.Module], Callable[[nn.Module], tuple]] = {
    kind: operator.attrgetter(*names, *(_OF_QUANTIZED if issubclass(kind, QuantizedLayer) else ("training",)))
    for kinds, names in {
        (q.QConv1d, q.QConv2d, q.QConv3d): ("stride", "padding", "dilation", "groups", "padding_mode"),
        tuple(RANKS_OF_NORMS): ("momentum", "eps", "track_running_stats"),
        (q.QReLU, q.QReLU6, q.QSiLU, q.QHardswish): ("inplace",),
        (q.QLeakyReLU,): ("inplace", "negative_slope"),
        (q.QMaxPool2d,): ("kernel_size", "stride", "padding", "dilation", "ceil_mode", "return_indices"),
        (q.QDropout,): ("p",),
    }.items()
    for kind in kinds
}


def _called(*names: str, **defaults: Any) -> Callable[[fx.Node], dict[str, Any]]:
    """Reads the arguments of a call with these parameters."""

    def read(node: fx.Node) -> dict[str, Any]:
        given = dict(zip((*names, *defaults), node.args, strict=False)) | node.kwargs
        if len(node.args) > len(names) + len(defaults) or given.keys() - {*names, *defaults}:
            raise UnsupportedError("a call with other arguments")
        return defaults | given

    return read


def _activation_call(kind: str, in_place: bool | None = None, **defaults: Any) -> Callable[[fx.Node], Step]:
    read = _called("input", **defaults, **({"inplace": False} if in_place is None else {}))

    def describe(node: fx.Node) -> Step:
        given = read(node)
        slope = given.get("negative_slope")
        if isinstance(slope, fx.Node):
            raise UnsupportedError("its slope is computed")
        fields = {"kind": kind} | ({"slope": slope} if kind == "leaky_relu" else {})
        overwrites = given["inplace"] if in_place is None else in_place
        return Step("activation", fields, in_place=bool(overwrites))

    return describe


def _add_call(in_place: bool) -> Callable[[fx.Node], Step | None]:
    read = _called("input", "other", alpha=1)

    def describe(node: fx.Node) -> Step | None:
        given = read(node)
        inputs = (given["input"], given["other"])
        if given["alpha"] != 1 or not all(isinstance(value, fx.Node) for value in inputs):
            raise UnsupportedError("an addition of something else than two tensors")
        return Step("add", in_place=in_place)

    return describe


def _pool_call(node: fx.Node) -> Step:
    defaults = {"stride": None, "padding": 0, "dilation": 1, "ceil_mode": False, "return_indices": False}
    given = _called("input", "kernel_size", **defaults)(node)
    if given.pop("return_indices"):
        raise UnsupportedError("it returns indices")
    del given["input"]
    return _pool_step(**given)


FUNCTIONS: dict[Any, Callable[[fx.Node], Step | None]] = {
    F.relu: _activation_call("relu"),
    torch.relu: _activation_call("relu", in_place=False),
    torch.relu_: _activation_call("relu", in_place=True),
    F.relu6: _activation_call("relu6"),
    F.leaky_relu: _activation_call("leaky_relu", negative_slope=0.01),
    F.leaky_relu_: _activation_call("leaky_relu", in_place=True, negative_slope=0.01),
    F.silu: _activation_call("silu"),
    F.hardswish: _activation_call("hardswish"),
    operator.add: _add_call(in_place=False),
    operator.iadd: _add_call(in_place=True),
    torch.add: _add_call(in_place=False),
    F.max_pool2d: _pool_call,
    torch.max_pool2d: _pool_call,
}
METHODS: dict[str, Callable[[fx.Node], Step | None]] = {
    "relu": _activation_call("relu", in_place=False),
    "relu_": _activation_call("relu", in_place=True),
    "add": _add_call(in_place=False),
    "add_": _add_call(in_place=True),
}
