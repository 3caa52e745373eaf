"""The original's wrapper of a model."""

import time
from collections.abc import Iterator, Mapping
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from .capture.call import call_of
from .capture.options import BlockOptions
from .conf import Config
from .conf import config as default_config
from .convert import Report, Skip, convert, skipped_modules
from .functional import FunctionsOfModel
from .utils import get_memory_usage


class QModule(nn.Module):
    """A model whose layers, and whose functional calls, keep compressed activations.

    Converts `model` in place (`actnn.convert`) and behaves like it: `forward`, `train`, `eval`, and a `state_dict` with
    the model's own keys; `load_state_dict` takes those, or the same behind "model." or "module.". `report` says what
    was and was not converted. `convert` by itself does the same without a wrapper, but for functional calls where
    layers are converted.

    Where layers are, functional calls with a parameter or a buffer of a skipped module stay torch's, and so does
    `batch_norm` when `enable_quantized_bn` is off; other calls are compressed wherever they are.

    Args:
        model: any module.
        config: None: the process's `actnn.config`, which allocates bits among layers unless it is told otherwise.
        skip: as for `actnn.convert`.
        verbose: print the report.
        blocks: as for `actnn.convert`.
    """

    def __init__(
        self,
        model: nn.Module,
        config: Config | None = None,
        skip: Skip = (),
        verbose: bool = False,
        blocks: bool | BlockOptions = True,
    ) -> None:
        super().__init__()
        if isinstance(skip, Iterator):  # it is gone through twice
            skip = list(skip)
        self.config = default_config if config is None else config
        self.report: Report = convert(model, self.config, skip, verbose, blocks)
        self.model = model
        self._skipped = list(skipped_modules(model, skip))

    def _functions(self):
        """Redirects calls such as F.relu inside the forward. A captured graph has them."""
        flags = self.config
        if call_of(self.model) or not (flags.compress_activation and flags.training and torch.is_grad_enabled()):
            return nullcontext()
        return FunctionsOfModel(flags, self._skipped)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        flags = self.config
        if flags.debug_memory_model:
            print(f"before forward: {get_memory_usage() / 2**20:.2f} MiB in use")
        start = time.perf_counter() if flags.debug_speed else 0.0
        with self._functions():
            output = self.model(*args, **kwargs)
        if flags.debug_speed:
            _wait_for(args)
            print(f"forward: {1e3 * (time.perf_counter() - start):.2f} ms")
        if flags.debug_memory_model:
            print(f"after forward: {get_memory_usage() / 2**20:.2f} MiB in use")
        return output

    def state_dict(self, *args: Any, destination: Any = None, prefix: str = "", keep_vars: bool = False) -> dict:
        if args:
            raise TypeError("QModule.state_dict takes keyword arguments only: destination, prefix, keep_vars")
        state = self.model.state_dict(destination=destination, prefix=prefix, keep_vars=keep_vars)
        # A larger module that loads this looks for metadata under the names of modules, and one of them is "model".
        metadata = state._metadata
        for key in [key for key in metadata if f"{key}.".startswith(prefix)]:
            # Not over that of a child which is called "model" too.
            metadata.setdefault(f"{prefix}model.{key[len(prefix) :]}".rstrip("."), metadata[key])
        return state

    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False) -> Any:
        return self.model.load_state_dict(_without_prefix(state_dict, self.model), strict=strict, assign=assign)

    def _load_from_state_dict(self, state_dict, prefix, *args):
        # As part of a larger module: the keys have no "model." there either.
        own = {key: state_dict.pop(prefix + key) for key in self.model.state_dict() if prefix + key in state_dict}
        state_dict.update((f"{prefix}model.{key}", value) for key, value in own.items())
        super()._load_from_state_dict(state_dict, prefix, *args)


def _without_prefix(state_dict: Mapping[str, Any], model: nn.Module) -> Mapping[str, Any]:
    """The state without the prefix of a wrapper, if it is the model's then."""
    own = set(model.state_dict())
    for prefix in ("model.", "module.", "module.model."):
        if not state_dict or own & set(state_dict) or not all(key.startswith(prefix) for key in state_dict):
            continue
        stripped = type(state_dict)((key.removeprefix(prefix), value) for key, value in state_dict.items())
        if own.isdisjoint(stripped):
            continue
        if hasattr(state_dict, "_metadata"):
            stripped._metadata = {
                f"{key}.".removeprefix(prefix).removesuffix("."): value
                for key, value in state_dict._metadata.items()
                if f"{key}.".startswith(prefix)
            }
        return stripped
    return state_dict


def _wait_for(inputs: tuple) -> None:
    for value in inputs:
        if isinstance(value, Tensor) and value.is_cuda:
            torch.cuda.synchronize(value.device)
