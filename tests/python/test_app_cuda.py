"""`actnn train --device cuda` and `actnn info` on a machine with a GPU."""

import math
import os

import pytest
import torch
from actnn_program import SMALL_RESNET, actnn, assert_fails, find_or_make_data, needs_actnn, result_of, train

pytestmark = [needs_actnn, pytest.mark.cuda]


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return find_or_make_data(tmp_path_factory.mktemp("data"))


def train_on_gpu(data, output, name, *arguments, **options):
    run = train(data, output, "--device", "cuda", "--name", name, *arguments, **options)
    assert run.returncode == 0, run.stderr
    return run


def test_info_names_the_gpus():
    info = actnn("info").stdout
    for i in range(torch.cuda.device_count()):
        assert f"cuda:{i} ({torch.cuda.get_device_name(i)})" in info


# At least so many times fewer bytes. In bfloat16, autocast's copies of weights are most of what a perceptron saves.
@pytest.mark.parametrize(
    ("model", "dtype", "times"),
    [("mlp", "float32", 5), ("mlp", "bfloat16", 0), ("resnet20", "float32", 8), ("resnet20", "bfloat16", 4)],
)
def test_it_trains_and_holds_fewer_bytes(model, dtype, times, data, tmp_path):
    arguments = ["--train-images", "256", "--test-images", "64", "--batch-size", "64", "--epochs", "2"]
    where = ["--data", data, "--output", tmp_path, "--name", "a", "--device", "cuda"]
    run = actnn("train", *where, "--model", model, "--dtype", dtype, *arguments)
    assert run.returncode == 0, run.stderr
    assert "cuda" in run.stdout
    result = result_of(tmp_path, "a")
    assert result["settings"]["device"] == "cuda"
    exact, compressed = result["exact"], result["compressed"]
    for phase in (exact, compressed):
        assert len(phase["loss"]) == 8 and all(map(math.isfinite, phase["loss"]))
        assert phase["loss"][-1] < phase["loss"][0]
        assert 0 < phase["activation_bytes"] < phase["peak_bytes"]
        assert phase["step_ms"] > 0 and phase["images_per_second"] > 0
        assert [mark["name"] for mark in phase["timeline"]["marks"]] == ["forward", "backward", "step"]
        live = phase["timeline"]["live_bytes"]
        assert len(live) > 10 and max(live) <= phase["peak_bytes"]
    assert compressed["conversion"]["converted"] > 0
    assert compressed["activation_bytes"] * times < exact["activation_bytes"]
    assert compressed["peak_bytes"] < exact["peak_bytes"] * (1.05 if model == "mlp" else 0.8)


def test_the_forward_pass_is_exact(data, tmp_path):
    run = actnn("train", *SMALL_RESNET, "--data", data, "--output", tmp_path, "--device", "cuda", "--name", "a")
    assert run.returncode == 0, run.stderr
    exact, compressed = (result_of(tmp_path, "a")[phase] for phase in ("exact", "compressed"))
    assert compressed["loss"][0] == pytest.approx(exact["loss"][0], rel=1e-4)


def test_activation_bytes_are_those_of_the_cpu_in_blocks(data, tmp_path):
    # 0.8 MB: the libraries' workspaces, 32 MiB and more, must not be in the figure.
    arguments = ["--batch-size", "128", "--only", "exact"]
    train_on_gpu(data, tmp_path, "gpu", *arguments)
    run = train(data, tmp_path, "--name", "cpu", *arguments)
    assert run.returncode == 0, run.stderr
    on_gpu, on_cpu = (result_of(tmp_path, name)["exact"]["activation_bytes"] for name in ("gpu", "cpu"))
    assert on_cpu * 0.5 < on_gpu < on_cpu * 1.5 + 2**20


def test_the_peak_is_that_of_torchs_allocator(data, tmp_path):
    train_on_gpu(data, tmp_path, "a", "--only", "exact", "--batch-size", "128")
    parameters = 669_706 * 4
    # Weights, gradients, momentum, cuBLAS's workspace; the data set is not in it.
    assert 3 * parameters < result_of(tmp_path, "a")["exact"]["peak_bytes"] < 2**28


def losses(output, name):
    result = result_of(output, name)
    return [result[phase]["loss"] for phase in ("exact", "compressed")]


def test_the_seed_decides_dropout_and_rounding_on_the_gpu(data, tmp_path):
    for name, seed in (("a", "1"), ("b", "1"), ("c", "2")):
        train_on_gpu(data, tmp_path, name, "--batch-size", "64", "--seed", seed)
    assert losses(tmp_path, "a") == losses(tmp_path, "b")
    assert losses(tmp_path, "a") != losses(tmp_path, "c")


@pytest.mark.parametrize("stop", [3, 9])
def test_a_resumed_run_goes_on_with_the_gpus_random_state(stop, data, tmp_path):
    # In the first and in the second phase. The perceptron has dropout; its layers give the same bits at every run.
    arguments = ["--batch-size", "64", "--epochs", "2"]
    train_on_gpu(data, tmp_path, "whole", *arguments)
    save = tmp_path / "a.checkpoint"
    train_on_gpu(data, tmp_path, "part", *arguments, "--save", save, "--stop-after", stop)
    run = actnn("train", "--resume", save, "--data", data, "--output", tmp_path, "--name", "resumed", "--threads", "1")
    assert run.returncode == 0, run.stderr
    assert losses(tmp_path, "resumed") == losses(tmp_path, "whole")


def test_a_gpu_that_is_hidden_is_not_there(data, tmp_path):
    run = train(data, tmp_path, "--device", "cuda", env={**os.environ, "CUDA_VISIBLE_DEVICES": ""})
    assert_fails(run, 1, "--device cuda cannot be used", "no CUDA device")
