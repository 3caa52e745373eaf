"""Somebody else's torch.compile that a call of a converted module is part of."""

import types
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn.parallel import DistributedDataParallel


def splits_graphs() -> bool:
    """Whether what is compiled here and now is split into the buckets of DistributedDataParallel."""
    splits = torch._dynamo.utils.get_optimize_ddp_mode() == "ddp_optimizer"
    return splits and DistributedDataParallel._get_active_ddp_module() is not None


def run_uncompiled(code: types.CodeType) -> None:
    """Lets Dynamo compile no frame of this code; what such a frame calls, it does, as long as its callback is set."""
    frames = torch._C._dynamo.eval_frame
    strategy = frames._FrameExecStrategy(frames._FrameAction.SKIP, frames._FrameAction.DEFAULT)
    frames.set_code_exec_strategy(code, strategy)


@dataclass(frozen=True)
class Compilation:
    """A torch.compile that calls are part of."""

    backend: Callable
    is_whole: bool
    """Whether it takes whole graphs only."""


def compilation_of(callback: Any) -> Compilation | None:
    """The one whose callback this is; None if there is none.

    None where graphs are split, too: there a module's gradients are to be ready one after another, and its graphs stay
    uncompiled.
    """
    if hasattr(callback, "actnn_compilation"):  # this library's own
        return callback.actnn_compilation
    convert = getattr(callback, "_torchdynamo_orig_backend", None)
    if convert is None or splits_graphs():
        return None
    is_whole = isinstance(convert, torch._dynamo.convert_frame.ConvertFrameAssert)
    return Compilation(torch._dynamo.eval_frame.innermost_backend(convert), is_whole)
