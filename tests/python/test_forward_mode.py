"""Forward-mode derivatives: the operations have none and say so, instead of losing them."""

import pytest
import torch
from test_opcheck import SAMPLES
from torch.autograd import forward_ad

ops = torch.ops.actnn
DIFFERENTIABLE = [
    "relu", "relu_", "hardtanh", "leaky_relu", "gelu", "silu", "hardswish", "sigmoid", "tanh", "softmax", "log_softmax",
    "prelu", "dropout", "convolution", "linear", "batch_norm", "layer_norm", "rms_norm", "group_norm", "instance_norm",
    "max_pool2d", "max_pool3d", "batch_norm_act", "add_act",
]  # fmt: skip


@pytest.mark.parametrize("name", DIFFERENTIABLE)
@pytest.mark.parametrize("requires_grad", [False, True])
def test_a_dual_tensor_is_refused(name, requires_grad):
    x, *rest = SAMPLES[name][0]()
    x = x.detach().clone()
    if requires_grad and not name.endswith("_"):
        x.requires_grad_()
    with forward_ad.dual_level():
        dual = forward_ad.make_dual(x, torch.ones_like(x))
        with pytest.raises(NotImplementedError, match="input must not be a dual tensor"):
            getattr(ops, name)(dual, *rest)


def test_torch_func_is_refused():
    with pytest.raises(NotImplementedError, match="actnn::relu: input must not be a dual tensor"):
        torch.func.jvp(ops.relu, (torch.randn(4),), (torch.ones(4),))
