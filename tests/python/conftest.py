"""Loads libactnn.so of the build in ACTNN_BUILD_DIR (default: build/) into torch."""

import os
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parents[2]
BUILD_DIR = Path(os.environ.get("ACTNN_BUILD_DIR", ROOT / "build")).resolve()
LIBRARY = BUILD_DIR / "lib" / "libactnn.so"


def pytest_configure(config):
    if not LIBRARY.exists():
        pytest.exit(f"{LIBRARY} does not exist; run `make build` or set ACTNN_BUILD_DIR", returncode=2)
    torch.ops.load_library(str(LIBRARY))


@pytest.fixture(autouse=True)
def fixed_seed():
    torch.manual_seed(0)
