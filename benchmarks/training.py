"""One training of a network on Fashion-MNIST, with exact or compressed activations, and what is measured of it."""

import hashlib
import math
import statistics
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from itertools import islice
from pathlib import Path

import images
import measure
import models
import torch
import torch.nn.functional as F  # noqa: N812
from images import Batch, Images
from measure import actnn
from options import DTYPES, Options
from step_graph import ReplayedStep
from torch import Tensor, nn

MOMENTUM, WEIGHT_DECAY, WARM_UP = 0.9, 5e-4, 0.05  # those of `actnn train`; the last is a share of all steps
UNTIMED = 5  # first steps
LOOKS = 10  # how often in a run bytes and bits are looked at
LOSSES = 40  # parts of a run of which the mean loss is recorded
TEST_BATCH = 500
SEED_OF_BATCHES = 2**20  # of those that noise is measured on


# --- the settings -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Setting:
    text: str
    config: Callable[[], actnn.Config] | None = None
    corrected: bool = False
    """Whether predictions of the noise are corrected by measurements now and then."""
    blocks: bool | actnn.BlockOptions = False


def in_blocks(text: str, **options: int) -> Setting:
    return Setting(text, partial(actnn.Config, "L2"), blocks=actnn.BlockOptions(**options))


FIXED = {"adaptive_conv_scheme": False, "adaptive_bn_scheme": False}
SETTINGS = {
    "exact": Setting("exact activations"),
    "L1": Setting("4 bits, batch norms exact", partial(actnn.Config, "L1")),
    "L2": Setting("4 bits", partial(actnn.Config, "L2")),
    "L3": Setting("2 bits on average, by layer and sample", partial(actnn.Config, "L3")),
    "fixed-2": Setting("2 bits", partial(actnn.Config, "L3", **FIXED)),
    "L3-gradient": Setting("L3, a gradient norm per training image", partial(actnn.Config, "L3", use_gradient=True)),
    "noise-0.05": Setting("noise target 0.05", partial(actnn.Config, "L3", noise_target=0.05), corrected=True),
    "blocks": in_blocks("blocks, 4 bits"),
    "blocks3": in_blocks("blocks, 3 bits", bits=3),
    "blocks2.5": in_blocks("blocks, 3 bits, results 2", bits=3, output_bits=2),
    "blocks2": in_blocks("blocks, 2 bits", bits=2, output_bits=2),
    "results3": in_blocks("blocks, 4 bits, results 3", output_bits=3),
    "stored": in_blocks("blocks, 4 bits, nothing recomputed", recompute=False),
}
LAYERS = [name for name, setting in SETTINGS.items() if not setting.blocks]
"""The settings in which every layer is on its own."""


def is_capturable(config: actnn.Config | None) -> bool:
    """Whether a step can become a CUDA graph: nothing is decided on the host in it."""
    return config is None or not (config.adaptive_conv_scheme or config.adaptive_bn_scheme or config.use_gradient)


# --- one step ---------------------------------------------------------------------------------------------------------


def make_model(seed: int, width: int, device: torch.device, network: str = "resnet20") -> nn.Sequential:
    torch.manual_seed(seed)
    make, _ = models.NETWORKS[network]
    return make(width).to(device)


def convert(
    model: nn.Module,
    config: actnn.Config | None,
    training_images: int,
    blocks: bool | actnn.BlockOptions = False,
) -> None:
    if config is not None:
        actnn.convert(model, config, blocks=blocks)
        config.policy.set_num_samples(training_images)


def loss_of(model: nn.Module, batch: Batch, config: actnn.Config | None, dtype: torch.dtype) -> Tensor:
    if config is not None and config.use_gradient:
        config.policy.set_batch(batch.indices)
    # A cast weight that autocast kept from before a capture would not be cast again at a replay.
    use = {"enabled": dtype != torch.float32, "cache_enabled": False}
    with torch.autocast(batch.images.device.type, dtype, **use):
        logits = model(batch.images)
    return F.cross_entropy(logits.float(), batch.labels)


def bytes_held(model: nn.Module, forward: Callable[[], Tensor]) -> tuple[int, Tensor]:
    """(bytes of storage that autograd holds for backward after `forward()`, what it returned).

    Each storage counts once, however many tensors are views of it. Parameters and buffers do not count.
    """
    own = {tensor.untyped_storage().data_ptr() for tensor in (*model.parameters(), *model.buffers())}
    storages: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        storages[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        result = forward()
    held = sum(size for pointer, size in storages.items() if pointer not in own)
    return held, result


@contextmanager
def bits_used(model: nn.Module) -> Iterator[Callable[[], float | None]]:
    """Of the forward inside: bits per element that convolutions, linear layers and batch norms copied, or None.

    None with blocks, too: no layer copies anything then.
    """
    copied: list[tuple[int, float]] = []

    def note(layer: nn.Module, inputs: tuple[Tensor], output: Tensor) -> None:
        bits = layer.config.activation_compression_bits[layer.group] if layer.scheme is None else layer.scheme.bits
        copied.append((inputs[0].numel(), bits))

    def average() -> float | None:
        return sum(count * bits for count, bits in copied) / sum(count for count, _ in copied) if copied else None

    watched = [] if actnn.capture.call.call_of(model) else model.modules()
    planned = [module for module in watched if isinstance(module, actnn.layers.PlannedLayer)]
    handles = [module.register_forward_hook(note) for module in planned]
    try:
        yield average
    finally:
        for handle in handles:
            handle.remove()


def noise_of(
    model: nn.Module, config: actnn.Config | None, batches: Iterable[Batch], draws: int, dtype: torch.dtype
) -> list[float]:
    """The noise of the gradient of each batch, with the bits that a backward of the same batch leads to."""
    result = []
    for batch in batches:

        def backward(batch: Batch = batch) -> None:
            loss_of(model, batch, config, dtype).backward()

        backward()
        result.append(actnn.measure_gradient_noise(model, backward, draws))
    model.zero_grad()
    return result


# --- one run ----------------------------------------------------------------------------------------------------------


def load_images(options: Options, folder: Path | None, device: torch.device) -> tuple[Images, Images]:
    """(for training, for testing)"""
    if options.synthetic:
        counts = options.images or 512, options.test_images or 256
        train, test = (images.synthetic(count, seed, device) for seed, count in enumerate(counts))
    else:
        folder = images.find_folder(folder)
        train = images.load(folder, "train", options.images, device)
        test = images.load(folder, "t10k", options.test_images, device)
    return train if options.images_per_class is None else train.per_class(options.images_per_class), test


def learning_rate(step: int, steps: int, highest: float) -> float:
    """Linear warm-up, then a cosine to zero."""
    warm_up = math.ceil(WARM_UP * steps)
    if step < warm_up:
        return highest * (step + 1) / warm_up
    return highest * 0.5 * (1 + math.cos(math.pi * (step - warm_up) / (steps - warm_up)))


def digest(tensors: Iterable[Tensor]) -> str:
    result = hashlib.sha256()
    for tensor in tensors:
        result.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    return result.hexdigest()[:16]


@torch.no_grad()
def test_accuracy(model: nn.Module, test: Images, dtype: torch.dtype) -> float:
    model.eval()
    correct = torch.zeros((), dtype=torch.int64, device=test.labels.device)
    for batch in test.in_order(TEST_BATCH):
        with torch.autocast(batch.images.device.type, dtype, enabled=dtype != torch.float32):
            correct += (model(batch.images).argmax(1) == batch.labels).sum()
    model.train()
    return correct.item() / len(test)


@dataclass
class Clock:
    """Seconds of the steps that are timed: by the clock, and of the process's processors."""

    device: torch.device
    steps: int = 0
    wall: float = 0.0
    processor: float = 0.0
    started: tuple[float, float] | None = None

    def start(self) -> None:
        if self.started is None:
            measure.synchronize(self.device)
            self.started = time.perf_counter(), time.process_time()

    def stop(self) -> None:
        if self.started is not None:
            measure.synchronize(self.device)
            self.wall += time.perf_counter() - self.started[0]
            self.processor += time.process_time() - self.started[1]
            self.started = None

    def record(self) -> dict[str, float | None]:
        per_step = [seconds / self.steps if self.steps else None for seconds in (self.wall, self.processor)]
        return {"seconds_per_step": per_step[0], "processor_seconds_per_step": per_step[1]}


@dataclass
class Run:
    """Trains one model in one setting from one seed."""

    options: Options
    setting: str
    seed: int
    train: Images
    """Without the wrong labels that the options may ask for."""
    device: torch.device
    trace: list[dict] = field(default_factory=list)
    corrections: list[dict] = field(default_factory=list)

    def __post_init__(self) -> None:
        options, setting = self.options, SETTINGS[self.setting]
        self.dtype = DTYPES[options.dtype]
        if options.label_noise:
            self.train = self.train.with_wrong_labels(options.label_noise, self.seed)
        self.model = make_model(self.seed, options.width, self.device, options.network)
        self.initialization = digest(self.model.state_dict().values())
        self.config = setting.config() if setting.config else None
        convert(self.model, self.config, len(self.train), setting.blocks)
        self.replayed = ReplayedStep(self.take_step) if options.graph and is_capturable(self.config) else None
        self.optimizer = self.make_optimizer()
        self.clock = Clock(self.device)
        self.losses: list[Tensor] = []
        torch.manual_seed(self.seed)  # for the noise: whatever building and converting drew

    def make_optimizer(self) -> torch.optim.SGD:
        choice = {"lr": self.options.lr}
        if self.replayed is not None:  # a number would be part of the graph; only the fused kernel reads a tensor
            choice = {"lr": torch.tensor(self.options.lr, device=self.device), "fused": True}
        return torch.optim.SGD(
            self.model.parameters(), momentum=MOMENTUM, nesterov=True, weight_decay=WEIGHT_DECAY, **choice
        )

    def set_learning_rate(self, rate: float) -> None:
        for group in self.optimizer.param_groups:
            if isinstance(group["lr"], Tensor):
                group["lr"].fill_(rate)
            else:
                group["lr"] = rate

    def times(self, count: int) -> set[int]:
        """`count` steps, spread over the run, the last among them."""
        steps = self.options.steps
        return {round((i + 1) * steps / count) - 1 for i in range(count)} if count else set()

    def batches(self, seed: int) -> Iterator[Batch]:
        return self.train.batches(self.options.batch, seed, self.options.augmentation)

    def fit(self) -> None:
        options = self.options
        # What is held does not change in steps that can be replayed.
        looks = self.times(min(LOOKS, options.steps)) if self.replayed is None else {0}
        corrected = self.config is not None and SETTINGS[self.setting].corrected
        corrections = self.times(min(options.corrections, options.steps)) if corrected else set()
        order = []
        self.model.train()
        for step, batch in enumerate(islice(self.batches(self.seed), options.steps)):
            self.set_learning_rate(learning_rate(step, options.steps, options.lr))
            order.append(batch.indices)
            timed = step >= min(UNTIMED, options.steps // 2) and step not in looks
            if timed:
                self.clock.start()
                self.clock.steps += 1
            else:
                self.clock.stop()
            self.losses.append(self.step(step, batch, look=step in looks))
            if step in corrections:
                self.clock.stop()
                self.correct(step, batch)
        self.clock.stop()
        self.order = digest(order)
        self.check_steps()

    def step(self, step: int, batch: Batch, look: bool) -> Tensor:
        if look:
            return self.take_step(batch, partial(self.watched_loss, step))
        return self.take_step(batch) if self.replayed is None else self.replayed(batch)

    def take_step(self, batch: Batch, forward: Callable[[Batch], Tensor] | None = None) -> Tensor:
        """Forward, backward and the optimizer's step. Returns the loss."""
        loss = (forward or self.loss)(batch)
        loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad()
        return loss.detach()

    def loss(self, batch: Batch) -> Tensor:
        return loss_of(self.model, batch, self.config, self.dtype)

    def watched_loss(self, step: int, batch: Batch) -> Tensor:
        """The loss; what forward keeps goes into the trace."""
        with bits_used(self.model) as bits:
            held, loss = bytes_held(self.model, partial(self.loss, batch))
            self.trace.append({"step": step, "bytes": held, "bits": bits(), "loss": loss.item()})
        return loss

    def check_steps(self) -> None:
        """Raises RuntimeError if a batch norm has not seen every step once, as when a replay leaves something out."""
        steps, state = self.options.steps, self.model.state_dict()
        counted = {key: count.item() for key, count in state.items() if key.endswith("num_batches_tracked")}
        if wrong := {key: count for key, count in counted.items() if count != steps}:
            raise RuntimeError(f"batch norms must have counted {steps} steps, but counted {wrong}")

    def correct(self, step: int, batch: Batch) -> None:
        def backward() -> None:
            self.loss(batch).backward()

        measured = actnn.measure_gradient_noise(self.model, backward, draws=2, correct=self.config)
        factor = self.config.policy.noise_correction()
        self.corrections.append({"step": step, "measured_noise": measured, "factor": factor})

    def record(self, test: Images) -> dict:
        losses = torch.stack(self.losses)
        result = {
            "setting": self.setting,
            "seed": self.seed,
            "graph": self.replayed is not None,
            "initialization": self.initialization,
            "order": self.order,
            "first_loss": losses[0].item(),
            "final_loss": losses[-min(50, len(losses)) :].mean().item(),
            "losses": [part.mean().item() for part in losses.chunk(LOSSES)],
            "test_accuracy": test_accuracy(self.model, test, self.dtype),
        }
        # The same batches for all runs.
        batches = list(islice(self.batches(SEED_OF_BATCHES), self.options.noise_batches))
        noise = noise_of(self.model, self.config, batches, self.options.draws, self.dtype)
        predicted = math.nan if self.config is None else actnn.predicted_gradient_noise(self.config)
        bits = [look["bits"] for look in self.trace]
        return result | {
            "noise": statistics.fmean(noise),
            "noise_of_batches": noise,
            "predicted_noise": predicted if math.isfinite(predicted) else None,  # none without adaptive bits
            "activation_bytes": statistics.fmean(look["bytes"] for look in self.trace),
            "bits": None if None in bits else statistics.fmean(bits),
            **self.clock.record(),
            "trace": self.trace,
            "corrections": self.corrections,
        }


# --- the trained state ------------------------------------------------------------------------------------------------
