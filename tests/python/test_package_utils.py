"""actnn.utils: memory, bytes of tensors, the experiment recorder."""

import json
import math
import os
import subprocess
import sys
from pathlib import Path

import actnn
import pytest
import torch
from actnn.utils import ExperimentRecorder, empty_cache


@pytest.mark.cuda
def test_memory_of_a_gpu_is_what_tensors_hold():
    before = actnn.get_memory_usage()
    held = torch.ones(1 << 20, device="cuda")
    assert actnn.get_memory_usage() - before == held.nbytes


GROWTH = """
import torch
torch.cuda.is_available = lambda: False
from actnn.utils import get_memory_usage
before = get_memory_usage()
held = torch.ones(64 << 18)
print((get_memory_usage() - before) / held.nbytes)
"""


def test_without_cuda_memory_is_that_of_the_process():
    # A process of its own: in one that has freed memory, allocations need not grow it.
    environment = os.environ | {"PYTHONPATH": str(Path(actnn.__file__).parent.parent)}
    command = [sys.executable, "-c", GROWTH]
    output = subprocess.run(command, env=environment, check=True, capture_output=True, text=True).stdout
    assert 0.9 < float(output) < 1.5


def test_memory_is_printed_when_asked(capsys):
    actnn.get_memory_usage()
    assert capsys.readouterr().out == ""
    actnn.get_memory_usage(True)
    assert capsys.readouterr().out.rstrip().endswith("MiB")


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.uint8,
                                   torch.int64, torch.bool, torch.complex64])  # fmt: skip
def test_bytes_of_every_dtype(dtype):
    assert actnn.compute_tensor_bytes(torch.empty(3, 5, dtype=dtype)) == 15 * dtype.itemsize


def test_bytes_of_collections():
    a, b = torch.empty(4), torch.empty(2, dtype=torch.uint8)
    assert actnn.compute_tensor_bytes([a, (b, None), {"c": a}, "text", 7]) == 16 + 2 + 16
    assert actnn.compute_tensor_bytes([]) == actnn.compute_tensor_bytes(None) == 0


def test_empty_cache(device):
    empty_cache(None)
    if device == "cuda":
        torch.cuda.empty_cache()  # of what other tests have left
        others = torch.cuda.memory_reserved()
        held = torch.empty(1 << 20)
        torch.empty(64 << 20)
        empty_cache(0.0)
        assert torch.cuda.memory_reserved() > others + (64 << 20)
        empty_cache(1.0)
        assert torch.cuda.memory_reserved() < others + (64 << 20)
        del held
    for bad in (-0.1, 1.5, math.nan):
        with pytest.raises(ValueError, match=r"ratio must be None or in 0..1"):
            empty_cache(bad)


def test_a_record_is_a_line_of_json(tmp_path):
    recorder, file = ExperimentRecorder(), tmp_path / "log.json"
    recorder.record("network", "resnet")
    recorder.record("loss", 0.123456789, 3)
    recorder.record("accuracy", torch.tensor(0.5))
    recorder.record("epoch", torch.tensor(3))
    recorder.record("loss", 1 / 3)
    recorder.dump(file)
    recorder.clear()
    recorder.record("next", True)
    recorder.dump(str(file))
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    assert lines == [{"network": "resnet", "loss": 0.333333, "accuracy": 0.5, "epoch": 3}, {"next": True}]


def test_what_json_does_not_know_leaves_no_half_line(tmp_path):
    recorder = ExperimentRecorder()
    recorder.record("bad", object())
    with pytest.raises(TypeError):
        recorder.dump(tmp_path / "log")
    assert not (tmp_path / "log").exists()


def test_there_is_one_for_all():
    assert isinstance(actnn.exp_recorder, ExperimentRecorder)
