"""`nn.SyncBatchNorm` in captured graphs: one node, and a step of a program."""

import pytest
import torch
from actnn.capture.synchronized import synchronized_norms
from block_models import IMAGE, conv
from configurations import one_thread  # noqa: F401
from lowering_checks import captured, programs
from torch import nn

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def group():
    """A process group of one, which says that it is of two."""
    store = torch.distributed.HashStore()
    torch.distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
    yield torch.distributed.group.WORLD
    torch.distributed.destroy_process_group()


def test_a_synchronized_norm_is_a_step_with_the_name_of_its_group(group, monkeypatch):
    model = nn.Sequential(conv(3, 8), nn.SyncBatchNorm(8), nn.ReLU())
    forward = nn.SyncBatchNorm.forward
    call, lowered = captured(model, run=_refuse)
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda group=None: 2)
    with synchronized_norms(), pytest.raises(RuntimeError, match="a program runs"):
        call(torch.randn(IMAGE))
    assert nn.SyncBatchNorm.forward is forward
    assert programs(lowered) == ["0 1 2"]
    norm = lowered[0].programs[0].body["program"]["steps"][1]
    assert norm["group_name"] == group.group_name and norm["num_batches_tracked"] is not None


def _refuse(*arguments):
    raise RuntimeError("a program runs")


def test_without_a_group_it_is_a_batch_norm():
    model = nn.Sequential(conv(3, 8), nn.SyncBatchNorm(8), nn.ReLU())
    call, lowered = captured(model)
    with synchronized_norms():
        call(torch.randn(IMAGE))
    assert programs(lowered) == ["0 1 2"]
    assert "group_name" not in lowered[0].programs[0].body["program"]["steps"][1]
