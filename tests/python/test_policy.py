"""Who gets how many bits: sensitivities, the bits of samples and layers, noise targets, and every order of forwards and
backwards in which they have to hold."""

import copy
import gc
import io
import math
import os
import pickle
import subprocess
import sys
from pathlib import Path

import actnn
import pytest
import torch
from actnn import Config, QModule, QScheme, config, convert, measure_gradient_noise, predicted_gradient_noise
from configurations import gradients, one_thread, process_config, small_net  # noqa: F401
from torch import nn
from torch.utils.checkpoint import checkpoint

ops = torch.ops.actnn
pytestmark = pytest.mark.usefixtures("one_thread")


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


LAYERS = {
    "2d": (lambda flags: actnn.QConv2d(4, 6, 3, config=flags), (6, 4, 9, 8)),
    "2d depthwise": (lambda flags: actnn.QConv2d(4, 8, (3, 2), stride=2, groups=4, config=flags), (6, 4, 9, 8)),
    "1d": (lambda flags: actnn.QConv1d(4, 6, 5, config=flags), (6, 4, 170)),
    "3d": (lambda flags: actnn.QConv3d(4, 6, 2, config=flags), (6, 4, 5, 6, 7)),
    "transposed": (lambda flags: actnn.QConvTranspose2d(4, 6, 3, config=flags), (6, 4, 9, 8)),
}


@pytest.mark.parametrize("group_size", [32, 256])
@pytest.mark.parametrize("name", LAYERS)
def test_sensitivities_of_convolutions(name, group_size, device):
    make, shape = LAYERS[name]
    layer = make(Config(group_size=group_size, perlayer=False))
    x = scaled(*shape)
    plain = convolution_factor(layer, x, group_size) * ranges(x, group_size)
    y = layer(x)
    torch.testing.assert_close(layer.scheme.C.double(), plain, rtol=1e-4, atol=0)  # before a gradient is known
    grad = scaled(*y.shape)
    y.backward(grad)
    first = squares(grad).mean()
    torch.testing.assert_close(layer.scheme.scales.double(), first)
    layer(x).backward(2 * grad)
    torch.testing.assert_close(layer.scheme.C.double(), plain * first, rtol=1e-4, atol=0)
    torch.testing.assert_close(layer.scheme.scales.double(), 0.5 * first + 0.5 * 4 * first)
    assert layer.scheme.dim == x[0].numel()


@pytest.mark.parametrize("shape", [(6, 300), (6, 5, 300)])
def test_sensitivities_of_linear_layers(shape, device):
    layer = actnn.QLinear(300, 4, config=Config())
    x = scaled(*shape)
    layer(x)
    pixels = 1 if len(shape) == 2 else 5
    torch.testing.assert_close(layer.scheme.C.double(), 256 / pixels / 4 * ranges(x), rtol=1e-4, atol=0)


def test_sensitivities_of_batch_norms_are_ranges(device):
    layer = actnn.QBatchNorm2d(4, config=Config())
    x = scaled(6, 4, 9, 8)
    layer(x)
    torch.testing.assert_close(layer.scheme.C.double(), ranges(x), rtol=1e-4, atol=0)


def test_without_pergroup_a_sample_is_a_group(device):
    layer = actnn.QConv2d(4, 6, 3, config=Config(pergroup=False))
    x = scaled(6, 4, 9, 8)
    layer(x)
    plain = convolution_factor(layer, x, 288) * ranges(x, 288)
    torch.testing.assert_close(layer.scheme.C.double(), plain, rtol=1e-4, atol=0)


def variance(sensitivity, bits):
    return (sensitivity.double() / (2.0 ** bits.double() - 1) ** 2).sum().item()


@pytest.mark.parametrize("average", [2.0, 3.5, 6.0, 8.0])
def test_the_bits_of_samples_hold_the_budget_and_beat_uniform_ones(average, device):
    scheme = actnn.QConv2d(4, 6, 3, config=Config()).scheme
    scheme.bits = average
    x = scaled(16, 4, 9, 8)
    bits, sensitivity = scheme.compute_quantization_bits(x)
    assert bits.dtype == torch.uint8 and bits.min() >= 1 and bits.max() <= 8
    assert 16 * average - 1 < bits.sum().item() <= 16 * average
    uniform = torch.full((16,), average, device=x.device)
    if average < 8:
        assert variance(sensitivity, bits) < 0.8 * variance(sensitivity, uniform)
        expected = ops.allocate_bits(torch.full((16,), 8, dtype=torch.uint8), sensitivity,
                                     torch.ones(16, dtype=torch.int64), int(16 * average))  # fmt: skip
        assert torch.equal(bits, expected)
    plan = scheme.plan(x)
    assert (plan["sample_bits"] is None) == (average == 8) and plan["total_bits"] == (
        16 * average if average < 8 else 0
    )


# The bits of layers.


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


@pytest.mark.parametrize("average", [1, 2, 5])
def test_the_bits_of_layers_are_those_of_all_their_samples(average):
    flags = Config(activation_compression_bits=[average])
    model, recorder = network(flags)
    x = scaled(8, 3, 12, 12)
    gradients(model, x)
    expected = recorder.expected(average)
    assert recorder.actual() == 3 * [average]
    recorder.clear()
    model(x)  # the next forward allocates
    assert recorder.actual() == pytest.approx(expected, abs=0.02)
    assert average == 1 or max(expected) - min(expected) > 1


def test_initial_bits_begin_the_allocation():
    flags = Config(initial_bits=4)
    model, recorder = network(flags)
    gradients(model, scaled(8, 3, 12, 12))
    assert_allocated(recorder, flags, initial=4)
    assert max(recorder.actual()) <= 4


def test_at_initial_bits_layers_are_the_units():
    flags = Config(activation_compression_bits=[3], initial_bits=3)
    model, recorder = network(flags)
    gradients(model, scaled(8, 3, 12, 12))
    sensitivity, weight, index = recorder.units()
    by_layer = torch.zeros(3, dtype=torch.float64).index_add(0, index, sensitivity)
    weights = torch.zeros(3, dtype=torch.int64).index_add(0, index, weight)
    bits = ops.allocate_bits(torch.full((3,), 8, dtype=torch.uint8), by_layer, weights, 3 * int(weights.sum()))
    flags.policy.allocate_per_layer()
    assert recorder.actual() == bits.tolist()


def test_groups_of_layers_are_problems_of_their_own():
    flags = Config(activation_compression_bits=[2, 5])
    first = [actnn.QLinear(64, 64, config=flags) for _ in range(2)]
    second = [actnn.QLinear(64, 64, config=flags, group=1) for _ in range(2)]
    recorders = Recorder(*first), Recorder(*second)
    model = nn.Sequential(first[0], second[0], nn.Tanh(), first[1], second[1])
    gradients(model, scaled(8, 64))
    flags.policy.allocate_per_layer()
    for recorder, average in zip(recorders, (2, 5), strict=True):
        assert recorder.actual() == pytest.approx(recorder.expected(average), abs=0.02)
        assert sum(recorder.actual()) / 2 <= average


def test_a_batch_norm_takes_the_bits_of_the_layer_before_it():
    flags = Config()
    model, _ = network(flags)
    model = nn.Sequential(actnn.QBatchNorm2d(3, config=flags), *model)
    model[1].scheme.bits, model[4].scheme.bits = 3.5, 6
    model(torch.randn(4, 3, 8, 8))
    assert [model[i].scheme.bits for i in (0, 2, 5)] == [8, 3.5, 6]
    assert QScheme.num_layers == sum(not s.native.normalization() for s in QScheme.layers)


def test_a_first_batch_norm_has_8_bits_in_every_forward():
    flags = Config()
    model = nn.Sequential(actnn.QBatchNorm2d(3, config=flags), actnn.QConv2d(3, 4, 3, config=flags))
    for _ in range(2):
        model(torch.randn(4, 3, 8, 8))
        assert model[0].scheme.bits == 8


# Noise targets.


@pytest.mark.parametrize("target", [1e-3, 0.03, 0.5])
def test_a_noise_target_is_held_with_the_fewest_bits(target):
    flags = Config(noise_target=target)
    model, recorder = network(flags)
    exact = copy.deepcopy(small_net().state_dict())
    model.load_state_dict(exact)
    x = scaled(8, 3, 12, 12)
    for _ in range(6):
        recorder.clear()
        found = gradients(model, x)
    norm = sum(found[f"{i}.weight"].double().square().sum() for i in (0, 3, 8))
    sensitivity, weight, index = recorder.units()
    sensitivity = sensitivity * 4 / 6
    start = torch.full(weight.shape, 8, dtype=torch.uint8)
    bits = ops.allocate_bits_for_noise(start, sensitivity, weight, target * norm)
    assert variance(sensitivity, bits) <= target * norm
    # One bit less where it costs the least per element is too much.
    rise = sensitivity / (2.0 ** (bits - 1).double() - 1) ** 2 - sensitivity / (2.0 ** bits.double() - 1) ** 2
    cheapest = torch.where(bits > 1, rise / weight, torch.inf).argmin()
    assert (bits == 1).all() or variance(sensitivity, bits) + rise[cheapest] > target * norm
    flags.policy.allocate_per_layer()
    assert recorder.actual() == pytest.approx(recorder.means(bits, weight, index), abs=0.05)
    gradients(model, x)
    assert predicted_gradient_noise(flags) < 1.25 * target


def test_predicted_noise_is_that_of_the_plain_formula():
    flags = Config(perlayer=False)
    model, recorder = network(flags)
    x = scaled(8, 3, 12, 12)
    found = gradients(model, x)
    total = 0.0
    for layer in recorder.layers:
        (inputs,) = recorder.inputs[layer]
        scale, g = layer.scheme.scales.clone(), layer.scheme.scales.double()
        sensitivity = recorder.factor(layer, inputs) * ranges(inputs)
        # In the first forward no gradient was known: by ranges alone.
        bits = ops.allocate_bits(
            torch.full((8,), 8, dtype=torch.uint8), sensitivity, torch.ones(8, dtype=torch.int64), 16
        )
        total += 4 / 6 * variance(sensitivity * g, bits)
        assert scale > 0
    norm = sum(found[f"{i}.weight"].double().square().sum() for i in (0, 3, 8)).item()
    assert predicted_gradient_noise(flags) == pytest.approx(total / norm, rel=0.01)


def test_there_is_no_prediction_without_a_backward():
    flags = Config()
    assert math.isnan(predicted_gradient_noise(flags))
    model, _ = network(flags)
    model(torch.randn(4, 3, 8, 8))
    assert math.isnan(predicted_gradient_noise(flags))


@pytest.mark.parametrize("bits", [2, 4])
def test_the_prediction_is_near_what_is_measured(bits):
    flags = Config(enable_quantized_bn=False, perlayer=False, activation_compression_bits=[bits])
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.SiLU(), nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8),
        nn.SiLU(), nn.AvgPool2d(2), nn.Flatten(), nn.Linear(8 * 36, 5),
    )  # fmt: skip
    convert(model, flags, skip=nn.SiLU)
    x, y = torch.randn(16, 3, 12, 12), torch.arange(16) % 5
    weights = [model[i].weight for i in (0, 3, 8)]

    def backward():
        nn.functional.cross_entropy(model(x), y).backward()

    measured = measure_gradient_noise(weights, backward, draws=40)
    predicted = predicted_gradient_noise(flags)
    assert 1 / 1.5 < predicted / measured < 1.5
    measure_gradient_noise(weights, backward, draws=40, correct=flags)
    assert flags.policy.noise_correction() == pytest.approx(measured / predicted, rel=0.3)
    backward()
    assert predicted_gradient_noise(flags) == pytest.approx(measured, rel=0.3)


def test_measuring_puts_gradients_and_buffers_back():
    model = small_net()
    convert(model, Config())
    x = torch.randn(4, 3, 8, 8)
    model(x).sum().backward()
    gradients_before = [p.grad for p in model.parameters()]
    buffers = [b.clone() for b in model.buffers()]
    measure_gradient_noise(model, lambda: model(x).sum().backward(), draws=3)
    assert all(p.grad is g for p, g in zip(model.parameters(), gradients_before, strict=True))
    assert all(torch.equal(a, b) for a, b in zip(model.buffers(), buffers, strict=True))
    with pytest.raises(ZeroDivisionError):
        measure_gradient_noise(model, lambda: 1 / 0)
    assert all(p.grad is g for p, g in zip(model.parameters(), gradients_before, strict=True))
    with pytest.raises(ValueError, match="draws must be two or more, got 1"):
        measure_gradient_noise(model, lambda: None, draws=1)
    for arguments, message in (
        ({"draws": "2"}, "draws must be two or more, got '2'"),
        ({"draws": 2.5}, "draws must be two or more, got 2.5"),
        ({"backward": None}, "backward must be a function, got NoneType None"),
        ({"model": None}, "model must be a module or parameters, got NoneType None"),
        ({"model": "net"}, "model must be a module or parameters, got str 'n'"),
        ({"correct": "L3"}, r"correct must be an actnn.Config, got str 'L3'"),
    ):
        with pytest.raises(TypeError, match=f"measure_gradient_noise: {message}"):
            measure_gradient_noise(**{"model": model, "backward": lambda: None} | arguments)
    with pytest.raises(TypeError, match=r"predicted_gradient_noise: config must be an actnn.Config, got NoneType None"):
        predicted_gradient_noise(None)
    with pytest.raises(ValueError, match="backward must give gradients to parameters"):
        measure_gradient_noise(model, lambda: None)


# A gradient norm per sample.


def per_sample(num_samples=10, **flags):
    flags = Config(use_gradient=True, perlayer=False, **flags)
    flags.policy.set_num_samples(num_samples)
    return flags, actnn.QLinear(40, 3, config=flags)


def step(flags, layer, index, grad):
    flags.policy.set_batch(torch.tensor(index))
    y = layer(torch.ones(len(index), 40) * torch.arange(40.0))
    y.backward(grad)
    return squares(grad)


def test_the_table_of_gradients(device):
    flags, layer = per_sample()
    plain = ranges(torch.arange(40.0)[None]) * 64
    grad = scaled(3, 3)
    first = step(flags, layer, [7, 2, 4], grad)
    assert torch.equal(layer.scheme.C.double(), plain.float().double().expand(3))  # nothing is known: 1
    expected = torch.zeros(10, dtype=torch.float64)
    expected[[7, 2, 4]] = first
    torch.testing.assert_close(layer.scheme.scales.double(), expected)
    second = step(flags, layer, [2, 5, 7, 9], scaled(4, 3))
    known = torch.stack([expected[2], expected[7]]).mean()
    torch.testing.assert_close(
        layer.scheme.C.double(), plain * torch.stack([expected[2], known, expected[7], known]), rtol=1e-4, atol=0
    )
    expected[[2, 7]] = 0.5 * expected[[2, 7]] + 0.5 * second[[0, 2]]
    expected[[5, 9]] = second[[1, 3]]
    torch.testing.assert_close(layer.scheme.scales.double(), expected)
    step(flags, layer, [0, 1], scaled(2, 3))  # of a batch with none that is known
    assert torch.equal(layer.scheme.C.double(), plain.float().double().expand(2))


def test_gradients_that_are_not_finite_are_ignored(device):
    flags, layer = per_sample()
    step(flags, layer, [0, 1, 2], torch.ones(3, 3))
    before = layer.scheme.scales.clone()
    grad = torch.ones(3, 3)
    grad[0, 0], grad[1, 1] = torch.inf, torch.nan
    step(flags, layer, [0, 1, 5], grad)
    before[5] = 3
    assert torch.equal(layer.scheme.scales, before)
    flags = Config(perlayer=False)
    layer = actnn.QLinear(40, 3, config=flags)
    step(flags, layer, [0, 1], torch.ones(2, 3))
    step(flags, layer, [0, 1], torch.full((2, 3), torch.inf))
    assert layer.scheme.scales == 3


@pytest.mark.parametrize("noise_target", [None, 0.01])
@pytest.mark.parametrize("value", [math.inf, math.nan])
def test_bits_survive_a_gradient_that_is_not_finite(value, noise_target):
    flags = Config(noise_target=noise_target)
    model, recorder = network(flags)
    x = scaled(8, 3, 12, 12)
    for _ in range(4):
        gradients(model, x)
    model(x)
    before = recorder.actual()
    model(x).backward(torch.full((8, 5), value))
    model(x)
    assert recorder.actual() == pytest.approx(before, abs=0.5)


def test_scales_are_not_updated_when_they_should_not(device):
    flags, layer = per_sample()
    step(flags, layer, [0, 1, 2], torch.ones(3, 3))
    flags.policy.set_update_scale(False)
    step(flags, layer, [0, 1, 5], 2 * torch.ones(3, 3))
    assert layer.scheme.scales.tolist() == [3, 3, 3] + 7 * [0]


def test_a_batch_must_fit(device):
    flags, layer = per_sample()
    x = torch.randn(3, 40)
    with pytest.raises(
        ValueError, match="batch must hold the indices of the samples when use_gradient is on, got none"
    ):
        layer(x)
    flags.policy.set_batch(torch.tensor([0, 1]))
    with pytest.raises(ValueError, match=r"batch must hold one index per sample of the batch \(3\), got 2"):
        layer(x)
    for bad, kind, message in (
        (torch.tensor([0, 10, 2], device="cpu"), ValueError, r"indices in 0..num_samples-1 = 0..9, got 0..10"),
        (torch.tensor([0, -1, 2], device="cpu"), ValueError, r"indices in 0..num_samples-1 = 0..9, got -1..2"),
        (torch.tensor([0.0, 1, 2]), TypeError, "batch must hold integers, got Float"),
        (torch.tensor([True, False, True]), TypeError, "batch must hold integers, got Bool"),
        (torch.tensor([[0, 1, 2]]), ValueError, r"batch must be 1-D, got shape \[1, 3\]"),
    ):
        with pytest.raises(kind, match=message):
            flags.policy.set_batch(bad)
    flags.policy.set_batch(torch.tensor([0, 1, 2], dtype=torch.int32))
    layer(x).sum().backward()
    with pytest.raises(ValueError, match="num_samples must be positive, got 0"):
        flags.policy.set_num_samples(0)


def test_class_attributes_are_the_policys(process_config):  # noqa: F811
    QScheme.num_samples, QScheme.batch, QScheme.update_scale = 20, [4, 5], False
    assert config.policy.num_samples() == QScheme.num_samples == 20
    assert config.policy.batch().tolist() == QScheme.batch.tolist() == [4, 5]
    assert not config.policy.update_scale() and not QScheme.update_scale
    QScheme.batch = None
    assert QScheme.batch is None
    before = QScheme.num_layers
    layer, norm = actnn.QConv2d(3, 4, 3), actnn.QBatchNorm2d(4)
    assert QScheme.num_layers == before + 1 and actnn.QBNScheme.layers[-1].C is None
    norm(layer(torch.randn(2, 3, 8, 8)))
    assert QScheme.prev_layer.name == layer.scheme.name
    assert torch.equal(actnn.QBNScheme.layers[-1].C, norm.scheme.C)
    del layer
    gc.collect()
    assert QScheme.num_layers == before


# Orders of forwards and backwards.


def test_gradient_accumulation():
    flags = Config()
    model, recorder = network(flags)
    for size in (8, 3, 8):
        recorder.clear()
        model(scaled(size, 3, 12, 12)).square().sum().backward()
    assert_allocated(recorder, flags)  # by the last backward


def test_several_forwards_before_their_backwards():
    flags = Config()
    model, recorder = network(flags)
    outputs = [model(scaled(size, 3, 12, 12)) for size in (6, 4)]
    for y in outputs:
        y.square().sum().backward()
    assert_allocated(recorder, flags)  # by both
    assert recorder.actual() != [2, 2, 2]


def test_a_backward_after_the_next_forward():
    flags = Config()
    model, recorder = network(flags)
    waiting = [model(scaled(6, 3, 12, 12))]
    for _ in range(4):  # as the stages of a pipeline do
        waiting.append(model(scaled(6, 3, 12, 12)))
        waiting.pop(0).square().sum().backward()
    bits = recorder.actual()
    for layer in recorder.layers:
        layer.scheme.bits = 2
    model(scaled(6, 3, 12, 12))
    assert recorder.actual() != [2, 2, 2] and bits != [2, 2, 2]


def test_several_losses():
    flags = Config()
    trunk, heads = actnn.QLinear(64, 64, config=flags), [actnn.QLinear(64, n, config=flags) for n in (3, 4)]
    recorder = Recorder(trunk, *heads)
    hidden = trunk(scaled(8, 64))
    losses = [head(hidden).square().sum() for head in heads]
    losses[0].backward(retain_graph=True)
    losses[1].backward()
    sensitivity_uses = recorder.inputs[trunk]
    recorder.inputs[trunk] = 2 * sensitivity_uses  # two backwards went through it
    assert recorder.expected() == pytest.approx((flags.policy.allocate_per_layer(), recorder.actual())[1], abs=0.2)
    assert recorder.actual() != [2, 2, 2]


def test_a_layer_used_twice_counts_twice():
    flags = Config(perlayer=False)
    layer, last = actnn.QLinear(64, 64, config=flags), actnn.QLinear(64, 3, config=flags)
    recorder = Recorder(layer, last)
    last(layer(layer(scaled(8, 64)).tanh())).square().sum().backward()
    assert len(recorder.inputs[layer]) == 2
    # Each use saw the norm that the uses before it had left.
    norms = [squares(grad).mean() for grad in recorder.grads[layer]]
    scales = [norms[0], 0.5 * norms[0] + 0.5 * norms[1]]
    torch.testing.assert_close(layer.scheme.scales.double(), scales[1])
    sensitivity, weight, index = [], [], []
    for x, g in zip(reversed(recorder.inputs[layer]), scales, strict=True):
        sensitivity.append(64 * ranges(x) * g)
    sensitivity.append(64 * ranges(recorder.inputs[last][0]) * last.scheme.scales.double())
    weight, index = torch.full((24,), 64), torch.tensor([0] * 16 + [1] * 8)
    bits = ops.allocate_bits(torch.full((24,), 8, dtype=torch.uint8), torch.cat(sensitivity), weight, 2 * 24 * 64)
    flags.policy.allocate_per_layer()
    assert recorder.actual() == pytest.approx(recorder.means(bits, weight, index), abs=0.02)


def test_layers_that_a_step_leaves_out_keep_their_bits():
    flags = Config()
    layers = [actnn.QLinear(64, 64, config=flags) for _ in range(3)]
    nn.Sequential(*layers)(scaled(8, 64)).square().sum().backward()
    recorder = Recorder(layers[0], layers[2])
    hidden = layers[0](scaled(8, 64))  # allocates
    layers[1].scheme.bits = left_out = 3.25
    layers[2](hidden).square().sum().backward()
    expected = recorder.expected()
    layers[0](scaled(8, 64))
    assert recorder.actual() == pytest.approx(expected, abs=0.02) and layers[1].scheme.bits == left_out


def test_frozen_layers_take_no_part():
    flags = Config()
    model, recorder = network(flags)
    model[0].requires_grad_(False)
    recorder.layers = recorder.layers[1:]
    for _ in range(2):
        recorder.clear()
        gradients(model, scaled(8, 3, 12, 12))
    assert_allocated(recorder, flags)
    assert model[0].scheme.bits == 2 and model[0].scheme.C is None
    assert model[1].scheme.bits == 8  # there is no layer before this batch norm


@pytest.mark.parametrize("reentrant", [False, True])
def test_activation_checkpointing(reentrant):
    flags = Config()
    model, recorder = network(flags)
    plain = copy.deepcopy(model)
    exact = small_net()
    exact.load_state_dict(model.state_dict())
    for _ in range(3):
        recorder.clear()
        x = scaled(8, 3, 12, 12).requires_grad_()
        hidden = checkpoint(model[:6], x, use_reentrant=reentrant, preserve_rng_state=False)
        model[6:](hidden).square().sum().backward()
        bits = recorder.actual()
    assert bits != [2, 2, 2] and all(1 <= b <= 8 for b in bits)
    exact.load_state_dict(model.state_dict())
    assert set(plain.state_dict()) == set(model.state_dict())
    # The copies are few-bit ones, but of the right activations.
    with torch.no_grad():
        for layer in recorder.layers:
            layer.scheme.bits = 8
    flags.initial_bits = 8
    model.zero_grad()
    hidden = checkpoint(model[:6], x, use_reentrant=reentrant)
    model[6:](hidden).square().sum().backward()
    exact(x).square().sum().backward()
    assert (model[3].weight.grad - exact[3].weight.grad).norm() < 0.3 * exact[3].weight.grad.norm()


def test_evaluation_changes_nothing():
    flags = Config()
    model, recorder = network(flags)
    gradients(model, scaled(8, 3, 12, 12))
    model(scaled(8, 3, 12, 12))
    before = recorder.actual(), [layer.scheme.scales.clone() for layer in recorder.layers]
    for _ in range(3):
        model(scaled(4, 3, 12, 12))  # forward without backward
    with torch.no_grad():
        model(scaled(5, 3, 12, 12))
    with torch.inference_mode():
        model.eval()(scaled(5, 3, 12, 12))
    assert recorder.actual() == before[0]
    assert all(torch.equal(layer.scheme.scales, s) for layer, s in zip(recorder.layers, before[1], strict=True))
    model.train()
    gradients(model, scaled(8, 3, 12, 12))
    recorder.clear()
    gradients(model, scaled(8, 3, 12, 12))
    assert_allocated(recorder, flags)


LEAK = """
import os, actnn, torch
from pathlib import Path
layer = actnn.QLinear(2, 1, config=actnn.Config())
x = torch.randn(50_000, 2)
resident = lambda: int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
for _ in range(3):
    layer(x)
before = resident()
for _ in range(20):
    layer(x)
print((resident() - before) / 1e6)
"""


def test_forwards_without_backward_do_not_pile_up():
    environment = os.environ | {"PYTHONPATH": str(Path(actnn.__file__).parent.parent), "OMP_NUM_THREADS": "1"}
    environment |= {"MALLOC_ARENA_MAX": "1", "MALLOC_MMAP_THRESHOLD_": "65536"}  # what is freed goes back
    command = [sys.executable, "-c", LEAK]
    output = subprocess.run(command, env=environment, check=True, capture_output=True, text=True).stdout
    assert float(output) < 2  # of the 5 x 50 000 x 20 bytes = 5 MB that were planned


def test_a_scheme_dies_with_its_layer():
    flags = Config()
    model, _ = network(flags)
    gradients(model, torch.randn(4, 3, 8, 8))
    assert len(flags.policy.schemes()) == 5
    del model, _
    gc.collect()
    assert len(flags.policy.schemes()) == 0
    other, _ = network(flags)
    gradients(other, torch.randn(4, 3, 8, 8))
    gradients(other, torch.randn(4, 3, 8, 8))


@pytest.mark.cuda
def test_nothing_waits_for_the_device():
    flags = Config()
    model, recorder = network(flags)
    model.cuda()
    x, y = torch.randn(16, 3, 12, 12, device="cuda"), torch.arange(16, device="cuda") % 5
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)

    def train():
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x), y).backward()
        optimizer.step()

    for _ in range(3):
        train()
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        for _ in range(3):
            train()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert recorder.actual() != [2, 2, 2]


@pytest.mark.cuda
def test_the_table_of_gradients_does_not_wait_either():
    flags = Config(use_gradient=True)
    flags.policy.set_num_samples(64)
    model, _ = network(flags)
    model.cuda()
    x, index = torch.randn(16, 3, 12, 12, device="cuda"), torch.arange(16, device="cuda")

    def train():
        flags.policy.set_batch(index)
        model(x).square().sum().backward()

    train()
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        train()
        train()
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.cuda
def test_on_a_device_bits_act_one_forward_later():
    flags = Config()
    model, recorder = network(flags)
    model.cuda()
    x = scaled(8, 3, 12, 12).cuda()
    gradients(model, x)
    model(x)
    assert recorder.actual() == [2, 2, 2]
    gradients(model, x)
    model(x)
    assert recorder.actual() != [2, 2, 2]


@pytest.mark.cuda
def test_a_model_on_two_devices_is_one_problem():
    flags = Config()
    model, recorder = network(flags)
    model[2:].cuda()
    x = scaled(8, 3, 12, 12)

    def step():
        model[2:](model[:2](x).cuda()).square().sum().backward()

    for _ in range(3):
        step()
    assert recorder.actual() != [2, 2, 2]
    sensitive = [scheme.sensitivity().device.type for scheme in flags.policy.schemes() if not scheme.normalization()]
    assert set(sensitive) == {"cpu", "cuda"}


@pytest.mark.cuda
def test_a_model_may_move_between_devices():
    flags = Config()
    model, _ = network(flags)
    x = scaled(8, 3, 12, 12)
    for device in ("cpu", "cuda", "cpu", "cuda"):
        model.to(device)
        for _ in range(2):
            model(x.to(device)).square().sum().backward()
        scales = [s.scales() for s in flags.policy.schemes() if not s.normalization()]
        assert all(scale.device.type == device and scale > 0 for scale in scales)


# Checkpoints.


def trained(flags, wrap=lambda model: model):
    torch.manual_seed(0)
    model = small_net()
    convert(model, flags)
    for _ in range(3):
        gradients(model, scaled(8, 3, 12, 12))
    model(scaled(8, 3, 12, 12))
    return wrap(model)


def through_a_file(state):
    stream = io.BytesIO()
    torch.save(state, stream)
    stream.seek(0)
    return torch.load(stream, weights_only=True)


def schemes_of(model):
    return [m.scheme for m in model.modules() if getattr(m, "scheme", None) is not None]


def assert_same_schemes(actual, wanted):
    pairs = list(zip(schemes_of(actual), schemes_of(wanted), strict=True))
    assert len(pairs) == 5
    for a, b in pairs:
        assert a.bits == b.bits and torch.equal(a.scales, b.scales)
    assert {b.bits for _, b in pairs} != {2, 8}


WRAPS = {
    "converted": lambda model: model,
    "QModule": lambda model: QModule(model, model[0].config if hasattr(model[0], "config") else config),
    "Sequential": lambda model: nn.Sequential(nn.Identity(), model),
    "QModule in a Sequential": lambda model: nn.Sequential(WRAPS["QModule"](model), nn.Identity()),
    "QModule of a Sequential": lambda model: QModule(nn.Sequential(model), model[0].config),
}


@pytest.mark.parametrize("name", WRAPS)
def test_a_state_dict_has_the_schemes(name):
    model = trained(Config(), WRAPS[name])
    state = through_a_file(model.state_dict())
    plain = {"Sequential": "1.", "QModule in a Sequential": "0.", "QModule of a Sequential": "0."}.get(name, "")
    assert list(state) == [plain + key for key in small_net().state_dict()]
    fresh = small_net()
    convert(fresh, Config())
    fresh = WRAPS[name](fresh)
    fresh.load_state_dict(state)
    assert_same_schemes(fresh, model)
    x = torch.randn(2, 3, 8, 8)
    assert torch.equal(fresh.eval()(x), model.eval()(x))
    for key, value in fresh.state_dict().items():
        assert torch.equal(value, state[key])


@pytest.mark.parametrize("prefix", ["module.", "model.", "module.model."])
def test_prefixes_of_wrappers_are_accepted(prefix):
    model = trained(Config())
    inner = nn.Module()
    inner.model = model
    wrappers = {"model.": inner, "module.": nn.DataParallel(model), "module.model.": nn.DataParallel(inner)}
    state = through_a_file(wrappers[prefix].state_dict())
    assert all(key.startswith(prefix) for key in state)
    fresh = QModule(small_net(), Config())
    fresh.load_state_dict(state)
    assert_same_schemes(fresh, model)


def test_a_child_called_model_keeps_its_scheme():
    def make():
        inner = nn.Module()
        inner.model, inner.forward = nn.Linear(64, 3), lambda x: inner.model(x)
        return inner

    one, other = (QModule(make(), Config()) for _ in range(2))
    one.model.model.scheme.bits = 5.5
    other.load_state_dict(through_a_file(one.state_dict()))
    assert other.model.model.scheme.bits == 5.5


def test_plain_models_exchange_checkpoints_with_converted_ones():
    model = trained(Config())
    plain = small_net()
    plain.load_state_dict(through_a_file(model.state_dict()))
    x = torch.randn(2, 3, 8, 8)
    assert torch.equal(plain.eval()(x), model.eval()(x))
    fresh = small_net()
    convert(fresh, Config())
    fresh.load_state_dict(through_a_file(plain.state_dict()))
    assert [s.bits for s in schemes_of(fresh)] == [2, 8, 2, 8, 2]  # as new
    assert torch.equal(fresh.eval()(x), model(x))
    wrapped = QModule(small_net(), Config())
    wrapped.load_state_dict(plain.state_dict())
    assert torch.equal(wrapped.eval()(x), model(x))


def test_the_table_of_gradients_is_in_a_checkpoint():
    flags, layer = per_sample()
    step(flags, layer, [7, 2, 4], scaled(3, 3))
    _, other = per_sample()
    other.load_state_dict(through_a_file(layer.state_dict()))
    assert torch.equal(other.scheme.scales, layer.scheme.scales) and other.scheme.scales.shape == (10,)


def test_wrong_states_are_refused():
    scheme = actnn.QConv2d(3, 4, 3, config=Config()).scheme
    for state, message in (
        ({}, "state must have 'bits', a scalar"),
        ({"bits": torch.tensor([2.0, 3.0])}, "state must have 'bits', a scalar"),
        ({"bits": torch.tensor(9.0)}, "bits must be in 1..8, got 9"),
        ({"bits": torch.tensor(math.nan)}, "bits must be in 1..8, got nan"),
        ({"bits": torch.tensor(2.0), "scales": torch.ones(2, 2)}, "'scales' must be a float32 scalar or vector"),
    ):
        with pytest.raises(ValueError, match=message):
            scheme.load_state(state)
        assert scheme.bits == 2
    with pytest.raises(ValueError, match=r"bits must be in 1..8, got 0.5"):
        scheme.bits = 0.5


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))])
@pytest.mark.parametrize("wrap", [lambda model: model, WRAPS["QModule"]])
def test_copies_have_the_schemes(duplicate, wrap):
    model = trained(Config(), wrap)
    other = duplicate(model)
    assert_same_schemes(other, model)
    assert [s.name for s in schemes_of(other)] == [s.name for s in schemes_of(model)]
    before = [s.bits for s in schemes_of(model)]
    for _ in range(3):
        gradients(other, torch.randn(4, 3, 9, 9))
    other(torch.randn(4, 3, 9, 9))
    assert [s.bits for s in schemes_of(model)] == before  # layers that took no part
    assert [s.bits for s in schemes_of(other)] != before


def test_scheme_arguments_of_wrong_types():
    scheme = QScheme(None, config=Config())
    for action, message in (
        (lambda: QScheme(None, config="L3"), r"QScheme: config must be an actnn.Config, got str 'L3'"),
        (lambda: QScheme(None, "1", config=Config()), "QScheme: group must be an integer of at least 0, got str '1'"),
        (lambda: setattr(scheme, "bits", "4"), "QScheme: bits must be a number in 1..8, got str '4'"),
        (lambda: setattr(QScheme, "num_samples", "9"), "QScheme: num_samples must be an integer .* 1, got str '9'"),
        (lambda: setattr(QScheme, "num_samples", 2.5), "QScheme: num_samples must be an integer .* 1, got float 2.5"),
        (lambda: setattr(QScheme, "update_scale", "yes"), "QScheme: update_scale must be a bool, got str 'yes'"),
    ):
        with pytest.raises(TypeError, match=message):
            action()
