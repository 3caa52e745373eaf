"""The benchmark programs run at tiny sizes. No test asserts a time."""

import json
import math
import os
import subprocess
import sys
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from torch import nn

ROOT = Path(__file__).resolve().parents[2]
BENCHMARKS = ROOT / "benchmarks"
sys.path.insert(0, str(BENCHMARKS))

import largest_batch  # noqa: E402
import measure  # noqa: E402
import networks  # noqa: E402
import steps  # noqa: E402
import training_step  # noqa: E402
import workers  # noqa: E402
from measure import actnn  # noqa: E402

import blocks  # noqa: E402

PARAMETERS = {
    "resnet50": 25557032,
    "resnet152": 60192808,
    "wide_resnet101_2": 126886696,
    "densenet201": 20013928,
    "mobilenet_v2": 3504872,
    "efficientnet_b0": 5288548,
}


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


def test_host_and_capture_times_are_measured(tmp_path):
    record = results_of(tmp_path / "host.json", "host_time.py")
    assert len(record["host"]) == 3
    assert all(int(row["blocks"]) > 0 for row in record["capture"])


def test_a_step_is_divided_into_kinds(tmp_path):
    rows = results_of(tmp_path / "profile.json", "step_profile.py")["rows"]
    for variant in ("exact", "blocks"):
        kinds = {row["kind"]: row for row in rows if row["variant"] == variant}
        assert all((row["milliseconds"] > 0) == (row["launches"] > 0) for row in kinds.values())
        assert kinds["products"]["launches"] > 0
        assert kinds["others"]["launches"] > 0


def test_bytes_and_noise_are_measured_with_fitted_bits(tmp_path):
    rows = results_of(tmp_path / "fitted.json", "fitted_bits.py")["rows"]
    assert all(row["noise"] >= 0 and row["kept_bytes"] > 0 for row in rows)
    fitted = [row for row in rows if row["bits"]]
    assert len(fitted) == 4
    assert all(min(row["bits"]) >= 2 and max(row["bits"]) <= 8 for row in fitted)


def test_losses_are_measured(tmp_path):
    rows = results_of(tmp_path / "loss.json", "loss.py")["rows"]
    assert len({round(row["loss"], 1) for row in rows}) == 1


def test_settings_of_a_language_model_are_trained_alike(tmp_path):
    settings = "exact,blocks,checkpoint"
    record = results_of(tmp_path / "language.json", "language.py", "--settings", settings)
    assert [row["setting"] for row in record["summary"]] == settings.split(",")
    for seed in (0, 1):
        exact, blocks, checkpoint = (run for run in record["runs"] if run["seed"] == seed)
        for key in ("initialization", "order"):
            assert exact[key] == blocks[key] == checkpoint[key]
        assert checkpoint["losses"] == exact["losses"]
        assert 0 < max(abs(a - b) for a, b in zip(blocks["losses"], exact["losses"], strict=True)) < 0.02
    assert record["summary"][1]["validation_difference_error"] is not None


def test_a_sentence_encoder_is_fine_tuned(tmp_path):
    pytest.importorskip("transformers")
    options = "--seeds", "1", "--settings", "exact,blocks"
    runs = results_of(tmp_path / "sentences.json", "sentences.py", *options)["runs"]
    assert [run["setting"] for run in runs] == ["exact", "blocks"]
    assert all(math.isfinite(run["validation_loss"]) for run in runs)


def test_uses_that_are_not_linear_are_measured(tmp_path):
    options = "--parts", "uses", "--states", "llama"
    (part,) = results_of(tmp_path / "uses.json", "transformer_noise.py", *options)["uses"]
    rows = {row["use"]: row for row in part["rows"]}
    assert 0 < rows["norms and linears 8"]["noise"] < rows["norms and linears 4"]["noise"]
    assert {"+ input of GELU, SwiGLU 4", "defaults"} <= rows.keys()


def test_packed_checkpoints_are_measured(tmp_path):
    rows = {row["variant"]: row for row in results_of(tmp_path / "noise.json", "checkpoint_noise.py")["rows"]}
    exact, packed = rows["checkpoint"], rows["checkpoint packed, 8 bits"]
    assert exact["noise"] == 0 < packed["noise"] < rows["checkpoint packed, 4 bits"]["noise"] < 0.01
    assert packed["kept_bytes"] < exact["kept_bytes"]


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
        == 16 + elements * 2 + elements // 2 + elements // 64
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


def test_a_variant_that_fails_is_a_row(capsys):
    def fail(model):
        raise RuntimeError("out of everything")

    variants = {"broken": steps.Variant(amp=True, prepare=fail), "exact-amp": steps.Variant(amp=True)}
    runs = steps.Runs(variants, training_step.resnet50(True, None), torch.device("cpu"), "exact-amp")
    runs.build()
    runs.time(rounds=1, steps=1)
    rows = [runs.record(name) for name in variants]
    training_step.print_rows(rows)
    assert rows[0]["error"] == "RuntimeError: out of everything"
    assert "error" not in rows[1]
    assert "broken          RuntimeError: out of everything" in capsys.readouterr().out


def test_results_have_a_line_for_every_record(tmp_path):
    record = {
        "sizes": [1, 2],
        "parts": {"first": {"rows": [{"a": [1.5, None]}, {"of": [{"c": 1}], "d": True}]}, "second": {"rows": []}},
        "f": math.inf,
    }
    path = tmp_path / "results" / "of.json"
    measure.save(path, record)
    assert path.read_text().splitlines() == [
        "{",
        ' "sizes": [1, 2],',
        ' "parts": {',
        '  "first": {',
        '   "rows": [',
        '    {"a": [1.5, null]},',
        '    {"of": [{"c": 1}], "d": true}',
        "   ]",
        "  },",
        '  "second": {"rows": []}',
        " },",
        ' "f": null',
        "}",
    ]
    assert json.loads(path.read_text()) == record | {"f": None}
    assert not list(path.parent.glob("*.part"))


def test_every_network_is_measured_with_blocks(tmp_path):
    rows = results_of(tmp_path / "blocks.json", "blocks.py", "--rounds", "1")["rows"]
    assert not [row for row in rows if "error" in row]
    others = ("compile", *blocks.OF_TRANSFORMERS)
    names = [name for name in blocks.VARIANTS if not name.startswith(others)]
    assert [(row["network"], row["variant"]) for row in rows] == [(n, v) for n in networks.NETWORKS for v in names]
    for network in ("resnet50", "resnet152", "wide_resnet101_2", "densenet201"):  # the others have dropout
        losses = {row["variant"]: row["first_loss"] for row in rows if row["network"] == network}
        assert losses["layers"] == losses["checkpoint"] == losses["exact"]
        assert all(abs(loss - losses["exact"]) < 0.02 for loss in losses.values())  # rounded once, not twice


@pytest.mark.parametrize("name", networks.NETWORKS)
def test_every_batch_norm_of_the_networks_is_in_a_block(name):
    def loss_of(model):
        torch.manual_seed(0)
        return F.cross_entropy(model(torch.randn(4, 3, 32, 32)), torch.tensor([3, 1, 4, 1]))

    torch.manual_seed(0)
    model = networks.NETWORKS[name].make_tiny()
    for module in model.modules():
        if isinstance(module, nn.Dropout | networks.StochasticDepth):
            module.p = 0.0
    exact = loss_of(model)
    report = actnn.convert(model, actnn.Config("L2", activation_compression_bits=[4]))
    loss = loss_of(model)  # captures the graph
    norms = [entry.path for entry in report.entries if entry.type == "BatchNorm2d"]
    assert norms and not [path for path in norms if not report[path].block]
    torch.testing.assert_close(loss, exact, rtol=1e-5, atol=0)
    loss.backward()
    assert all(parameter.grad.isfinite().all() for parameter in model.parameters())


def test_the_networks_have_as_many_parameters_as_torchvisions():
    with torch.device("meta"):
        sizes = {name: sum(p.numel() for p in n.make().parameters()) for name, n in networks.NETWORKS.items()}
    assert sizes == PARAMETERS


@pytest.mark.parametrize("limit, ceiling, largest", [(7, 512, 0), (8, 512, 8), (200, 512, 200), (207, 512, 200)])
def test_the_largest_batch_is_found(limit, ceiling, largest):
    assert largest_batch.search(lambda batch: batch <= limit, ceiling) == largest


def test_the_largest_batch_of_any_number_is_found():
    assert largest_batch.search(lambda batch: batch <= 13, 512, multiple=1) == 13


def test_the_search_for_the_largest_batch_ends_at_its_ceiling():
    assert largest_batch.search(lambda batch: True, 100) == 100


def test_the_largest_batch_is_measured(tmp_path):
    rows = results_of(tmp_path / "largest.json", "blocks.py", "--largest", "16", "--networks", "resnet50")["rows"]
    assert [(row["variant"], row["batch"]) for row in rows] == [(name, 32) for name in blocks.LARGEST_VARIANTS]


@dataclass(frozen=True)
class Letters:
    """A task whose part `fatal` takes the process down, or that leaves it unfit for another task."""

    parts: str
    fatal: str = ""
    is_fit: bool = True

    def without(self, parts):
        return replace(self, parts="".join(part for part in self.parts if part not in parts))

    def run(self, device, send):
        for part in self.parts:
            if part == self.fatal:
                os._exit(3)
            send(part, {"part": part})
        return self.is_fit


def test_a_process_that_ends_costs_one_part():
    tasks = [Letters("ab", fatal="b"), Letters("c", is_fit=False), Letters("d")]
    sent = dict(workers.run(tasks, torch.device("cpu")))
    assert sent == {"b": {"ended": "its process ended with 3"}} | {part: {"part": part} for part in "acd"}


def test_what_failed_is_in_the_table(capsys):
    row = {"network": "resnet50", "batch": 8, "variant": "exact", "milliseconds": 2.0, "samples_per_second": 4000.0}
    row |= {"milliseconds_lower_quartile": 1.0, "milliseconds_upper_quartile": 3.0, "graph_error": "RuntimeError: no"}
    blocks.print_markdown(blocks.table_rows({"benchmark": "blocks", "rows": [row]}))
    *_, line = capsys.readouterr().out.splitlines()
    assert line == "| ResNet-50, 8 | exact | - | - | - | 2.0 (1.0-3.0) | 4000 | - | - | - | graph: RuntimeError: no |"


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


@pytest.mark.parametrize("name", networks.NETWORKS)
def test_the_networks_are_torchvisions(name):
    torchvision = pytest.importorskip("torchvision")
    theirs, own = getattr(torchvision.models, name)().eval(), networks.NETWORKS[name].make().eval()
    own.load_state_dict(theirs.state_dict())
    x = torch.randn(2, 3, 64, 64)
    assert torch.equal(own(x), theirs(x))
