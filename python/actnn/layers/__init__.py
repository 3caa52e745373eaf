"""The layers: torch's, with the same arguments, parameters and results, that keep compressed copies for backward.

Each takes the arguments of its `torch.nn` parent, and `group` (index into `config.activation_compression_bits`) and
`config` besides. Inputs are float32, float16 or bfloat16, in any memory format; for another dtype, in torch.func's
transforms, and with forward-mode derivatives, a layer is its parent. The forward pass and the gradients of inputs (but
of norms and smooth activations) and biases are torch's, bit for bit; gradients that need the copy are unbiased: see
docs/concepts.md. Second derivatives are refused where the copy would make them wrong.

A layer whose configuration allocates bits (`adaptive_conv_scheme`, `adaptive_bn_scheme`) has a `scheme`; torch.compile
leaves its forward out of its graphs.
"""

from .activation import (
    QGELU,
    QDropout,
    QHardswish,
    QHardtanh,
    QLeakyReLU,
    QLogSoftmax,
    QPReLU,
    QReLU,
    QReLU6,
    QSigmoid,
    QSiLU,
    QSoftmax,
    QTanh,
)
from .base import CONVERSIONS, DTYPES, PlannedLayer, QuantizedLayer
from .embedding import (
    QEmbedding,
)
from .linear import (
    QConv1d,
    QConv2d,
    QConv3d,
    QConvTranspose1d,
    QConvTranspose2d,
    QConvTranspose3d,
    QLinear,
)
from .normalization import (
    QBatchNorm1d,
    QBatchNorm2d,
    QBatchNorm3d,
    QGroupNorm,
    QInstanceNorm1d,
    QInstanceNorm2d,
    QInstanceNorm3d,
    QLayerNorm,
    QRMSNorm,
    QSyncBatchNorm,
)
from .pooling import (
    QAdaptiveAvgPool1d,
    QAdaptiveAvgPool2d,
    QAdaptiveAvgPool3d,
    QAvgPool1d,
    QAvgPool2d,
    QAvgPool3d,
    QMaxPool1d,
    QMaxPool2d,
    QMaxPool3d,
)

__all__ = [
    "CONVERSIONS",
    "DTYPES",
    "QGELU",
    "PlannedLayer",
    "QAdaptiveAvgPool1d",
    "QAdaptiveAvgPool2d",
    "QAdaptiveAvgPool3d",
    "QAvgPool1d",
    "QAvgPool2d",
    "QAvgPool3d",
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
    "QPReLU",
    "QRMSNorm",
    "QReLU",
    "QReLU6",
    "QSiLU",
    "QSigmoid",
    "QSoftmax",
    "QSyncBatchNorm",
    "QTanh",
    "QuantizedLayer",
]
