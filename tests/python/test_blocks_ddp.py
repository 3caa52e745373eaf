"""Blocks under DistributedDataParallel: every parameter's gradient is reduced, once, in the same order on all ranks."""

import copy
from contextlib import nullcontext

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F  # noqa: N812
from actnn import BlockOptions, convert
from block_models import IMAGE, ResNet
from configurations import eight_bits, relative_error
from ranks import Ranks
from torch import nn
from torch.nn.parallel import DistributedDataParallel


@pytest.fixture(scope="module")
def two_ranks(tmp_path_factory):
    with Ranks("gloo", 2, tmp_path_factory.mktemp("two") / "store") as ranks:
        yield ranks


class Parallel(DistributedDataParallel):
    """Torch's refuses SyncBatchNorm on the CPU, where its own cannot run."""

    def _passing_sync_batchnorm_handle(self, module):
        pass


def exact_model():
    """The same on all ranks."""
    torch.manual_seed(0)
    model = ResNet()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
    return model


def model_with_blocks(is_synchronized):
    model = exact_model()
    if is_synchronized:
        model = nn.SyncBatchNorm.convert_sync_batchnorm(model)
    convert(model, eight_bits(), blocks=BlockOptions(norm_bits=8))
    return model


def backward(model, seed):
    """Backward of the rank's own batch, with noise that the seed determines."""
    torch.manual_seed(1000 * seed + dist.get_rank())
    model(torch.randn(IMAGE)).square().sum().backward()


def average_gradients(model):
    for parameter in model.parameters():
        dist.all_reduce(parameter.grad)
        parameter.grad /= dist.get_world_size()


def trains_like_its_twin(_, is_synchronized, accumulated, options):
    """Compares steps under DDP with steps whose gradients are averaged afterwards, bit for bit."""
    model = model_with_blocks(is_synchronized)
    twin = copy.deepcopy(model)
    # A bucket holds a few parameters: there are several, and the last ones wait for the first blocks.
    parallel = Parallel(model, bucket_cap_mb=0.002, broadcast_buffers=False, **options)
    optimizers = [torch.optim.SGD(m.parameters(), 0.1) for m in (model, twin)]
    for step in range(3):
        for optimizer in optimizers:
            optimizer.zero_grad()
        for part in range(accumulated):
            with nullcontext() if part == accumulated - 1 else parallel.no_sync():
                backward(parallel, accumulated * step + part)
            backward(twin, accumulated * step + part)
        average_gradients(twin)
        for (name, ours), expected in zip(model.named_parameters(), twin.parameters(), strict=True):
            assert torch.equal(ours.grad, expected.grad), name
            assert ours.grad.norm() > 0, name
        for optimizer in optimizers:
            optimizer.step()
    for ours, expected in zip(model.buffers(), twin.buffers(), strict=True):
        assert torch.equal(ours, expected)


SYNCHRONIZED = pytest.mark.parametrize("is_synchronized", [False, True], ids=["batch norm", "synchronized batch norm"])


@SYNCHRONIZED
@pytest.mark.parametrize(
    "options",
    [{}, {"find_unused_parameters": True}, {"static_graph": True}, {"gradient_as_bucket_view": True}],
    ids=lambda options: next(iter(options), "default"),
)
def test_gradients_are_averaged(two_ranks, is_synchronized, options):
    two_ranks.run(trains_like_its_twin, is_synchronized, 1, options)


@SYNCHRONIZED
def test_no_sync_accumulates(two_ranks, is_synchronized):
    two_ranks.run(trains_like_its_twin, is_synchronized, 3, {})


BATCHES = (5, 3)


def images_and_labels():
    generator = torch.Generator().manual_seed(5)
    count = sum(BATCHES)
    drift = torch.linspace(-1, 1, count).view(-1, 1, 1, 1)
    return torch.randn(count, *IMAGE[1:], generator=generator) + drift, torch.arange(count) % 5


def gradients_of_draws(_, draws):
    """Averages of the ranks' gradients, of the loss of all images, for each draw of noise; running statistics."""
    model = model_with_blocks(is_synchronized=True)
    parallel = Parallel(model, broadcast_buffers=False)
    images, labels = (tensor.split(BATCHES)[dist.get_rank()] for tensor in images_and_labels())
    drawn, buffers = [], []
    for draw in range(draws):
        torch.manual_seed(2 * draw + dist.get_rank())
        model.zero_grad()
        # The ranks' losses sum up to that of all images; DDP averages.
        loss = F.cross_entropy(parallel(images), labels, reduction="sum") / sum(BATCHES) * len(BATCHES)
        loss.backward()
        drawn.append([parameter.grad.clone() for parameter in model.parameters()])
        buffers = buffers or [buffer.clone() for buffer in model.buffers()]
    return drawn, buffers


def test_synchronized_norms_make_ranks_one_process(two_ranks):
    (drawn, buffers), (others, other_buffers) = two_ranks.run(gradients_of_draws, 16)
    exact = exact_model()
    images, labels = images_and_labels()
    F.cross_entropy(exact(images), labels).backward()
    for ours, theirs, expected in zip(buffers, other_buffers, exact.buffers(), strict=True):
        assert torch.equal(ours, theirs)
        torch.testing.assert_close(ours, expected, rtol=1e-4, atol=1e-5)
    for ours, theirs in zip(drawn, others, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))
    for *gradients, parameter in zip(*drawn, exact.parameters(), strict=True):
        mean = torch.stack(gradients).mean(0)
        assert relative_error(mean, parameter.grad) < 0.03
