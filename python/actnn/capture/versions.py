"""What older versions of torch cannot do, and newest torch can."""

import dis
import types
from collections import deque
from collections.abc import Iterator

import torch
from torch import nn

IS_CURRENT = tuple(map(int, torch.__version__.split(".")[:2])) >= (2, 15)
"""Older versions may crash where the first capture of a process happens beside other threads, and see neither changes
of class attributes that are read through the class, nor what a forward adds to a list of its class."""

_CHANGES = frozenset({"append", "appendleft", "extend", "insert", "add", "update", "setdefault", "pop", "popleft",
                      "popitem", "remove", "discard", "clear"})  # fmt: skip


def why_capture_is_wrong(model: nn.Module) -> str:
    """Which forward of a model this version of TorchDynamo would get wrong; empty if none is known.

    Found by the names that a class's own functions use, from `forward` on; what others do to the class is not seen.
    """
    if IS_CURRENT:
        return ""
    # An attribute of the object hides the class's: what a forward changes is the object's, which is captured rightly.
    shadowed: dict[type, set[str]] = {}
    for module in model.modules():
        own = vars(module).keys()
        shadowed[type(module)] = shadowed.get(type(module), own) & own
    for kind, hidden in shadowed.items():
        if kind.__module__.partition(".")[0] == "torch":
            continue
        attributes = _attributes(kind)
        for code in _codes_of_forward(kind):
            names = set(code.co_names)
            if found := sorted(_read_through_class(code) & attributes.keys()):
                return _sentence(kind, found[0], "reads it through the class")
            changeable = {name for name, can_change in attributes.items() if can_change} - hidden
            if (names & _CHANGES) and (found := sorted(names & changeable)):
                return _sentence(kind, found[0], "changes it")
    return ""


def _sentence(kind: type, attribute: str, how: str) -> str:
    return (
        f"{kind.__name__} has the class attribute '{attribute}', and a forward that {how}: torch {torch.__version__} "
        "does not capture that rightly (torch 2.15 does)"
    )


def _attributes(kind: type) -> dict[str, bool]:
    """Class attributes that hold data, and whether that can change in place."""
    return {
        name: isinstance(value, (list, dict, set, deque))
        for base in _own_bases(kind)
        for name, value in vars(base).items()
        if not name.startswith("__")
        and not callable(value)
        and not isinstance(value, (property, classmethod, staticmethod, types.MemberDescriptorType))
    }


def _codes_of_forward(kind: type) -> Iterator[types.CodeType]:
    """The code of `forward`, and of the functions of the class whose names occur in it."""
    waiting, seen = ["forward"], set()
    while waiting:
        name = waiting.pop()
        if name in seen:
            continue
        seen.add(name)
        for base in _own_bases(kind):
            function = vars(base).get(name)
            function = getattr(function, "fget", None) or getattr(function, "__func__", function)
            if isinstance(function, types.FunctionType):
                codes = [function.__code__]
                while codes:
                    code = codes.pop()
                    yield code
                    waiting += code.co_names
                    codes += [constant for constant in code.co_consts if isinstance(constant, types.CodeType)]


def _read_through_class(code: types.CodeType) -> set[str]:
    """The names of attributes that a function which asks for the class reads of something else than `self`."""
    found, asks_for_class, before = set(), False, None
    for instruction in dis.get_instructions(code):
        if instruction.opname in ("LOAD_ATTR", "LOAD_METHOD"):
            owner = before.argval[-1] if isinstance(before.argval, tuple) else before.argval
            if owner != "self":
                found.add(instruction.argval)
        # A call of super() names __class__, too, and from Python 3.12 on loads it.
        is_super = before is not None and before.argval == "super"
        asks_for_class |= instruction.argval in ("type", "__class__") and not is_super
        before = instruction
    return found if asks_for_class else set()


def _own_bases(kind: type) -> list[type]:
    return [base for base in kind.__mro__ if base.__module__.partition(".")[0] not in ("torch", "builtins")]
