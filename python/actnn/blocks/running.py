"""The forward of a module with blocks: when they run, and when the layers do."""

import copy
import dataclasses
import json
import weakref
from collections.abc import Callable
from dataclasses import dataclass
from itertools import takewhile
from operator import attrgetter
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx._symbolic_trace import is_fx_symbolic_tracing
from torch.nn.modules.module import _has_any_global_hook

from .. import _checks
from ..conf import Config
from ..functional import is_transformed, takes
from .plan import Block, Plan, find_plan
from .tracing import Kind, arguments_of, kind_of

_NAMES = (
    "compress_activation", "training", "simulate", "swap", "pergroup", "debug_memory_op_forward",
    "debug_memory_op_backward", "debug_remove_bn", "debug_remove_relu", "empty_cache_threshold", "pipeline_threshold",
)  # fmt: skip
_FLAGS = attrgetter(*_NAMES)
_WANTED = (True, True, False, False, True, False, False, False, False, None, None)
Observer = Callable[[nn.Module, int, Any, Tensor], None]
"""What is told of each run of a block: the module, the block's number there, what ran it, and its result."""


@dataclass(frozen=True)
class BlockOptions:
    """How blocks keep their values.

    Args:
        bits: of a code, 2..8; None: the configuration's.
        output_bits: of a code of a sum, 2..8; None: as many as `bits`.
        recompute: leave out what backward can compute from what is kept.
        norm_bits: of a norm in front of a sum that keeps a copy of its own, 2..7.
    """

    bits: int | None = None
    output_bits: int | None = None
    recompute: bool = True
    norm_bits: int = 2

    def __post_init__(self) -> None:
        for name in ("bits", "output_bits"):
            if getattr(self, name) is not None:
                _checks.integer("BlockOptions", name, getattr(self, name), 2, 8)
        _checks.integer("BlockOptions", "norm_bits", self.norm_bits, 2, 7)
        _checks.switch("BlockOptions", "recompute", self.recompute)


def executor(program: dict[str, Any], options: dict[str, Any]) -> Any:
    """What runs a program in the library: has `run(inputs, parameters, buffers, batch_statistics)` and `plan()`."""
    return torch.classes.actnn.Block(json.dumps(program), json.dumps(options))


def why_not(config: Config, options: BlockOptions) -> str:
    """What in a configuration keeps blocks from running; empty if nothing does."""
    if options.bits is None and config.activation_compression_bits[0] < 2:
        return "activation_compression_bits must be at least 2"
    flags = _FLAGS(config)
    if flags == _WANTED:
        return ""
    values = zip(_NAMES, flags, _WANTED, strict=True)
    return ", ".join(f"{name} must be {wanted}" for name, value, wanted in values if value != wanted)


class BlockForward:
    """A module's forward, of which parts run as blocks. It stands in the module's instance, and reads everything from
    the module at each call.

    Whatever the blocks were found by is compared at each call; after a change they are found anew, as they are in
    copies of the module and when it comes out of a file.
    """

    def __init__(self, module: nn.Module, config: Config, options: BlockOptions) -> None:
        self._module = weakref.ref(module)  # a cycle would keep the model's memory until garbage is collected
        self.config, self.options = config, options
        self._plans: dict[tuple[Kind, ...], Plan] = {}
        self.observer: Observer | None = None

    @property
    def module(self) -> nn.Module:
        module = self._module()
        if module is None:
            raise ReferenceError("the module of this forward is gone: a shallow copy has the forward of its original")
        return module

    @property
    def __wrapped__(self) -> Callable:
        """For `inspect.signature`."""
        return type(self.module).forward.__get__(self.module)

    def __deepcopy__(self, memo: dict) -> "BlockForward":
        return BlockForward(copy.deepcopy(self.module, memo), self.config, self.options)

    def __reduce__(self) -> tuple:
        return BlockForward, (self.module, self.config, self.options)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        module = self.module
        if not _is_observed() and not why_not(self.config, self.options):
            values = _bind(type(module).forward, args, kwargs)
            plan = self._plan_of(values) if values is not None else None
            if plan is not None:
                run = _Run(module, plan.blocks, self._executors(plan), self.observer)
                return plan.function(module, run, *_tensors(values))
        return type(module).forward(module, *args, **kwargs)

    def plan(self, kinds: tuple[Kind, ...] | None = None) -> Plan:
        """What the forward is now for arguments of these kinds.

        None: for tensors, as many as have no default; or, if the forward asks what they are and has no blocks then, for
        lists of tensors, of two if that will do.
        """
        module = self.module
        if kinds is None:
            return self._plan_of_tensors_or_lists(arguments_of(type(module).forward)[1])
        plan = self._plans.get(kinds)
        if plan is None or not plan.watched.is_unchanged(module):
            plan = self._plans[kinds] = find_plan(module, self.config, kinds)
        return plan

    def _plan_of_tensors_or_lists(self, count: int) -> Plan:
        plan = self.plan((Tensor,) * count)
        lists: set[int] = set()
        while not plan.blocks and plan.asked - lists:
            lists |= plan.asked
            by_length = [
                self.plan(tuple((list, length) if place in lists else Tensor for place in range(count)))
                for length in (2, 1, 3, 4)
            ]
            plan = next((p for p in by_length if p.blocks), by_length[0] if by_length[0].reason else plan)
        return plan

    def described(self) -> list[tuple[Block, list[dict[str, Any]]]]:
        """The blocks, and what the library keeps of their values."""
        plan = self.plan()
        return [(b, json.loads(e.plan())) for b, e in zip(plan.blocks, self._executors(plan), strict=True)]

    def _plan_of(self, values: tuple) -> Plan | None:
        """The plan for these arguments, if it has blocks."""
        kinds = tuple(map(kind_of, values))
        plan = None if None in kinds else self.plan(kinds)
        return plan if plan is not None and plan.blocks else None

    def _executors(self, plan: Plan) -> list[Any]:
        bits = self.options.bits or self.config.activation_compression_bits[0]
        groups = [block.groups() for block in plan.blocks]
        key = (self.options, bits, self.config.stochastic, *groups)
        if key not in plan.executors:
            options = dataclasses.asdict(self.options) | {"bits": bits, "stochastic": self.config.stochastic}
            if options["output_bits"] is None:
                options["output_bits"] = bits
            plan.executors[key] = [
                executor(block.program_over(of_block), options)
                for block, of_block in zip(plan.blocks, groups, strict=True)
            ]
        return plan.executors[key]

    def kept_bytes(self) -> int:
        """What the blocks kept for backward when they last ran."""
        return sum(
            block.kept_bytes() for plan in self._plans.values() if plan.blocks for block in self._executors(plan)
        )


@dataclass(frozen=True)
class _Run:
    """One call of a forward with blocks."""

    module: nn.Module
    blocks: list[Block]
    executors: list[Any]
    observer: Observer | None

    def run(self, index: int, *inputs: Any) -> Tensor:
        """What the forward calls in the place of a block's steps."""
        block = self.blocks[index]
        parameters = [layer._parameters[name] for layer, name in block.parameters]
        if not _suit(block, inputs, parameters):
            return block.one_by_one(self.module, *inputs)
        buffers = [layer._buffers[name] for layer, name in block.buffers]
        statistics = [norm.training or norm._buffers["running_mean"] is None for norm in block.norms]
        result = self.executors[index].run(list(inputs), parameters, buffers, statistics)
        if self.observer is not None:
            self.observer(self.module, index, self.executors[index], result)
        return result


def _bind(forward: Callable, args: tuple, kwargs: dict[str, Any]) -> tuple | None:
    """The arguments by position; None if they are not the first ones of the forward."""
    names, required = arguments_of(forward)
    given = list(takewhile(kwargs.__contains__, names[len(args) :]))
    if len(given) != len(kwargs) or not required <= len(args) + len(given) <= len(names):
        return None
    return (*args, *(kwargs[name] for name in given))


def _tensors(values: tuple) -> list[Tensor]:
    """The arguments, and in the place of lists their elements."""
    return [tensor for value in values for tensor in (value if isinstance(value, (list, tuple)) else (value,))]


def _suit(block: Block, inputs: tuple, parameters: list[Tensor]) -> bool:
    """Whether the library's executor takes these inputs, and not a subclass of tensors, or what is no tensor."""
    return (
        all(type(tensor) in (Tensor, nn.Parameter) for tensor in (*inputs, *parameters))
        and all(takes(value) and value.dim() in block.ranks for value in inputs)
        and len({(value.dtype, value.device, value.dim()) for value in inputs}) == 1
        and block.sums_agree(tuple(value.shape for value in inputs), tuple(value.shape for value in parameters))
    )


def _is_observed() -> bool:
    """Whether somebody looks at the layers' calls: a compiler, a tracer, a transform, hooks on every module."""
    return (
        torch.compiler.is_compiling()
        or torch.jit.is_tracing()
        or is_fx_symbolic_tracing()
        or is_transformed()
        or _has_any_global_hook()
    )
