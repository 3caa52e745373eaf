"""Checkpoints of `actnn train`: resumed runs, interrupts, damage."""

import json
import signal
import struct
import subprocess
import time
import zlib

import pytest
from actnn_program import (
    ACTNN,
    FILES,
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


@pytest.fixture(scope="module")
def whole_run(data, tmp_path_factory):
    output = tmp_path_factory.mktemp("whole")
    run_both_phases(data, output)
    return result_of(output, "whole")


def same_training(a, b):
    return all(
        a[p]["loss"] == b[p]["loss"] and a[p]["test_accuracy"] == b[p]["test_accuracy"] for p in ("exact", "compressed")
    )


@pytest.mark.parametrize("stop", [3, 4, 8, 9, 13, 16], ids=lambda stop: f"after-{stop}")
def test_resumed_run_is_the_same_bit_for_bit(stop, data, tmp_path, whole_run):
    # In the middle of the first phase, at the end of its first epoch, between the phases, in and after the second.
    save = tmp_path / "a.checkpoint"
    arguments = ["--batch-size", "64", "--epochs", "2", "--save", save, "--stop-after", stop]
    run = train(data, tmp_path / "first", "--name", "a", *arguments)
    assert run.returncode == 0, run.stderr
    assert files_in(tmp_path / "first") == ([] if stop < 16 else files_in(tmp_path / "first"))
    if stop < 16:
        assert f"stopped after {stop} of 16 steps" in run.stdout

    resume = ["train", "--resume", save, "--data", data, "--threads", "1"]
    run = actnn(*resume, "--output", tmp_path / "second", "--name", "b")
    assert run.returncode == 0, run.stderr
    resumed = result_of(tmp_path / "second", "b")
    assert same_training(resumed, whole_run)
    assert resumed["settings"] == whole_run["settings"]


def test_resnet_with_batch_norm_resumes_bit_for_bit(data, tmp_path):
    arguments = ["train", *SMALL_RESNET, "--data", data, "--output", tmp_path, "--epochs", "2", "--only", "compressed"]
    save = tmp_path / "a.checkpoint"
    resume = ["train", "--resume", save, "--data", data, "--output", tmp_path, "--threads", "1", "--name", "resumed"]
    for run in (
        actnn(*arguments, "--name", "whole"),
        actnn(*arguments, "--save", save, "--stop-after", "3"),
        actnn(*resume),
    ):
        assert run.returncode == 0, run.stderr
    whole, resumed = (result_of(tmp_path, name)["compressed"] for name in ("whole", "resumed"))
    assert resumed["loss"] == whole["loss"]
    assert resumed["test_accuracy"] == whole["test_accuracy"]


def test_gpt_resumes_bit_for_bit(tmp_path):
    text = write_text(tmp_path / "a.txt")
    arguments = ["train", *SMALL_GPT, "--data", text, "--output", tmp_path, "--epochs", "2", "--only", "compressed"]
    save = tmp_path / "a.checkpoint"
    resume = ["train", "--resume", save, "--data", text, "--output", tmp_path, "--threads", "1", "--name", "resumed"]
    for run in (
        actnn(*arguments, "--name", "whole"),
        actnn(*arguments, "--save", save, "--stop-after", "3"),
        actnn(*resume),
    ):
        assert run.returncode == 0, run.stderr
    whole, resumed = (result_of(tmp_path, name)["compressed"] for name in ("whole", "resumed"))
    assert resumed["loss"] == whole["loss"]
    assert resumed["test_loss_per_epoch"] == whole["test_loss_per_epoch"]

    other = write_text(tmp_path / "b.txt", characters=9000)
    run = actnn(*resume[:4], other, *resume[5:])
    assert_fails(run, 1, f"the sequences in {other} are not those", save)


@pytest.fixture(scope="module")
def checkpoint(data, tmp_path_factory):
    folder = tmp_path_factory.mktemp("checkpoint")
    run = train(data, folder, "--save", folder / "a.checkpoint", "--stop-after", "1")
    assert run.returncode == 0, run.stderr
    return folder / "a.checkpoint"


@pytest.mark.parametrize(
    "arguments",
    [
        ["--model", "resnet20"],
        ["--bits", "2"],
        ["--batch-size", "64"],
        ["--epochs", "2"],
        ["--lr", "0.05"],
        ["--only", "exact"],
    ],
    ids=lambda value: " ".join(value),
)
def test_contradicting_the_checkpoint_is_an_error(arguments, checkpoint, data, tmp_path):
    run = actnn("train", "--resume", checkpoint, "--data", data, "--output", tmp_path, *arguments)
    assert_fails(run, 2, " ".join(arguments), "contradicts the checkpoint", checkpoint)


def test_repeating_the_settings_of_the_checkpoint_is_fine(checkpoint, data, tmp_path):
    run = train(data, tmp_path, "--resume", checkpoint)
    assert run.returncode == 0, run.stderr


def test_checkpoint_of_other_images(checkpoint, tmp_path):
    other = write_synthetic_data(tmp_path / "other")
    (other / FILES["train-labels"]).write_bytes(idx(0x801, [256], bytes(256)))
    run = actnn("train", "--resume", checkpoint, "--data", other, "--output", tmp_path / "runs")
    assert_fails(run, 1, other, "images", checkpoint)
    assert not (tmp_path / "runs").exists()


def with_packed_format(whole, version):
    """A checkpoint's bytes with another version of the packed format, and their checksum."""
    (size,) = struct.unpack("<Q", whole[:8])
    header, data = json.loads(whole[8 : 8 + size]), whole[8 + size :]
    state = json.loads(header["__metadata__"]["actnn"]) | {"packed_format": version}
    text = json.dumps(state, separators=(",", ":"))
    header["__metadata__"] = {"actnn": text, "crc32": f"{zlib.crc32(text.encode() + data):08x}"}
    written = json.dumps(header, separators=(",", ":")).encode()
    written += b" " * (-len(written) % 8)
    return struct.pack("<Q", len(written)) + written + data


def test_checkpoint_of_another_packed_format(checkpoint, data, tmp_path):
    other = tmp_path / "b.checkpoint"
    arguments = [
        "--data",
        data,
        "--output",
        tmp_path / "runs",
        "--save",
        tmp_path / "c.checkpoint",
        "--stop-after",
        "1",
    ]
    other.write_bytes(with_packed_format(checkpoint.read_bytes(), 1))
    run = actnn("train", "--resume", other, *arguments)
    assert_fails(run, 1, other, "version 1 of the packed format, this program has version 2")
    other.write_bytes(with_packed_format(checkpoint.read_bytes(), 2))
    run = actnn("train", "--resume", other, *arguments)
    assert run.returncode == 0, run.stderr


def test_damaged_checkpoints(checkpoint, data, tmp_path):
    whole = checkpoint.read_bytes()
    damaged = tmp_path / "b.checkpoint"

    def resume():
        return actnn("train", "--resume", damaged, "--data", data, "--output", tmp_path)

    assert_fails(resume(), 1, damaged, "does not exist")
    for content, part in (
        (b"", "not a checkpoint"),
        (b"x" * 1000, "not a checkpoint"),
        (whole[:100], "truncated"),
        (whole[:-1], "truncated"),
        (whole + b"x", "damaged"),
        (whole[:-5] + bytes([whole[-5] ^ 1]) + whole[-4:], "damaged"),
    ):
        damaged.write_bytes(content)
        assert_fails(resume(), 1, damaged, part)
    assert files_in(tmp_path) == ["b.checkpoint"]


def test_checkpoint_is_a_safetensors_file(checkpoint):
    whole = checkpoint.read_bytes()
    (size,) = struct.unpack("<Q", whole[:8])
    header = json.loads(whole[8 : 8 + size])
    entry = header["model.1.weight"]
    assert entry["dtype"] == "F32"
    assert entry["shape"] == [512, 784]
    assert entry["data_offsets"][1] - entry["data_offsets"][0] == 512 * 784 * 4
    assert "momentum.1.weight" in header


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=lambda number: number.name)
def test_interrupt_saves_and_ends(number, data, tmp_path):
    save = tmp_path / "a.checkpoint"
    arguments = [*SMALL, "--epochs", "100000", "--data", data, "--output", tmp_path / "runs", "--save", save]
    process = subprocess.Popen([ACTNN, "train", *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 60
    while not save.exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(number)
    stdout, stderr = process.communicate(timeout=60)
    assert process.returncode == 130, stderr
    assert stderr == ""
    assert "stopped after" in stdout and f"--resume {save}" in stdout
    assert files_in(tmp_path) == ["a.checkpoint"]
    resumed = actnn(
        "train", "--resume", save, "--data", data, "--output", tmp_path / "runs", "--save", save, "--stop-after", "1"
    )
    assert resumed.returncode == 0, resumed.stderr
