"""The installed package: the component `python` of a build, imported by a fresh interpreter from elsewhere."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
BUILD_DIR = Path(os.environ.get("ACTNN_BUILD_DIR", ROOT / "build")).resolve()


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    if not shutil.which("cmake"):
        pytest.skip("there is no cmake")
    script = BUILD_DIR / "cmake_install.cmake"
    if not script.exists() or "python" not in script.read_text():
        pytest.skip(f"{BUILD_DIR} is not a configured build with the component python")
    folder = tmp_path_factory.mktemp("installed")
    command = ["cmake", "--install", str(BUILD_DIR), "--component", "python", "--prefix", str(folder)]
    subprocess.run(command, check=True, capture_output=True)
    return folder


def run(folder, *arguments):
    environment = {name: value for name, value in os.environ.items() if name != "ACTNN_BUILD_DIR"}
    return subprocess.run(
        [sys.executable, *arguments], cwd="/", env=environment | {"PYTHONPATH": str(folder)}, check=True,
        capture_output=True, text=True,
    ).stdout  # fmt: skip


def test_it_has_the_package_and_nothing_else(installed):
    names = {str(path.relative_to(installed)) for path in installed.rglob("*") if path.is_file()}
    assert {"actnn/__init__.py", "actnn/py.typed", "actnn/lib/libactnn.so", "actnn/lib/torch_version.txt"} <= names
    assert {"actnn/cpp_extension/quantization.py"} <= names
    strange = [
        name for name in names if not re.fullmatch(r"actnn/(.*\.py|py\.typed|lib/(lib.*\.so[.0-9]*|.*\.txt))", name)
    ]
    assert not strange


def test_an_ordinary_installation_leaves_it_out(installed, tmp_path):
    text = (BUILD_DIR / "cmake_install.cmake").read_text()
    parts = re.findall(r"if\((.*?)\)\n(.*?)\nendif\(\)", text, re.DOTALL)
    ours = [condition for condition, body in parts if "actnn/lib" in body and "file(INSTALL" in body]
    assert ours and all(
        '"python"' in condition and "NOT CMAKE_INSTALL_COMPONENT" not in condition for condition in ours
    )


def test_its_layers_run(installed):
    program = """
import actnn, torch
x = torch.randn(4, 64, requires_grad=True)
with actnn.CompressFunctions(bits=2):
    torch.nn.functional.linear(x, torch.randn(3, 64, requires_grad=True)).sum().backward()
print(actnn._library.find(), x.grad.shape == x.shape)
"""
    assert run(installed, "-c", program).split() == [str(installed / "actnn/lib/libactnn.so"), "True"]


def test_its_info_says_where_it_is(installed):
    facts = json.loads(run(installed, "-m", "actnn.info", "--json"))
    assert facts["library"] == str(installed / "actnn/lib/libactnn.so")
    assert facts["running torch"].startswith(facts["built for torch"])


def test_the_library_needs_nothing_of_the_build_folder(installed):
    library = str(installed / "actnn/lib/libactnn.so")
    dynamic = subprocess.run(["readelf", "--dynamic", "--wide", library], check=True, capture_output=True, text=True)
    (path,) = re.findall(r"\((?:RUNPATH|RPATH)\).*\[(.*)\]", dynamic.stdout)
    assert "$ORIGIN" in path.split(":") and str(BUILD_DIR) not in path
    if "libhwy.so.1" in dynamic.stdout:
        assert (installed / "actnn/lib/libhwy.so.1").exists()
