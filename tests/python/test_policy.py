"""Who gets how many bits: sensitivities, the bits of samples and layers, noise targets."""

import copy
import gc
import itertools
import math

import actnn
import pytest
import torch
from actnn import Config, QScheme, config, convert, measure_gradient_noise, predicted_gradient_noise
from configurations import gradients, one_thread, process_config, small_net  # noqa: F401
from policy_checks import (
    Recorder,
    assert_allocated,
    convolution_factor,
    network,
    per_sample,
    ranges,
    scaled,
    squares,
    step,
)
from torch import nn

ops = torch.ops.actnn
pytestmark = pytest.mark.usefixtures("one_thread")


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


@pytest.mark.parametrize("training", [True, False])
def test_sensitivities_of_batch_norms_are_ranges_of_the_normalized_value(training, device):
    layer = actnn.QBatchNorm2d(4, config=Config()).train(training)
    x = scaled(6, 4, 9, 8)
    for units in (1.0, torch.tensor([1e-2, 1.0, 1e2, 1e4]).view(-1, 1, 1)):  # the same whatever the channels' units
        layer(7 * units + units * x)
        expected = ranges(torch.nn.functional.batch_norm(x, None, None, training=True))
        torch.testing.assert_close(layer.scheme.C.double(), expected, rtol=1e-2, atol=0)


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


def test_one_step_in_an_interval_measures():
    flags = Config(adapt_interval=3)
    model, recorder = network(flags)
    schemes = [layer.scheme for layer in model.modules() if getattr(layer, "scheme", None)]
    sensitivities, bits = [], []
    for size in range(1, 8):
        gradients(model, size * scaled(7, 3, 12, 12))
        sensitivities.append(schemes[0].C.mean().item())
        bits.append(recorder.actual())
    changes = [before != after for before, after in itertools.pairwise(sensitivities)]
    assert changes == [False, False, True, False, False, True]
    # What was measured in a step acts from the next.
    assert bits[0] == 3 * [2] and bits[1] == bits[2] == bits[3] != bits[0] and bits[4] == bits[5] == bits[6] != bits[3]
    for scheme in schemes:
        plan = scheme.plan(scaled(7, 3, 12, 12))
        total, shared = math.floor(7 * scheme.bits + 1e-6), plan["sample_bits"]
        assert plan["bits"] == -(-total // 7) and (shared is None) == (total % 7 == 0)
        if shared is not None:
            assert int(shared.sum()) == total == plan["total_bits"] and shared.min() == shared.max() - 1


def test_predictions_are_those_of_the_last_step_that_measured():
    flags = Config(adapt_interval=3)
    model, _ = network(flags)
    x = scaled(7, 3, 12, 12)
    gradients(model, x)
    predicted = predicted_gradient_noise(flags)
    gradients(model, 2 * x)
    assert predicted > 0 and predicted_gradient_noise(flags) == predicted
    model(x)  # steps go on
    assert predicted_gradient_noise(flags) == predicted
    measured = measure_gradient_noise(model, lambda: model(x).square().sum().backward(), 4, correct=flags)
    assert measured > 0 and flags.policy.noise_correction() != 1


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
    sensitivity = sensitivity * 4 / 12
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
        total += 4 / 12 * variance(sensitivity * g, bits)
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
