"""What a wheel says that depends on the torch it is built for: version 0.1.0+torch2.15, requires torch==2.15.*.

LibTorch's binary interface changes with every minor version, so that a wheel serves one. torch is looked for where
CMake looks (FindActnnTorch.cmake): in the folder ACTNN_TORCH_DIR of the environment, else beside the building Python.
"""

import os
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
NO_TORCH = (
    "actnn is built for the torch of its environment, and there is none: install torch 2.11 or newer first "
    "(pip install torch), or let ACTNN_TORCH_DIR be the folder of one."
)


def torch_dir() -> Path:
    """The folder of torch. -I: pip's build isolation hides the environment's packages by means of PYTHONPATH."""
    if folder := os.environ.get("ACTNN_TORCH_DIR"):
        return Path(folder)
    program = "import importlib.util, os; print(os.path.dirname(importlib.util.find_spec('torch').origin))"
    found = subprocess.run([sys.executable, "-I", "-c", program], capture_output=True, text=True)
    return Path(found.stdout.strip() or "/nowhere")


def torch_minor_version() -> str:
    """The version of that torch without its patch level, such as 2.15."""
    header = torch_dir() / "include/torch/headeronly/version.h"
    if not header.exists():
        raise RuntimeError(NO_TORCH)
    parts = dict(re.findall(r"#define TORCH_VERSION_(MAJOR|MINOR) (\d+)", header.read_text()))
    return f"{parts['MAJOR']}.{parts['MINOR']}"


def dynamic_metadata(settings: dict, project: dict) -> dict:
    """The provider that pyproject.toml names."""
    version = re.search(r"project\(actnn VERSION ([0-9.]+)", (ROOT / "CMakeLists.txt").read_text()).group(1)
    torch = torch_minor_version()
    return {"version": f"{version}+torch{torch}", "dependencies": [f"torch=={torch}.*"]}
