"""PEFT's adapters of low rank, added before or after the conversion, and what frozen layers keep."""

import copy

import actnn
import pytest
import torch
from configurations import one_thread  # noqa: F401
from model_families import FAMILIES, WIDTH
from torch import nn

peft = pytest.importorskip("peft")
pytestmark = pytest.mark.usefixtures("one_thread")

QKV = ["query", "key", "value"]


def bert():
    torch.manual_seed(0)
    return FAMILIES["BERT"].make(), FAMILIES["BERT"].inputs()


def adapted(model, dropout=0.0, targets=QKV):
    torch.manual_seed(1)
    config = peft.LoraConfig(r=2, lora_alpha=3, lora_dropout=dropout, target_modules=targets, init_lora_weights=False)
    model.model = peft.get_peft_model(model.model, config)
    return model


def gradients(model, inputs):
    model.zero_grad()
    model(*inputs).backward()
    return [p.grad for p in model.parameters() if p.requires_grad]


@pytest.mark.parametrize("is_converted_first", [True, False])
def test_adapters_before_and_after_the_conversion(is_converted_first):
    model, inputs = bert()
    exact = adapted(copy.deepcopy(model))
    options = actnn.BlockOptions(bits=8)
    if is_converted_first:
        report = actnn.convert(model, blocks=options)
        model(*inputs)  # without adapters
        adapted(model)
    else:
        report = actnn.convert(adapted(model), blocks=options)
    for found, wanted in zip(gradients(model, inputs), gradients(exact, inputs), strict=True):
        torch.testing.assert_close(found, wanted, rtol=5e-2, atol=5e-2 * float(wanted.abs().max()))
    assert len(report.graphs) == 1 + is_converted_first and not report.without_blocks.get("")
    assert any("lora_A" in step for block in report.blocks for step in block.steps)


def test_adapters_that_are_merged_disabled_or_others():
    model, inputs = bert()
    exact = adapted(copy.deepcopy(model))
    report = actnn.convert(adapted(model))

    def check():
        torch.testing.assert_close(model(*inputs), exact(*inputs))

    check()
    for one in (model, exact):
        one.model.merge_adapter()
    check()
    with model.model.disable_adapter(), exact.model.disable_adapter():
        check()  # which undoes the merge in forward
    check()
    for one in (model, exact):
        torch.manual_seed(2)
        one.model.add_adapter("other", peft.LoraConfig(r=3, target_modules=QKV, init_lora_weights=False))
        one.model.set_adapter("other")
    check()
    assert not report.without_blocks.get("")


def kept_bytes(model, inputs):
    report = actnn.convert(model)
    kept = report.measure(model, lambda: model(*inputs))
    assert report.blocks and not report.without_blocks.get("")
    return kept.total


def test_adapters_share_the_copy_of_what_they_read():
    model, inputs = bert()
    one, three = (kept_bytes(adapted(copy.deepcopy(model), targets=targets), inputs) for targets in (["query"], QKV))
    # Two more in two layers: of each [rows, rank] between its parts, exact, and the second weight times the scale.
    assert three - one <= 2 * 2 * (inputs[0].numel() + WIDTH) * 2 * 4


def test_a_frozen_layer_keeps_no_input():
    rows, width = 256, 64

    def kept(trains):
        layers = [nn.Linear(width, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU(), nn.Linear(width, width)]
        model = peft.get_peft_model(nn.Sequential(*layers), peft.LoraConfig(r=2, target_modules=["0", "4"]))
        model.base_model.model[2].requires_grad_(trains)
        return kept_bytes(model, (torch.randn(rows, width),))

    assert kept(True) - kept(False) >= rows * width // 2  # a copy of 4 bits
