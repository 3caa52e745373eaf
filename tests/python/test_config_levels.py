"""The flags that save memory by other means than packing, and the levels, which set flags."""

import copy
import warnings

import actnn
import pytest
import torch
from actnn import Config, QModule, config, convert, set_optimization_level
from actnn import conf as conf_module
from configurations import DEFAULTS, fixed, gradients, one_thread, process_config, small_net  # noqa: F401
from saved_memory import saved_bytes
from torch import nn
from torch.profiler import ProfilerActivity, profile
from torch.utils._python_dispatch import TorchDispatchMode

pytestmark = pytest.mark.usefixtures("one_thread")


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
    convert(plain, plain_flags, blocks=False)  # what a block keeps is not seen by hooks
    sizes = {}
    for name, one in (("swapped", model), ("plain", plain)):
        kept = []
        with torch.autograd.graph.saved_tensors_hooks(lambda t, kept=kept: kept.append(t) or t, lambda t: t):
            y = one(x)
        kept = [t for t in kept if not (t.is_leaf and t.requires_grad)]
        sizes[name] = sum(t.nbytes for t in kept if t.is_cuda)
        assert all(t.is_pinned() for t in kept if not t.is_cuda)
        assert any(not t.is_cuda for t in kept) == (name == "swapped")
        torch.testing.assert_close(y, exact(x), rtol=1e-4, atol=1e-5)  # the exact layer may choose another algorithm
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
        convert(model, Config(level), blocks=False)
        gradients(model, x)
        kept.append(saved_bytes(lambda model=model: model(x))[0])
    assert kept[0] > kept[1] > kept[2] > kept[3] and kept[0] > 7 * kept[3]


def test_an_unknown_level(process_config):  # noqa: F811
    before = config.flags()
    for call in (lambda: set_optimization_level("L9"), lambda: Config("L9")):
        with pytest.raises(ValueError, match=r"optimization level must be one of .*L3.1.*, got 'L9'"):
            call()
    for level, got in ((None, "NoneType None"), (3, "int 3"), (3.1, "float 3.1")):
        for call in (lambda level=level: set_optimization_level(level), lambda level=level: Config(level)):
            with pytest.raises(TypeError, match=f"optimization level must be one of .*, got {got}"):
                call()
    with pytest.raises(TypeError, match=r"target must be an actnn.Config or None, got str 'L3'"):
        set_optimization_level("L3", "L3")
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


@pytest.mark.parametrize("switch", [True, False])
def test_cudnn_benchmark_conv2d_is_torchs_switch_by_default(switch, device, monkeypatch):
    monkeypatch.setattr(torch.backends.cudnn, "benchmark", switch)
    layer = actnn.QConv2d(4, 4, 3, config=fixed())
    with Calls(torch.ops.aten.convolution, lambda *_: torch.backends.cudnn.benchmark) as forward:
        layer(torch.randn(2, 4, 8, 8))
    assert forward.notes == [switch]
