"""The benchmark programs run at tiny sizes. No test asserts a time."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parents[2]
BENCHMARKS = ROOT / "benchmarks"
sys.path.insert(0, str(BENCHMARKS))

import models  # noqa: E402
import training_step  # noqa: E402


def results_of(output: Path, program: str, *arguments: str) -> dict:
    command = [sys.executable, BENCHMARKS / program, "--smoke", "--device", "cpu", "--output", output, *arguments]
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=300, env={**os.environ, "OMP_NUM_THREADS": "1"}
    )
    assert done.returncode == 0, done.stdout + done.stderr
    record = json.loads(output.read_text())
    assert record["machine"]["torch"] == torch.__version__
    assert record["machine"]["date"]
    return record


def test_every_op_that_moves_a_tensor_is_measured(tmp_path):
    rows = results_of(tmp_path / "kernels.json", "cuda_kernels.py")["rows"]
    assert not [row for row in rows if "error" in row]
    names = {row["name"].split()[0] for row in rows}
    assert names >= {
        *(
            "quantize",
            "dequantize",
            "quantize_per_sample",
            "dequantize_per_sample",
            "pack_mask",
            "unpack_mask",
            "relu_pack",
        ),
        *("relu_pack_", "apply_mask", "dropout_forward", "dropout_forward_", "apply_dropout"),
        *("max_pool2d_pack", "max_pool2d_pack_backward"),
    }
    moved = {row["name"]: row["bytes"] for row in rows}
    elements = 64 * 1024
    assert (
        moved["quantize bfloat16 4 bits"]
        == moved["dequantize bfloat16 4 bits"]
        == elements * 2 + elements // 2 + elements // 64
    )
    assert moved["relu_pack_ float32"] == moved["relu_pack float32"] == elements * 8 + elements // 8


@pytest.mark.parametrize("model", ["resnet50", "bert-large"])
def test_training_steps_are_measured(tmp_path, model):
    rows = results_of(tmp_path / "steps.json", "training_step.py", "--model", model)["rows"]
    assert [row["variant"] for row in rows] == training_step.default_names(model, smoke=True)
    assert not [row for row in rows if "error" in row]
    # Forward is exact: the first loss is the same to the last bit (with dropout, other elements are dropped).
    losses = {row["variant"]: row["first_loss"] for row in rows}
    if model == "resnet50":
        fused = {name: losses.pop(name) for name in training_step.ONLY_RESNET}
        assert {loss for name, loss in losses.items() if name.endswith("-amp")} == {losses["exact-amp"]}
        assert all(abs(loss - losses["exact-amp"]) < 0.02 for loss in fused.values())  # rounded once, not twice
        assert losses["actnn4-fp32"] == losses["exact-fp32"]


def test_a_variant_that_fails_is_a_row(monkeypatch, capsys):
    def fail(model):
        raise RuntimeError("out of everything")

    monkeypatch.setitem(training_step.VARIANTS, "broken", training_step.Variant(amp=True, prepare=fail))
    runs = training_step.Runs(["broken", "exact-amp"], training_step.ResNet50(True, None), torch.device("cpu"))
    runs.measure(rounds=1, steps=1)
    rows = [runs.record(name) for name in runs.names]
    training_step.print_rows(rows)
    assert rows[0]["error"] == "RuntimeError: out of everything"
    assert "error" not in rows[1]
    assert "broken          RuntimeError: out of everything" in capsys.readouterr().out


def test_scale_checks_a_tensor_and_measures(tmp_path):
    record = results_of(tmp_path / "scale.json", "scale.py")
    assert record["large"]["passed"]
    assert record["time"]
    assert not [row for row in record["time"] + record["host"] if "error" in row]


def test_scale_finds_a_wrong_decoding(monkeypatch, capsys):
    import scale

    def one_element_off(*arguments):
        y = torch.ops.actnn.dequantize(*arguments)
        y[-1] += 1
        return y

    class Ops:
        dequantize = staticmethod(one_element_off)

        def __getattr__(self, name):
            return getattr(torch.ops.actnn, name)

    monkeypatch.setattr(scale, "ops", Ops())
    checks = scale.large(2**16, torch.device("cpu"))["checks"]
    assert [passed for name, passed in checks.items() if "step" in name or "codes" in name].count(False) == 2
    assert "FAILED" in capsys.readouterr().out


def test_the_plot_is_drawn(tmp_path):
    pytest.importorskip("matplotlib")
    results_of(tmp_path / "scale.json", "scale.py", "--parts", "time")
    image = tmp_path / "images/time.svg"
    command = [sys.executable, BENCHMARKS / "scale.py", "--plot", tmp_path / "scale.json", "--image", image]
    subprocess.run(command, check=True, capture_output=True)
    assert image.read_text().count("</svg>") == 1


def test_the_resnet_is_torchvisions():
    torchvision = pytest.importorskip("torchvision")
    theirs, own = torchvision.models.resnet50(), models.ResNet()
    own.load_state_dict(theirs.state_dict())
    x = torch.randn(2, 3, 64, 64)
    assert torch.equal(own(x), theirs(x))
