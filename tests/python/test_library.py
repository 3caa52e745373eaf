"""libactnn.so links torch's C++ libraries and nothing of Python, so that C++ programs and every Python can load it."""

import os
import re
import subprocess
import sys
from pathlib import Path

BUILD_DIR = Path(os.environ.get("ACTNN_BUILD_DIR", Path(__file__).resolve().parents[2] / "build"))
LIBRARY = str(BUILD_DIR / "lib/libactnn.so")


def output_of(*command: str) -> str:
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def test_it_needs_torchs_cpp_libraries_only():
    needed = set(re.findall(r"\(NEEDED\).*\[(.*)\]", output_of("readelf", "--dynamic", "--wide", LIBRARY)))
    assert {"libtorch_cpu.so", "libc10.so"} <= needed
    torch_libraries = {name for name in needed if name.startswith(("libtorch", "libc10"))}
    assert torch_libraries <= {"libtorch_cpu.so", "libc10.so", "libtorch_cuda.so", "libc10_cuda.so"}


def test_no_library_that_comes_with_it_is_pythons():
    loaded = output_of("ldd", LIBRARY)
    assert re.search(r"libtorch_cpu\.so => /", loaded), loaded
    assert not re.search(r"libpython|libtorch_python", loaded), loaded


def test_it_has_no_python_symbols():
    undefined = output_of("nm", "--dynamic", "--undefined-only", LIBRARY)
    assert "c10" in undefined
    assert not re.search(r"\b_?Py[A-Z_]\w*", undefined), undefined


PARALLEL = """
import os, torch
torch.ops.load_library({library!r})
torch.set_num_threads(4)
x = torch.empty(1 << 20)
for i in range(0, x.numel(), 1024):
    x[i : i + 1024] = 1  # too small to be divided, so that no thread is started yet
state = torch.tensor([1, 0])
before = len(os.listdir("/proc/self/task"))
torch.ops.actnn.quantize(x, 2, 256, "dithered", state)
print(len(os.listdir("/proc/self/task")) - before)
"""


def test_its_kernels_run_in_torchs_threads():
    # at::parallel_for is a header template: compiled without OpenMP, it runs serially and nothing else shows it.
    program = PARALLEL.format(library=LIBRARY)
    assert int(output_of(sys.executable, "-c", program)) == 3
