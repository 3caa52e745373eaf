"""The program `actnn`: exit codes, messages, results, progress."""

import gzip
import os
import resource
import shutil
import subprocess
from pathlib import Path

import pytest
from actnn_program import (
    ACTNN,
    FILES,
    REAL_DATA,
    SMALL,
    SMALL_GPT,
    SMALL_RESNET,
    actnn,
    assert_fails,
    files_in,
    find_or_make_data,
    idx,
    needs_actnn,
    result_of,
    run_both_phases,
    train,
    write_synthetic_data,
    write_text,
)

pytestmark = needs_actnn


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return find_or_make_data(tmp_path_factory.mktemp("data"))


@pytest.fixture
def small_data(tmp_path):
    """A folder with few images, to be damaged."""
    return write_synthetic_data(tmp_path / "data", count=32)


# --- info and help ---


def test_info_says_what_is_there():
    run = actnn("info")
    assert run.returncode == 0, run.stderr
    for title in ("actnn", "torch", "CPU target", "CUDA kernels", "devices", "operators"):
        assert f"\n{title} " in "\n" + run.stdout
    assert "quantize" in run.stdout


def test_info_names_the_forced_cpu_target():
    run = actnn("info", env={**os.environ, "ACTNN_CPU_TARGET": "reference"})
    assert any(line.split()[:3] == ["CPU", "target", "reference"] for line in run.stdout.splitlines())


def test_unknown_cpu_target_is_an_error():
    assert_fails(actnn("info", env={**os.environ, "ACTNN_CPU_TARGET": "Z80"}), 1, "Z80", "reference")


def test_full_standard_output_is_an_error():
    with open("/dev/full", "w") as full:
        run = subprocess.run([ACTNN, "info"], stdout=full, stderr=subprocess.PIPE, text=True, check=False)
    assert_fails(run, 1, "standard output")


def test_help_names_every_option():
    run = actnn("train", "--help")
    assert run.returncode == 0
    names = (
        "model bits compress batch-size epochs train-images test-images lr seed device dtype threads data only output "
        "name save"
    )
    for name in [*names.split(), "resume", "stop-after"]:
        assert f"--{name} " in run.stdout
    assert max(map(len, run.stdout.splitlines())) <= 130


# --- wrong usage ---


@pytest.mark.parametrize(
    "arguments, parts",
    [
        ([], ["train", "info"]),
        (["dance"], ["dance"]),
        (["train", "--bitz", "2"], ["--bitz"]),
        (["train", "--bits"], ["--bits"]),
        (["train", "--bits", "0"], ["--bits", "from 1 to 8", '"0"']),
        (["train", "--bits", "9"], ["--bits", "from 1 to 8", '"9"']),
        (["train", "--bits", "two"], ["--bits", '"two"']),
        (["train", "--batch-size", "0"], ["--batch-size", "at least 1", '"0"']),
        (["train", "--epochs", "0"], ["--epochs", "at least 1"]),
        (["train", "--lr", "-0.1"], ["--lr", "positive", '"-0.1"']),
        (["train", "--lr", "nan"], ["--lr", "positive finite number", '"nan"']),
        (["train", "--lr", "inf"], ["--lr", "positive finite number", '"inf"']),
        (["train", "--model", "vgg"], ["--model", "resnet20, resnet18, mlp or gpt", '"vgg"']),
        (["train", "--model", "gpt", "--compress", "layers"], ["--compress layers", "gpt"]),
        (["train", "--model", "gpt", "--bits", "1"], ["--bits 1", "gpt"]),
        (["train", "--device", "tpu"], ["--device", "cpu or cuda", '"tpu"']),
        (["train", "--dtype", "float8"], ["--dtype", "float32 or bfloat16", '"float8"']),
        (["train", "--only", "both"], ["--only", "exact or compressed", '"both"']),
        (["train", "--threads", "0"], ["--threads", '"0"']),
        (["train", "--name", "../x"], ["--name", '"../x"']),
        (["train", "--stop-after", "3"], ["--stop-after", "--save"]),
    ],
    ids=lambda value: " ".join(value),
)
def test_wrong_usage(arguments, parts, tmp_path):
    assert_fails(actnn(*arguments, cwd=tmp_path), 2, *parts)
    assert files_in(tmp_path) == []


# --- bad data ---


def test_missing_data_folder(tmp_path):
    assert_fails(train(tmp_path / "nothing", tmp_path / "runs"), 1, tmp_path / "nothing", "does not exist")


def test_no_data_at_all_says_how_to_get_it(tmp_path):
    if REAL_DATA[1].is_dir():
        pytest.skip("the system has the data")
    run = actnn("train", cwd=tmp_path)
    assert_fails(run, 1, "data/fashion-mnist", "tools/fetch-fashion-mnist", "--data")


def damage_missing(path):
    path.unlink()


def damage_empty(path):
    path.write_bytes(b"")


def damage_magic(path):
    path.write_bytes(b"\0\0\x0d\x03" + path.read_bytes()[4:])


def damage_truncated(path):
    path.write_bytes(path.read_bytes()[:-1])


def damage_surplus(path):
    path.write_bytes(path.read_bytes() + b"x")


def damage_truncated_gzip(path):
    path.with_name(path.name + ".gz").write_bytes(gzip.compress(path.read_bytes())[:-20])
    path.unlink()


def damage_gzip(path):
    compressed = bytearray(gzip.compress(path.read_bytes()))
    compressed[-6] ^= 1
    path.with_name(path.name + ".gz").write_bytes(compressed)
    path.unlink()


@pytest.mark.parametrize("file", FILES)
@pytest.mark.parametrize(
    "damage, parts",
    [
        (damage_missing, ["has neither"]),
        (damage_empty, ["truncated"]),
        (damage_magic, ["expected the magic number", "found 0x00000d03"]),
        (damage_truncated, ["truncated", "announces", "found"]),
        (damage_surplus, ["damaged", "announces", "found more"]),
        (damage_truncated_gzip, ["truncated"]),
        (damage_gzip, ["damaged"]),
    ],
    ids=lambda value: value.__name__ if callable(value) else "",
)
def test_damaged_data(file, damage, parts, small_data, tmp_path):
    damage(small_data / FILES[file])
    run = actnn("train", "--data", small_data, "--output", tmp_path / "runs")
    assert_fails(run, 1, small_data, FILES[file], *parts)
    assert not (tmp_path / "runs").exists()


def test_counts_that_do_not_fit(small_data, tmp_path):
    (small_data / FILES["train-labels"]).write_bytes(idx(0x801, [31], bytes(31)))
    assert_fails(actnn("train", "--data", small_data, "--output", tmp_path), 1, "32 images", "31 labels")
    (small_data / FILES["train-labels"]).write_bytes(idx(0x801, [32], bytes(31) + b"\x0a"))
    assert_fails(actnn("train", "--data", small_data, "--output", tmp_path), 1, "labels from 0 to 9, found 10")
    (small_data / FILES["train-images"]).write_bytes(idx(0x803, [32, 8, 98], bytes(32 * 784)))
    assert_fails(actnn("train", "--data", small_data, "--output", tmp_path), 1, "28 x 28", "found 8 x 98")


def test_more_images_than_there_are(small_data, tmp_path):
    run = actnn("train", "--data", small_data, "--output", tmp_path, "--train-images", "33")
    assert_fails(run, 2, "--train-images 33", "32 images")


def test_no_text_at_all_says_how_to_get_it(tmp_path):
    if Path("/usr/share/doc/jargon-text").is_dir():
        pytest.skip("the system has the text")
    run = actnn("train", "--model", "gpt", cwd=tmp_path)
    assert_fails(run, 1, "data/jargon-text", "tools/fetch-jargon-text", "--data")


@pytest.mark.parametrize(
    "content, parts",
    [
        (b"", ["too short", "0 characters"]),
        (b"x" * 1289, ["too short", "1289 characters", "1290"]),
        (b"x" * 2000 + b"\xff", ["not a text in UTF-8", "0xff", "position 2000"]),
        (gzip.compress(b"x" * 2000)[:-5], ["truncated"]),
    ],
    ids=["empty", "short", "latin", "truncated"],
)
def test_bad_text(content, parts, tmp_path):
    text = tmp_path / "a.txt"
    text.write_bytes(content)
    run = actnn("train", "--model", "gpt", "--data", text, "--output", tmp_path / "runs")
    assert_fails(run, 1, text, *parts)
    assert files_in(tmp_path) == ["a.txt"]


def test_missing_text(tmp_path):
    run = actnn("train", "--model", "gpt", "--data", tmp_path / "b.txt", "--output", tmp_path / "runs")
    assert_fails(run, 1, tmp_path / "b.txt", "does not exist")
    run = actnn("train", "--model", "gpt", "--data", tmp_path, "--output", tmp_path / "runs")
    assert_fails(run, 1, tmp_path, "must hold one text", "found none")
    run = actnn(
        "train",
        "--model",
        "gpt",
        "--data",
        write_text(tmp_path / "a.txt"),
        "--output",
        tmp_path,
        "--train-images",
        "999",
    )
    assert_fails(run, 2, "--train-images 999", "56 sequences of 128 characters")


# --- devices and outputs ---


def test_cuda_that_is_not_there(data, tmp_path):
    if "cuda:0" in actnn("info").stdout:
        pytest.skip("there is a CUDA device")
    assert_fails(train(data, tmp_path, "--device", "cuda"), 1, "--device cuda", "CUDA")
    assert files_in(tmp_path) == []


def test_output_that_cannot_be_written(data, tmp_path):
    (tmp_path / "file").write_text("")
    assert_fails(train(data, tmp_path / "file" / "runs"), 1, tmp_path / "file", "Not a directory")
    assert_fails(train(data, tmp_path, "--save", tmp_path / "none" / "x"), 1, tmp_path / "none", "No such file")
    assert files_in(tmp_path) == ["file"]


def test_full_disk_while_saving_leaves_the_old_checkpoint(data, tmp_path):
    save = tmp_path / "a.checkpoint"
    save.write_text("old")

    def limit_file_size():
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))

    run = train(data, tmp_path / "runs", "--save", save, preexec_fn=limit_file_size)
    assert_fails(run, 1, f"cannot write {save}", "File too large")
    assert save.read_text() == "old"
    assert files_in(tmp_path) == ["a.checkpoint"]


def test_full_device_while_saving(data, tmp_path):
    run = train(data, tmp_path, "--save", "/dev/full")
    assert_fails(run, 1, "cannot write /dev/full", "No space left on device")
    assert files_in(tmp_path) == []


def test_divergence_is_an_error(data, tmp_path):
    run = train(data, tmp_path, "--lr", "1e30", "--epochs", "4")
    assert_fails(run, 1, "diverged", "--lr")
    assert files_in(tmp_path) == []


# --- results ---


@pytest.fixture(scope="module")
def whole_run(data, tmp_path_factory):
    output = tmp_path_factory.mktemp("whole")
    return run_both_phases(data, output), output


def test_result_holds_the_figures(whole_run):
    _, output = whole_run
    result = result_of(output, "whole")
    assert result["settings"]["model"] == "mlp"
    assert result["settings"]["train_images"] == 256
    assert result["threads"] == 1
    assert set(result["versions"]) == {"actnn", "torch", "torch_built_for"}
    assert result["cpu_target"]
    for phase in ("exact", "compressed"):
        record = result[phase]
        assert len(record["loss"]) == 8
        assert all(loss > 0 for loss in record["loss"])
        assert 0 <= record["test_accuracy"] <= 1
        assert record["test_accuracy_per_epoch"][-1] == record["test_accuracy"]
        assert 0 < record["activation_bytes"] < record["peak_bytes"]
        assert record["step_ms"] > 0
        assert record["images_per_second"] > 0
        timeline = record["timeline"]
        assert [mark["name"] for mark in timeline["marks"]] == ["forward", "backward", "step"]
        assert len(timeline["microseconds"]) == len(timeline["live_bytes"]) > 10
        assert timeline["microseconds"] == sorted(timeline["microseconds"])
        assert max(timeline["live_bytes"]) <= record["peak_bytes"]
    assert "conversion" not in result["exact"]
    assert result["compressed"]["conversion"]["converted"] > 0


def test_latest_points_to_the_result(whole_run):
    _, output = whole_run
    assert os.readlink(output / "latest") == "whole"
    assert files_in(output) == ["latest", "whole/result.json"] or files_in(output) == ["whole/result.json"]


def test_table_compares_the_phases(whole_run):
    run, output = whole_run
    for title in (
        "test accuracy",
        "activation memory held for backward",
        "peak memory",
        "step time",
        "images per second",
    ):
        assert title in run.stdout
    assert "\x1b" not in run.stdout, "no terminal, no control characters"
    assert str(output / "whole" / "result.json") in run.stdout


def test_compressed_mlp_holds_fewer_bytes(whole_run):
    exact, compressed = (result_of(whole_run[1], "whole")[phase] for phase in ("exact", "compressed"))
    assert compressed["activation_bytes"] * 10 < exact["activation_bytes"]
    assert compressed["peak_bytes"] <= exact["peak_bytes"], "the optimizer's step is the peak of both"


def test_compressed_resnet_holds_fewer_bytes(data, tmp_path):
    run = actnn("train", *SMALL_RESNET, "--data", data, "--output", tmp_path, "--name", "a")
    assert run.returncode == 0, run.stderr
    exact, compressed = (result_of(tmp_path, "a")[phase] for phase in ("exact", "compressed"))
    # Two bits and the groups' parameters, and one bit for each ReLU, against two copies of 32 bits.
    assert compressed["activation_bytes"] * 10 < exact["activation_bytes"]
    assert compressed["peak_bytes"] * 2 < exact["peak_bytes"]
    assert compressed["loss"][0] == pytest.approx(exact["loss"][0], rel=1e-6), "forward is exact"


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    return write_text(tmp_path_factory.mktemp("text") / "a.txt")


def test_gpt_compares_the_loss_of_the_next_character(text, tmp_path):
    run = actnn("train", *SMALL_GPT, "--data", text, "--output", tmp_path, "--name", "a", "--epochs", "2")
    assert run.returncode == 0, run.stderr
    for title in ("test loss (nats per character)", "activation memory", "characters per second"):
        assert title in run.stdout
    assert "accuracy" not in run.stdout and "images" not in run.stdout
    exact, compressed = (result_of(tmp_path, "a")[phase] for phase in ("exact", "compressed"))
    assert compressed["activation_bytes"] * 3 < exact["activation_bytes"]
    assert compressed["loss"][0] == pytest.approx(exact["loss"][0], rel=1e-5), "forward is exact"
    assert len(compressed["test_loss_per_epoch"]) == 2
    assert compressed["test_loss"] < compressed["loss"][0], "it learns"
    assert compressed["test_loss"] == pytest.approx(exact["test_loss"], abs=0.1)
    assert compressed["characters_per_second"] > 0
    blocks = compressed["conversion"]["blocks"]
    assert [block["path"] for block in blocks] == [f"transformer.layers.{layer}" for layer in (1, 2, 3, 4)]


def test_gpt_trains_in_bfloat16(text, tmp_path):
    run = actnn("train", *SMALL_GPT, "--data", text, "--output", tmp_path, "--name", "a", "--dtype", "bfloat16")
    assert run.returncode == 0, run.stderr
    exact, compressed = (result_of(tmp_path, "a")[phase] for phase in ("exact", "compressed"))
    assert compressed["loss"][0] == pytest.approx(exact["loss"][0], rel=1e-2)
    assert compressed["activation_bytes"] < exact["activation_bytes"]


def test_more_bits_hold_more_bytes(data, tmp_path):
    held = []
    for bits in (1, 8):
        run = train(data, tmp_path, "--only", "compressed", "--bits", bits, "--name", bits)
        assert run.returncode == 0, run.stderr
        held.append(result_of(tmp_path, str(bits))["compressed"]["activation_bytes"])
    assert held[0] < held[1]


def test_only_one_phase(data, tmp_path):
    run = train(data, tmp_path, "--only", "exact", "--name", "a")
    assert run.returncode == 0, run.stderr
    assert "exact" in result_of(tmp_path, "a")
    assert "compressed" not in result_of(tmp_path, "a")


def test_bfloat16_trains(data, tmp_path):
    run = train(data, tmp_path, "--dtype", "bfloat16", "--name", "a")
    assert run.returncode == 0, run.stderr
    result = result_of(tmp_path, "a")
    for phase in ("exact", "compressed"):
        assert result[phase]["loss"][0] == pytest.approx(2.3, abs=1)


def test_another_seed_gives_other_losses(data, tmp_path, whole_run):
    run = train(data, tmp_path, "--batch-size", "64", "--epochs", "2", "--seed", "2", "--only", "exact", "--name", "a")
    assert run.returncode == 0, run.stderr
    assert result_of(tmp_path, "a")["exact"]["loss"] != result_of(whole_run[1], "whole")["exact"]["loss"]


# --- progress ---


def test_progress_on_a_terminal_is_one_rewritten_line(data, tmp_path):
    if shutil.which("script") is None:
        pytest.skip("there is no `script` to make a terminal")
    arguments = " ".join(map(str, [ACTNN, "train", *SMALL, "--data", data, "--output", tmp_path]))
    command = ["script", "-qec", arguments, "/dev/null"]
    run = subprocess.run(command, capture_output=True, timeout=120, check=False)
    assert run.returncode == 0
    assert b"\r\x1b[K" in run.stdout, "the line is cleared before another one follows"
    assert b"epoch 1/1  step 2/2" in run.stdout
