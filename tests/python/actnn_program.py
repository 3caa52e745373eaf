"""Runs the program `actnn` in tests."""

import json
import os
import random
import struct
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
BUILD = ROOT / os.environ.get("ACTNN_BUILD_DIR", "build")
ACTNN = BUILD / "bin" / "actnn"
REAL_DATA = [ROOT / "data/fashion-mnist", Path("/usr/share/datasets/fashion-mnist")]
SMALL = ["--model", "mlp", "--train-images", "256", "--test-images", "128", "--threads", "1"]
SMALL_RESNET = [
    "--model",
    "resnet20",
    "--train-images",
    "64",
    "--test-images",
    "64",
    "--batch-size",
    "32",
    "--threads",
    "1",
]
SMALL_GPT = ["--model", "gpt", "--train-images", "32", "--test-images", "4", "--batch-size", "8", "--threads", "1"]
FILES = {
    "train-images": "train-images-idx3-ubyte",
    "train-labels": "train-labels-idx1-ubyte",
    "test-images": "t10k-images-idx3-ubyte",
    "test-labels": "t10k-labels-idx1-ubyte",
}

needs_actnn = pytest.mark.skipif(not ACTNN.exists(), reason=f"{ACTNN} is not built")


def idx(magic, shape, data):
    return struct.pack(f">I{len(shape)}I", magic, *shape) + data


def write_synthetic_data(folder, count=256):
    """Classes that differ by the brightness of their images, so that there is something to learn."""
    noise = random.Random(1)
    folder.mkdir()
    for split, seed in (("train", 1), ("t10k", 2)):
        labels = bytes(random.Random(seed).randrange(10) for _ in range(count))
        pixels = b"".join(bytes(25 * label + noise.randrange(25) for _ in range(784)) for label in labels)
        (folder / f"{split}-images-idx3-ubyte").write_bytes(idx(0x803, [count, 28, 28], pixels))
        (folder / f"{split}-labels-idx1-ubyte").write_bytes(idx(0x801, [count], labels))
    return folder


def write_text(path, characters=8000):
    """Words that come again, so that there is something to learn."""
    words = random.Random(1)
    text = ""
    while len(text) < characters:
        text += words.choice(["activation", "gradient", "naïve", "layer", "noise"]) + words.choice([" ", ", ", ".\n"])
    path.write_text(text[:characters], encoding="utf-8")
    return path


def find_or_make_data(folder):
    """Fashion-MNIST where it is there, else synthetic images."""
    for real in REAL_DATA:
        if real.is_dir():
            return real
    return write_synthetic_data(folder / "synthetic")


def actnn(*arguments, cwd=None, **options):
    command = [str(ACTNN), *map(str, arguments)]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=120, check=False, **options)


def train(data, output, *arguments, **options):
    return actnn("train", *SMALL, "--data", data, "--output", output, *arguments, **options)


def result_of(output, name):
    return json.loads((output / name / "result.json").read_text())


def assert_fails(run, code, *parts):
    """One sentence on stderr that holds `parts`, and the exit code."""
    assert run.returncode == code, run.stderr
    assert run.stderr.count("\n") == 1, run.stderr
    assert run.stderr.startswith("actnn: ")
    for part in parts:
        assert str(part) in run.stderr


def files_in(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if not path.is_dir())


def run_both_phases(data, output):
    """One uninterrupted run of both phases, 2 epochs of 4 steps each: the result goes to `output`/whole."""
    run = train(data, output, "--name", "whole", "--batch-size", "64", "--epochs", "2")
    assert run.returncode == 0, run.stderr
    assert run.stderr == ""
    return run
