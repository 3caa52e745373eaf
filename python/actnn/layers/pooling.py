"""Pooling: positions of the maxima; for averages, nothing but shapes."""

from collections.abc import Callable

from torch import Tensor, nn

from ..redirected import expand
from .base import QuantizedLayer, compressed_form_of, ops


class _MaxPool(QuantizedLayer):
    has_bits = False
    dimensions: int

    def forward(self, input: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        if not self._takes(input):
            return super().forward(input)
        window = [
            expand(value, self.dimensions)
            for value in (self.kernel_size, self.stride or self.kernel_size, self.padding, self.dilation)
        ]
        with_indices = self.return_indices
        if self.dimensions == 1:
            window = [[neutral, *sizes] for sizes, neutral in zip(window, (1, 1, 0, 1), strict=True)]
            result = _pool(2, with_indices)(input.unsqueeze(-2), *window, self.ceil_mode)
            result = tuple(r.squeeze(-2) for r in result) if with_indices else result.squeeze(-2)
        else:
            result = _pool(self.dimensions, with_indices)(input, *window, self.ceil_mode)
        self._shown(result[0] if with_indices else result)
        return result


def _pool(dimensions: int, with_indices: bool) -> Callable:
    return getattr(ops, f"max_pool{dimensions}d{'_with_indices' if with_indices else ''}")


class _AvgPool(QuantizedLayer):
    has_bits = False
    dimensions: int

    def forward(self, input: Tensor) -> Tensor:
        if not self._takes(input):
            return super().forward(input)
        kernel, stride, padding = (
            expand(value, self.dimensions) for value in (self.kernel_size, self.stride, self.padding)
        )
        if self.dimensions == 1:
            window = ([1, *kernel], [1, *stride], [0, *padding])
            output = ops.avg_pool2d(input.unsqueeze(-2), *window, self.ceil_mode, self.count_include_pad).squeeze(-2)
        else:
            op = ops.avg_pool2d if self.dimensions == 2 else ops.avg_pool3d
            output = op(input, kernel, stride, padding, self.ceil_mode, self.count_include_pad, self.divisor_override)
        return self._shown(output)


class _AdaptiveAvgPool(QuantizedLayer):
    has_bits = False
    dimensions: int

    def forward(self, input: Tensor) -> Tensor:
        if not self._takes(input):
            return super().forward(input)
        sizes = expand(self.output_size, self.dimensions)
        sizes = [input.shape[i - self.dimensions] if size is None else size for i, size in enumerate(sizes)]
        if self.dimensions == 1:
            return self._shown(ops.adaptive_avg_pool2d(input.unsqueeze(-2), [1, *sizes]).squeeze(-2))
        op = ops.adaptive_avg_pool2d if self.dimensions == 2 else ops.adaptive_avg_pool3d
        return self._shown(op(input, sizes))


@compressed_form_of(nn.MaxPool1d)
class QMaxPool1d(_MaxPool, nn.MaxPool1d):
    """`torch.nn.MaxPool1d` that keeps one byte per output element (more for windows above 256)."""

    dimensions = 1


@compressed_form_of(nn.MaxPool2d)
class QMaxPool2d(_MaxPool, nn.MaxPool2d):
    """`torch.nn.MaxPool2d` that keeps one byte per output element (more for windows above 256)."""

    dimensions = 2


@compressed_form_of(nn.MaxPool3d)
class QMaxPool3d(_MaxPool, nn.MaxPool3d):
    """`torch.nn.MaxPool3d` that keeps one byte per output element (more for windows above 256)."""

    dimensions = 3


@compressed_form_of(nn.AvgPool1d)
class QAvgPool1d(_AvgPool, nn.AvgPool1d):
    """`torch.nn.AvgPool1d` that keeps shapes only."""

    dimensions = 1


@compressed_form_of(nn.AvgPool2d)
class QAvgPool2d(_AvgPool, nn.AvgPool2d):
    """`torch.nn.AvgPool2d` that keeps shapes only."""

    dimensions = 2


@compressed_form_of(nn.AvgPool3d)
class QAvgPool3d(_AvgPool, nn.AvgPool3d):
    """`torch.nn.AvgPool3d` that keeps shapes only."""

    dimensions = 3


@compressed_form_of(nn.AdaptiveAvgPool1d)
class QAdaptiveAvgPool1d(_AdaptiveAvgPool, nn.AdaptiveAvgPool1d):
    """`torch.nn.AdaptiveAvgPool1d` that keeps shapes only."""

    dimensions = 1


@compressed_form_of(nn.AdaptiveAvgPool2d)
class QAdaptiveAvgPool2d(_AdaptiveAvgPool, nn.AdaptiveAvgPool2d):
    """`torch.nn.AdaptiveAvgPool2d` that keeps shapes only."""

    dimensions = 2


@compressed_form_of(nn.AdaptiveAvgPool3d)
class QAdaptiveAvgPool3d(_AdaptiveAvgPool, nn.AdaptiveAvgPool3d):
    """`torch.nn.AdaptiveAvgPool3d` that keeps shapes only."""

    dimensions = 3
