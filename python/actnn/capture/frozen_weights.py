"""Frozen weights of few bits, as tensors that programs multiply by, and which are never there as a whole."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, fx
from torch.utils import _pytree as pytree

aten = torch.ops.aten
AUTOCAST_KEYS = (torch._C.DispatchKey.AutocastCPU, torch._C.DispatchKey.AutocastCUDA)


@dataclass(frozen=True)
class FrozenProduct:
    """A function x W^T that somebody else computes, whose backward needs W alone."""

    apply: Callable[..., tuple]
    """TorchDynamo's call of an `autograd.Function`."""
    options: dict[str, Any]
    forward: fx.GraphModule
    backward: fx.GraphModule
    kept: fx.GraphModule
    """What forward keeps for backward, of the same arguments; of x it needs the sizes alone."""
    sizes: tuple[int, int]
    """Of W: outputs, inputs."""
    place: int
    """Of x among the arguments."""
    input_dtype: torch.dtype
    result_dtype: torch.dtype
    """The types of x and of the result in there; around it may be others."""


class _Call:
    """A product in one run of its graph."""

    def __init__(self, product: FrozenProduct, device: torch.device, arguments: Sequence[Any]) -> None:
        self.product, self.arguments = product, arguments
        kind = device.type
        self.autocast = kind, torch.get_autocast_dtype(kind), torch.is_autocast_enabled(kind)
        self.shape: list[int] = []
        """The result's, but for the last dimension."""
        self.versions = self._versions()

    def with_gradient(self, x: Tensor) -> Tensor:
        product = self.product
        found = product.apply(product.forward, product.backward, *self._with(x), **product.options)
        return found[0]

    @torch.no_grad()
    def forward(self, x: Tensor) -> Tensor:
        self.shape = list(x.shape[:-1])
        with _autocast_as(*self.autocast):
            (result, *_), _ = self.product.forward(*self._with(x))
        return result.to(x.dtype)

    @torch.no_grad()
    def backward(self, grad: Tensor) -> Tensor:
        """Of rows."""
        if self._versions() != self.versions:
            raise RuntimeError("a frozen weight that backward computes again has been modified by an inplace operation")
        product = self.product
        like_x = torch.empty((), dtype=product.input_dtype, device=grad.device).expand(*self.shape, product.sizes[1])
        with _autocast_as(*self.autocast):
            kept = product.kept(*self._with(like_x))
        outputs = len(product.backward.graph.find_nodes(op="placeholder")) - len(kept)
        grads = [grad.to(product.result_dtype).view(*self.shape, -1), *[None] * (outputs - 1)]
        found = product.backward(*grads, *kept)[product.place]
        return found.to(grad.dtype).reshape(-1, product.sizes[1])

    def weight(self, dtype: torch.dtype, device: torch.device) -> Tensor:
        """The whole of it: the gradients of the identity's rows, of as many at a time as the product has."""
        outputs, rows = self.product.sizes[0], math.prod(self.shape)
        identity = F.pad(torch.eye(outputs, dtype=dtype, device=device), (0, 0, 0, -outputs % rows))
        return torch.cat([self.backward(part) for part in identity.split(rows)])[:outputs]

    def _versions(self) -> list[int]:
        return [value._version for value in self.arguments if isinstance(value, Tensor) and not value.is_inference()]

    def _with(self, x: Tensor) -> list[Any]:
        place = self.product.place
        return [*self.arguments[:place], x.to(self.product.input_dtype), *self.arguments[place:]]


@contextmanager
def _autocast_as(kind: str, dtype: torch.dtype, enabled: bool) -> Iterator[None]:
    """As it was around a program, inside of which it is off."""
    excluded = torch._C._dispatch_tls_local_exclude_set()
    for key in AUTOCAST_KEYS:
        excluded = excluded.remove(key)
    with (
        torch._C._ForceDispatchKeyGuard(torch._C._dispatch_tls_local_include_set(), excluded),
        torch.autocast(kind, dtype, enabled),
    ):
        yield


class FrozenWeight(Tensor):
    """A weight [out, in] in the place of the tensors of few bits that it is computed from.

    A product with it is the function that the model calls; saved for backward it is those tensors, which are the
    model's. Any other function is given the whole weight.
    """

    __torch_function__ = torch._C._disabled_torch_function_impl

    @staticmethod
    def __new__(cls, call: _Call, dtype: torch.dtype, device: torch.device) -> FrozenWeight:
        weight = Tensor._make_wrapper_subclass(cls, call.product.sizes, dtype=dtype, device=device)
        weight.call = call
        return weight

    def __repr__(self) -> str:
        return f"FrozenWeight({list(self.shape)}, dtype={self.dtype}, device={self.device})"

    @classmethod
    def __torch_dispatch__(cls, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if function is aten.detach.default:
            return cls(args[0].call, args[0].dtype, args[0].device)
        if function is aten.linear.default and isinstance(args[1], cls) and args[2:] in ((), (None,)):
            return args[1].call.forward(args[0])
        if function is aten.mm.default and isinstance(args[1], cls):
            return args[1].call.backward(args[0])
        if function is aten.addmm_.default and isinstance(args[2], cls) and not kwargs and len(args) == 3:
            return args[0].add_(args[2].call.backward(args[1]))

        def whole(value: Any) -> Any:
            return value.call.weight(value.dtype, value.device) if isinstance(value, cls) else value

        return function(*pytree.tree_map(whole, args), **pytree.tree_map(whole, kwargs))


def weight_of(product: FrozenProduct, dtype: torch.dtype, device: torch.device) -> Callable[..., FrozenWeight]:
    """What a graph calls for the weight of one run."""

    def frozen_weight(*arguments: Any) -> FrozenWeight:
        return FrozenWeight(_Call(product, device, arguments), dtype, device)

    return frozen_weight


def frozen_linear(x: Tensor, weight: FrozenWeight) -> Tensor:
    """The product as it was captured."""
    return weight.call.with_gradient(x).to(weight.dtype)
