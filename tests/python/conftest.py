"""Loads libactnn.so of the build in ACTNN_BUILD_DIR (default: build/) into torch; the devices that tests run on."""

import os
from pathlib import Path

# pytest-xdist's processes share the cores, instead of each starting a thread on every one of them.
if workers := int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", 0)):
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // workers)))

import pytest
import torch
from devices import DEVICES, why_no_cuda

# What a version of torch can break: the dispatcher, autograd, compilation, conversion, distribution, loading, whole
# trainings. The other tests are of our own arithmetic.
TORCH_INTERFACES = (
    "test_activations", "test_attention_copies", "test_batch_norm_act", "test_block", "test_block_compile",
    "test_block_parts", "test_block_saves",
    "test_blocks_ddp", "test_blocks_groups", "test_blocks_sync", "test_capture_compiled", "test_capture_copies",
    "test_capture_forwards", "test_capture_limits", "test_checkpoint", "test_compile", "test_convert",
    "test_converted_layers", "test_docs", "test_forward_mode", "test_functional", "test_kept_bytes",
    "test_layers", "test_library", "test_linear_cross_entropy", "test_lowering_functions", "test_lowering_losses",
    "test_lowering_programs", "test_lowering_slices",
    "test_lowering_soundness", "test_lowering_sync", "test_lowering_transformers", "test_opcheck",
    "test_original_scripts", "test_package_install", "test_package_library", "test_policy_orders",
    "test_policy_state", "test_retention", "test_sync_batch_norm", "test_wheel",
)  # fmt: skip


def pytest_configure(config):
    config.addinivalue_line("markers", "cuda: needs a CUDA device and a libactnn.so with CUDA kernels")
    config.addinivalue_line("markers", "torch_interfaces: of what a version of torch can break")
    config.addinivalue_line("markers", "slow: takes minutes")
    if gone := [name for name in TORCH_INTERFACES if not (Path(__file__).parent / f"{name}.py").exists()]:
        raise pytest.UsageError(f"TORCH_INTERFACES names tests that are not there: {', '.join(gone)}")
    try:
        import actnn  # noqa: F401  # pyproject.toml puts python/ on the path; this loads the library
    except ImportError as error:
        pytest.exit(str(error), returncode=2)
    # So that torch's layers and actnn's, which call the same cuDNN functions, give the same bits.
    torch.backends.cudnn.deterministic = True
    torch.backends.cudnn.allow_tf32 = False


def pytest_collection_modifyitems(items):
    for item in items:
        if item.path.stem in TORCH_INTERFACES:
            item.add_marker("torch_interfaces")
    # First, so that the processes of pytest-xdist end together.
    items.sort(key=lambda item: item.get_closest_marker("slow") is None)


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item):
    if item.get_closest_marker("cuda") and (reason := why_no_cuda()):
        pytest.skip(reason)


@pytest.fixture(autouse=True)
def fixed_seed():
    torch.manual_seed(0)


@pytest.fixture(params=DEVICES)
def device(request):
    """Runs the test on each device: tensors are made there unless they say otherwise."""
    with torch.device(request.param):
        yield request.param
