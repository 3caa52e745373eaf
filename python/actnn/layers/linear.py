"""Convolutions and linear layers, which keep their input for the gradient of the weight."""

import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from ..qscheme import QScheme
from .base import PlannedLayer, compressed_form_of, ops


class _Convolution(PlannedLayer):
    transposes = False

    def _make_scheme(self) -> QScheme | None:
        if not self._actnn_config.adaptive_conv_scheme:
            return None
        locations = 1
        for size in self.kernel_size:
            locations *= size
        return QScheme(
            self, self._actnn_group, locations, self.groups, config=self._actnn_config, name=self._actnn_name
        )

    def _convolve(self, input: Tensor, weight: Tensor, bias: Tensor | None, padding, output_padding) -> Tensor:
        dimensions = len(self.kernel_size)
        if input.dim() == dimensions + 1:
            return self._convolve(input.unsqueeze(0), weight, bias, padding, output_padding).squeeze(0)
        flags = self._actnn_config
        return self._call(
            ops.convolution,
            input,
            weight.requires_grad,
            weight,
            bias,
            self.stride,
            padding,
            self.dilation,
            self.transposes,
            output_padding,
            self.groups,
            cudnn_benchmark=flags.cudnn_benchmark_conv2d if dimensions == 2 else None,
            pipeline_threshold=flags.pipeline_threshold,
        )


class _Conv(_Convolution):
    def _conv_forward(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        if not self._takes(input):
            return super()._conv_forward(input, weight, bias)
        padding = self.padding
        if self.padding_mode != "zeros":
            input = F.pad(input, self._reversed_padding_repeated_twice, mode=self.padding_mode)
            padding = [0] * len(self.kernel_size)
        elif isinstance(padding, str):
            both = self._reversed_padding_repeated_twice
            left, right = both[::2][::-1], both[1::2][::-1]
            padding = [min(pair) for pair in zip(left, right, strict=True)]
            if left != right:
                rest = [side - shared for pair, shared in zip(zip(left, right, strict=True), padding, strict=True)
                        for side in pair]  # fmt: skip
                pairs = [rest[i : i + 2] for i in range(0, len(rest), 2)][::-1]
                input = F.pad(input, [side for pair in pairs for side in pair])
        return self._convolve(input, weight, bias, padding, [0] * len(self.kernel_size))


class _ConvTranspose(_Convolution):
    transposes = True

    def forward(self, input: Tensor, output_size: list[int] | None = None) -> Tensor:
        if not self._takes(input):
            return super().forward(input, output_size)
        if self.padding_mode != "zeros":
            raise ValueError(f"Only `zeros` padding mode is supported for {type(self).__name__}")
        output_padding = self._output_padding(
            input, output_size, self.stride, self.padding, self.kernel_size, len(self.kernel_size), self.dilation
        )
        return self._convolve(input, self.weight, self.bias, self.padding, output_padding)


class _Linear(PlannedLayer):
    def _make_scheme(self) -> QScheme | None:
        if not self._actnn_config.adaptive_conv_scheme:
            return None
        return QScheme(self, self._actnn_group, config=self._actnn_config, channel_dim=-1, name=self._actnn_name)

    def forward(self, input: Tensor) -> Tensor:
        if not self._takes(input):
            return super().forward(input)
        return self._call(ops.linear, input, self.weight.requires_grad, self.weight, self.bias)


@compressed_form_of(nn.Conv1d)
class QConv1d(_Conv, nn.Conv1d):
    """`torch.nn.Conv1d` that keeps its input in `bits` + 0.125 bits per element."""


@compressed_form_of(nn.Conv2d)
class QConv2d(_Conv, nn.Conv2d):
    """`torch.nn.Conv2d` that keeps its input in `bits` + 0.125 bits per element."""


@compressed_form_of(nn.Conv3d)
class QConv3d(_Conv, nn.Conv3d):
    """`torch.nn.Conv3d` that keeps its input in `bits` + 0.125 bits per element."""


@compressed_form_of(nn.ConvTranspose1d)
class QConvTranspose1d(_ConvTranspose, nn.ConvTranspose1d):
    """`torch.nn.ConvTranspose1d` that keeps its input in `bits` + 0.125 bits per element."""


@compressed_form_of(nn.ConvTranspose2d)
class QConvTranspose2d(_ConvTranspose, nn.ConvTranspose2d):
    """`torch.nn.ConvTranspose2d` that keeps its input in `bits` + 0.125 bits per element."""


@compressed_form_of(nn.ConvTranspose3d)
class QConvTranspose3d(_ConvTranspose, nn.ConvTranspose3d):
    """`torch.nn.ConvTranspose3d` that keeps its input in `bits` + 0.125 bits per element."""


@compressed_form_of(nn.Linear)
class QLinear(_Linear, nn.Linear):
    """`torch.nn.Linear` that keeps its input in `bits` + 0.125 bits per element."""
