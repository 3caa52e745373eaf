"""Loads libactnn.so of the build in ACTNN_BUILD_DIR (default: build/) into torch; the devices that tests run on."""

import pytest
import torch
from devices import DEVICES, why_no_cuda


def pytest_configure(config):
    config.addinivalue_line("markers", "library: runs blocks in the library, not in a reference")
    config.addinivalue_line("markers", "cuda: needs a CUDA device and a libactnn.so with CUDA kernels")
    try:
        import actnn  # noqa: F401  # pyproject.toml puts python/ on the path; this loads the library
    except ImportError as error:
        pytest.exit(str(error), returncode=2)
    # So that torch's layers and actnn's, which call the same cuDNN functions, give the same bits.
    torch.backends.cudnn.deterministic = True
    torch.backends.cudnn.allow_tf32 = False


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
