"""A training step that is measured: what is trained, how, and the memory and time that it takes.

*Activations* are what is held right after forward and was not before. *Peak* is the allocator's over whole steps, the
optimizer's included, less what other variants hold.
"""

import gc
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Protocol

import measure
import torch
import torch.nn.functional as F  # noqa: N812
from measure import actnn
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

CHECKPOINTED = (
    *("Bottleneck", "DenseLayer", "Transition", "InvertedResidual", "MBConv"),
    *("BertLayer", "GPT2Block", "LlamaDecoderLayer", "EncoderBlock", "SwinTransformerBlock", "CNBlock"),
    *("GPTLayer", "LlamaLayer"),
)


# --- what is trained --------------------------------------------------------------------------------------------------


class Workload(Protocol):
    """A model, its inputs, loss and optimizer."""

    batch: int
    autocast: bool
    """Whether it is trained with autocast where a variant has it."""

    def text(self) -> str: ...

    def model(self, amp: bool, device: torch.device) -> nn.Module: ...

    def inputs(self, amp: bool, device: torch.device) -> tuple[Tensor, ...]: ...

    def loss(self, model: nn.Module, *inputs: Tensor) -> Tensor: ...

    def optimizer(self, model: nn.Module, device: torch.device) -> torch.optim.Optimizer: ...


@dataclass(frozen=True)
class Images:
    """Random images with random labels, SGD with momentum. float32 is contiguous, bfloat16 channels_last."""

    title: str
    make: Callable[[], nn.Module]
    batch: int
    pixels: int = 224
    classes: int = 1000
    autocast: bool = True

    def text(self) -> str:
        return f"{self.title}, {self.batch} images of {self.pixels} x {self.pixels} pixels, SGD with momentum"

    def model(self, amp: bool, device: torch.device) -> nn.Module:
        model = self.make().to(device)
        return model.to(memory_format=torch.channels_last) if amp else model

    def inputs(self, amp: bool, device: torch.device) -> tuple[Tensor, ...]:
        form = torch.channels_last if amp else torch.contiguous_format
        shape = (self.batch, 3, self.pixels, self.pixels)
        images = torch.empty(shape, device=device, memory_format=form).normal_()
        return images, torch.randint(self.classes, (self.batch,), device=device)

    def loss(self, model: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
        return F.cross_entropy(model(images), labels)

    def optimizer(self, model: nn.Module, device: torch.device) -> torch.optim.Optimizer:
        return torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9, weight_decay=1e-4)


# --- how it is trained ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Variant:
    amp: bool
    prepare: Callable[[nn.Module], nn.Module] = lambda model: model


def with_checkpoints(model: nn.Module, bits: int | None = None) -> nn.Module:
    """Each of the model's repeated parts is recomputed in backward; the random numbers' state is kept if one draws.

    With `bits` from packed copies of their inputs, else from the inputs.
    """
    run = partial(checkpoint, use_reentrant=False) if bits is None else partial(actnn.checkpoint, bits=bits)
    for part in [module for module in model.modules() if type(module).__name__ in CHECKPOINTED]:
        part.forward = partial(run, part.forward, preserve_rng_state=_may_draw(part))
    return model


def _may_draw(part: nn.Module) -> bool:
    return any(type(module).__name__ in ("Dropout", "StochasticDepth", "BertLayer") for module in part.modules())


def converted(bits: int, model: nn.Module, level: str = "L2", **flags: int) -> nn.Module:
    """Layer by layer. L2: the same bits for all layers and samples. L3: on average, by sensitivity."""
    actnn.convert(model, actnn.Config(level, activation_compression_bits=[bits], **flags), blocks=False)
    return model


def with_blocks(bits: int, model: nn.Module, **options) -> nn.Module:
    config = actnn.Config("L2", activation_compression_bits=[bits])
    actnn.convert(model, config, blocks=actnn.BlockOptions(**options))
    return model


# --- one variant ------------------------------------------------------------------------------------------------------


def allocated(device: torch.device) -> int:
    return torch.cuda.memory_allocated(device) if device.type == "cuda" else 0


def forget_workspaces() -> None:
    """cuBLAS keeps its workspace; without this the first variant would pay for all."""
    if hasattr(torch._C, "_cuda_clearCublasWorkspaces"):
        torch._C._cuda_clearCublasWorkspaces()


@dataclass
class Run:
    """One variant: its model, and what was measured of it. `base` is what others hold on the device."""

    variant: Variant
    workload: Workload
    device: torch.device
    milliseconds: list[float] = field(default_factory=list)
    graph_milliseconds: list[float] = field(default_factory=list)
    activations: int | None = None
    peak: int | None = None
    first_loss: float | None = None

    def __post_init__(self):
        forget_workspaces()
        measure.release_memory(self.device)
        self.base = allocated(self.device)
        torch.manual_seed(0)
        self.amp = self.variant.amp and self.workload.autocast
        with self.device:  # initialized there: quicker
            model = self.workload.model(self.amp, self.device)
        self.optimizer = self.workload.optimizer(model, self.device)
        self.inputs = self.workload.inputs(self.amp, self.device)
        self.model = self.variant.prepare(model)

    def forward(self, keep_casts: bool = True) -> Tensor:
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.amp, cache_enabled=keep_casts):
            return self.workload.loss(self.model, *self.inputs)

    def backward(self, loss: Tensor) -> None:
        loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)

    def step(self, keep_casts: bool = True) -> None:
        self.backward(self.forward(keep_casts))

    def warm_up(self, steps: int) -> None:
        torch.manual_seed(1)  # whatever a model or variant has drawn, the same dropout
        loss = self.forward()
        self.first_loss = loss.item()
        self.backward(loss)
        del loss
        for _ in range(steps - 1):
            self.step()
        measure.synchronize(self.device)

    def measure_memory(self, steps: int) -> None:
        """The largest of some steps. Activations: what is held right after forward, and was not before."""
        if self.device.type != "cuda":
            return
        held = []
        torch.cuda.reset_peak_memory_stats(self.device)
        for _ in range(steps):
            before = allocated(self.device)
            loss = self.forward()
            held.append(allocated(self.device) - before)
            self.backward(loss)
            del loss
        self.activations = max(held)
        self.peak = torch.cuda.max_memory_allocated(self.device) - self.base

    def measure_time(self, steps: int, warm_up: int = 2) -> None:
        measure.release_memory(self.device)  # of the variant before
        for _ in range(warm_up):
            self.step()
        self.milliseconds += self._times(self.step, steps)

    def measure_graph(self, replays: int) -> None:
        """Captures a whole step, the optimizer's included, in one CUDA graph. If that fails, the process is unfit for
        another capture."""
        measure.release_memory(self.device)
        # A cast weight that autocast kept from before a capture would not be cast again at a replay.
        step = partial(self.step, keep_casts=False)
        stream = torch.cuda.Stream(self.device)
        stream.wait_stream(torch.cuda.current_stream(self.device))
        with torch.cuda.stream(stream):
            step()
        torch.cuda.current_stream(self.device).wait_stream(stream)
        measure.release_memory(self.device)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            step()
        graph.replay()
        self.graph_milliseconds += self._times(graph.replay, replays)

    def _times(self, call: Callable[[], None], count: int) -> list[float]:
        watches = [measure.Stopwatch(self.device) for _ in range(count)]
        for watch in watches:
            watch.start()
            call()
            watch.stop()
        return [1000 * watch.seconds() for watch in watches]


# --- several ----------------------------------------------------------------------------------------------------------


class Runs:
    """The variants that have not failed, and why the others did."""

    def __init__(self, variants: Mapping[str, Variant], workload: Workload, device: torch.device, baseline: str):
        self.variants, self.workload, self.device, self.baseline = variants, workload, device, baseline
        self.alive: dict[str, Run] = {}
        self.errors: dict[str, str] = {}

    def attempt(self, name: str, action: Callable[[], object]) -> None:
        try:
            action()
        except Exception as error:  # whatever one variant does, the others are measured
            self.errors[name] = measure.one_line(error)
            traceback.print_exc(limit=-4)
        if name in self.errors:  # outside of the except clause, whose traceback holds tensors
            print(f"{name} failed: {self.errors[name]}", flush=True)
            self.alive.pop(name, None)
            gc.collect()

    def build(self, warm_up: int = 3, memory_steps: int = 2) -> None:
        for name in self.variants:
            print(f"building {name}", flush=True)
            self.attempt(name, partial(self._build, name, warm_up, memory_steps))

    def _build(self, name: str, warm_up: int, memory_steps: int) -> None:
        run = Run(self.variants[name], self.workload, self.device)
        self.alive[name] = run
        run.warm_up(warm_up)
        run.measure_memory(memory_steps)

    def time(self, rounds: int, steps: int, warm_up: int = 2) -> None:
        for _ in range(rounds):
            for name in list(self.alive):
                self.attempt(name, partial(self.alive[name].measure_time, steps, warm_up))

    def record(self, name: str) -> dict:
        record = {"variant": name, "dtype": "bfloat16 autocast" if self.variants[name].amp else "float32"}
        if name in self.errors:
            return record | {"error": self.errors[name]}
        run = self.alive[name]
        time = measure.Spread.of(run.milliseconds)
        record |= {"activation_bytes": run.activations, "peak_bytes": run.peak, **time.record("milliseconds")}
        record |= {"samples_per_second": 1000 * self.workload.batch / time.median, "first_loss": run.first_loss}
        if self.baseline in self.alive:
            exact, suffix = self.alive[self.baseline], self.baseline.replace("-", "_")
            record[f"speed_against_{suffix}"] = measure.Spread.of(exact.milliseconds).median / time.median
            if run.activations:
                record[f"activations_against_{suffix}"] = exact.activations / run.activations
        return record
