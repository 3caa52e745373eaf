"""The floors hold (tools/check-floors), and the check notices when they do not."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


def check(root: Path) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, ROOT / "tools/check-floors", root], capture_output=True, text=True)


def plant(root: Path, path: str, text: str) -> None:
    file = root / path
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text)


def test_the_sources_keep_to_their_floors():
    result = check(ROOT)
    assert result.returncode == 0, result.stdout + result.stderr


@pytest.mark.parametrize(
    ("path", "include", "sentence"),
    [
        ("src/ops/relu.cpp", '"actnn/autograd/relu.h"', "floor 2 (ops) includes actnn/autograd/relu.h, of floor 3"),
        ("include/actnn/core/layout.h", '"actnn/cpu/mask.h"', "floor 0 (core) includes actnn/cpu/mask.h, of floor 1"),
        ("src/cpu/mask.cpp", '"src/cuda/mask.h"', "includes src/cuda/mask.h, of its neighbour on floor 1 (cuda)"),
        ("src/cpu/mask.cpp", '"../ops/checks.h"', "floor 1 (cpu) includes ../ops/checks.h, of floor 2"),
        ("src/cpu/mask.cpp", "<ATen/core/Tensor.h>", "floor 1 (cpu) knows no torch"),
        ("include/actnn/core/layout.h", "<c10/core/SymInt.h>", "floor 0 (core) knows no torch"),
        ("src/nn/linear.cpp", "<torch/extension.h>", "only python/ knows Python"),
        ("src/ops/relu.cpp", '"actnn/actnn.h"', "which is on no floor"),
        ("src/utilities/text.cpp", "<string>", "folder utilities has no floor"),
    ],
)
def test_a_planted_violation_is_found(tmp_path, path, include, sentence):
    plant(tmp_path, "src/ops/checks.h", "#pragma once\n")
    plant(tmp_path, path, f"#include {include}\n")
    result = check(tmp_path)
    assert result.returncode == 1
    assert result.stdout.startswith(f"{path}: ")
    assert sentence in result.stdout


@pytest.mark.parametrize(
    ("path", "include"),
    [
        ("src/autograd/relu.cpp", '"actnn/ops/mask.h"'),
        ("src/ops/mask.cpp", "<ATen/core/Tensor.h>"),
        ("src/ops/mask.cpp", '"checks.h"'),
        ("include/actnn/actnn.h", '"actnn/nn/layers.h"'),
    ],
)
def test_an_allowed_include_passes(tmp_path, path, include):
    plant(tmp_path, "src/ops/checks.h", "#pragma once\n")
    plant(tmp_path, path, f"#include {include}\n")
    result = check(tmp_path)
    assert (result.returncode, result.stdout) == (0, "")
