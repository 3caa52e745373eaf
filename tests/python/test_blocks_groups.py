"""The process group that a block's norms take their statistics over is that of the layers at each call."""

import copy

import pytest
import torch
import torch.distributed as dist
from actnn import convert
from block_models import IMAGE, conv
from configurations import eight_bits
from ranks import AllReduces, Ranks
from torch import nn


@pytest.fixture
def two_ranks(tmp_path):
    with Ranks("gloo", 2, tmp_path / "store") as ranks:
        yield ranks


def block_and_layers(**arguments):
    """A model that runs as a block, and one that does not, of the same numbers."""
    torch.manual_seed(0)
    block = nn.Sequential(conv(3, 8), nn.SyncBatchNorm(8, **arguments), nn.ReLU())
    layers = copy.deepcopy(block)
    report = convert(block, eight_bits())
    convert(layers, eight_bits(), blocks=False)
    return block, layers, report


def sizes_of_collectives(block, layers, report):
    """Compares a step of both, and returns the elements of its all-reduces."""
    torch.manual_seed(dist.get_rank() if dist.is_initialized() else 0)
    images = torch.randn(IMAGE) * (1 + torch.initial_seed())
    sizes, results = [], []
    for model in (block, layers):
        model.zero_grad()
        with AllReduces() as recorder:
            y = model(images)
            y.square().sum().backward()
        sizes.append(recorder.sizes)
        results.append(y.detach())
    assert report.graphs and all(found.steps == ("0", "1", "2") for found in report.blocks)
    assert len(report.blocks) == len(report.graphs) and not report.record.breaks and not report.record.fallback
    torch.testing.assert_close(*results, rtol=1e-4, atol=1e-4)
    for ours, theirs in zip(block.parameters(), layers.parameters(), strict=True):
        assert (ours.grad - theirs.grad).norm() < 0.05 * theirs.grad.norm()
    for ours, theirs in zip(block.buffers(), layers.buffers(), strict=True):
        torch.testing.assert_close(ours, theirs)
    assert sizes[0] == sizes[1]
    return sizes[0]


def follows_the_module(_):
    block, layers, report = block_and_layers()
    pair = dist.new_group([0, 1])
    alone = [dist.new_group([rank]) for rank in (0, 1)][dist.get_rank()]
    for group, expected in ((None, [17, 16]), (pair, [17, 16]), (alone, []), (None, [17, 16])):
        block[1].process_group = layers[1].process_group = group
        assert sizes_of_collectives(block, layers, report) == expected
    block.eval(), layers.eval()
    assert sizes_of_collectives(block, layers, report) == []
    block.train(), layers.train()
    block[1].eval(), layers[1].eval()
    assert sizes_of_collectives(block, layers, report) == []


def test_it_follows_the_module(two_ranks):
    two_ranks.run(follows_the_module)


def without_running_statistics(_):
    block, layers, report = block_and_layers(track_running_stats=False)
    assert sizes_of_collectives(block, layers, report) == [17, 16]
    block.eval(), layers.eval()
    assert sizes_of_collectives(block, layers, report) == []


def test_evaluation_without_running_statistics_is_of_the_ranks_own_batch(two_ranks):
    two_ranks.run(without_running_statistics)


def destroyed_group(_):
    block, layers, report = block_and_layers()
    block[1].process_group = dist.new_group([0, 1])
    block(torch.randn(IMAGE))
    dist.destroy_process_group(block[1].process_group)
    for _ in range(2):
        with pytest.raises(ValueError, match="block: group_name must be the name of a process group"):
            block(torch.randn(IMAGE))
    block[1].process_group = None
    block[1].load_state_dict(layers[1].state_dict())
    assert sizes_of_collectives(block, layers, report) == [17, 16]


def test_a_group_that_was_destroyed_gets_a_sentence(two_ranks):
    two_ranks.run(destroyed_group)


def initialized_later(_, store):
    rank = dist.get_rank()
    dist.destroy_process_group()
    block, layers, report = block_and_layers()
    assert sizes_of_collectives(block, layers, report) == []
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
    assert sizes_of_collectives(block, layers, report) == [17, 16]


def test_process_groups_may_come_after_conversion(two_ranks, tmp_path):
    two_ranks.run(initialized_later, str(tmp_path / "another_store"))
