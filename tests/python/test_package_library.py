"""actnn._library: where the library is looked for, and what is refused before it is loaded."""

import os
import subprocess
import sys
from pathlib import Path

import actnn
import pytest
import torch
from actnn import _library

LIBRARY = _library.find()


@pytest.fixture
def copy_of_the_package(tmp_path):
    """The package's Python files in a folder of their own, without a library."""
    folder = tmp_path / "site"
    for path in Path(actnn.__file__).parent.rglob("*.py"):
        target = folder / "actnn" / path.relative_to(Path(actnn.__file__).parent)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(path.read_text())
    return folder


def run(folder, program, **environment):
    kept = {name: value for name, value in os.environ.items() if name != "ACTNN_BUILD_DIR"}
    return subprocess.run(
        [sys.executable, "-c", program],
        env=kept | {"PYTHONPATH": str(folder)} | environment,
        cwd=folder,
        capture_output=True,
        text=True,
    )


def test_a_second_load_is_harmless():
    assert _library.is_loaded() and _library.load() is None
    torch.ops.load_library(str(LIBRARY))
    assert _library.load() is None


def test_loading_by_hand_before_and_after_the_import_is_harmless(copy_of_the_package):
    by_hand = f"torch.ops.load_library({str(LIBRARY)!r})"
    program = f"import torch; {by_hand}; import actnn; {by_hand}; print(torch.ops.actnn.relu(-torch.ones(1)).item())"
    result = run(copy_of_the_package, program, ACTNN_BUILD_DIR=str(LIBRARY.parent.parent))
    assert result.stdout.strip() == "0.0", result.stderr


def test_another_copy_of_the_library_is_not_loaded_beside_the_first(copy_of_the_package):
    own = copy_of_the_package / "actnn" / "lib"
    own.mkdir()
    (own / _library.NAME).write_bytes(LIBRARY.read_bytes())
    program = f"import torch; torch.ops.load_library({str(LIBRARY)!r}); import actnn; print(actnn._library.load())"
    result = run(copy_of_the_package, program)
    assert result.stdout.strip() == "None", result.stderr


def test_without_a_library_the_error_says_where_it_was_looked_for(copy_of_the_package, tmp_path):
    result = run(copy_of_the_package, "import actnn", ACTNN_BUILD_DIR=str(tmp_path / "build"))
    assert result.returncode == 1
    error = result.stderr.splitlines()[-1]
    assert error.startswith("ImportError: actnn: libactnn.so was not found; tried ")
    for place in (copy_of_the_package / "actnn/lib", tmp_path / "build/lib", tmp_path.parent / "build/lib"):
        assert place.name in error and str(place.parent.name) in error
    assert "ACTNN_BUILD_DIR" in error


def test_the_packages_own_library_comes_first(monkeypatch):
    monkeypatch.setenv("ACTNN_BUILD_DIR", "/somewhere")
    package, build, source_tree = _library.candidates()
    assert package.parent == Path(actnn.__file__).parent / "lib"
    assert build == Path("/somewhere/lib/libactnn.so") and source_tree.parent.parent.name == "build"
    monkeypatch.delenv("ACTNN_BUILD_DIR")
    assert _library.candidates() == [package, source_tree]


@pytest.mark.parametrize("built_for", ["2.10.0", "1.11.0", "2.1.0", "3.11.0"])
def test_a_library_for_another_torch_is_refused_before_it_is_loaded(copy_of_the_package, built_for):
    own = copy_of_the_package / "actnn" / "lib"
    own.mkdir()
    (own / _library.NAME).write_bytes(b"loading this would fail otherwise")
    (own / _library.VERSION_FILE).write_text(built_for + "\n")
    result = run(copy_of_the_package, "import actnn")
    error = result.stderr.splitlines()[-1]
    assert (
        error.startswith("ImportError: ") and f"was built for torch {built_for}, but torch {torch.__version__}" in error
    )


def test_the_patch_version_of_torch_does_not_matter(tmp_path):
    library = tmp_path / _library.NAME
    _library.check_torch_version(library, "9.9.9")  # the build did not say
    (tmp_path / _library.VERSION_FILE).write_text("2.11.0\n")
    assert _library.torch_version_built_for(library) == "2.11.0"
    _library.check_torch_version(library, "2.11.1+cu130")
    with pytest.raises(ImportError):
        _library.check_torch_version(library, "2.12.0.dev1")


def test_what_does_not_load_is_an_import_error(copy_of_the_package):
    own = copy_of_the_package / "actnn" / "lib"
    own.mkdir()
    (own / _library.NAME).write_bytes(b"not a library")
    result = run(copy_of_the_package, "import actnn")
    assert "ImportError: actnn: " in result.stderr.splitlines()[-1] and "could not be loaded" in result.stderr


def test_compiled_graphs_on_disk_are_of_one_build(copy_of_the_package, tmp_path):
    program = """if True:
        import torch, actnn
        from pathlib import Path
        from actnn import _library
        from torch._dynamo.utils import counters
        def hits():
            torch._dynamo.reset()
            torch.compile(torch.ops.actnn.relu, backend="inductor")(torch.ones(8, requires_grad=True)).sum().backward()
            return counters["aot_autograd"]["autograd_cache_hit"]
        before = hits(), hits()
        torch.compiler.config.cache_key_tag = ""
        (Path(actnn.__file__).parent / "later.py").write_text("# another version")
        _library.tag_compile_caches()
        print(*before, hits())
    """
    build, cache = str(LIBRARY.parent.parent), str(tmp_path / "cache")
    result = run(copy_of_the_package, program, ACTNN_BUILD_DIR=build, TORCHINDUCTOR_CACHE_DIR=cache)
    assert result.stdout.split() == ["0", "1", "1"], result.stderr


def test_a_tag_of_the_users_stays(copy_of_the_package):
    program = "import actnn, torch; print(torch.compiler.config.cache_key_tag)"
    build = str(LIBRARY.parent.parent)
    result = run(copy_of_the_package, program, ACTNN_BUILD_DIR=build, TORCH_COMPILE_CACHE_KEY_TAG="mine-")
    assert result.stdout.startswith("mine-actnn-"), result.stderr
