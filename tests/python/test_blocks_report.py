"""convert and blocks: the way back, the report, and errors."""

import copy

import pytest
import torch
from actnn import BlockOptions, convert, restore
from actnn.blocks.running import BlockForward
from block_checks import assert_same, converted, reference_blocks  # noqa: F401
from block_models import FEATURES, IMAGE, ResNet, conv
from configurations import eight_bits, one_thread, small_net  # noqa: F401
from torch import nn

pytestmark = pytest.mark.usefixtures("one_thread", "reference_blocks")


def test_restore_is_exact():
    model = ResNet()
    exact = copy.deepcopy(model)
    convert(model, eight_bits())
    model(torch.randn(IMAGE)).sum().backward()
    model.zero_grad()
    restore(model)
    for mine, theirs in zip(model.modules(), exact.modules(), strict=True):
        assert type(mine) is type(theirs) and set(vars(mine)) == set(vars(theirs))
    exact.load_state_dict(model.state_dict())
    assert_same(model, exact, torch.randn(IMAGE), blocks=0)
    assert len(convert(model, eight_bits()).blocks) == 3
    restore(model.layer1)
    assert_same(model.layer1[0], exact.layer1[0], torch.randn(FEATURES), blocks=0)


def test_a_conversion_that_fails_leaves_no_blocks(monkeypatch):
    def fail(program, options):
        raise ValueError("no such block")

    model = ResNet()
    monkeypatch.setattr("actnn.blocks.running.executor", fail)
    with pytest.raises(ValueError, match="no such block"):
        convert(model, eight_bits())
    assert not any("forward" in vars(m) or type(m).__name__.startswith("Q") for m in model.modules())


def test_the_report_lists_blocks(capsys):
    model = nn.Sequential(conv(3, 8), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten())
    report = convert(model, eight_bits(), verbose=True)
    assert [entry.block for entry in report.entries] == ["", "(root)#0", "(root)#0", "(root)#0", ""]
    lines = capsys.readouterr().out.splitlines()
    assert "(root)#0  -     -           0, 1, 2" in lines
    assert lines[-1] == "3 converted, 1 left alone, 1 blocks"
    report = convert(nn.Sequential(nn.Tanh(), nn.BatchNorm2d(8)), eight_bits())
    assert report.without_blocks == {"": "nothing in its forward that blocks are made of"}
    model, config = small_net(), eight_bits()
    assert not convert(model, config, blocks=False).blocks and "forward" not in vars(model)
    assert not convert(model, config).converted and isinstance(model.forward, BlockForward)
    assert not convert(model, config).blocks


def test_wrong_arguments():
    for value, got in (("yes", "str"), (None, "NoneType"), (3, "int"), ({"bits": 4}, "dict")):
        with pytest.raises(TypeError, match=rf"convert: blocks must be a bool or an actnn.BlockOptions, got {got}"):
            convert(small_net(), blocks=value)
    for arguments, sentence in (
        ({"bits": 1}, r"BlockOptions: bits must be an integer in 2\.\.8, got 1"),
        ({"output_bits": 9}, r"BlockOptions: output_bits must be an integer in 2\.\.8, got 9"),
    ):
        with pytest.raises(ValueError, match=sentence):
            BlockOptions(**arguments)
    for arguments, sentence in (
        ({"bits": 4.0}, r"bits must be an integer in 2\.\.8, got float 4.0"),
        ({"output_bits": "3"}, r"output_bits must be an integer in 2\.\.8, got str '3'"),
        ({"recompute": "no"}, "recompute must be a bool, got str 'no'"),
    ):
        with pytest.raises(TypeError, match=sentence):
            BlockOptions(**arguments)
