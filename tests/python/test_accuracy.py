"""The benchmarks of accuracy and of the gradient's noise, at tiny sizes: settings share what they must."""

import argparse
import gzip
import json
import os
import struct
import subprocess
import sys
from itertools import islice
from pathlib import Path
from types import ModuleType

import pytest
import torch
from torch import nn

ROOT = Path(__file__).resolve().parents[2]
BENCHMARKS = ROOT / "benchmarks"
sys.path.insert(0, str(BENCHMARKS))

import accuracy  # noqa: E402
import actnn  # noqa: E402
import gradient_variance  # noqa: E402
import images  # noqa: E402
import models  # noqa: E402
import options  # noqa: E402
import training  # noqa: E402

CPU = torch.device("cpu")
DATA = ["--synthetic"] if not any(folder.is_dir() for folder in images.FOLDERS) else []


def run(program: str, *arguments: object) -> None:
    """As a process of its own."""
    command = [sys.executable, BENCHMARKS / program, "--device", "cpu", "--threads", "1", *map(str, arguments)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, env=environment)
    assert done.returncode == 0, done.stdout + done.stderr


def here(program: ModuleType, *arguments: object) -> None:
    """In this process: quicker."""
    threads = torch.get_num_threads()
    try:
        assert program.main(["--device", "cpu", "--threads", "1", *map(str, arguments)]) == 0
    finally:
        torch.set_num_threads(threads)


# --- accuracy.py ------------------------------------------------------------------------------------------------------

TINY = ("--steps", 12, "--batch", 32, "--width", 8, "--images", 512, "--test-images", 200, *DATA)
TINY = (*TINY, "--draws", 2, "--noise-batches", 1, "--corrections", 2)


@pytest.fixture(scope="module")
def results(tmp_path_factory) -> tuple[Path, dict]:
    output = tmp_path_factory.mktemp("accuracy") / "accuracy.json"
    run("accuracy.py", *TINY, "--seeds", 1, "--output", output)
    # What is missing is added, as after an interruption: one more seed of two settings.
    here(accuracy, *TINY, "--seeds", 2, "--settings", "exact,L3", "--resume", "--output", output)
    return output, json.loads(output.read_text())


def test_every_run_is_recorded_once(results):
    runs = results[1]["runs"]
    assert [(run["setting"], run["seed"]) for run in runs] == [
        *((setting, 0) for setting in training.LAYERS),
        *(("exact", 1), ("L3", 1)),
    ]
    assert results[1]["options"]["steps"] == 12
    assert results[1]["machine"]["torch"] == torch.__version__
    keys = {"test_accuracy", "first_loss", "final_loss", "noise", "noise_of_batches", "predicted_noise", "bits"}
    keys |= {"activation_bytes", "seconds_per_step", "processor_seconds_per_step", "trace", "corrections"}
    for run in runs:
        assert keys <= run.keys()
        assert len(run["losses"]) == 12 and run["losses"][0] == run["first_loss"]  # a step each
        assert 0 <= run["test_accuracy"] <= 1 and run["seconds_per_step"] > 0 and run["trace"][-1]["step"] == 11


def test_settings_share_initialization_order_and_the_exact_forward(results):
    for seed in (0, 1):
        runs = [run for run in results[1]["runs"] if run["seed"] == seed]
        for key in ("initialization", "order", "first_loss"):
            assert len({run[key] for run in runs}) == 1, key
    exact = [run for run in results[1]["runs"] if run["setting"] == "exact"]
    for key in ("initialization", "order", "first_loss"):
        assert exact[0][key] != exact[1][key], key


def test_noise_bytes_and_bits_are_those_of_the_setting(results):
    runs = {run["setting"]: run for run in results[1]["runs"] if run["seed"] == 0}
    assert runs["exact"]["noise"] < 1e-6 and runs["exact"]["bits"] is None
    assert all(run["noise"] > 1e-4 for name, run in runs.items() if name != "exact")
    assert runs["L2"]["noise"] < runs["fixed-2"]["noise"]
    order = ["exact", "L1", "L2", "noise-0.05", "fixed-2"]
    held = [runs[name]["activation_bytes"] for name in order]
    assert held == sorted(held, reverse=True) and held[0] > 6 * held[2] and held[0] > 10 * held[-1]
    assert runs["L1"]["bits"] == runs["L2"]["bits"] == 4 and runs["fixed-2"]["bits"] == 2
    assert 1.9 < runs["L3"]["bits"] < 2.2
    assert runs["L2"]["predicted_noise"] is None and runs["noise-0.05"]["predicted_noise"] > 0
    assert len(runs["noise-0.05"]["corrections"]) == 2 and not runs["L3"]["corrections"]


def test_the_table_is_printed_from_the_results(results, capsys):
    here(accuracy, "--table", results[0])
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("| setting | seeds | accuracy % (sd) | to exact (se) |")
    assert len({line.count("|") for line in lines}) == 1
    assert [line.split()[1] for line in lines[2:]] == list(training.LAYERS)


def test_results_of_other_options_are_not_added_to(results):
    with pytest.raises(SystemExit, match=r"has results of other options \(steps\)"):
        here(accuracy, *TINY, "--steps", 9, "--resume", "--output", results[0])


def test_the_difference_is_paired_by_seed():
    def run(setting, seed, accuracy):
        rest = dict.fromkeys(
            ("final_loss", "noise", "predicted_noise", "bits", "seconds_per_step", "processor_seconds_per_step")
        )
        return {"setting": setting, "seed": seed, "test_accuracy": accuracy, "activation_bytes": 8, **rest}

    runs = [run("exact", 0, 0.80), run("exact", 1, 0.90), run("L2", 0, 0.79), run("L2", 1, 0.88), run("L2", 2, 0.5)]
    exact, compressed = accuracy.summary(runs)
    assert exact["accuracy"] == pytest.approx(85) and exact["accuracy_deviation"] == pytest.approx(50**0.5)
    assert exact["difference"] is None
    assert compressed["difference"] == pytest.approx(-1.5)  # the third has no partner
    assert compressed["difference_error"] == pytest.approx(0.5)


def test_bytes_held_count_a_storage_once_and_no_parameters():
    model = nn.Sequential(nn.Linear(8, 4, bias=False), nn.ReLU(inplace=True), nn.Flatten(), nn.Linear(4, 2))
    x = torch.randn(16, 8)
    held, output = training.bytes_held(model, lambda: model(x))
    assert held == 16 * 8 * 4 + 16 * 4 * 4  # the input; the ReLU's output, which the second layer keeps too
    output.sum().backward()


def test_settings_with_blocks_share_what_the_others_do(tmp_path, results):
    output = tmp_path / "blocks.json"
    here(accuracy, *TINY, "--seeds", 1, "--settings", "exact,blocks,blocks3,blocks2,stored", "--output", output)
    runs = {run["setting"]: run for run in json.loads(output.read_text())["runs"]}
    layers = {run["setting"]: run for run in results[1]["runs"] if run["seed"] == 0}
    for name, run in runs.items():
        assert all(run[key] == layers["exact"][key] for key in ("initialization", "order")), name
        assert run["first_loss"] == pytest.approx(layers["exact"]["first_loss"], rel=1e-5)
        assert run["bits"] is None and not run["graph"]
    held = {name: run["activation_bytes"] for name, run in runs.items()}
    assert held["exact"] > 6 * held["stored"] and held["stored"] > held["blocks"] > held["blocks3"]
    assert held["blocks"] < 0.8 * layers["L2"]["activation_bytes"]  # they ran: layers on their own hold more
    noise = {name: run["noise"] for name, run in runs.items()}
    assert noise["blocks2"] > noise["blocks3"] > noise["blocks"] > 1e-3 > noise["exact"]


def test_hard_data_are_the_same_for_all_settings_of_a_seed(tmp_path):
    hard = ("--images-per-class", 10, "--label-noise", 0.2, "--augmentation", "strong", "--network", "resnet18")
    output = tmp_path / "hard.json"
    here(accuracy, *TINY, *hard, "--seeds", 1, "--settings", "exact,blocks", "--output", output)
    record = json.loads(output.read_text())
    assert record["images"]["train"] == 100 and record["options"]["label_noise"] == 0.2
    exact, blocks = record["runs"]
    assert exact["order"] == blocks["order"] and exact["initialization"] == blocks["initialization"]
    assert exact["first_loss"] == pytest.approx(blocks["first_loss"], rel=1e-5)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [(("--label-noise", 1), "label-noise must be a share"), (("--graph",), "--graph needs a CUDA")],
)
def test_options_that_make_no_sense_are_refused(wrong, message):
    with pytest.raises(SystemExit, match=message):
        here(accuracy, *TINY, *wrong, "--output", "none.json")


def test_the_width_follows_the_network():
    def chosen(*arguments):
        parser = argparse.ArgumentParser()
        parser.add_argument("--smoke", action="store_true")
        options.add_options(parser)
        return options.chosen_options(parser.parse_args(arguments)).width

    assert chosen() == 16 and chosen("--network", "resnet18") == 64
    assert chosen("--network", "resnet18", "--width", "8") == 8 and chosen("--smoke") == options.SMOKE.width


def test_the_learning_rate_rises_and_falls():
    rates = [training.learning_rate(step, 100, 0.1) for step in range(100)]
    assert rates[0] == pytest.approx(0.02) and max(rates) == rates[4] == pytest.approx(0.1) and 0 < rates[-1] < 1e-4


# --- images -----------------------------------------------------------------------------------------------------------


def test_idx_files_are_read_gzipped_or_not(tmp_path):
    data = struct.pack(">HBB3I", 0, 8, 3, 2, 3, 4) + bytes(range(24))
    (tmp_path / "plain").write_bytes(data)
    (tmp_path / "packed.gz").write_bytes(gzip.compress(data))
    for name in ("plain", "packed.gz"):
        assert torch.equal(images.read_idx(tmp_path / name), torch.arange(24, dtype=torch.uint8).view(2, 3, 4))
    (tmp_path / "other").write_bytes(b"PNG")
    with pytest.raises(ValueError, match="other must be an idx file"):
        images.read_idx(tmp_path / "other")


def test_images_are_moved_then_flipped_as_told():
    data = images.synthetic(3, 0, CPU)
    indices, shifts = torch.tensor([2, 0, 1]), torch.tensor([[0, 0], [1, -2], [0, 0]])
    plain = data.batch(indices).images
    batch = data.batch(indices, shifts, torch.tensor([False, False, True]))
    assert torch.equal(batch.labels, data.labels[indices])
    assert torch.equal(batch.images[0], plain[0]) and torch.equal(batch.images[2], plain[2].flip(-1))
    assert torch.equal(batch.images[1, 0, 1:, :-2], plain[1, 0, :-1, 2:])
    black = (0 - images.MEAN) / images.DEVIATION
    torch.testing.assert_close(batch.images[1, 0, 0], torch.full((28,), black))


def test_an_epoch_has_every_image_once_and_each_epoch_an_order_of_its_own():
    data = images.synthetic(64, 0, CPU)
    orders = [torch.cat([batch.indices for batch in islice(data.batches(16, seed=1), i, i + 4)]) for i in (0, 4)]
    assert all(torch.equal(order.sort().values, torch.arange(64)) for order in orders)
    assert not torch.equal(*orders)
    first, again, other = (next(data.batches(16, seed)).images for seed in (1, 1, 2))
    assert torch.equal(first, again) and not torch.equal(first, other)


def test_strong_augmentation_erases_boxes_and_changes_nothing_else():
    data = images.synthetic(64, 0, CPU)
    plain, strong = (next(data.batches(64, 1, augmentation)) for augmentation in images.AUGMENTATIONS)
    assert torch.equal(plain.indices, strong.indices) and torch.equal(plain.labels, strong.labels)
    changed = (plain.images != strong.images)[:, 0]
    assert not strong.images[:, 0][changed].any()
    erased = changed.flatten(1).any(1)
    assert 0.25 < erased.float().mean() < 0.75
    for box in changed[erased]:
        rows, columns = box.any(1).nonzero(), box.any(0).nonzero()
        assert (rows[-1] - rows[0] + 1) * (columns[-1] - columns[0] + 1) <= 0.4 * images.SIDE**2


def test_boxes_are_inside_their_edges():
    assert not images.inside(torch.tensor([[3, 4, 3, 9]])).any()
    box = images.inside(torch.tensor([[1, 2, 3, 28]]))[0]
    assert box[1:3, 2:].all() and box.sum() == 2 * 26


def test_the_first_images_of_each_class_are_taken():
    data = images.synthetic(200, 0, CPU)
    few = data.per_class(3)
    assert few.labels.bincount().tolist() == [3] * images.CLASSES
    for label in range(images.CLASSES):
        assert torch.equal(few.images[few.labels == label], data.images[data.labels == label][:3])


def test_a_share_of_labels_is_wrong_by_the_seed():
    data = images.synthetic(200, 0, CPU)
    noisy, again, other = (data.with_wrong_labels(0.2, seed) for seed in (1, 1, 2))
    assert (noisy.labels != data.labels).sum() == 40 and noisy.labels.unique().numel() == images.CLASSES
    assert torch.equal(noisy.labels, again.labels) and not torch.equal(noisy.labels, other.labels)


def test_resnet18_has_four_stages():
    model = models.resnet18()
    assert sum(parameter.numel() for parameter in model.parameters()) == 11_172_810
    assert model[:-3](torch.randn(1, 1, 28, 28)).shape == (1, 512, 4, 4)


def test_resnet20_is_the_programs_and_channels_last():
    model = models.resnet20()
    assert sum(parameter.numel() for parameter in model.parameters()) == 272_186
    assert {"0.weight", "3.body.0.weight", "6.shortcut.1.running_mean", "14.bias"} <= model.state_dict().keys()
    assert model[:3](torch.randn(2, 1, 28, 28)).is_contiguous(memory_format=torch.channels_last)


# --- gradient_variance.py ---------------------------------------------------------------------------------------------


VARIANCE = ("--steps", 20, "--batch", 32, "--width", 8, "--images", 512, "--test-images", 200, *DATA)
VARIANCE = (*VARIANCE, "--draws", 16, "--noise-batches", 1)


@pytest.fixture(scope="module")
def study(tmp_path_factory) -> Path:
    """A folder with a checkpoint and results."""
    folder = tmp_path_factory.mktemp("variance")
    output = ("--checkpoint", folder / "model.pt", "--output", folder / "variance.json")
    run("gradient_variance.py", *VARIANCE, *output)
    return folder


@pytest.fixture(scope="module")
def variance(study) -> dict:
    return json.loads((study / "variance.json").read_text())


def test_a_checkpoint_is_not_trained_again(study, variance):
    options = ("--checkpoint", study / "model.pt", "--variants", "exact", "--output", study / "again.json")
    here(gradient_variance, *VARIANCE, *options)
    again = json.loads((study / "again.json").read_text())
    assert again["training"] == variance["training"]
    with pytest.raises(SystemExit, match="was trained with other options"):
        here(gradient_variance, *VARIANCE, *options, "--seed", 1)


def test_exact_batch_norms_leave_the_noise_of_the_other_layers(study, variance):
    options = ("--checkpoint", study / "model.pt", "--variants", "per-group", "--output", study / "exact_norm.json")
    here(gradient_variance, *VARIANCE, *options, "--exact-batch-norm")
    (row,) = json.loads((study / "exact_norm.json").read_text())["rows"]
    full = next(row for row in variance["rows"] if row["variant"] == "per group")
    assert 0 < row["noise"] < 0.9 * full["noise"] and row["activation_bytes"] > 2 * full["activation_bytes"]


def test_the_table_of_a_study_is_printed(study, variance, capsys):
    here(gradient_variance, "--table", study / "variance.json")
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 2 + len(variance["rows"]) and lines[0].startswith("| variant | bits | noise (se) |")


def test_groups_and_adaptive_bits_lower_the_noise(variance):
    rows = {row["variant"]: row for row in variance["rows"]}
    assert list(rows) == list(gradient_variance.VARIANTS)
    noise = {name: row["noise"] for name, row in rows.items()}
    error = {name: row["noise_error"] for name, row in rows.items()}
    assert noise["exact"] < 1e-6
    assert noise["per group"] < 0.5 * noise["per tensor"]
    for adaptive in ("+ per sample", "+ per layer"):
        assert noise[adaptive] < noise["per group"] + 3 * (error[adaptive] + error["per group"])
    assert noise["+ per sample"] > 0.1 * noise["per group"]  # 2 bits are not free
    assert 0 < variance["noise_of_sampling"] < 1


def test_a_variance_row_says_what_it_is(variance):
    keys = {"variant", "bits", "noise", "noise_error", "noise_of_batches", "predicted_noise", "mean_off"}
    keys |= {"activation_bytes", "average_bits"}
    for row in variance["rows"]:
        assert row.keys() == keys
        assert len(row["noise_of_batches"]) == 1
        if row["variant"] != "exact":
            assert row["average_bits"] == pytest.approx(2, abs=0.15)
            assert 0.2 < row["mean_off"] < 5  # no bias that dwarfs the noise of the mean of 16 draws
        assert (row["predicted_noise"] is not None) == row["variant"].startswith("+")


def test_gradients_of_an_image_are_used_by_its_index():
    config = actnn.Config("L3", use_gradient=True)
    model = training.make_model(0, 8, CPU)
    training.convert(model, config, 64)
    batch = images.synthetic(64, 0, CPU).batch(torch.tensor([5, 9, 33]))
    training.loss_of(model, batch, config, torch.float32).backward()
    table = model[0].scheme.scales
    assert table.shape == (64,) and table.nonzero().flatten().tolist() == [5, 9, 33]
