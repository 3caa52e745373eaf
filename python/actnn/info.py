"""What this installation of actnn is: `python -m actnn.info [--json]`."""

import argparse
import importlib.metadata
import json
import re
from collections.abc import Sequence
from typing import Any

import torch

from . import _library


def version() -> str:
    """The package's version: that of the installed package, or in a source tree that of its CMake project."""
    if not _library.is_installed():
        project = _library.SOURCE_TREE / "CMakeLists.txt"
        found = re.search(r"project\(actnn VERSION ([0-9.]+)", project.read_text()) if project.exists() else None
        if found:
            return found.group(1)
    try:
        return importlib.metadata.version("actnn")
    except importlib.metadata.PackageNotFoundError:
        return "unknown"


def has_cuda_kernels() -> bool:
    return torch._C._dispatch_has_kernel_for_dispatch_key("actnn::quantize", "CUDA")


def operations() -> dict[str, str]:
    """The schemas of torch.ops.actnn by their names, sorted."""
    schemas = (schema for schema in torch._C._jit_get_all_schemas() if schema.name.startswith("actnn::"))
    return dict(sorted((schema.name.removeprefix("actnn::"), str(schema)) for schema in schemas))


def devices() -> list[str]:
    names = [f"cpu ({torch.backends.cpu.get_cpu_capability()}, {torch.get_num_threads()} threads)"]
    for i in range(torch.cuda.device_count()):
        gpu = torch.cuda.get_device_properties(i)
        names.append(f"cuda:{i} ({gpu.name}, {gpu.major}.{gpu.minor}, {gpu.total_memory / 2**30:.0f} GiB)")
    return names


def info() -> dict[str, Any]:
    library = _library.find()
    return {
        "actnn": version(),
        "library": str(library),
        "built for torch": _library.torch_version_built_for(library) or "unknown",
        "running torch": str(torch.__version__),
        "CUDA kernels": has_cuda_kernels(),
        "devices": devices(),
        "operations": operations(),
    }


def _lines(value: Any) -> list[str]:
    if isinstance(value, dict):
        return list(value.values())
    if isinstance(value, bool):
        return ["yes" if value else "no"]
    return value if isinstance(value, list) else [str(value)]


def table(facts: dict[str, Any]) -> str:
    width = max(map(len, facts))
    rows = [(name if i == 0 else "", text) for name, value in facts.items() for i, text in enumerate(_lines(value))]
    return "\n".join(f"{name:<{width}}  {text}" for name, text in rows)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m actnn.info", description="What this installation of actnn is.")
    parser.add_argument("--json", action="store_true", help="as one JSON object")
    facts = info()
    print(json.dumps(facts, indent=2) if parser.parse_args(arguments).json else table(facts))


if __name__ == "__main__":
    main()
