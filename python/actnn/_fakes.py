"""What programs give for tensors without data, to compilers that trace: their ops one after the other, on symbolic
sizes too."""

import torch
from torch import Tensor

ops = torch.ops.actnn


@torch.library.register_fake("actnn::program_forward")
def _program_forward(*arguments) -> list[Tensor]:
    return ops.trace_program_forward(*arguments)


@torch.library.register_fake("actnn::program_backward")
def _program_backward(*arguments) -> list[Tensor]:
    return ops.trace_program_backward(*arguments)
