"""python -m actnn.info."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import torch
from actnn import info

ROOT = Path(__file__).resolve().parents[2]


def output_of(*arguments):
    environment = os.environ | {"PYTHONPATH": str(ROOT / "python")}
    command = [sys.executable, "-m", "actnn.info", *arguments]
    return subprocess.run(command, env=environment, check=True, capture_output=True, text=True).stdout


def test_json_has_the_facts():
    facts = json.loads(output_of("--json"))
    assert facts["actnn"] == re.search(r"actnn VERSION ([0-9.]+)", (ROOT / "CMakeLists.txt").read_text()).group(1)
    assert facts["running torch"] == torch.__version__
    assert facts["built for torch"] == "unknown" or torch.__version__.startswith(facts["built for torch"])
    assert facts["CUDA kernels"] == info.has_cuda_kernels() and facts["library"].endswith("libactnn.so")
    assert len(facts["devices"]) == 1 + torch.cuda.device_count() and facts["devices"][0].startswith("cpu (")
    assert facts["operations"] == info.operations()


def test_the_table_has_them_too():
    table = output_of()
    lines = table.splitlines()
    begin = lines[0].index("0.")
    assert all(line[begin - 1] == " " and line[begin] != " " for line in lines)
    for name, schema in info.operations().items():
        assert schema.startswith(f"actnn::{name}(") and schema in table
    assert re.search(r"^CUDA kernels +(yes|no)$", table, re.MULTILINE)
