"""What is known of the values of a captured graph: dtype, sizes, device, whether they want a gradient."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable

import torch
from torch import Tensor, fx
from torch._subclasses.fake_tensor import FakeTensor

from ..redirected import DEVICES, DTYPES


class UnsupportedError(Exception):
    """A known call that no step computes; the message says why, and reads on from "it stays outside: "."""


def example(value: object) -> object:
    """What TorchDynamo computed this node with; anything else is returned as it is."""
    return value.meta.get("example_value") if isinstance(value, fx.Node) else value


def tensor(value: fx.Node) -> Tensor:
    """The example of a tensor that programs may have. Raises UnsupportedError for any other value."""
    found = example(value)
    if not isinstance(found, Tensor):
        raise UnsupportedError("an argument is no tensor")
    if type(found) is not FakeTensor and type(found) not in (Tensor, torch.nn.Parameter):
        raise UnsupportedError(f"an argument is a {type(found).__name__}")
    if found.layout != torch.strided or found.is_nested or found.is_quantized:
        raise UnsupportedError("an argument is not strided")
    if found.device.type not in DEVICES:
        raise UnsupportedError(f"an argument is on {found.device}, for which the library has no kernels")
    return found


def floating(value: fx.Node) -> Tensor:
    """The same, of a value in a floating type that programs compute in."""
    found = tensor(value)
    if found.dtype not in DTYPES:
        raise UnsupportedError(f"an argument is {name_of(found.dtype)}, not float32, float16 or bfloat16")
    return found


def rank(value: fx.Node) -> int:
    return tensor(value).dim()


def static_size(value: fx.Node, dimension: int) -> int:
    size = tensor(value).shape[dimension]
    if not isinstance(size, int):
        raise UnsupportedError("it depends on a size that changes")
    return size


def name_of(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def requires_grad(value: object) -> bool:
    found = example(value)
    if isinstance(found, (tuple, list)):
        return any(isinstance(part, Tensor) and part.requires_grad for part in found)
    return isinstance(found, Tensor) and found.requires_grad


def any_requires_grad(values: Iterable[object]) -> bool:
    return any(requires_grad(value) for value in values)


def elements(value: fx.Node) -> int:
    """Elements of the example, which are those of the run that was captured."""
    return elements_of(tensor(value))


def elements_of(example: Tensor) -> int:
    """Elements, by the sizes of the run that was captured."""
    return math.prod(_sizes(example))


def rows_of(example: Tensor) -> int:
    """The same without those of the last dimension."""
    return math.prod(_sizes(example)[:-1])


def _sizes(example: Tensor) -> list[int]:
    return [size if isinstance(size, int) else int(size.node.hint or 1) for size in example.shape]


def source_of(placeholder: fx.Node) -> str:
    """Where the caller has this argument, as TorchDynamo writes it: "L['self']._modules['bn']._buffers['mean']"."""
    if SOURCE in placeholder.meta:
        return placeholder.meta[SOURCE]
    grapharg = placeholder.meta.get("grapharg")
    source = getattr(grapharg, "source", None)
    if source is None:
        return ""
    name = source.name  # a method before torch 2.10
    return name() if callable(name) else name


SOURCE, PATH = "actnn_source", "actnn_path"
"""Where nodes of a graph inside of a graph have what `source_of` and `path_of` say: their own names say less there."""
CALL = re.compile(r"(?:\._(?:compiled_)?call_impl)?\._actnn_module\(\)")
"""How a converted module's call refers to it, in TorchDynamo's words."""


def path_of(node: fx.Node, root: str) -> str:
    """The module that called a node, as in state dictionaries; "" for the root. `root` is the name of its local."""
    if PATH in node.meta:
        return node.meta[PATH]
    stack = node.meta.get("nn_module_stack")
    if not stack:
        return ""
    text = re.sub(r"@\d+$", "", next(reversed(stack.values()))[0])
    text = CALL.sub("", text).removeprefix(f"L['{root}']")
    text = re.sub(r"\._modules(?=\[)", "", text)
    text = re.sub(r"\[['\"]?([^\]'\"]+)['\"]?\]", r".\1", text)
    return text.strip(".")


def is_in_layer(node: fx.Node) -> bool:
    """Whether the module that called a node is one of torch's layers, or of a class derived from one."""
    stack = node.meta.get("nn_module_stack")
    kind = next(reversed(stack.values()))[1] if stack else None
    if not isinstance(kind, type) or kind.__name__ == "MultiheadAttention":
        return False
    return any(base.__module__ in FILES_OF_LAYERS for base in kind.__mro__)


FILES_OF_LAYERS = frozenset(
    f"torch.nn.modules.{name}"
    for name in ("activation", "batchnorm", "conv", "dropout", "flatten", "instancenorm", "linear", "normalization",
                 "pooling", "upsampling")
)  # fmt: skip
