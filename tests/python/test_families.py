"""Transformers of Hugging Face, torchvision, timm and torch, converted: what is in blocks, results, gradients; without
and with autocast."""

import copy
import re

import actnn
import pytest
import torch
from configurations import one_thread  # noqa: F401
from model_families import FAMILIES, WITH_PADDING, padded_words
from torch import nn

pytestmark = pytest.mark.usefixtures("one_thread")

DRAWS = 24
OF_ITS_PARENT = nn.modules.linear.NonDynamicallyQuantizableLinear
"""A part of nn.MultiheadAttention, which calls a function with its parameters."""


def loss_of(result):
    """A number for each result, which weighs its elements differently."""
    result = getattr(result, "logits", result)
    return (result * torch.linspace(-1, 1, result.numel()).reshape(result.shape)).sum() if result.dim() else result


def gradient(model, inputs, dtype=None):
    """The loss and its gradient, under autocast to a type if there is one."""
    model.zero_grad()
    with torch.autocast("cpu", dtype or torch.bfloat16, enabled=dtype is not None):
        loss = loss_of(model(*inputs))
    loss.backward()
    return loss.detach(), torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None]).double()


def converted(family):
    """A model, its exact twin, and what has become of it."""
    model = family.make().train()
    exact = copy.deepcopy(model)
    return model, exact, actnn.convert(model, blocks=actnn.BlockOptions(bits=8))


@pytest.mark.parametrize("name", FAMILIES)
def test_a_family(name):
    torch.manual_seed(0)
    family = FAMILIES[name]
    model, exact, report = converted(family)
    inputs = family.inputs()
    expected_loss, expected = gradient(exact, inputs)
    projections = []
    for seed in range(DRAWS):
        torch.manual_seed(seed)
        loss, drawn = gradient(model, inputs)
        torch.testing.assert_close(loss, expected_loss, rtol=1e-4, atol=1e-5)
        projections.append(drawn @ expected / (expected @ expected))
    deviation, mean = torch.std_mean(torch.stack(projections))
    # What a norm's statistics share with its input leaves a bias of the order of 1 / rows.
    assert deviation > 0 and abs(mean - 1) < 4 * deviation / DRAWS**0.5 + 5e-3
    assert_in_blocks(family, model, report)


@pytest.mark.parametrize("name", FAMILIES)
def test_a_family_under_autocast(name):
    torch.manual_seed(0)
    family = FAMILIES[name]
    check_under_autocast(family, family.inputs(), torch.bfloat16)


@pytest.mark.parametrize("name", WITH_PADDING)
def test_a_family_with_padding_under_autocast(name):
    torch.manual_seed(0)
    check_under_autocast(FAMILIES[name], padded_words(), torch.float16)


@pytest.mark.parametrize("name", FAMILIES)
def test_a_family_with_batches_of_any_size(name):
    """The second size has a graph for any, with programs like those of the first."""
    torch.manual_seed(0)
    family = FAMILIES[name]
    model, exact, report = converted(family)
    inputs = family.inputs()
    for size in (2, 3, 5):
        batch = [torch.cat([x, x, x])[:size] for x in inputs]
        loss, found = gradient(model, batch)
        expected_loss, expected = gradient(exact, batch)
        torch.testing.assert_close(loss, expected_loss, rtol=1e-4, atol=1e-4)
        assert (found - expected).norm() < 0.3 * expected.norm()  # the last norm has 4 bits
    assert len(report.graphs) == 2
    steps = [[step for program in graph.programs for step in program.steps] for graph in report.graphs]
    layers = [sorted(step for step in some if ": " not in step or step.endswith("attention")) for some in steps]
    assert layers[0] == layers[1]


@pytest.mark.parametrize("dtype", [None, torch.bfloat16])
@pytest.mark.parametrize("name", ["GPT-2", "Llama", "Qwen3"])
def test_keys_and_values_that_a_family_returns(name, dtype):
    """As it does unless it is told not to: they are results of the layers' blocks, with gradients of their own."""
    torch.manual_seed(0)
    family = FAMILIES[name]
    outer, exact, _ = converted(family)
    model, exact = outer.model, exact.model  # without what takes the loss alone
    actnn.restore(outer)
    report = actnn.convert(model, blocks=actnn.BlockOptions(bits=8))
    (words,) = family.inputs()
    results = []
    for one in (model, exact):
        with torch.autocast("cpu", dtype or torch.bfloat16, enabled=dtype is not None):
            output = one(input_ids=words, labels=words)
        kept = [tensor for layer in output.past_key_values.layers for tensor in (layer.keys, layer.values)]
        (output.loss + sum((tensor.float() ** 2).mean() for tensor in kept)).backward()
        gradients = torch.cat([p.grad.flatten() for p in one.parameters() if p.grad is not None]).double()
        results.append((output.loss.detach(), [tensor.detach() for tensor in kept], gradients))
    (loss, kept, found), (expected_loss, expected_kept, expected) = results
    tolerance = {} if dtype is None else {"rtol": 2e-2, "atol": 2e-2}
    torch.testing.assert_close(loss, expected_loss, **tolerance)
    torch.testing.assert_close(kept, expected_kept, **tolerance)
    assert (found - expected).norm() < 0.15 * expected.norm()
    in_layers = re.compile(family.layers.removeprefix(r"model\."))
    assert len(report.graphs) == 1
    assert not [place for place in report.without_blocks if in_layers.match(place)]


def check_under_autocast(family, inputs, dtype):
    model, exact, report = converted(family)
    loss, found = gradient(model, inputs, dtype)
    expected_loss, expected = gradient(exact, inputs, dtype)
    torch.testing.assert_close(loss, expected_loss, rtol=1e-3, atol=2e-3)
    assert (found - expected).norm() < 0.15 * expected.norm()
    assert_in_blocks(family, model, report)


def assert_in_blocks(family, model, report):
    """All that is not said to be outside."""
    assert len(report.graphs) == 1 and not report.record.breaks
    in_layers = re.compile(rf"{family.layers}(?:\.|(?=: )|$)")
    places = [(in_layers.match(place), place) for place in report.without_blocks]
    assert {place[match.end() :] for match, place in places if match} == family.exact
    steps = [step.partition(": ") for block in report.blocks for step in block.steps]
    in_blocks = {path for path, _, _ in steps}
    called = {path: module for path, module in model.named_modules() if not isinstance(module, OF_ITS_PARENT)}
    with_parameters = [path for path, module in called.items() if [*module.parameters(recurse=False)]]
    alone = [path for path in with_parameters if in_layers.match(path) and path not in in_blocks]
    assert {path[in_layers.match(path).end() :] for path in alone} == family.alone
    attentions = [path for path, _, op in steps if in_layers.match(path) and op == "attention"]
    assert len(attentions) == family.attentions
