"""The defects of the published system, one by one: ours has none of them."""

import copy
import math
import subprocess
import sys
from pathlib import Path

import actnn
import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from actnn import Config, QModule, convert
from actnn.layers import QuantizedLayer
from configurations import eight_bits, gradients, one_thread, relative_error, small_net  # noqa: F401
from saved_memory import packed_bytes, saved_bytes
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

ops = torch.ops.actnn
pytestmark = pytest.mark.usefixtures("one_thread")
DTYPES = [torch.float32, torch.float16, torch.bfloat16]
EIGHT = {"activation_compression_bits": [8]}
both_ways = pytest.mark.parametrize("blocks", [True, False], ids=["blocks", "layers"])
"""Conversion captures the model's graph and leaves its modules torch's, or it converts layers."""


def is_converted(layer, original, blocks):
    """Whether a layer has the type that this way of conversion gives it."""
    return type(layer) is type(original) if blocks else isinstance(layer, QuantizedLayer)


def saves_less(layer, original, x):
    """Whether a layer keeps less for backward than the original; `x` is its input, computed of something."""
    kept, exact = (saved_bytes(lambda one=one: one(x))[0] for one in (layer, original))
    return kept < exact


# 1. Conversion builds new layers and silently drops pretrained weights, dtype, device, requires_grad, hooks.


@both_ways
@pytest.mark.parametrize("wrap", [convert, QModule])
def test_1_conversion_keeps_weights_dtype_device_requires_grad_and_hooks(wrap, blocks, device):
    model = small_net().to(torch.bfloat16)
    model[3].weight.requires_grad_(False)
    calls = []
    model[0].register_forward_hook(lambda *_: calls.append(1))
    before = {name: (p, p.detach().clone(), p.dtype, p.device, p.requires_grad) for name, p in model.named_parameters()}
    buffers = {name: b.clone() for name, b in model.named_buffers()}
    x = torch.randn(4, 3, 8, 8, dtype=torch.bfloat16)
    exact = copy.deepcopy(model)
    expected = exact(x)
    calls.clear()
    wrap(model, Config("L2"), blocks=blocks)
    assert all(is_converted(model[i], exact[i], blocks) for i in (0, 1, 2, 3, 4, 5, 6, 8))
    for name, p in model.named_parameters():
        same, value, *rest = before[name]
        assert p is same and torch.equal(p, value) and [p.dtype, p.device, p.requires_grad] == rest
    assert all(torch.equal(b, buffers[name]) for name, b in model.named_buffers())
    # A block rounds once where separate layers round three times.
    torch.testing.assert_close(model(x), expected, rtol=0.02, atol=0.01)
    assert calls == [1] and model[3].weight.requires_grad is False
    assert saves_less(model, exact, x)


# 2. AvgPool2d becomes max pooling.


@both_ways
@pytest.mark.parametrize("pool", [nn.AvgPool1d, nn.AvgPool2d, nn.AvgPool3d, nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d,
                                  nn.AdaptiveAvgPool3d])  # fmt: skip
def test_2_average_pools_average(pool, blocks, device):
    layer, original = pool(2), pool(2)
    dimensions = int(pool.__name__[-2])
    x = torch.arange(2 * 3 * 4.0**dimensions).view(2, 3, *[4] * dimensions).requires_grad_()
    expected = original(x)
    convert(layer, Config("L2"), blocks=blocks)
    assert is_converted(layer, original, blocks)
    y = layer(x)
    assert torch.equal(y, expected) and not torch.equal(y, getattr(F, f"max_pool{dimensions}d")(x, 2))
    y.sum().backward()
    torch.testing.assert_close(x.grad, torch.full_like(x, 0.5**dimensions))
    assert saves_less(layer, original, x * 1)


# 3. ConvTranspose conversion crashes.


@both_ways
@pytest.mark.parametrize("transposed", [nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d])
def test_3_transposed_convolutions_are_converted(transposed, blocks, device):
    dimensions = int(transposed.__name__[-2])
    layer = transposed(4, 6, 3, stride=2, padding=1, output_padding=1, groups=2, dilation=1)
    exact = copy.deepcopy(layer)
    convert(layer, eight_bits(), blocks=blocks)
    x = torch.randn(2, 4, *[5] * dimensions)
    assert is_converted(layer, exact, blocks) and torch.equal(layer(x), exact(x)) and saves_less(layer, exact, x)
    size = [10] * dimensions
    assert torch.equal(layer(x, output_size=size), exact(x, output_size=size))
    wanted = gradients(exact, x)
    for name, gradient in gradients(layer, x).items():
        assert relative_error(gradient, wanted[name]) < 0.02


# 4. One global training flag; .eval() on a part of the model has no effect.


def test_4_eval_of_a_part_acts_on_that_part(device):
    model = nn.Sequential(nn.BatchNorm1d(4), nn.Dropout(0.5), nn.Sequential(nn.BatchNorm1d(4), nn.Dropout(0.5)))
    convert(model)
    model[2].eval()
    x = torch.randn(64, 4) + 3
    model(x)
    assert (model[0].running_mean > 0.1).all() and (model[2][0].running_mean == 0).all()
    assert (model[1](x) == 0).any() and not (model[2][1](x) == 0).any()
    model.eval()
    assert torch.equal(model[1](x), x) and torch.equal(model(x), model(x))
    model.train()
    assert model[2].training and (model[2][1](x) == 0).any()


def test_4_evaluation_of_one_model_leaves_another_training(device):
    one, other = QModule(nn.Sequential(nn.Dropout(0.5))), QModule(nn.Sequential(nn.Dropout(0.5)))
    one.eval()
    x = torch.ones(100)
    assert torch.equal(one(x), x) and (other(x) == 0).any()


# 5. Frozen weights still save and quantize; gradients nobody needs are computed.


@pytest.mark.parametrize(("level", "blocks"), [("L2", True), ("L2", False), ("L3", False)])
def test_5_frozen_layers_save_nothing(level, blocks, device):
    for layer, x in (
        (nn.Conv2d(3, 4, 3), torch.randn(2, 3, 8, 8)),
        (nn.ConvTranspose2d(3, 4, 3), torch.randn(2, 3, 8, 8)),
        (nn.Linear(8, 4), torch.randn(16, 8)),
    ):
        convert(layer, Config(level), blocks=blocks)
        layer.requires_grad_(False)
        assert saved_bytes(lambda layer=layer, x=x: layer(x))[0] == 0
        layer.bias.requires_grad_(True)
        weight = layer.weight.nbytes
        assert saved_bytes(lambda layer=layer, x=x: layer(x))[0] <= weight
        # With a gradient of the input, the weight itself is held, by reference, and no activation.
        assert saved_bytes(lambda layer=layer, x=x: layer(x * 1))[0] <= weight
        scheme = None if blocks else layer.scheme
        assert scheme is None or scheme.C is None


class Quantizations(TorchDispatchMode):
    def __init__(self):
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.count += function.overloadpacket in (ops.quantize, ops.quantize_per_sample)
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize("level", ["L2", "L3"])
def test_5_nothing_is_quantized_that_no_gradient_needs(level, device):
    model = small_net()
    convert(model, Config(level), blocks=False)
    x = torch.randn(4, 3, 8, 8)
    for parameters in (model[0], model[1], model[3], model[4]):
        parameters.requires_grad_(False)
    with Quantizations() as frozen:
        model(x)
    assert frozen.count == 1  # the last layer's input
    with Quantizations() as off, torch.no_grad():
        model(x)
    assert off.count == 0
    model.requires_grad_(True)
    with Quantizations() as on:
        model(x)
    assert on.count == 5


def test_5_gradients_that_nobody_needs_are_not_computed(device):
    class Masks(TorchDispatchMode):
        masks = ()

        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            if function is torch.ops.aten.convolution_backward.default:
                self.masks = (*self.masks, tuple(args[-1]))
            return function(*args, **(kwargs or {}))

    layer = nn.Conv2d(3, 4, 3)
    convert(layer)
    for image, weight, bias in ((0, 1, 1), (1, 0, 0), (1, 1, 0), (0, 0, 1)):
        layer.weight.requires_grad_(bool(weight))
        layer.bias.requires_grad_(bool(bias))
        with Masks() as masks:
            layer(torch.randn(2, 3, 8, 8, requires_grad=bool(image))).sum().backward()
        assert masks.masks == ((bool(image), bool(weight), bool(bias)),)


# 6. Host synchronization in every layer, so no CUDA graphs and slow small batches.


@pytest.mark.cuda
@pytest.mark.parametrize("level", ["L1", "L2", "L3", "L4"])
def test_6_no_layer_waits_for_the_device(level):
    more = [nn.MaxPool2d(2), nn.Dropout(0.3), nn.AvgPool2d(2), nn.Flatten(), nn.Linear(16, 5), nn.LayerNorm(5)]
    model = QModule(nn.Sequential(*small_net()[:6], *more, nn.GELU(), nn.Softmax(-1)), Config(level)).cuda()
    model.config.empty_cache_threshold = None  # that is a wait of its own
    x = torch.randn(8, 3, 8, 8, device="cuda")
    for _ in range(3):
        model(x).square().sum().backward()
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        for _ in range(2):
            model(x).square().sum().backward()
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.cuda
@pytest.mark.parametrize("level", ["L2", "L3"])
def test_6_a_training_step_is_captured_in_a_cuda_graph(level):
    model = small_net().cuda()
    x = torch.randn(8, 3, 8, 8, device="cuda")
    plain = copy.deepcopy(model)
    plain(x).square().sum().backward()
    exact = plain[3].weight.grad
    convert(model, Config(level, activation_compression_bits=[4]))
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            model(x).square().sum().backward()
            model.zero_grad()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        model(x).square().sum().backward()
    found = []
    for _ in range(100):
        graph.replay()
        found.append(model[3].weight.grad.clone())
        model.zero_grad(set_to_none=False)
    assert not torch.equal(*found[:2])  # fresh noise
    assert relative_error(found[0], exact) < 1
    assert relative_error(torch.stack(found).mean(0), exact) < 0.15


# 7. Pinned memory allocated per swap, no prefetch.


@pytest.mark.cuda
def test_7_pinned_memory_is_used_again_and_data_comes_back_ahead():
    model = nn.Sequential(*[nn.Sequential(nn.Linear(512, 512), nn.Tanh()) for _ in range(6)]).cuda()
    convert(model, Config("L2", swap=True), skip=nn.Tanh)
    x = torch.randn(4096, 512, device="cuda", requires_grad=True)

    def step():
        model(x * 1).square().sum().backward()

    for _ in range(3):
        step()
    torch.cuda.synchronize()
    before = torch.cuda.host_memory_stats()["num_host_alloc"]
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
        for _ in range(3):
            step()
        torch.cuda.synchronize()
    assert torch.cuda.host_memory_stats()["num_host_alloc"] == before
    events = [event for event in profile.events() if event.device_type == torch.autograd.DeviceType.CUDA]
    events.sort(key=lambda event: event.time_range.start)
    copies = [event for event in events if "HtoD" in event.name]
    decoded = [event for event in events if "dequantize" in event.name]
    assert len(copies) == len(decoded) == 18
    # While a layer's copy is decoded, that of the layer before it is on its way already.
    ahead = [copies[i + 1].time_range.start < decoded[i].time_range.end for i in range(17) if i % 6 != 5]
    assert sum(ahead) > len(ahead) / 2


# 8. No retain_graph, no double backward, no in-place version check.


def eight_layers(flags):
    return {
        "conv": (actnn.QConv2d(3, 4, 3, config=flags), torch.randn(2, 3, 8, 8)),
        "conv transpose": (actnn.QConvTranspose2d(3, 4, 3, config=flags), torch.randn(2, 3, 8, 8)),
        "linear": (actnn.QLinear(8, 4, config=flags), torch.randn(5, 8)),
        "batch norm": (actnn.QBatchNorm2d(3, config=flags), torch.randn(2, 3, 8, 8)),
        "layer norm": (actnn.QLayerNorm(8, config=flags), torch.randn(5, 8)),
        "group norm": (actnn.QGroupNorm(3, 3, config=flags), torch.randn(2, 3, 8, 8)),
        "max pool": (actnn.QMaxPool2d(2, config=flags), torch.randn(2, 3, 8, 8)),
        "gelu": (actnn.QGELU(config=flags), torch.randn(5, 8)),
        "softmax": (actnn.QSoftmax(-1, config=flags), torch.randn(5, 8)),
        "prelu": (actnn.QPReLU(config=flags), torch.randn(5, 8)),
    }


@pytest.mark.parametrize("level", ["L2", "L3"])
@pytest.mark.parametrize("name", eight_layers(Config()))
def test_8_retain_graph_works(name, level, device):
    layer, x = eight_layers(Config(level))[name]
    x = x.to(device)
    x.requires_grad_()
    wanted = [x, *layer.to(device).parameters()]
    loss = layer(x).square().sum()
    first = torch.autograd.grad(loss, wanted, retain_graph=True)
    second = torch.autograd.grad(loss, wanted)
    assert all(map(torch.equal, first, second))  # the same copy
    with pytest.raises(RuntimeError, match="backward through the graph a second time"):
        torch.autograd.grad(loss, wanted)


@pytest.mark.parametrize("name", eight_layers(Config()))
def test_8_double_backward_is_refused_with_a_sentence(name, device):
    layer, x = eight_layers(Config())[name]
    layer, x = layer.to(device), x.to(device).requires_grad_()
    with pytest.raises(NotImplementedError, match=r"actnn::\w+: its backward cannot be differentiated[,;] "):
        torch.autograd.grad(layer(x).square().sum(), x, create_graph=True)


@pytest.mark.parametrize("name", ["conv", "conv transpose", "linear", "batch norm"])
@pytest.mark.parametrize("level", ["L2", "L3", "swap"])
@pytest.mark.filterwarnings("ignore:actnn")
def test_8_a_change_in_place_of_an_exact_activation_is_detected(name, level, device):
    layer, x = eight_layers(Config(level, compress_activation=False, swap=False))[name]
    layer, x = layer.to(device), x.to(device).requires_grad_() * 1
    loss = layer(x).sum()
    x.mul_(2)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


@pytest.mark.parametrize("name", ["conv", "conv transpose", "linear", "batch norm", "layer norm", "gelu"])
def test_8_a_change_in_place_of_what_was_copied_is_harmless(name, device):
    layer, x = eight_layers(Config("L2", stochastic=False))[name]
    layer, x = layer.to(device), x.to(device)
    results = []
    for change in (False, True):
        z = x.clone().requires_grad_()
        hidden = z * 1
        loss = layer(hidden).sum()
        if change:
            hidden.zero_()
        results.append(torch.autograd.grad(loss, [z, *layer.parameters()]))
    assert all(map(torch.equal, *results))


def test_8_a_change_in_place_of_a_weight_is_detected(device):
    layer = actnn.QLinear(8, 4, config=Config())
    loss = layer(torch.randn(5, 8, requires_grad=True)).sum()
    with torch.no_grad():
        layer.weight.mul_(2)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


# 9. Mixed packing wrong beyond 65535 rows.


def test_9_bits_per_sample_of_more_than_65535_samples(device):
    samples = 70_001
    x = torch.randn(samples, 4)
    x[65_536:] *= 50
    bits = torch.full((samples,), 2, dtype=torch.uint8)
    bits[::3], bits[65_536:] = 5, 8
    room = int(bits.sum()) + 3 * samples
    packed = ops.quantize_per_sample(x, bits, room, 256, "nearest")
    copy_ = ops.dequantize_per_sample(packed, bits, x.shape, x.stride(), x.dtype, 256)
    step = (x.amax(1) - x.amin(1)) / (2.0**bits - 1)
    assert ((copy_ - x).abs().amax(1) <= 0.52 * step + 0.01 * x.abs().amax(1)).all()


def test_9_the_originals_functions_too(device):
    from actnn.cpp_extension import minimax, quantization

    samples = 66_000
    x = torch.randn(samples, 1, 8)
    bits = torch.randint(1, 9, (samples,))
    mn, mx = (t.view(samples, 1, 1) for t in minimax.minimax(x.view(samples, 8)))
    packed, scale = quantization.pack_mixed_precision(x, mn, mx, bits, False)
    copy_ = quantization.unpack_mixed_precision(packed, bits, scale, mn, samples, 1, 8)
    assert ((copy_ - x).abs() <= 0.51 / scale + 1e-5).all()


def test_9_a_layer_trains_on_them(device):
    layer = actnn.QLinear(3, 2, config=Config())
    x = torch.randn(66_000, 3)
    layer(x).sum().backward()
    wanted = x.sum(0).expand(2, 3)
    assert (layer.weight.grad - wanted).abs().max() < 5 * 66_000**0.5


# 10. Functional calls are not covered, and unsupported layers pass silently.


class Functional(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 16, 3, padding=1)

    def forward(self, x):
        x = F.relu(self.conv(x))
        x = F.dropout(F.max_pool2d(F.batch_norm(x, None, None, training=True), 2), 0.3)
        return F.linear(F.avg_pool2d(x.relu(), 2).flatten(1), torch.ones(5, 64, device=x.device, requires_grad=True))


def test_10_functional_calls_are_covered(device):
    model = Functional()
    x = torch.randn(8, 3, 8, 8)
    exact, _ = saved_bytes(lambda: model(x))
    convert(model, Config("L2"), blocks=False)
    layers, _ = saved_bytes(lambda: model(x))
    assert layers < exact
    for wrap, blocks in ((convert, True), (QModule, True), (QModule, False)):
        wrapped = Functional()
        made = wrap(wrapped, Config("L2"), blocks=blocks)
        wrapped = made if wrap is QModule else wrapped
        for _ in range(3):  # a graph that breaks is captured in parts at the second call
            everything, y = saved_bytes(lambda wrapped=wrapped: wrapped(x))
            assert everything < layers / 4
        y.sum().backward()
        assert all(parameter.grad.isfinite().all() for parameter in wrapped.parameters())


@both_ways
def test_10_what_is_not_compressed_is_said(blocks):
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.LSTM(4, 4), nn.CELU(), nn.Bilinear(2, 2, 2))
    report = convert(model, blocks=blocks)
    assert {entry.path for entry in report.left_alone} == {"1", "2", "3"}
    assert all(entry.reason for entry in report.left_alone)
    assert "no compressed form of this layer is known" in str(report)
    assert QModule(nn.Sequential(nn.CELU())).report["0"].reason


def test_10_what_is_in_no_block_is_said(device):
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.CELU())
    report = convert(model)
    model(torch.randn(2, 3, 8, 8))
    assert report["0"].block and report["1"].block and not report["2"].block
    assert report.without_blocks == {"2: celu": "programs have no such step"}


def test_10_what_cannot_be_captured_is_said(device):
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.LSTM(144, 4))
    report = convert(model)
    assert "not been captured yet" in str(report)
    for _ in range(2):
        model(torch.randn(2, 3, 8, 8))
    assert "not been captured yet" not in str(report) and "LSTM" in " ".join(report.record.breaks.values())
    assert report.without_blocks[""].startswith("no graph has been captured so far")


# 11. Needs contiguous NCHW: channels_last fails.


@pytest.mark.parametrize("level", ["L2", "L3"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_11_channels_last(level, dtype, device):
    model = small_net().to(dtype).to(memory_format=torch.channels_last)
    exact = copy.deepcopy(model)
    convert(model, Config(level, **EIGHT), blocks=False)
    x = torch.randn(4, 3, 8, 8, dtype=dtype).to(memory_format=torch.channels_last)
    hidden = model[:4](x)
    assert hidden.is_contiguous(memory_format=torch.channels_last)
    model.zero_grad()
    exact.load_state_dict(model.state_dict())
    assert torch.equal(model(x), exact(x))
    wanted = gradients(exact, x)
    for name, gradient in gradients(model, x).items():
        if name.endswith("weight"):
            assert relative_error(gradient.float(), wanted[name].float()) < 0.1
            assert gradient.stride() == wanted[name].stride()


@pytest.mark.parametrize("make", [
    lambda: torch.randn(4, 8, 8, 3).permute(0, 3, 1, 2), lambda: torch.randn(3, 4, 8, 8).transpose(0, 1),
    lambda: torch.randn(4, 3, 16, 8)[:, :, ::2], lambda: torch.randn(1, 3, 8, 8).expand(4, 3, 8, 8),
])  # fmt: skip
@pytest.mark.parametrize("level", ["L2", "L3"])
def test_11_any_strides(make, level, device):
    x = make()
    results = []
    for value in (x, x.contiguous()):
        torch.manual_seed(0)
        model = small_net()
        convert(model, Config(level, stochastic=False, **EIGHT))
        results.append(gradients(model, value))
    for name, gradient in results[0].items():
        if name.endswith("weight"):
            assert relative_error(gradient, results[1][name]) < 0.05


# 12. No bfloat16, no CPU, FP16 BN fails.


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("level", ["L1", "L2", "L3"])
def test_12_every_dtype_on_every_device(dtype, level, device):
    model = small_net().to(dtype)
    convert(model, Config(level))
    for _ in range(2):
        found = gradients(model, torch.randn(4, 3, 8, 8, dtype=dtype))
        assert all(gradient.dtype == dtype and gradient.isfinite().all() for gradient in found.values())


@pytest.mark.parametrize("weight", [torch.float16, torch.float32])
def test_12_half_precision_batch_norm(weight, device):
    layer = nn.BatchNorm2d(4).to(weight)
    exact = copy.deepcopy(layer)
    convert(layer, eight_bits())
    x = torch.randn(8, 4, 9, 9).half()
    assert torch.equal(layer(x), exact(x))
    wanted = gradients(exact, x)
    for name, gradient in gradients(layer, x).items():
        assert gradient.dtype == weight and relative_error(gradient.float(), wanted[name].float()) < 0.1


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_12_autocast(dtype, device):
    model = small_net()
    convert(model, Config())
    for _ in range(2):
        with torch.autocast(device, dtype=dtype):
            y = model(torch.randn(4, 3, 8, 8))
        assert y.dtype == dtype
        y.float().square().sum().backward()
    assert all(p.grad.dtype == torch.float32 and p.grad.isfinite().all() for p in model.parameters())
    assert all(model[i].scheme.scales > 0 for i in (0, 3, 8))


# 13. QSyncBatchNorm is never reached by conversion.


@both_ways
def test_13_synchronized_batch_norms_are_converted(blocks, device):
    model = nn.SyncBatchNorm.convert_sync_batchnorm(small_net())
    report = convert(model, blocks=blocks)
    wanted, name = (nn.SyncBatchNorm, "") if blocks else (actnn.QSyncBatchNorm, "QSyncBatchNorm")
    assert type(model[1]) is type(model[4]) is wanted
    assert all(gradient.isfinite().all() for gradient in gradients(model, torch.randn(4, 3, 8, 8)).values())
    for entry in (report["1"], report["4"]):
        assert entry.outcome == "converted" and entry.replacement == name and bool(entry.block) == blocks


def _worker(rank, world, file, blocks, skip, results):
    torch.distributed.init_process_group("gloo", init_method=f"file://{file}", rank=rank, world_size=world)
    torch.manual_seed(0)
    x, grad = torch.randn(6, 4, 9, 9), torch.randn(6, 4, 9, 9)
    share = slice(0, 2) if rank == 0 else slice(2, 6)
    layer = nn.SyncBatchNorm(4)
    report = convert(layer, eight_bits(), blocks=blocks, skip=skip)
    y = layer(x[share])
    y.backward(grad[share])
    assert bool(report.graphs) == blocks
    results[rank] = (y.detach(), layer.weight.grad, layer.running_mean, layer.running_var)
    torch.distributed.destroy_process_group()


@pytest.mark.skipif(not hasattr(ops, "sync_batch_norm"), reason="this libactnn.so has no sync_batch_norm")
@pytest.mark.parametrize(
    ("blocks", "skip"),
    [(True, ()), (False, ()), (True, nn.SyncBatchNorm)],
    ids=["blocks", "layers", "skipped"],
)
def test_13_they_share_their_statistics(blocks, skip, tmp_path):
    with torch.multiprocessing.Manager() as manager:
        results = manager.dict()
        torch.multiprocessing.spawn(_worker, (2, tmp_path / "store", blocks, skip, results), nprocs=2)
        parts = [results[rank] for rank in range(2)]
    torch.manual_seed(0)
    x, grad = torch.randn(6, 4, 9, 9), torch.randn(6, 4, 9, 9)
    exact = nn.BatchNorm2d(4)
    y = exact(x)
    y.backward(grad)
    torch.testing.assert_close(torch.cat([part[0] for part in parts]), y.detach(), rtol=1e-4, atol=1e-5)
    error = relative_error(parts[0][1] + parts[1][1], exact.weight.grad)
    assert error < 0.02 and (error < 1e-5) == bool(skip)  # of eight bits, or exact
    for part in parts:
        torch.testing.assert_close(part[2], exact.running_mean)
        torch.testing.assert_close(part[3], exact.running_var)


# 14. Integer 32-bit overflow in sizes of large tensors.


@pytest.mark.cuda
def test_14_tensors_of_more_than_two_to_the_31_elements():
    count = 2**31 + 4096
    x = torch.zeros(count, dtype=torch.float16, device="cuda")
    x[-3000:] = torch.arange(3000, device="cuda") / 1000
    packed = ops.quantize(x, 8, 256, "nearest")
    copy_ = ops.dequantize(packed, [count], [1], torch.float16, 8, 256)
    assert (copy_[-3000:] - x[-3000:]).abs().max() < 0.01 and (copy_[:100_000] == 0).all()
    del copy_, packed
    y = ops.relu(x)
    assert torch.equal(y[-3000:], x[-3000:])


def test_14_sizes_beyond_32_bits_without_the_memory():
    # Shapes alone: the arithmetic of sizes is the same.
    x = torch.empty(3, 2**31, dtype=torch.float16, device="meta")
    for bits in (1, 2, 8):
        packed = ops.quantize(x, bits, 256, "dithered")
        assert packed.numel() == packed_bytes(3 * 2**31, bits)
        assert ops.dequantize(packed, x.shape, x.stride(), x.dtype, bits, 256).shape == x.shape
    y = actnn.QLinear(2**31, 1, config=Config("L2"), device="meta", dtype=torch.float16)(x)
    assert y.shape == (3, 1)


def test_14_budgets_beyond_32_bits():
    layers = 5
    weight = torch.full((layers,), 2**32)
    bits = ops.allocate_bits(
        torch.full((layers,), 8, dtype=torch.uint8), torch.ones(layers), weight, 3 * layers * 2**32
    )
    assert bits.tolist() == [3] * layers


# 15. ceil_mode, windows of 16+ elements and return_indices of max-pool are refused.


@both_ways
@pytest.mark.parametrize("return_indices", [False, True])
@pytest.mark.parametrize("arguments", [
    {"kernel_size": 2, "ceil_mode": True}, {"kernel_size": 4}, {"kernel_size": 17, "stride": 3},
    {"kernel_size": (5, 7), "stride": (2, 3), "padding": (2, 3), "dilation": (1, 2), "ceil_mode": True},
])  # fmt: skip
def test_15_every_window_of_a_max_pool(arguments, return_indices, blocks, device):
    layer = nn.MaxPool2d(**arguments, return_indices=return_indices)
    exact = copy.deepcopy(layer)
    convert(layer, Config("L2"), blocks=blocks)
    assert is_converted(layer, exact, blocks)
    x = torch.randn(2, 3, 19, 21)
    results = []
    for one in (layer, exact):
        z = x.clone().requires_grad_()
        y = one(z)
        y, indices = y if return_indices else (y, torch.zeros(1))
        torch.manual_seed(1)
        y.backward(torch.randn_like(y))
        results.append((y, indices, z.grad))
    torch.testing.assert_close(*results, rtol=1e-6, atol=1e-6)
    assert saves_less(layer, exact, x.requires_grad_() * 1)


# 16. A group of equal values divides by zero; NaN and Inf are turned into finite numbers.


@pytest.mark.parametrize("bits", [1, 2, 4, 8])
@pytest.mark.parametrize("value", [0.0, 3.0, -7.5, 1e30])
def test_16_a_group_of_equal_values_is_itself(bits, value, device):
    x = torch.full((2, 300), value)
    copy_ = ops.dequantize(ops.quantize(x, bits, 256, "dithered"), x.shape, x.stride(), x.dtype, bits, 256)
    torch.testing.assert_close(copy_, x, rtol=0.01, atol=0)


def test_16_the_originals_functions_too(device):
    from actnn.cpp_extension import quantization

    x = torch.full((2, 1, 32), 3.0)
    packed, scale = quantization.pack_single_precision(x, x[..., :1], x[..., :1], 2, True)
    assert torch.equal(quantization.unpack_single_precision(packed, 2, scale, x[..., :1], 2, 1, 32), x)
    x[0, 0, 3] = math.nan
    packed, scale = quantization.pack_single_precision(x, x[..., :1], x[..., :1] + 1, 2, True)
    copy_ = quantization.unpack_single_precision(packed, 2, scale, x[..., :1], 2, 1, 32)
    assert copy_[0].isnan().all() and torch.equal(copy_[1], x[1])


@pytest.mark.parametrize("level", ["L2", "L3"])
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_16_nan_and_infinity_stay(level, bad, device):
    layer = actnn.QLinear(64, 2, config=Config(level))
    x = torch.randn(8, 64)
    x[3, 5] = bad
    layer(x).sum().backward()
    assert not layer.weight.grad[:, 5].isfinite().any()
    layer = actnn.QConv2d(2, 2, 1, config=Config(level))
    image = torch.randn(4, 2, 8, 8)
    image[1, 1, 2, 3] = bad
    layer(image).sum().backward()
    assert not layer.weight.grad[:, 1].isfinite().any()


def test_16_training_goes_on_after_them(device):
    model = small_net()
    convert(model, Config())
    x = torch.randn(4, 3, 8, 8)
    gradients(model, x)
    bad = x.clone()
    bad[0, 0, 0, 0] = math.nan
    state = copy.deepcopy(model.state_dict())
    gradients(model, bad)
    model.load_state_dict(state)
    for _ in range(2):
        assert all(gradient.isfinite().all() for gradient in gradients(model, x).values())


def test_there_is_a_test_for_each():
    import re

    names = set(re.findall(r"^def test_(\d+)_", Path(__file__).read_text(), re.MULTILINE))
    assert names == {str(number) for number in range(1, 17)}


def test_the_package_imports_without_a_device():
    program = "import actnn; print(actnn.config.group_size)"
    environment = {"PYTHONPATH": str(Path(actnn.__file__).parent.parent), "CUDA_VISIBLE_DEVICES": "",
                   "ACTNN_BUILD_DIR": str(actnn._library.find().parent.parent)}  # fmt: skip
    command = [sys.executable, "-c", program]
    assert subprocess.run(command, env=environment, check=True, capture_output=True, text=True).stdout == "256\n"
