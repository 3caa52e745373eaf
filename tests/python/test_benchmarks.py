"""The benchmark programs run at tiny sizes; the layers that they put into models are exact. No test asserts a time."""

import copy
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

ROOT = Path(__file__).resolve().parents[2]
BENCHMARKS = ROOT / "benchmarks"
sys.path.insert(0, str(BENCHMARKS))

import layers  # noqa: E402
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
    assert [row["variant"] for row in rows] == training_step.SMOKE
    assert not [row for row in rows if "error" in row]
    # Forward is exact: the first loss is the same to the last bit (with dropout, other elements are dropped).
    losses = {row["variant"]: row["first_loss"] for row in rows}
    if model == "resnet50":
        assert losses["actnn2-amp"] == losses["actnn4-amp"] == losses["exact-amp"] == losses["checkpoint-amp"]
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


# --- the layers -------------------------------------------------------------------------------------------------------


def small_resnet() -> nn.Module:
    torch.manual_seed(0)
    return models.ResNet(blocks=(1, 1), width=16, classes=10)


def gradients(model: nn.Module, loss: torch.Tensor) -> torch.Tensor:
    model.zero_grad()
    loss.backward()
    return torch.cat([p.grad.flatten() for p in model.parameters()])


@pytest.mark.parametrize("channels_last", [False, True])
def test_a_converted_resnet_is_exact_forward_and_close_backward(channels_last):
    exact = small_resnet()
    converted = copy.deepcopy(exact)
    assert layers.convert(converted, bits=8) == {
        **{"Conv2d": 9, "BatchNorm2d": 9, "ReLU": 3, "MaxPool2d": 1, "AdaptiveAvgPool2d": 1, "Linear": 1},
    }
    form = torch.channels_last if channels_last else torch.contiguous_format
    x = torch.randn(8, 3, 32, 32).contiguous(memory_format=form)
    labels = torch.randint(10, (8,))
    outputs = [model(x) for model in (exact, converted)]
    assert torch.equal(*outputs)
    wanted, got = (
        gradients(model, nn.functional.cross_entropy(output, labels))
        for model, output in zip((exact, converted), outputs, strict=True)
    )
    assert 0 < (got - wanted).norm() < 0.02 * wanted.norm()
    for theirs, own in zip(exact.buffers(), converted.buffers(), strict=True):
        assert torch.equal(theirs, own)
    exact.eval(), converted.eval()
    assert torch.equal(exact(x), converted(x))


def test_a_converted_bert_is_close():
    sizes = models.BertSizes(vocabulary=50, hidden=32, layers=2, heads=2, intermediate=64, positions=16, dropout=0.0)
    torch.manual_seed(0)
    exact = models.Bert(sizes)
    converted = copy.deepcopy(exact)
    layers.convert(converted, bits=8)
    words = torch.randint(50, (4, 16))
    losses = [model(words, words) for model in (exact, converted)]
    assert torch.equal(*losses)
    wanted, got = (gradients(model, loss) for model, loss in zip((exact, converted), losses, strict=True))
    assert 0 < (got - wanted).norm() < 0.02 * wanted.norm()


@pytest.mark.parametrize("options", [{}, {"momentum": None}, {"affine": False}, {"track_running_stats": False}])
def test_batch_norm_keeps_torchs_rules(options):
    exact = nn.BatchNorm2d(3, **options)
    converted = copy.deepcopy(exact)
    layers.convert(converted)
    for training in (True, True, False):
        exact.train(training), converted.train(training)
        x = torch.randn(4, 3, 5, 5, requires_grad=True)
        assert torch.equal(exact(x), converted(x))
    for theirs, own in zip(exact.buffers(), converted.buffers(), strict=True):
        assert torch.equal(theirs, own)


def test_dropout_is_off_in_evaluation_and_on_in_training():
    layer = nn.Dropout(0.5)
    layers.convert(layer)
    x = torch.ones(1000)
    assert set(layer(x).tolist()) == {0.0, 2.0}
    assert torch.equal(layer.eval()(x), x)


def test_what_the_ops_cannot_do_is_left_alone():
    model = nn.Sequential(
        nn.Conv2d(3, 4, 3, padding="same"),
        nn.Conv2d(4, 4, 3, padding=1, padding_mode="reflect"),
        nn.MaxPool2d(2, return_indices=True),
        nn.GELU(),
    )
    assert not layers.convert(model)


def test_the_resnet_is_torchvisions():
    torchvision = pytest.importorskip("torchvision")
    theirs, own = torchvision.models.resnet50(), models.ResNet()
    own.load_state_dict(theirs.state_dict())
    x = torch.randn(2, 3, 64, 64)
    assert torch.equal(own(x), theirs(x))
