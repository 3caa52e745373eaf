"""Every flag of the configuration does what it says."""

import copy
import pickle
import re
import warnings

import actnn
import pytest
import torch
from actnn import Config, QModule, config, convert, set_optimization_level
from actnn import conf as conf_module
from configurations import gradients, one_thread, process_config, relative_error, small_net  # noqa: F401
from saved_memory import packed_bytes, saved_bytes
from torch import nn
from torch.profiler import ProfilerActivity, profile
from torch.utils._python_dispatch import TorchDispatchMode

pytestmark = pytest.mark.usefixtures("one_thread")

DEFAULTS = {
    "compress_activation": True, "training": True, "activation_compression_bits": [2, 8, 8], "group_size": 256,
    "pergroup": True, "stochastic": True, "simulate": False, "enable_quantized_bn": True, "adaptive_conv_scheme": True,
    "adaptive_bn_scheme": True, "initial_bits": 8, "perlayer": True, "use_gradient": False, "noise_target": None,
    "empty_cache_threshold": None, "pipeline_threshold": None, "cudnn_benchmark_conv2d": True, "swap": False,
    "debug_memory_model": False, "debug_speed": False, "debug_memory_op_forward": False,
    "debug_memory_op_backward": False, "debug_remove_bn": False, "debug_remove_relu": False,
}  # fmt: skip


def fixed(**flags):
    """No bits of a sample's or a layer's own."""
    return Config(**{"adaptive_conv_scheme": False, "adaptive_bn_scheme": False} | flags)


def linear(flags, features=96, **arguments):
    """A linear layer with these flags."""
    layer = actnn.QLinear(features, 4, bias=False, config=flags, **arguments)
    with torch.no_grad():
        layer.weight.copy_(torch.randn(4, features))
    return layer


def weight_gradient(layer, x):
    """The gradient of the sum of the output; the same noise each time."""
    layer.weight.grad = None
    torch.manual_seed(3)
    layer(x).sum().backward()
    return layer.weight.grad


def test_there_are_the_originals_flags_and_defaults():
    assert Config().flags() == DEFAULTS and list(Config().flags()) == list(actnn.conf.FLAGS)
    assert set(DEFAULTS) == set(re.findall(r"^    (\w+)  +\S", Config.__doc__, re.MULTILINE))  # all are documented


# What is kept.


@pytest.mark.parametrize("flag", ["compress_activation", "training"])
def test_without_compression_activations_are_exact(flag, device):
    model = small_net()
    exact = copy.deepcopy(model)
    flags = Config()
    convert(model, flags)
    x = torch.randn(4, 3, 16, 16)
    compressed, _ = saved_bytes(lambda: model(x))
    setattr(flags, flag, False)  # at run time
    kept, _ = saved_bytes(lambda: model(x))
    assert kept > 3 * compressed
    for name, gradient in gradients(exact, x).items():
        torch.testing.assert_close(gradients(model, x)[name], gradient)
    setattr(flags, flag, True)
    assert saved_bytes(lambda: model(x))[0] == compressed


@pytest.mark.parametrize("bits", range(1, 9))
def test_activation_compression_bits(bits, device):
    x = torch.randn(7, 96)
    layer = linear(fixed(activation_compression_bits=[bits]))
    assert saved_bytes(lambda: layer(x))[0] == packed_bytes(x.numel(), bits)


def test_activation_compression_bits_are_by_group(device):
    flags = fixed(activation_compression_bits=[1, 4, 8])
    x = torch.randn(7, 96)
    layers = [linear(flags, group=group) for group in range(3)]
    sizes = [saved_bytes(lambda layer=layer: layer(x))[0] for layer in layers]
    assert sizes == [packed_bytes(x.numel(), bits) for bits in (1, 4, 8)]
    adaptive = Config(activation_compression_bits=[1, 4, 8])
    assert [linear(adaptive, group=group).scheme.bits for group in range(3)] == [1, 4, 8]


def test_group_size(device):
    x = torch.randn(16, 96)
    x[:, ::64] *= 100  # outliers coarsen their group
    errors = []
    for group_size in (32, 256, 1024):
        layer = linear(fixed(group_size=group_size, activation_compression_bits=[4]))
        assert saved_bytes(lambda layer=layer: layer(x))[0] == packed_bytes(x.numel(), 4, group_size)
        errors.append((weight_gradient(layer, x) - x.sum(0)).norm())
    assert errors[0] < errors[1]


def layers_with_copies(flags):
    """(layer, input, bytes kept besides the copies, copies)."""
    return [
        (actnn.QLinear(96, 4, config=flags), torch.randn(20, 96), 0, 1),
        (actnn.QGELU(config=flags), torch.randn(20, 96, requires_grad=True) * 1, 0, 1),
        (actnn.QTanh(config=flags), torch.randn(20, 96, requires_grad=True) * 1, 0, 1),
        (actnn.QSoftmax(-1, config=flags), torch.randn(20, 96, requires_grad=True) * 1, 0, 2),
        (actnn.QLogSoftmax(-1, config=flags), torch.randn(20, 96, requires_grad=True) * 1, 0, 1),
        (actnn.QLayerNorm(96, config=flags), torch.randn(20, 96, requires_grad=True) * 1, 2 * 20 * 4, 1),
        (actnn.QRMSNorm(96, config=flags), torch.randn(20, 96, requires_grad=True) * 1, 20 * 4, 1),
        (actnn.QGroupNorm(4, 96, config=flags), torch.randn(20, 96, requires_grad=True) * 1, 2 * 80 * 4, 1),
    ]


@pytest.mark.parametrize("pergroup", [True, False])
def test_pergroup(pergroup, device):
    flags = fixed(pergroup=pergroup, activation_compression_bits=[4])
    for layer, x, statistics, copies in layers_with_copies(flags):
        wanted = copies * packed_bytes(x.numel(), 4, 256 if pergroup else x.numel()) + statistics
        assert saved_bytes(lambda layer=layer, x=x: layer(x))[0] == wanted, layer


def test_without_pergroup_a_sample_with_bits_of_its_own_has_one_range(device):
    x = torch.randn(4, 8, 12, 12) * torch.tensor([1.0, 10, 1, 1])[:, None, None, None]
    sizes = []
    for pergroup in (True, False):
        layer = actnn.QConv2d(8, 4, 3, config=Config(pergroup=pergroup))
        sizes.append(saved_bytes(lambda layer=layer: layer(x))[0])
    groups = -(-8 * 144 // 256)
    assert sizes[0] - sizes[1] == 4 * 4 * groups - 16


def test_stochastic(device):
    x = torch.rand(4096, 8)
    layer = linear(fixed(stochastic=False, activation_compression_bits=[1]), 8)
    with torch.no_grad():
        x[:] = 0.3 * x[:1] + 0.1  # below the middle of its range
        x[::32, 0], x[::32, 1] = 0.0, 1.0
    nearest = weight_gradient(layer, x)
    torch.manual_seed(9)
    layer.weight.grad = None
    layer(x).sum().backward()
    assert torch.equal(layer.weight.grad, nearest)  # no noise
    assert ((nearest - x.sum(0)) / x.sum(0))[:, 2:].max() < -0.5  # and far off
    layer.config.stochastic = True
    random = weight_gradient(layer, x)
    assert relative_error(random, x.sum(0).expand_as(random)) < 0.1


def test_simulate(device):
    x = torch.randn(40, 96)
    for make in (fixed, Config):  # fixed and adaptive bits
        layers = [linear(make(simulate=simulate)) for simulate in (False, True)]
        sizes = [saved_bytes(lambda layer=layer: layer(x))[0] for layer in layers]
        # The simulated copy is as large as the input; adaptive bits besides.
        assert sizes[0] < x.nbytes / 8 and x.nbytes <= sizes[1] <= x.nbytes + 40
        for layer in layers:
            layer.weight.grad = None
        packed, simulated = (weight_gradient(layer, x) for layer in layers)
        assert torch.equal(packed, simulated)  # same numbers
        assert not torch.equal(packed, x.sum(0).expand_as(packed))


def test_enable_quantized_bn():
    for flag in (True, False):
        model = nn.Sequential(
            nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.BatchNorm1d(4), nn.BatchNorm3d(4), nn.SyncBatchNorm(4)
        )
        report = convert(model, Config(enable_quantized_bn=flag))
        assert [type(module).__name__.startswith("Q") for module in model] == [True] + 4 * [flag]
        assert flag or report["1"].reason == "enable_quantized_bn is off"


# Who gets how many bits.


def test_adaptive_schemes():
    for conv in (True, False):
        for bn in (True, False):
            model = small_net()
            convert(model, Config(adaptive_conv_scheme=conv, adaptive_bn_scheme=bn))
            assert [model[i].scheme is not None for i in (0, 3, 8)] == 3 * [conv]
            assert [model[i].scheme is not None for i in (1, 4)] == 2 * [bn]


@pytest.mark.parametrize("flag", ["adaptive_conv_scheme", "adaptive_bn_scheme"])
def test_adaptive_schemes_act_at_run_time(flag, device):
    layer_type = actnn.QConv2d if flag == "adaptive_conv_scheme" else actnn.QBatchNorm2d
    flags = Config()
    layer = layer_type(4, 4, 3, config=flags) if layer_type is actnn.QConv2d else layer_type(4, config=flags)
    x = torch.randn(8, 4, 9, 9) * torch.logspace(-2, 1, 8)[:, None, None, None]

    def spread():
        layer.scheme.bits = 4
        bits = layer.scheme.plan(x)["sample_bits"]
        return 0 if bits is None else (bits.max() - bits.min()).item()

    assert spread() > 0 or flag == "adaptive_bn_scheme"  # a batch norm without a layer before it has 8 bits
    setattr(flags, flag, False)
    assert spread() == 0


def test_initial_bits(device):
    x = torch.randn(16, 4, 9, 9) * torch.logspace(-3, 2, 16)[:, None, None, None]
    widest = {}
    for initial in (3, 5, 8):
        scheme = actnn.QConv2d(4, 4, 3, config=Config(initial_bits=initial)).scheme
        bits, _ = scheme.compute_quantization_bits(x)
        assert scheme.initial_bits == initial and bits.sum() <= 2 * 16
        widest[initial] = bits.max().item()
    assert widest[3] == 3 and widest[5] == 5 and widest[8] > 5


def test_initial_bits_below_the_average_do_not_lower_it():
    scheme = actnn.QConv2d(4, 4, 3, config=Config(initial_bits=1)).scheme
    bits, _ = scheme.compute_quantization_bits(torch.randn(6, 4, 9, 9))
    assert bits.tolist() == [2] * 6


@pytest.mark.parametrize("perlayer", [True, False])
def test_perlayer(perlayer, device):
    model = small_net()
    flags = Config(perlayer=perlayer)
    convert(model, flags)
    x = torch.randn(8, 3, 12, 12)
    for _ in range(3):
        gradients(model, x)
    if device == "cuda":
        torch.cuda.synchronize()
    model(x)
    bits = [model[i].scheme.bits for i in (0, 3, 8)]
    assert (bits == [2, 2, 2]) != perlayer


def test_use_gradient(device):
    flags = Config(use_gradient=True)
    flags.policy.set_num_samples(50)
    layer = linear(flags)
    flags.policy.set_batch(torch.tensor([3, 49, 7]))
    layer(torch.randn(3, 96)).sum().backward()
    assert layer.scheme.scales.shape == (50,)
    assert layer.scheme.scales.nonzero().flatten().tolist() == [3, 7, 49]
    flags = Config()
    layer = linear(flags)
    layer(torch.randn(3, 96)).sum().backward()
    assert layer.scheme.scales.shape == () and layer.scheme.scales > 0


def test_noise_target(device):
    x = torch.randn(32, 3, 12, 12)
    kept, noise = [], []
    for target in (1e-4, 1e-2, 1.0):
        torch.manual_seed(0)
        model = small_net()
        flags = Config(noise_target=target)
        convert(model, flags)
        for _ in range(3):
            gradients(model, x)
        kept.append(saved_bytes(lambda model=model: model(x))[0])
        gradients(model, x)
        noise.append(actnn.predicted_gradient_noise(flags))
        assert noise[-1] < 2 * target
    assert kept[0] > kept[1] > kept[2] and noise[0] < noise[1] < noise[2]


# Memory.


@pytest.mark.cuda
def test_empty_cache_threshold_releases_the_cache():
    model = nn.Sequential(actnn.QConv2d(3, 4, 3, config=(flags := Config())), actnn.QLinear(6, 6, config=flags)).cuda()
    fixed_layer = actnn.QLinear(6, 6, config=fixed(empty_cache_threshold=0.9)).cuda()
    x = torch.randn(2, 3, 8, 8, device="cuda")

    def reserve():
        torch.empty(256 << 20, dtype=torch.uint8, device="cuda")
        return torch.cuda.memory_reserved()

    model(x).sum().backward()  # cuDNN's benchmark releases the cache too, once
    torch.cuda.empty_cache()
    before = reserve()
    y = model(x)
    assert torch.cuda.memory_reserved() == before
    flags.empty_cache_threshold = 0.9
    model(x)
    assert torch.cuda.memory_reserved() < before  # in forward
    y = model(x)
    before = reserve()
    y.sum().backward()
    assert torch.cuda.memory_reserved() < before  # and in backward
    before = reserve()
    y = fixed_layer(x[..., :6])
    assert torch.cuda.memory_reserved() < before  # without a scheme too
    before = reserve()
    y.sum().backward()
    assert torch.cuda.memory_reserved() < before


class Calls(TorchDispatchMode):
    """Notes the operations that are called, with `note()`."""

    def __init__(self, operation, note=lambda *args: None):
        super().__init__()
        self.operation, self.note, self.notes = operation, note, []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if function.overloadpacket is self.operation:
            self.notes.append(self.note(*args))
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize("adaptive", [True, False])
def test_pipeline_threshold_cuts_a_backward_up(adaptive, device):
    x = torch.randn(8, 4, 10, 10)
    for make in (lambda flags: actnn.QConv2d(4, 4, 3, padding=1, config=flags),
                 lambda flags: actnn.QConvTranspose2d(4, 4, 3, padding=1, config=flags)):  # fmt: skip
        results = []
        for samples in (None, 100, 3, 1, 0.01):
            bytes_ = None if samples is None else int(samples * 3 * x[0].nbytes)
            flags = (Config if adaptive else fixed)(pipeline_threshold=bytes_)
            torch.manual_seed(0)
            layer = make(flags)
            z = x.clone().requires_grad_()
            y = layer(z)
            # A dispatch mode would be taken for a compiler, which sees no parts.
            with profile(activities=[ProfilerActivity.CPU], record_shapes=True) as profiled:
                y.square().sum().backward()
            calls = [event for event in profiled.events() if event.name == "aten::convolution_backward"]
            assert [event.input_shapes[0][0] for event in calls] == {
                None: [8],
                100: [8],
                3: [3, 3, 2],
                1: [1] * 8,
                0.01: [1] * 8,
            }[samples]
            results.append((z.grad, layer.weight.grad, layer.bias.grad))
        for result in results[1:]:
            for actual, wanted in zip(result, results[0], strict=True):
                torch.testing.assert_close(actual, wanted, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("adaptive", [True, False])
@pytest.mark.parametrize("wanted", [True, False])
def test_cudnn_benchmark_conv2d_holds_in_forward_and_backward(wanted, adaptive, device, monkeypatch):
    aten = torch.ops.aten
    flags = (Config if adaptive else fixed)()
    conf_module._said.add("")  # a flag for CUDA only warns elsewhere
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        flags.cudnn_benchmark_conv2d = wanted
    layers = [actnn.QConv2d(4, 4, 3, config=flags), actnn.QConvTranspose2d(4, 4, 3, config=flags)]
    monkeypatch.setattr(torch.backends.cudnn, "benchmark", not wanted)
    for layer in layers:
        with Calls(aten.convolution, lambda *_: torch.backends.cudnn.benchmark) as forward:
            y = layer(torch.randn(2, 4, 8, 8))
        with Calls(aten.convolution_backward, lambda *_: torch.backends.cudnn.benchmark) as backward:
            y.sum().backward()
        assert forward.notes == backward.notes == [wanted]
        assert torch.backends.cudnn.benchmark is not wanted  # as it was
    line = actnn.QConv1d(4, 4, 3, config=flags)
    with Calls(aten.convolution, lambda *_: torch.backends.cudnn.benchmark) as forward:
        line(torch.randn(2, 4, 8))
    assert forward.notes == [not wanted]  # of 2-D convolutions only


@pytest.mark.cuda
@pytest.mark.parametrize("level", ["L2", "L3", "swap"])
def test_swap_keeps_the_data_in_pinned_host_memory(level):
    x = torch.randn(16, 3, 32, 32, device="cuda")
    torch.manual_seed(0)
    model = small_net().cuda()
    exact = copy.deepcopy(model)
    plain = copy.deepcopy(model)
    flags, plain_flags = Config(level, swap=True), Config(level, swap=False, compress_activation=level != "swap")
    convert(model, flags)
    convert(plain, plain_flags)
    sizes = {}
    for name, one in (("swapped", model), ("plain", plain)):
        kept = []
        with torch.autograd.graph.saved_tensors_hooks(lambda t, kept=kept: kept.append(t) or t, lambda t: t):
            y = one(x)
        kept = [t for t in kept if not (t.is_leaf and t.requires_grad)]
        sizes[name] = sum(t.nbytes for t in kept if t.is_cuda)
        assert all(t.is_pinned() for t in kept if not t.is_cuda)
        assert any(not t.is_cuda for t in kept) == (name == "swapped")
        assert torch.equal(y, exact(x))
    assert sizes["swapped"] < sizes["plain"] / 3
    results = []
    for one in (model, plain):
        torch.manual_seed(5)
        results.append(gradients(one, x))
    if level != "swap":
        for name, gradient in results[0].items():
            torch.testing.assert_close(gradient, results[1][name])
    for name, gradient in gradients(exact, x).items():
        if level == "swap" and not name.endswith("bias"):
            torch.testing.assert_close(results[0][name], gradient)


@pytest.fixture
def no_cuda(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(conf_module, "_said", set())


@pytest.mark.parametrize(("flag", "value"), [
    ("empty_cache_threshold", 0.2), ("cudnn_benchmark_conv2d", False), ("swap", True)])  # fmt: skip
def test_flags_for_cuda_only_warn_once_elsewhere(flag, value, no_cuda, recwarn):
    flags = Config()
    assert not recwarn.list
    setattr(flags, flag, value)
    setattr(flags, flag, getattr(Config(), flag))  # its default: no warning
    setattr(flags, flag, value)
    setattr(Config(), flag, value)
    (warning,) = recwarn.list
    assert f"{flag} acts on CUDA devices only" in str(warning.message) and warning.filename == __file__
    layer = actnn.QConv2d(3, 4, 3, config=flags)
    layer(torch.randn(2, 3, 8, 8, device="cpu")).sum().backward()  # and does nothing
    assert len(recwarn.list) == 1


def test_other_flags_warn_nowhere(no_cuda, recwarn):
    for name, value in DEFAULTS.items():
        flags = Config()
        if isinstance(value, bool) and name not in ("cudnn_benchmark_conv2d", "swap"):
            setattr(flags, name, not value)
    assert not recwarn.list


# Debugging.


def lines_of(capsys):
    return capsys.readouterr().out.splitlines()


@pytest.mark.parametrize("flag", ["debug_memory_model", "debug_speed", "debug_memory_op_forward",
                                  "debug_memory_op_backward"])  # fmt: skip
def test_debugging_flags_print(flag, capsys, device):
    flags = Config()
    model = QModule(small_net(), flags)
    x = torch.randn(2, 3, 8, 8)
    model(x).sum().backward()
    assert lines_of(capsys) == []
    setattr(flags, flag, True)
    model(x).sum().backward()
    lines = lines_of(capsys)
    used = r"\d+\.\d\d MiB in use"
    if flag == "debug_memory_model":
        assert [re.sub(used, "", line) for line in lines] == ["before forward: ", "after forward: "]
    elif flag == "debug_speed":
        assert len(lines) == 1 and re.fullmatch(r"forward: \d+\.\d\d ms", lines[0])
    else:
        way = flag.removeprefix("debug_memory_op_")
        names = ["0", "1", "2", "3", "4", "5", "6", "8"]  # by path
        expected = [f"{name} {way}: " for name in (names if way == "forward" else names[::-1])]
        assert [re.sub(used, "", line) for line in lines] == expected


def test_debug_memory_op_is_for_every_layer(capsys):
    flags = fixed(debug_memory_op_forward=True, debug_memory_op_backward=True)
    for layer, x, *_ in layers_with_copies(flags):
        layer(x).sum().backward()
        name = type(layer).__name__
        assert [line.split(":")[0] for line in lines_of(capsys)] == [f"{name} forward", f"{name} backward"]


def test_debug_remove_bn_and_relu(device):
    flags = Config()
    norm, relu, x = actnn.QBatchNorm2d(3, config=flags), actnn.QReLU(config=flags), torch.randn(2, 3, 4, 4)
    assert not torch.equal(norm(x), x) and not torch.equal(relu(x), x)
    flags.debug_remove_bn = True
    assert norm(x) is x and relu(x) is not x
    flags.debug_remove_relu = True
    assert relu(x) is x
    flags.debug_remove_bn = False
    assert not torch.equal(norm(x), x)


# Levels.

FOUR = {"activation_compression_bits": [4], "adaptive_conv_scheme": False, "adaptive_bn_scheme": False}
NOTHING = {"compress_activation": False, "adaptive_conv_scheme": False, "adaptive_bn_scheme": False}
LESS = {"cudnn_benchmark_conv2d": False, "empty_cache_threshold": 0.2, "pipeline_threshold": 3 << 30}
LEVELS = {
    "L0": NOTHING,
    "L1": FOUR | {"enable_quantized_bn": False},
    "L2": FOUR,
    "L3": {},
    "L3.1": LESS,
    "L4": LESS | {"swap": True},
    "L5": LESS | {"swap": True},
    "swap": NOTHING | {"swap": True},
}


@pytest.mark.filterwarnings("ignore:actnn")
@pytest.mark.parametrize("level", LEVELS)
def test_what_a_level_sets(level, monkeypatch, process_config):  # noqa: F811
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)  # the allocator's option would stay
    assert Config(level).flags() == DEFAULTS | LEVELS[level]
    for before in LEVELS:
        set_optimization_level(before)
        set_optimization_level(level)
        assert config.flags() == DEFAULTS | LEVELS[level]
    own = Config("L2", group_size=64, noise_target=0.1)
    set_optimization_level(level, own)
    assert own.flags() == DEFAULTS | LEVELS[level] | {"group_size": 64, "noise_target": 0.1}  # the others stay


def test_levels_are_ordered_by_what_they_keep(device):
    x = torch.randn(16, 3, 16, 16)
    kept = []
    for level in ("L0", "L1", "L2", "L3"):
        model = small_net()
        convert(model, Config(level))
        gradients(model, x)
        kept.append(saved_bytes(lambda model=model: model(x))[0])
    assert kept[0] > kept[1] > kept[2] > kept[3] and kept[0] > 7 * kept[3]


def test_an_unknown_level(process_config):  # noqa: F811
    before = config.flags()
    for call in (lambda: set_optimization_level("L9"), lambda: Config("L9")):
        with pytest.raises(ValueError, match=r"optimization level must be one of .*L3.1.*, got 'L9'"):
            call()
    assert config.flags() == before


def test_level_5_sets_the_allocators_option(monkeypatch, process_config):  # noqa: F811
    said = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda.memory, "_set_allocator_settings", said.append)
    monkeypatch.setattr(conf_module, "_said", set())
    for level in ("L0", "L1", "L2", "L3", "L3.1", "L4", "swap"):
        set_optimization_level(level)
    assert said == []
    with pytest.warns(UserWarning, match="level L5 set the CUDA allocator's option expandable_segments:True"):
        set_optimization_level("L5")
    assert said == ["expandable_segments:True"]


def test_level_5_says_that_there_is_no_device(no_cuda, process_config):  # noqa: F811
    with pytest.warns(UserWarning) as caught:
        set_optimization_level("L5")
        set_optimization_level("L5")
    said = [str(warning.message) for warning in caught]
    assert len(said) == len(set(said)) == 4  # three flags and the option, each once
    assert sum("expandable_segments:True, but there is no CUDA device" in sentence for sentence in said) == 1


@pytest.mark.cuda
def test_level_5_on_a_device(process_config):  # noqa: F811
    try:
        set_optimization_level("L5")
        settings = torch.cuda.memory._snapshot()["allocator_settings"]
        assert settings["expandable_segments"]
        model = QModule(small_net()).cuda()
        for _ in range(3):
            gradients(model, torch.randn(4, 3, 16, 16, device="cuda"))
    finally:
        torch.cuda.memory._set_allocator_settings("expandable_segments:False")


# Errors, copies.


@pytest.mark.parametrize(("flag", "value", "kind", "rule"), [
    ("group_size", 100, ValueError, "must be a positive multiple of 32, got 100"),
    ("group_size", 0, ValueError, "must be a positive multiple of 32, got 0"),
    ("group_size", 64.0, TypeError, "must be an int, got Double"),
    ("group_size", "64", TypeError, "must be an int, got String"),
    ("activation_compression_bits", [2, 9], ValueError, r"must be one width in 1..8 or more, got \[2, 9\]"),
    ("activation_compression_bits", [0], ValueError, r"must be one width in 1..8 or more, got \[0\]"),
    ("activation_compression_bits", [], ValueError, "must not be an empty list"),
    ("activation_compression_bits", 4, TypeError, "must be a list of ints, got Int"),
    ("activation_compression_bits", [2.5], TypeError, "must be a list of ints, got .*List"),
    ("initial_bits", 9, ValueError, "must be in 1..8, got 9"),
    ("initial_bits", True, TypeError, "must be an int, got Bool"),
    ("initial_bits", None, TypeError, "must be an int, got None"),
    ("empty_cache_threshold", 1.5, ValueError, "must be in 0..1 or None, got 1.5"),
    ("empty_cache_threshold", float("nan"), ValueError, "must be in 0..1 or None, got nan"),
    ("pipeline_threshold", 0, ValueError, "must be a positive number of bytes or None, got 0"),
    ("pipeline_threshold", 2.5, TypeError, "must be an int or None, got Double"),
    ("noise_target", 0, ValueError, "must be positive or None, got 0"),
    ("noise_target", -1.0, ValueError, "must be positive or None, got -1"),
    ("noise_target", "low", TypeError, "must be a number or None, got String"),
    ("stochastic", 1, TypeError, "must be a bool, got Int"),
    ("swap", None, TypeError, "must be a bool, got None"),
])  # fmt: skip
def test_errors_name_flag_rule_and_value(flag, value, kind, rule):
    flags = Config()
    with pytest.raises(kind, match=f"actnn::Config: {flag} {rule}"):
        setattr(flags, flag, value)
    assert flags.flags() == DEFAULTS
    with pytest.raises(kind, match=f"{flag} {rule}"):
        Config(**{flag: value})


def test_values_of_no_type_that_a_flag_could_have():
    for value in (object(), [1, "a"], {"a": 1}, torch.nn.ReLU()):
        with pytest.raises(TypeError, match=r"actnn::Config: group_size must be .*, got "):
            Config(group_size=value)
    np = pytest.importorskip("numpy")
    assert Config(group_size=np.int64(64), noise_target=np.float32(0.5)).group_size == 64


def test_unknown_flags():
    with pytest.raises(ValueError, match=r"there is no flag 'groupsize'; there are .*group_size"):
        config.groupsize = 64
    with pytest.raises(ValueError, match="there is no flag 'bits'"):
        Config(bits=3)
    with pytest.raises(AttributeError):
        config.groupsize  # noqa: B018


@pytest.mark.parametrize(("change", "result"), [
    (lambda bits: bits.__setitem__(0, 4), [4, 8, 8]),
    (lambda bits: bits.__setitem__(slice(1, 3), [1]), [2, 1]),
    (lambda bits: bits.append(3), [2, 8, 8, 3]),
    (lambda bits: bits.extend([3, 5]), [2, 8, 8, 3, 5]),
    (lambda bits: bits.insert(0, 6), [6, 2, 8, 8]),
    (lambda bits: bits.pop(), [2, 8]),
    (lambda bits: bits.remove(8), [2, 8]),
    (lambda bits: bits.reverse(), [8, 8, 2]),
    (lambda bits: bits.sort(reverse=True), [8, 8, 2]),
    (lambda bits: bits.__delitem__(0), [8, 8]),
    (lambda bits: bits.__iadd__([1]), [2, 8, 8, 1]),
    (lambda bits: bits.__imul__(2), [2, 8, 8, 2, 8, 8]),
])  # fmt: skip
def test_lists_can_be_changed_in_place(change, result):
    flags = Config()
    bits = flags.activation_compression_bits
    change(bits)
    assert flags.activation_compression_bits == bits == flags.policy.get_flag("activation_compression_bits") == result
    change(flags.activation_compression_bits)  # again, on what is there now
    assert flags.activation_compression_bits == flags.policy.get_flag("activation_compression_bits")


def test_a_change_in_place_that_is_wrong_changes_nothing():
    flags = Config()
    for change in (lambda bits: bits.append(9), lambda bits: bits.clear(), lambda bits: bits.__setitem__(0, 0)):
        with pytest.raises(ValueError, match="activation_compression_bits must"):
            change(flags.activation_compression_bits)
        assert flags.activation_compression_bits == flags.policy.get_flag("activation_compression_bits") == [2, 8, 8]
    flags.activation_compression_bits += [4]
    assert flags.policy.get_flag("activation_compression_bits") == [2, 8, 8, 4]


def test_tuples_and_tensors_as_lists():
    assert Config(activation_compression_bits=(3, 4)).activation_compression_bits == [3, 4]


def test_copies_of_a_configuration():
    flags = Config("L2", group_size=64)
    assert copy.deepcopy(flags) is flags  # the same policy
    assert pickle.loads(pickle.dumps(flags)) == flags
    assert pickle.loads(pickle.dumps(config)) is config
    assert pickle.loads(pickle.dumps(flags.activation_compression_bits)) == [4]
    assert type(copy.deepcopy(flags.activation_compression_bits)) is list
    other = Config(**flags.flags())
    assert other == flags and other is not flags
    other.group_size = 32
    assert other != flags and flags.group_size == 64
    other.update(flags)
    assert other == flags
    assert eval(repr(flags), {"Config": Config}) == flags
