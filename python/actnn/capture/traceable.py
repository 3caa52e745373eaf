"""What TorchDynamo cuts a graph at, and common forwards have."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch


@contextmanager
def plain_isinstance() -> Iterator[None]:
    """Around a capture: `torch.jit.isinstance`, which forwards that can be scripted ask for types, is Python's own."""
    rules = torch._dynamo.trace_rules.get_torch_obj_rule_map()
    before = rules.get(torch.jit.isinstance)
    polyfilled = torch._dynamo.variables.PolyfilledFunctionVariable
    rules[torch.jit.isinstance] = polyfilled
    torch.jit.isinstance.__torch_dynamo_polyfill__ = _isinstance
    try:
        yield
    finally:
        rules[torch.jit.isinstance] = before


def _isinstance(obj: Any, target_type: Any) -> bool:
    return isinstance(obj, target_type)


class WithSaidOnce(set):
    """Functions for logging that a capture leaves out: those given, and methods of loggers that say a thing once in a
    process, such as the `warning_once` of some libraries. These are not listed, since TorchDynamo logs the list."""

    def __contains__(self, function: object) -> bool:
        return super().__contains__(function) or getattr(function, "__name__", "").endswith("_once")
