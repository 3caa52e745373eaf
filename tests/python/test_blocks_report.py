"""convert and blocks: the report, and errors."""

import pytest
import torch
from actnn import BlockOptions, convert
from block_models import conv
from configurations import eight_bits, one_thread, small_net  # noqa: F401
from torch import nn

pytestmark = pytest.mark.usefixtures("one_thread")


def test_the_report_lists_blocks(capsys):
    model = nn.Sequential(conv(3, 8), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten())
    report = convert(model, eight_bits(), verbose=True)
    assert "not been captured yet" in capsys.readouterr().out
    model(torch.randn(2, 3, 8, 8)).sum().backward()
    assert [report[entry.path].block for entry in report.entries][1:4] == ["(root)#0"] * 3
    lines = str(report).splitlines()
    assert any(line.startswith("(root)#0") and "0, 1, 2" in line for line in lines)
    assert lines[-1] == "3 converted, 1 left alone, 1 graphs, 1 blocks"


def test_wrong_arguments():
    for value, got in (("yes", "str"), (None, "NoneType"), (3, "int"), ({"bits": 4}, "dict")):
        with pytest.raises(TypeError, match=rf"convert: blocks must be a bool or an actnn.BlockOptions, got {got}"):
            convert(small_net(), blocks=value)
    for arguments, sentence in (
        ({"bits": 1}, r"BlockOptions: bits must be an integer in 2\.\.8, got 1"),
        ({"output_bits": 9}, r"BlockOptions: output_bits must be an integer in 2\.\.8, got 9"),
        ({"smooth_bits": 1}, r"BlockOptions: smooth_bits must be an integer in 2\.\.8, got 1"),
        ({"group_rows": 32}, r"BlockOptions: group_rows must be an integer in 64\.\.256, got 32"),
        ({"group_rows": 100}, "BlockOptions: group_rows must be 64, 128 or 256, got 100"),
        ({"norm_bits": 9}, r"BlockOptions: norm_bits must be an integer in 1\.\.8, got 9"),
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
