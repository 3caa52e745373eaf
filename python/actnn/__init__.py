"""Activation-compressed training: layers that keep randomly rounded copies of 1 to 8 bits for backward.

Importing the package loads libactnn.so, whose operations are `torch.ops.actnn`.
"""

from . import _library

_library.load()

from . import cpp_extension, dataloader, functional, utils  # noqa: E402  # these use the operations
from .dataloader import DataLoader  # noqa: E402
from .functional import CompressFunctions  # noqa: E402
from .utils import compute_tensor_bytes, exp_recorder, get_memory_usage  # noqa: E402

__all__ = [
    "CompressFunctions",
    "DataLoader",
    "compute_tensor_bytes",
    "cpp_extension",
    "dataloader",
    "exp_recorder",
    "functional",
    "get_memory_usage",
    "utils",
]
