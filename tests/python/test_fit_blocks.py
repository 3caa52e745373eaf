"""The bits of blocks under a noise target and a number of bytes, and those that follow the gradients."""

import copy
import pickle

import actnn
import pytest
import torch
from actnn import BlockAllocation, Config, fit_blocks, measure_gradient_noise, measure_kept_bytes
from actnn.capture.call import call_of
from block_models import BasicBlock
from noise_models import trained
from torch import nn


def converted(**options):
    """A small network after some exact steps, with blocks, and what computes its gradient; on the default device."""
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 8, 3, 2, 1), nn.BatchNorm2d(8), nn.ReLU(), BasicBlock(8, 8), BasicBlock(8, 16, 2)]
    model = nn.Sequential(*layers, nn.Flatten(), nn.Linear(16 * 64, 10))
    model, backward = trained(model, steps=10)
    actnn.convert(model, Config("L2"), **options)
    return model, backward


def bits_of_blocks(model):
    return [save["bits"] for block in call_of(model).record.graphs[-1].programs for save in block.saves
            if "bits" in save]  # fmt: skip


def test_the_noise_is_under_the_target_with_fewer_bytes_where_it_may_be_more():
    model, backward = converted()
    buffers = [buffer.clone() for buffer in model.buffers()]
    coarse, fine = fit_blocks(model, backward, 0.3), fit_blocks(model, backward, 0.01)
    assert coarse.noise <= 0.3 and fine.noise <= 0.01
    assert 0 < coarse.kept_bytes < fine.kept_bytes and coarse.mean_bits < fine.mean_bits
    assert fine.predicted_noise == pytest.approx(fine.noise, rel=0.3)
    assert measure_gradient_noise(model, backward, 16) < 0.015
    assert fine.kept_bytes == sum(measure_kept_bytes(model, backward).blocks.values())
    assert all(torch.equal(a, b) for a, b in zip(buffers, model.buffers(), strict=True))
    assert all(parameter.grad is None for parameter in model.parameters())
    assert len(call_of(model).record.graphs) == 1  # nothing was captured anew
    assert sorted(value.bits for value in fine.values) == sorted(bits_of_blocks(model))


def test_less_noise_than_with_the_same_bits_everywhere_in_as_many_bytes():
    model, backward = converted()
    everywhere = measure_gradient_noise(model, backward, 16)
    kept = sum(measure_kept_bytes(model, backward).blocks.values())
    fit = fit_blocks(model, backward, memory=kept, draws=16)
    assert fit.kept_bytes <= kept and fit.noise < 0.9 * everywhere


def test_copies_of_a_model_have_its_bits_and_then_their_own():
    model, backward = converted()
    fit_blocks(model, backward, 0.01)
    found = bits_of_blocks(model)
    images = torch.randn(32, 3, 32, 32)
    for copied in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        copied(images).sum().backward()
        assert bits_of_blocks(copied) == found
        fit_blocks(copied, lambda copied=copied: copied(images).square().sum().backward(), 1.0, draws=2)
        assert bits_of_blocks(copied) != found and bits_of_blocks(model) == found
    model(images[:16]).square().mean().backward()  # another graph
    assert len(call_of(model).record.graphs) == 2 and bits_of_blocks(model) == found


def test_a_compiled_model_is_fitted_without_its_compiler():
    model, backward = converted(compile="eager")
    assert fit_blocks(model, backward, 0.02).noise <= 0.02
    backward()
    assert call_of(model).settings.compile == "eager" and 3 in bits_of_blocks(model)
    with pytest.raises(ValueError, match="must have no compiler"):
        BlockAllocation(model)


def test_targets_that_nothing_reaches():
    model, backward = converted()
    with pytest.warns(UserWarning, match="above 1e-09"):
        assert {value.bits for value in fit_blocks(model, backward, 1e-9).values} == {8}
    with pytest.warns(UserWarning, match="above 1"):
        assert fit_blocks(model, backward, memory=1).mean_bits < 3


def test_errors():
    model, backward = trained(nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten()), steps=0)
    with pytest.raises(ValueError, match="model has no blocks"):
        fit_blocks(model, backward)
    model, backward = converted()
    with pytest.raises(ValueError, match="noise must be above 0, got 0"):
        fit_blocks(model, backward, 0)
    with pytest.raises(TypeError, match="noise must be"):
        fit_blocks(model, backward, "0.05")
    with pytest.raises(ValueError, match=r"not both, got noise 0\.05 and memory 1000"):
        fit_blocks(model, backward, 0.05, memory=1000)
    with pytest.raises(ValueError, match="memory must be an integer of at least 1, got 0"):
        fit_blocks(model, backward, memory=0)
    with pytest.raises(ZeroDivisionError):
        fit_blocks(model, lambda: 1 / 0)
    with pytest.raises(ValueError, match="every must be"):
        BlockAllocation(model, every=0)
    assert call_of(model).settings.bits.of_blocks == {}


def step(model, backward, allocation):
    model.zero_grad()
    backward()
    return allocation.step()


def test_bits_follow_every_so_many_steps(device):
    model, backward = converted()
    allocation = BlockAllocation(model, noise=0.02, every=3)
    assert [step(model, backward, allocation) for _ in range(8)] == [
        True,
        False,
        False,
        True,
        False,
        False,
        True,
        False,
    ]
    assert len(call_of(model).record.graphs) == 1
    assert {value.bits for value in allocation.values} == set(bits_of_blocks(model))
    assert sum(value.noise for value in allocation.values) <= 0.02
    assert measure_gradient_noise(model, backward, 16) < 0.03


def test_a_step_without_a_measurement_is_made_up_for():
    model, backward = converted()
    first = BlockAllocation(model, noise=0.02)
    second = BlockAllocation(model, noise=0.02)  # waits for the first
    assert not second.step() and step(model, backward, first)
    assert not second.step()  # begins now
    assert step(model, backward, second)
    with torch.no_grad():
        assert not any(parameter.grad.isnan().any() for parameter in model.parameters())


def test_microbatches_and_several_models_count_by_themselves(device):
    model, backward = converted()
    other, other_backward = converted()
    allocation = BlockAllocation(model, noise=0.02)
    model.zero_grad()
    backward()
    other_backward()
    backward()
    assert allocation.step()
    names = {value.block for value in allocation.values}
    assert len(names) == len(call_of(model).record.graphs[0].programs)
    assert call_of(other).settings.bits.of_blocks == {}
