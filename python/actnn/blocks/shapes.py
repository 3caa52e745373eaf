"""Shapes of a program's values: the library adds values of one shape, and torch those that broadcast too."""

from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any

Shape = tuple[int, ...]


def sums_agree(program: dict[str, Any]) -> Callable[[tuple[Shape, ...], tuple[Shape, ...]], bool]:
    """Whether all sums of a program are of equal shapes: a function of the shapes of inputs and parameters."""
    if not any(step["op"] == "add" for step in program["steps"]):
        return lambda inputs, parameters: True

    @lru_cache(maxsize=64)
    def agree(inputs: tuple[Shape, ...], parameters: tuple[Shape, ...]) -> bool:
        shapes = list(inputs)
        for step in program["steps"]:
            first, *others = (shapes[i] for i in step["inputs"])
            if any(other != first for other in others):
                return False
            shapes.append(_shape_of(step, first, parameters))
        return True

    return agree


def _shape_of(step: dict[str, Any], input: Shape, parameters: tuple[Shape, ...]) -> Shape:
    if step["op"] == "convolution":
        channels, _, *kernel = parameters[step["parameters"][0]]
        return (input[0], channels, *_window(step, input[2:], kernel, False))
    if step["op"] == "max_pool":
        return (*input[:2], *_window(step, input[2:], step["kernel_size"], step["ceil_mode"]))
    return input


def _window(step: dict[str, Any], sizes: Sequence[int], kernel: Sequence[int], ceil_mode: bool) -> list[int]:
    """How often a window fits, per dimension."""
    result = []
    window = (step["stride"], step["padding"], step["dilation"])
    for size, length, stride, padding, dilation in zip(sizes, kernel, *window, strict=True):
        room = size + 2 * padding - dilation * (length - 1) - 1
        count = (room + (stride - 1 if ceil_mode else 0)) // stride + 1
        if ceil_mode and (count - 1) * stride >= size + padding:  # the last window must begin inside
            count -= 1
        result.append(count)
    return result
