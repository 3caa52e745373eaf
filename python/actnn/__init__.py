"""Activation-compressed training: models that keep randomly rounded copies of 1 to 8 bits for backward.

    import actnn

    print(actnn.convert(model))  # in place: 4 bits, blocks of operations
    model = actnn.QModule(model)  # or as the original ActNN: layers, whose bits `actnn.config` allocates (L3)

Importing the package loads libactnn.so, whose operations are `torch.ops.actnn`.
"""

import torch as _torch

from . import _library

_library.load()
_library.tag_compile_caches()

FORMAT_VERSION: int = _torch.ops.actnn.format_version()
"""The version of the packed format (docs/format.md)."""

# These use the operations.
from . import _fakes as _fakes  # noqa: E402
from . import conf, cpp_extension, dataloader, functional, layers, module, ops, qbnscheme, qscheme, utils  # noqa: E402
from .block_allocation import BlockAllocation  # noqa: E402
from .capture.options import BlockOptions  # noqa: E402
from .checkpoint import checkpoint  # noqa: E402
from .conf import Config, config, set_optimization_level  # noqa: E402
from .convert import Report, convert, restore  # noqa: E402
from .dataloader import DataLoader  # noqa: E402
from .fitting import BlockFit, FittedValue, fit_blocks  # noqa: E402
from .functional import CompressFunctions  # noqa: E402
from .kept_bytes import KeptBytes, measure_kept_bytes  # noqa: E402
from .layers import (  # noqa: E402
    QGELU,
    QAdaptiveAvgPool1d,
    QAdaptiveAvgPool2d,
    QAdaptiveAvgPool3d,
    QAvgPool1d,
    QAvgPool2d,
    QAvgPool3d,
    QBatchNorm1d,
    QBatchNorm2d,
    QBatchNorm3d,
    QConv1d,
    QConv2d,
    QConv3d,
    QConvTranspose1d,
    QConvTranspose2d,
    QConvTranspose3d,
    QDropout,
    QEmbedding,
    QGroupNorm,
    QHardswish,
    QHardtanh,
    QInstanceNorm1d,
    QInstanceNorm2d,
    QInstanceNorm3d,
    QLayerNorm,
    QLeakyReLU,
    QLinear,
    QLogSoftmax,
    QMaxPool1d,
    QMaxPool2d,
    QMaxPool3d,
    QPReLU,
    QReLU,
    QReLU6,
    QRMSNorm,
    QSigmoid,
    QSiLU,
    QSoftmax,
    QSyncBatchNorm,
    QTanh,
)
from .module import QModule  # noqa: E402
from .noise import measure_gradient_noise, predicted_gradient_noise  # noqa: E402
from .qbnscheme import QBNScheme  # noqa: E402
from .qscheme import QScheme  # noqa: E402
from .utils import compute_tensor_bytes, exp_recorder, get_memory_usage  # noqa: E402

__all__ = [
    "FORMAT_VERSION",
    "QGELU",
    "BlockAllocation",
    "BlockFit",
    "BlockOptions",
    "CompressFunctions",
    "Config",
    "DataLoader",
    "FittedValue",
    "KeptBytes",
    "QAdaptiveAvgPool1d",
    "QAdaptiveAvgPool2d",
    "QAdaptiveAvgPool3d",
    "QAvgPool1d",
    "QAvgPool2d",
    "QAvgPool3d",
    "QBNScheme",
    "QBatchNorm1d",
    "QBatchNorm2d",
    "QBatchNorm3d",
    "QConv1d",
    "QConv2d",
    "QConv3d",
    "QConvTranspose1d",
    "QConvTranspose2d",
    "QConvTranspose3d",
    "QDropout",
    "QEmbedding",
    "QGroupNorm",
    "QHardswish",
    "QHardtanh",
    "QInstanceNorm1d",
    "QInstanceNorm2d",
    "QInstanceNorm3d",
    "QLayerNorm",
    "QLeakyReLU",
    "QLinear",
    "QLogSoftmax",
    "QMaxPool1d",
    "QMaxPool2d",
    "QMaxPool3d",
    "QModule",
    "QPReLU",
    "QRMSNorm",
    "QReLU",
    "QReLU6",
    "QScheme",
    "QSiLU",
    "QSigmoid",
    "QSoftmax",
    "QSyncBatchNorm",
    "QTanh",
    "Report",
    "checkpoint",
    "compute_tensor_bytes",
    "conf",
    "config",
    "convert",
    "cpp_extension",
    "dataloader",
    "exp_recorder",
    "fit_blocks",
    "functional",
    "get_memory_usage",
    "layers",
    "measure_gradient_noise",
    "measure_kept_bytes",
    "module",
    "ops",
    "predicted_gradient_noise",
    "qbnscheme",
    "qscheme",
    "restore",
    "set_optimization_level",
    "utils",
]
