"""Wrong arguments get a sentence, and never crash the process."""

import os
import subprocess
import sys
from pathlib import Path

import actnn
import fuzz_ops
import pytest
import torch
from configurations import one_thread  # noqa: F401

ops = torch.ops.actnn
HERE = Path(__file__).parent
pytestmark = pytest.mark.usefixtures("one_thread")


def operations():
    names = {s.name.removeprefix("actnn::") for s in torch._C._jit_get_all_schemas() if s.name.startswith("actnn::")}
    return sorted(name for name in names if not torch.classes.__dict__.get(name))


def run_fuzz(log, examples, *names):
    environment = os.environ | {"PYTHONPATH": f"{HERE}:{Path(actnn.__file__).parent.parent}"}
    command = [sys.executable, str(HERE / "fuzz_ops.py"), str(log), str(examples), *names]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)


def test_no_call_crashes_or_fails_without_a_sentence(tmp_path):
    log = tmp_path / "call"
    result = run_fuzz(log, 25)
    assert result.returncode == 0, f"{log.read_text()}{result.stderr[-2000:]}"
    assert result.stdout == ""


def test_a_crash_would_be_seen(tmp_path):
    # The same program, with an operation that is not there.
    result = run_fuzz(tmp_path / "call", 5, "no_such_operation")
    assert result.returncode != 0 and "no_such_operation" in result.stderr


def test_every_operation_is_called():
    assert sorted(fuzz_ops.SAMPLES | fuzz_ops.MORE) == operations()


# What a bad argument of each kind is called in the error.


def arguments_of(name):
    return [argument.name for argument in getattr(ops, name).default._schema.arguments]


def quantizing():
    return [name for name in operations() if {"bits", "group_size", "rounding"} <= set(arguments_of(name))
            and name not in ("quantize_per_sample", "dequantize", "dequantize_per_sample")]  # fmt: skip


def valid(name):
    """Arguments by name."""
    values = (fuzz_ops.SAMPLES | fuzz_ops.MORE)[name][0]()
    return dict(zip(arguments_of(name), values, strict=False))


@pytest.mark.parametrize(("argument", "value", "message"), [
    ("bits", 0, "bits must be in 1..8, got 0"),
    ("bits", 9, "bits must be in 1..8, got 9"),
    ("bits", -(2**63), "bits must be in 1..8, got -9223372036854775808"),
    ("group_size", 31, "group_size must be a positive multiple of 32, got 31"),
    ("group_size", -32, "group_size must be a positive multiple of 32, got -32"),
    ("rng_state", torch.zeros(3, dtype=torch.int64), "rng_state must be"),
    ("rng_state", torch.zeros(2), "rng_state must be"),
    ("rounding", "up", 'rounding must be "dithered", "stochastic" or "nearest", got "up"'),
    ("rounding", "", 'rounding must be "dithered", "stochastic" or "nearest", got ""'),
])  # fmt: skip
@pytest.mark.parametrize("name", quantizing())
def test_arguments_of_the_quantization_are_named(name, argument, value, message):
    arguments = valid(name) | {argument: value}
    with pytest.raises((ValueError, TypeError), match=f"actnn::{name.rstrip('_')}: {message}"):
        getattr(ops, name)(**arguments)


@pytest.mark.parametrize("dtype", [torch.float64, torch.int32, torch.bool, torch.complex64])
@pytest.mark.parametrize("name", [n for n in operations() if arguments_of(n)[:1] == ["input"]])
def test_a_wrong_dtype_is_named(name, dtype):
    arguments = valid(name)
    arguments["input"] = arguments["input"].detach().to(dtype)
    with pytest.raises((ValueError, TypeError), match=r"actnn::\w+: input must be float32, float16 or bfloat16, got"):
        getattr(ops, name)(**arguments)


@pytest.mark.parametrize("name", [n for n in operations() if arguments_of(n)])
def test_no_operation_takes_nothing(name):
    with pytest.raises(RuntimeError, match="missing value for argument"):
        getattr(ops, name)()
