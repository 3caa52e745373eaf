"""Norms, which keep what they have normalized, and exact deviations."""

import torch
from torch import Tensor, nn

from ..qbnscheme import QBNScheme
from ..qscheme import QScheme
from .base import PlannedLayer, QuantizedLayer, compressed_form_of, ops


class _BatchNorm(PlannedLayer):
    def _make_scheme(self) -> QScheme | None:
        if not self._actnn_config.adaptive_bn_scheme:
            return None
        return QBNScheme(self, self._actnn_group, config=self._actnn_config, name=self._actnn_name)

    def forward(self, input: Tensor) -> Tensor:
        if self._actnn_config.debug_remove_bn:
            return input
        if not self._takes(input):
            return super().forward(input)
        self._check_input_dim(input)
        momentum = self.momentum or 0.0
        if self.training and self.track_running_stats and self.num_batches_tracked is not None:
            self.num_batches_tracked.add_(1)
            if self.momentum is None:
                momentum = 1.0 / float(self.num_batches_tracked)
        tracked = not self.training or self.track_running_stats
        batch_statistics = self.training or (self.running_mean is None and self.running_var is None)
        return self._normalize(
            input,
            self.running_mean if tracked else None,
            self.running_var if tracked else None,
            batch_statistics,
            momentum,
        )

    def _normalize(self, input, mean, variance, batch_statistics, momentum) -> Tensor:
        if batch_statistics and input.numel() == input.size(1):
            raise ValueError(f"Expected more than 1 value per channel when training, got input size {input.size()}")
        return self._normalize_by(ops.batch_norm, input, mean, variance, batch_statistics, momentum)

    def _normalize_by(self, op, input, mean, variance, batch_statistics, momentum, *process_group) -> Tensor:
        trains = self.weight is not None and self.weight.requires_grad
        wants_copy = trains or (batch_statistics and input.requires_grad)
        args = (self.weight, self.bias, mean, variance, batch_statistics, momentum, self.eps, *process_group)
        return self._call(op, input, wants_copy, *args)


class _SyncBatchNorm(_BatchNorm):
    """Statistics over a process group, on the CPU (gloo) and on CUDA (NCCL)."""

    def _check_input_dim(self, input: Tensor) -> None:
        if input.dim() < 2:
            raise ValueError(f"expected at least 2D input (got {input.dim()}D input)")

    def _normalize(self, input, mean, variance, batch_statistics, momentum) -> Tensor:
        args = (input, mean, variance, batch_statistics, momentum)
        if (group_name := self.group_name()) is None:
            return super()._normalize(*args)
        return self._normalize_by(ops.sync_batch_norm, *args, group_name)

    def group_name(self) -> str | None:
        """Of the process group whose batches the statistics are of, now; None: of this process's, or running ones."""
        group = self.process_group or (torch.distributed.group.WORLD if torch.distributed.is_initialized() else None)
        return group.group_name if self.training and group is not None and group.size() > 1 else None


class _LayerNorm(QuantizedLayer):
    def forward(self, input: Tensor) -> Tensor:
        if not self._quantizes(input):
            return super().forward(input)
        args = (self.normalized_shape, self.weight, self.bias, self.eps)
        return self._shown(ops.layer_norm(input, *args, **self._quantization(input)))


class _RMSNorm(QuantizedLayer):
    def forward(self, input: Tensor) -> Tensor:
        if not self._quantizes(input):
            return super().forward(input)
        args = (self.normalized_shape, self.weight, self.eps)
        return self._shown(ops.rms_norm(input, *args, **self._quantization(input)))


class _GroupNorm(QuantizedLayer):
    def forward(self, input: Tensor) -> Tensor:
        if not self._quantizes(input):
            return super().forward(input)
        args = (self.num_groups, self.weight, self.bias, self.eps)
        return self._shown(ops.group_norm(input, *args, **self._quantization(input)))


class _InstanceNorm(QuantizedLayer):
    def forward(self, input: Tensor) -> Tensor:
        if not self._quantizes(input):
            return super().forward(input)
        self._check_input_dim(input)
        if input.dim() == self._get_no_batch_dim():
            return self.forward(input.unsqueeze(0)).squeeze(0)
        own = self.training or not self.track_running_stats
        momentum = self.momentum if self.momentum is not None else 0.0
        args = (self.weight, self.bias, self.running_mean, self.running_var, own, momentum, self.eps)
        return self._shown(ops.instance_norm(input, *args, **self._quantization(input)))


@compressed_form_of(nn.BatchNorm1d)
class QBatchNorm1d(_BatchNorm, nn.BatchNorm1d):
    """`torch.nn.BatchNorm1d` that keeps x-hat in `bits` + 0.125 bits per element."""


@compressed_form_of(nn.BatchNorm2d)
class QBatchNorm2d(_BatchNorm, nn.BatchNorm2d):
    """`torch.nn.BatchNorm2d` that keeps x-hat in `bits` + 0.125 bits per element."""


@compressed_form_of(nn.BatchNorm3d)
class QBatchNorm3d(_BatchNorm, nn.BatchNorm3d):
    """`torch.nn.BatchNorm3d` that keeps x-hat in `bits` + 0.125 bits per element."""


@compressed_form_of(nn.SyncBatchNorm)
class QSyncBatchNorm(_SyncBatchNorm, nn.SyncBatchNorm):
    """`torch.nn.SyncBatchNorm` that keeps x-hat in `bits` + 0.125 bits per element; on the CPU too."""


@compressed_form_of(nn.LayerNorm)
class QLayerNorm(_LayerNorm, nn.LayerNorm):
    """`torch.nn.LayerNorm` that keeps x-hat in `bits` + 0.125 bits per element."""


@compressed_form_of(nn.RMSNorm)
class QRMSNorm(_RMSNorm, nn.RMSNorm):
    """`torch.nn.RMSNorm` that keeps x-hat in `bits` + 0.125 bits per element."""


@compressed_form_of(nn.GroupNorm)
class QGroupNorm(_GroupNorm, nn.GroupNorm):
    """`torch.nn.GroupNorm` that keeps x-hat in `bits` + 0.125 bits per element."""


@compressed_form_of(nn.InstanceNorm1d)
class QInstanceNorm1d(_InstanceNorm, nn.InstanceNorm1d):
    """`torch.nn.InstanceNorm1d` that keeps x-hat in `bits` + 0.125 bits per element."""


@compressed_form_of(nn.InstanceNorm2d)
class QInstanceNorm2d(_InstanceNorm, nn.InstanceNorm2d):
    """`torch.nn.InstanceNorm2d` that keeps x-hat in `bits` + 0.125 bits per element."""


@compressed_form_of(nn.InstanceNorm3d)
class QInstanceNorm3d(_InstanceNorm, nn.InstanceNorm3d):
    """`torch.nn.InstanceNorm3d` that keeps x-hat in `bits` + 0.125 bits per element."""
