"""Element-wise functions and softmax, which keep the cheapest exact or unbiased thing that their derivative needs."""

from torch import Tensor, nn

from .base import QuantizedLayer, compressed_form_of, ops


class _ReLU(QuantizedLayer):
    has_bits = False

    def forward(self, input: Tensor) -> Tensor:
        if self._actnn_config.debug_remove_relu:
            return input
        if not self._takes(input):
            return super().forward(input)
        return self._shown(ops.relu_(input) if self.inplace else ops.relu(input))


class _Dropout(QuantizedLayer):
    has_bits = False

    def forward(self, input: Tensor) -> Tensor:
        if not self._takes(input) or not self.training or self.p == 0:
            return super().forward(input)
        return self._shown(ops.dropout_(input, self.p) if self.inplace else ops.dropout(input, self.p))


class _Smooth(QuantizedLayer):
    """An element-wise function that keeps a copy of its input or of its derivative."""

    function: str

    def _arguments(self) -> tuple:
        return ()

    def forward(self, input: Tensor) -> Tensor:
        if not self._quantizes(input):
            return super().forward(input)
        op = getattr(ops, self.function + ("_" if getattr(self, "inplace", False) else ""))
        return self._shown(op(input, *self._arguments(), **self._quantization(input)))


class _PiecewiseLinear(QuantizedLayer):
    """An element-wise function that keeps one bit."""

    has_bits = False
    function: str
    arguments: tuple[str, ...]

    def forward(self, input: Tensor) -> Tensor:
        if not self._takes(input):
            return super().forward(input)
        op = getattr(ops, self.function + ("_" if self.inplace else ""))
        return self._shown(op(input, *(getattr(self, name) for name in self.arguments)))


class _PReLU(QuantizedLayer):
    def forward(self, input: Tensor) -> Tensor:
        if not self._quantizes(input):
            return super().forward(input)
        return self._shown(ops.prelu(input, self.weight, **self._quantization(input)))


class _Softmax(QuantizedLayer):
    function: str

    def forward(self, input: Tensor) -> Tensor:
        if not self._quantizes(input) or self.dim is None:
            return super().forward(input)
        return self._shown(getattr(ops, self.function)(input, self.dim, **self._quantization(input)))


@compressed_form_of(nn.ReLU)
class QReLU(_ReLU, nn.ReLU):
    """`torch.nn.ReLU` that keeps one bit per element."""


@compressed_form_of(nn.ReLU6)
class QReLU6(_PiecewiseLinear, nn.ReLU6):
    """`torch.nn.ReLU6` that keeps one bit per element."""

    function = "hardtanh"
    arguments = ("min_val", "max_val")


@compressed_form_of(nn.Hardtanh)
class QHardtanh(_PiecewiseLinear, nn.Hardtanh):
    """`torch.nn.Hardtanh` that keeps one bit per element."""

    function = "hardtanh"
    arguments = ("min_val", "max_val")


@compressed_form_of(nn.LeakyReLU)
class QLeakyReLU(_PiecewiseLinear, nn.LeakyReLU):
    """`torch.nn.LeakyReLU` that keeps one bit per element."""

    function = "leaky_relu"
    arguments = ("negative_slope",)


@compressed_form_of(nn.PReLU)
class QPReLU(_PReLU, nn.PReLU):
    """`torch.nn.PReLU` that keeps one bit per element, and a copy of its input for the slope's gradient."""


@compressed_form_of(nn.GELU)
class QGELU(_Smooth, nn.GELU):
    """`torch.nn.GELU` that keeps its input in `bits`, or 5 if that is less, + 0.125 bits per element.

    A layer behind it that needs the output computes it of this copy, and keeps none.
    """

    function = "gelu"
    fewest_bits = 5

    def _arguments(self) -> tuple:
        return (self.approximate,)


@compressed_form_of(nn.SiLU)
class QSiLU(_Smooth, nn.SiLU):
    """`torch.nn.SiLU` that keeps its input as `QGELU` does."""

    function = "silu"
    fewest_bits = 5


@compressed_form_of(nn.Hardswish)
class QHardswish(_Smooth, nn.Hardswish):
    """`torch.nn.Hardswish` that keeps its derivative in `bits` + 0.125 bits per element."""

    function = "hardswish"


@compressed_form_of(nn.Sigmoid)
class QSigmoid(_Smooth, nn.Sigmoid):
    """`torch.nn.Sigmoid` that keeps its derivative in `bits` + 0.125 bits per element."""

    function = "sigmoid"


@compressed_form_of(nn.Tanh)
class QTanh(_Smooth, nn.Tanh):
    """`torch.nn.Tanh` that keeps its derivative in `bits` + 0.125 bits per element."""

    function = "tanh"


@compressed_form_of(nn.Softmax)
class QSoftmax(_Softmax, nn.Softmax):
    """`torch.nn.Softmax` that keeps two independent copies of its result."""

    function = "softmax"


@compressed_form_of(nn.LogSoftmax)
class QLogSoftmax(_Softmax, nn.LogSoftmax):
    """`torch.nn.LogSoftmax` that keeps a copy of the probabilities."""

    function = "log_softmax"


@compressed_form_of(nn.Dropout)
class QDropout(_Dropout, nn.Dropout):
    """`torch.nn.Dropout` that keeps 16 bytes; its mask is not the one torch draws from the same seed."""
