"""What the policy is compared with: sensitivities and allocations by their plain formulas."""

import math

import actnn
import pytest
import torch
from actnn import Config, convert
from configurations import small_net
from torch import nn

ops = torch.ops.actnn


def ranges(x, group_size=256):
    """The sum over groups of (max - min)^2, for each sample."""
    sums = []
    for sample in x.detach().flatten(1):
        sums.append(sum((group.max() - group.min()) ** 2 for group in sample.split(group_size)))
    return torch.stack(sums).double()


def convolution_factor(layer, x, group_size=256):
    return math.prod(layer.kernel_size) / 4 / layer.groups * group_size / x[0, 0].numel()


def squares(grad):
    return grad.detach().flatten(1).double().square().sum(1)


def scaled(*shape):
    """Samples of very different sizes."""
    x = torch.randn(shape)
    return x * torch.logspace(-2, 1, shape[0]).view(-1, *[1] * (x.dim() - 1))


class Recorder:
    """Inputs and output gradients of a model's planned layers, in one step."""

    def __init__(self, *layers):
        self.layers, self.inputs, self.grads = layers, {}, {}
        for layer in layers:
            layer.register_forward_hook(self.note)

    def note(self, layer, inputs, output):
        self.inputs.setdefault(layer, []).append(inputs[0].detach())
        if output.requires_grad:
            output.register_hook(lambda grad: self.grads.setdefault(layer, []).append(grad.clone()))

    def clear(self):
        self.inputs.clear()
        self.grads.clear()

    def factor(self, layer, x):
        if isinstance(layer, nn.Linear):
            return 256 * x.shape[-1] / x[0].numel() / 4
        return convolution_factor(layer, x)

    def units(self):
        """(sensitivity, weight, layer) of every sample of every use."""
        sensitivity, weight, index = [], [], []
        for i, layer in enumerate(self.layers):
            for x in self.inputs.get(layer, ()):
                g = layer.scheme.scales.double()
                sensitivity.append(self.factor(layer, x) * ranges(x) * g)
                weight.append(torch.full((len(x),), x[0].numel()))
                index.append(torch.full((len(x),), i))
        return torch.cat(sensitivity), torch.cat(weight), torch.cat(index)

    def means(self, bits, weight, index):
        totals = torch.zeros(len(self.layers), dtype=torch.float64)
        spent = totals.index_add(0, index, (bits * weight).double())
        return (spent / totals.index_add(0, index, weight.double())).tolist()

    def expected(self, average=2, initial=8):
        sensitivity, weight, index = self.units()
        start = torch.full(weight.shape, initial, dtype=torch.uint8)
        return self.means(ops.allocate_bits(start, sensitivity, weight, average * int(weight.sum())), weight, index)

    def actual(self):
        return [layer.scheme.bits for layer in self.layers]


def network(flags):
    model = small_net()
    convert(model, flags)
    return model, Recorder(model[0], model[3], model[8])


def settle(device):
    """On CUDA, bits act one forward later."""
    if device == "cuda":
        torch.cuda.synchronize()


def assert_allocated(recorder, flags, **problem):
    flags.policy.allocate_per_layer()
    assert recorder.actual() == pytest.approx(recorder.expected(**problem), abs=0.02)


def per_sample(num_samples=10, **flags):
    flags = Config(use_gradient=True, perlayer=False, **flags)
    flags.policy.set_num_samples(num_samples)
    return flags, actnn.QLinear(40, 3, config=flags)


def step(flags, layer, index, grad):
    flags.policy.set_batch(torch.tensor(index))
    y = layer(torch.ones(len(index), 40) * torch.arange(40.0))
    y.backward(grad)
    return squares(grad)
