"""Finds libactnn.so and loads it into torch, once.

The library is looked for beside the package (an installed wheel has it in `actnn/lib`), then in `$ACTNN_BUILD_DIR/lib`,
then in `build/lib` of the source tree that the package lies in. LibTorch's binary interface changes with every minor
version, and a library for another one would crash the process instead of failing; so the build writes
`torch_version.txt` beside the library, and that is compared before anything is loaded.
"""

import hashlib
import os
from pathlib import Path

import torch

PACKAGE = Path(__file__).resolve().parent
SOURCE_TREE = PACKAGE.parent.parent
NAME = "libactnn.so"
VERSION_FILE = "torch_version.txt"


def candidates() -> list[Path]:
    """The places of the library, in the order in which they are tried."""
    folders = [PACKAGE / "lib"]
    if build := os.environ.get("ACTNN_BUILD_DIR"):
        folders.append(Path(build).resolve() / "lib")
    folders.append(SOURCE_TREE / "build" / "lib")
    return [folder / NAME for folder in folders]


def is_installed() -> bool:
    """Whether the library is the package's own, and not that of a build folder."""
    return (PACKAGE / "lib" / NAME).exists()


def find() -> Path:
    """The library's path. Raises ImportError, with the places that were tried, if there is none."""
    tried = candidates()
    for path in tried:
        if path.exists():
            return path
    places = ", ".join(map(str, tried))
    raise ImportError(
        f"actnn: {NAME} was not found; tried {places}. Install the package (`pip install .`), build the library "
        "(`make build`), or set ACTNN_BUILD_DIR to the folder of a build."
    )


def torch_version_built_for(library: Path) -> str | None:
    """The version of torch that the library was built for, e.g. "2.11.0"; None if the build did not write it down."""
    path = library.parent / VERSION_FILE
    return path.read_text().strip() if path.exists() else None


def check_torch_version(library: Path, running: str) -> None:
    """Raises ImportError if the library was built for another major or minor version of torch than `running`."""
    built_for = torch_version_built_for(library)
    if built_for is not None and built_for.split(".")[:2] != running.split(".")[:2]:
        minor = ".".join(running.split(".")[:2])
        raise ImportError(
            f"actnn: {library} was built for torch {built_for}, but torch {running} is running. Install the wheel for "
            f"torch {minor} (its version ends in +torch{minor}; `pip install .` in this environment builds it), or "
            f"torch {built_for}."
        )


def is_loaded() -> bool:
    """Whether a libactnn.so, from wherever, has registered its operations in this process."""
    return torch._C._dispatch_has_kernel("actnn::quantize")


def load() -> Path | None:
    """Loads the library and returns its path; None if the operations were there already.

    A second call does nothing, and neither does one after `torch.ops.load_library` of any libactnn.so: two copies of
    the library in one process would register the same operations twice. Raises ImportError as `find` and
    `check_torch_version` do, or if the library does not load.
    """
    if is_loaded():
        return None
    library = find()
    check_torch_version(library, str(torch.__version__))
    try:
        torch.ops.load_library(str(library))
    except OSError as error:
        raise ImportError(f"actnn: {library} could not be loaded: {error}") from error
    return library


def fingerprint(files: list[Path]) -> str:
    """16 hexadecimal digits that change with the content of any of `files`."""
    digest = hashlib.sha256()
    for path in files:
        digest.update(path.read_bytes())
    return digest.hexdigest()[:16]


def tag_compile_caches() -> None:
    """Adds this build of actnn to the key of torch.compile's caches on disk.

    A compiled graph holds what our operations return for given inputs (the bytes of a copy, say) and what their
    autograd formulas trace to, but torch's key for it holds only their names: after an update, graphs of the version
    before would be found. Changes `torch.compiler.config.cache_key_tag`, whose former text is kept in front.
    """
    loaded = [Path(path) for path in torch.ops.loaded_libraries if Path(path).name == NAME]
    torch.compiler.config.cache_key_tag += f"actnn-{fingerprint([*loaded, *sorted(PACKAGE.rglob('*.py'))])}"
