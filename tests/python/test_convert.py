"""Conversion of layers, and restore: what stays, what is reported, and the way back."""

import copy
import functools
import pickle
import sys

import actnn
import pytest
import torch
from actnn import Config, restore
from actnn.convert import CONVERTED, LEFT, TRAVERSED, Entry
from actnn.layers import QuantizedLayer
from configurations import eight_bits, one_thread, relative_error, small_net  # noqa: F401
from saved_memory import saved_bytes
from torch import nn
from torch.nn.utils import parametrizations, parametrize

pytestmark = pytest.mark.usefixtures("one_thread")
convert = functools.partial(actnn.convert, blocks=False)


# What stays.


def test_conversion_is_in_place():
    model = small_net()
    modules, names = list(model.modules()), [name for name, _ in model.named_modules()]
    parameters, buffers = list(model.parameters()), list(model.buffers())
    values = [p.detach().clone() for p in parameters]
    report = convert(model, eight_bits())
    assert all(a is b for a, b in zip(model.modules(), modules, strict=True))
    assert [name for name, _ in model.named_modules()] == names
    assert all(a is b for a, b in zip(model.parameters(), parameters, strict=True))
    assert all(a is b for a, b in zip(model.buffers(), buffers, strict=True))
    assert all(torch.equal(p, v) for p, v in zip(parameters, values, strict=True))
    assert report.count(CONVERTED) == 8 and [entry.path for entry in report.left_alone] == ["7"]


def test_an_optimizer_made_before_conversion_trains_the_model():
    model = small_net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    convert(model, eight_bits())
    before = [p.detach().clone() for p in model.parameters()]
    nn.functional.cross_entropy(model(torch.randn(4, 3, 8, 8)), torch.arange(4)).backward()
    optimizer.step()
    changed = [not torch.equal(p, b) for p, b in zip(model.parameters(), before, strict=True)]
    names = [name for name, _ in model.named_parameters()]
    # A bias before a batch norm has no gradient but rounding errors.
    assert all(c for c, name in zip(changed, names, strict=True) if name not in ("0.bias", "3.bias"))


def test_requires_grad_dtype_and_training_flags_stay():
    model = small_net().to(torch.bfloat16)
    model[0].weight.requires_grad_(False)
    model[1].eval()
    convert(model, eight_bits())
    assert not model[0].weight.requires_grad and model[0].bias.requires_grad
    assert not model[1].training and model[0].training
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}


def test_hooks_stay_and_fire():
    layer = nn.Conv2d(3, 4, 3)
    fired = []
    layer.register_forward_pre_hook(lambda *_: fired.append("pre"))
    layer.register_forward_hook(lambda *_: fired.append("forward"))
    layer.register_full_backward_pre_hook(lambda *_: fired.append("backward pre"))
    layer.register_full_backward_hook(lambda *_: fired.append("backward"))
    layer.weight.register_hook(lambda grad: fired.append("weight") or 2 * grad)
    layer.register_state_dict_pre_hook(lambda *_: fired.append("state"))
    convert(layer, eight_bits())
    x = torch.randn(2, 3, 6, 6, requires_grad=True)
    layer(x).sum().backward()
    assert fired[:3] == ["pre", "forward", "backward pre"] and set(fired[3:]) == {"weight", "backward"}
    twice = layer.weight.grad
    layer.weight.grad = None
    exact = nn.functional.conv2d(x, layer.weight, layer.bias).sum()
    assert relative_error(twice, torch.autograd.grad(exact, layer.weight)[0]) < 0.04  # both through the hook
    layer.state_dict()
    assert fired[-1] == "state"
    restore(layer)
    layer(x)
    assert fired[-2:] == ["pre", "forward"]


def test_tied_weights_stay_tied():
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.embedding, self.head = nn.Embedding(20, 8), nn.Linear(8, 20, bias=False)
            self.head.weight = self.embedding.weight

        def forward(self, x):
            return self.head(self.embedding(x))

    model = Tied()
    exact = copy.deepcopy(model)
    convert(model, eight_bits())
    assert model.head.weight is model.embedding.weight and len(list(model.parameters())) == 1
    x = torch.randint(20, (16, 4))
    model(x).square().sum().backward()
    exact(x).square().sum().backward()
    assert relative_error(model.embedding.weight.grad, exact.embedding.weight.grad) < 0.02


def test_shared_modules_stay_shared_and_are_converted_once():
    class Shared(nn.Module):
        def __init__(self):
            super().__init__()
            self.first = nn.Linear(8, 8)
            self.second = nn.Sequential(self.first, nn.ReLU())

        def forward(self, x):
            return self.second(self.first(x))

    model = Shared()
    report = convert(model, eight_bits())
    assert model.first is model.second[0] and type(model.first) is actnn.QLinear
    assert report["second.0"].outcome == CONVERTED and "same as 'first'" in report["second.0"].reason
    model(torch.randn(4, 8)).sum().backward()


def test_a_shared_module_is_skipped_by_each_of_its_paths():
    for path in ("0", "1.0"):
        shared = nn.Linear(8, 8)
        model = nn.Sequential(shared, nn.Sequential(shared, nn.Linear(8, 8)))
        report = convert(model, eight_bits(), skip=path)
        assert type(shared) is nn.Linear and type(model[1][1]) is actnn.QLinear
        assert report["0"].outcome == report["1.0"].outcome == LEFT


# Parametrizations.


def weight_norm(layer):
    return parametrizations.weight_norm(layer)


def spectral_norm(layer):
    return parametrizations.spectral_norm(layer)


def old_weight_norm(layer):
    return torch.nn.utils.weight_norm(layer)


def old_spectral_norm(layer):
    return torch.nn.utils.spectral_norm(layer)


@pytest.mark.parametrize("norm", [weight_norm, spectral_norm, old_weight_norm, old_spectral_norm])
@pytest.mark.parametrize("make", [lambda: nn.Conv2d(4, 6, 3), lambda: nn.ConvTranspose2d(4, 6, 3)])
@pytest.mark.filterwarnings("ignore:.*weight_norm")
def test_parametrized_layers(norm, make):
    torch.manual_seed(1)
    layer = norm(make())
    torch.manual_seed(1)
    exact = norm(make())
    keys = list(layer.state_dict())
    report = convert(layer, eight_bits())
    assert isinstance(layer, QuantizedLayer) and report.count(CONVERTED) == 1
    assert list(layer.state_dict()) == keys
    x = torch.randn(4, 4, 8, 8)
    y, wanted = layer(x), exact(x)
    assert torch.equal(y, wanted)
    grad = torch.randn_like(y)
    y.backward(grad)
    wanted.backward(grad)
    for p, q in zip(layer.parameters(), exact.parameters(), strict=True):
        assert relative_error(p.grad, q.grad) < 0.02
    if parametrize.is_parametrized(layer):  # torch copies no others
        again = copy.deepcopy(layer)
        assert isinstance(again, QuantizedLayer) and torch.equal(again.eval()(x), layer.eval()(x))
    restore(layer)
    assert not isinstance(layer, QuantizedLayer) and type(layer).__name__ == type(exact).__name__
    assert torch.equal(layer.eval()(x), exact.eval()(x))


def test_parametrizations_can_be_removed_after_conversion():
    layer = parametrizations.weight_norm(nn.Linear(8, 4))
    exact = layer.weight.detach().clone()
    convert(layer, eight_bits())
    parametrize.remove_parametrizations(layer, "weight")
    assert type(layer) is actnn.QLinear and torch.equal(layer.weight, exact)
    layer(torch.randn(4, 8)).sum().backward()
    restore(layer)
    assert type(layer) is nn.Linear


def test_parametrizations_can_be_added_after_conversion():
    layer = nn.Linear(8, 4)
    convert(layer, eight_bits())
    parametrizations.weight_norm(layer)
    x = torch.randn(4, 8)
    layer(x).sum().backward()
    assert convert(layer, eight_bits())[""].reason == "already compressed"
    before = layer(x)
    restore(layer)
    assert not isinstance(layer, QuantizedLayer) and isinstance(layer, nn.Linear)
    assert torch.equal(layer(x), before)
    parametrize.remove_parametrizations(layer, "weight")
    assert type(layer) is nn.Linear


# What is left alone, and why.


def test_skip_by_path_type_and_function():
    def types(**arguments):
        model = nn.Sequential(small_net(), nn.Linear(5, 5))
        report = convert(model, eight_bits(), **arguments)
        return [type(module).__name__ for _, module in model.named_modules()], report

    names, report = types(skip="0.3")
    assert names[2] == "QConv2d" and names[5] == "Conv2d" and report["0.3"].reason == "skipped"
    names, report = types(skip=["0"])  # and everything below it
    assert not any(name.startswith("Q") for name in names[1:-1]) and names[-1] == "QLinear"
    assert report["0.3"].reason == "skipped with '0'"
    names, _ = types(skip=(nn.Conv2d, "1"))
    assert names.count("Conv2d") == 2 and names[-1] == "Linear" and "QBatchNorm2d" in names
    names, _ = types(skip=nn.BatchNorm2d)
    assert names.count("BatchNorm2d") == 2 and "QConv2d" in names
    names, _ = types(skip=lambda path, module: path.endswith("8") or isinstance(module, nn.ReLU))
    assert names.count("ReLU") == 2 and names.count("Linear") == 1
    assert not any(name.startswith("Q") for name in types(skip=lambda path, module: path == "")[0])


def test_wrong_arguments():
    with pytest.raises(ValueError, match=r"skip must name modules of the model, got \['3.conv'\]"):
        convert(small_net(), skip="3.conv")
    for entry, got in ((3, "3"), (None, "None"), (int, "<class 'int'>"), (["0"], r"\['0'\]"), (nn.ReLU(), r"ReLU\(\)")):
        with pytest.raises(TypeError, match=f"skip must hold paths and types of modules, got {got}"):
            convert(small_net(), skip=["0", entry])
    for skip, got in ((None, "NoneType"), (3, "int"), (nn.ReLU(), "ReLU"), (nn.Sequential(), "Sequential")):
        sentence = f"skip must be paths and types of modules, or a function of path and module, got {got}"
        with pytest.raises(TypeError, match=sentence):
            convert(small_net(), skip=skip)
    with pytest.raises(TypeError, match=r"model must be a torch.nn.Module, got list"):
        convert([nn.Linear(3, 3)])
    with pytest.raises(TypeError, match=r"config must be an actnn.Config or None, got str"):
        convert(small_net(), "L3")
    with pytest.raises(TypeError, match=r"restore: model must be a torch.nn.Module, got NoneType"):
        restore(None)


def test_other_dtypes_are_left_alone():
    model = nn.Sequential(nn.Conv2d(3, 4, 3).double(), nn.Conv2d(4, 4, 3), nn.Linear(4, 4, dtype=torch.complex64))
    report = convert(model, eight_bits())
    assert report["0"].outcome == LEFT and report["0"].reason == "weight is float64, not float32, float16 or bfloat16"
    assert report["1"].outcome == CONVERTED
    assert report["2"].outcome == LEFT and "complex64" in report["2"].reason


class OwnForward(nn.Conv2d):
    def forward(self, x):
        return 2 * super().forward(x)


class OwnInit(nn.Conv2d):
    def __init__(self, channels):
        super().__init__(channels, channels, 3)


def test_subclasses_are_left_alone():
    model = nn.Sequential(OwnForward(3, 4, 3), nn.Sequential(OwnInit(4)))
    report = convert(model, eight_bits())
    assert type(model[0]) is OwnForward and report["0"].outcome == LEFT
    assert report["0"].reason == "a subclass of Conv2d with a forward of its own"
    assert type(model[1][0]) is OwnInit and report["1.0"].reason == "a subclass of Conv2d"


class Scheme(nn.Module):
    """A module of the user's that a layer holds."""


@pytest.mark.parametrize("wrap", [convert, lambda *args, **kwargs: actnn.QModule(*args, **kwargs).report])
@pytest.mark.parametrize(
    ("attribute", "value"),
    [("name", "stem"), ("group", None), ("group", torch.zeros(2)), ("config", {"depth": 3}), ("scheme", Scheme())],
)
def test_attributes_of_the_users_stay(attribute, value, wrap):
    model = small_net()
    if isinstance(value, torch.Tensor):
        model[0].register_buffer(attribute, value)
    else:
        setattr(model[0], attribute, value)
    report = wrap(model, eight_bits(), blocks=False)
    assert type(model[0]) is actnn.QConv2d and getattr(model[0], attribute) is value
    assert report.count(CONVERTED) == 8
    model(torch.randn(2, 3, 8, 8)).sum().backward()
    assert type(getattr(copy.deepcopy(model)[0], attribute)) is type(value)
    restore(model)
    assert type(model[0]) is nn.Conv2d and getattr(model[0], attribute) is value


def test_scripted_modules_are_left_alone():
    script = torch.jit.script(nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU()))
    model = nn.Sequential(script, nn.Conv2d(4, 4, 3))
    report = convert(model, eight_bits())
    assert report["0"].outcome == LEFT and report["0"].reason == "a scripted module"
    assert [entry.path for entry in report.entries] == ["", "0", "1"]
    model(torch.randn(1, 3, 8, 8)).sum().backward()
    assert convert(script, eight_bits())[""].outcome == LEFT


def test_lazy_modules_are_left_alone_until_they_are_complete():
    model = nn.Sequential(nn.LazyConv2d(4, 3), nn.LazyBatchNorm2d(), nn.LazyLinear(5))
    report = convert(model, eight_bits())
    assert report.count(LEFT) == 3 and all("lazy" in entry.reason for entry in report.left_alone)
    model(torch.randn(2, 3, 8, 8))
    assert convert(model, eight_bits()).count(CONVERTED) == 3
    model(torch.randn(2, 3, 8, 8)).sum().backward()


def test_unknown_layers_are_reported():
    model = nn.Sequential(nn.LSTM(4, 4), nn.Softplus(), nn.Flatten(), nn.MultiheadAttention(8, 2))
    report = convert(model, eight_bits())
    assert report["0"].reason == report["1"].reason == "no compressed form of this layer is known"
    assert report["2"].reason == "keeps no activation"
    assert "attention" in report["3"].reason and report["3"].outcome == TRAVERSED
    assert report["3.out_proj"].outcome == LEFT


def test_nothing_is_converted_twice():
    model = small_net()
    convert(model, eight_bits())
    configs = [m.config for m in model.modules() if isinstance(m, QuantizedLayer)]
    report = convert(model, Config())
    assert report.count(CONVERTED) == 0 and report["0"].reason == "already compressed"
    assert all(m.config is c for m, c in zip([m for m in model.modules() if isinstance(m, QuantizedLayer)], configs,
                                             strict=True))  # fmt: skip


def test_a_single_layer_is_a_model():
    layer = nn.Conv2d(3, 4, 3)
    report = convert(layer, eight_bits())
    assert type(layer) is actnn.QConv2d and report[""].replacement == "QConv2d"
    restore(layer)
    assert type(layer) is nn.Conv2d


def test_the_report(capsys):
    model = small_net()
    report = convert(model, eight_bits(), skip="0", verbose=True, blocks=False)
    text = capsys.readouterr().out
    assert text == f"{report}\n"
    lines = text.splitlines()
    assert lines[0].split() == ["module", "type", "outcome", "block", "bits", "kept", "bytes"]
    assert lines[1].split() == ["(root)", "Sequential", "traversed", "-", "-", "-"]
    assert lines[2].split() == ["0", "Conv2d", "left", "alone", "-", "-", "-", "skipped"]
    assert lines[3].split() == ["1", "BatchNorm2d", "QBatchNorm2d", "-", "8", "-"]
    assert lines[-1] == "7 converted, 2 left alone" and len(lines) == 13
    assert report["1"] == Entry("1", "BatchNorm2d", CONVERTED, "QBatchNorm2d", bits=8)
    assert report[""].outcome == TRAVERSED and len(report.converted) == 7
    with pytest.raises(KeyError, match="nowhere"):
        report["nowhere"]


# QModule, which covers functional calls as well.


def test_what_is_skipped_stays_exact_in_qmodule():
    def saved(**arguments):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Conv2d(3, 16, 3, padding=1), nn.BatchNorm2d(16), nn.Linear(8, 4))
        model = actnn.QModule(model, eight_bits(), **arguments)
        x = torch.randn(4, 3, 8, 8)
        return saved_bytes(lambda: model(x))[0], 4 * x.numel(), 4 * 16 * 4 * 8 * 8

    everything, image, features = saved()
    assert everything < (image + 2 * features) / 3
    for skip, more in (("0", image), (nn.BatchNorm2d, features), ("2", features), (["0", "2"], image + features)):
        assert saved(skip=skip)[0] > everything + more / 2
    assert saved(skip=lambda path, module: path == "")[0] >= image + 2 * features


def test_functional_batch_norms_follow_their_flag():
    class Functional(nn.Module):
        def __init__(self):
            super().__init__()
            self.norm = nn.BatchNorm2d(4)

        def forward(self, x):
            return torch.nn.functional.batch_norm(self.norm(x), None, None, training=True)

    x = torch.randn(4, 4, 8, 8, requires_grad=True) * 1
    saved = {
        flag: saved_bytes(
            lambda flag=flag: actnn.QModule(Functional(), eight_bits(enable_quantized_bn=flag), blocks=False)(x)
        )[0]
        for flag in (False, True)
    }
    assert saved[False] >= 2 * x.nbytes and saved[True] < x.nbytes


def test_an_unknown_key_behind_a_qmodule_is_refused():
    model = nn.Sequential(actnn.QModule(nn.Sequential(nn.Linear(3, 3)), eight_bits()))
    state = model.state_dict()
    assert list(state) == ["0.0.weight", "0.0.bias"]
    model.load_state_dict(state)
    state["0.bogus"] = torch.zeros(1)
    with pytest.raises(RuntimeError, match="Unexpected key"):
        model.load_state_dict(state)
    del state["0.bogus"], state["0.0.bias"]
    with pytest.raises(RuntimeError, match="Missing key"):
        model.load_state_dict(state)


# And back.


def test_restore_is_exact():
    model = small_net()
    original = copy.deepcopy(model)
    attributes = [set(vars(module)) for module in model.modules()]
    convert(model, Config())
    model(torch.randn(2, 3, 8, 8)).sum().backward()
    model.zero_grad()
    restore(model)
    assert [type(m) for m in model.modules()] == [type(m) for m in original.modules()]
    assert [set(vars(module)) for module in model.modules()] == attributes
    assert repr(model) == repr(original)
    x = torch.randn(4, 3, 8, 8)
    original.load_state_dict(model.state_dict())
    assert saved_bytes(lambda: model(x))[0] == saved_bytes(lambda: original(x))[0]
    pickle.loads(pickle.dumps(model))


def test_layers_made_as_compressed_are_restored():
    model = nn.Sequential(actnn.QConv2d(3, 4, 3), actnn.QReLU(), actnn.QBatchNorm2d(4))
    restore(model)
    assert [type(module) for module in model] == [nn.Conv2d, nn.ReLU, nn.BatchNorm2d]
    model(torch.randn(2, 3, 8, 8)).sum().backward()


def test_a_layer_whose_conversion_fails_is_as_it_was(monkeypatch):
    with pytest.raises(ValueError, match=r"group must be an index into activation_compression_bits = \[2, 8, 8\]"):
        actnn.QConv2d(3, 4, 3, group=3)
    with pytest.raises(ValueError, match="group must be an index"):
        actnn.QReLU(group=-1)
    for group, got in (("1", "'1'"), (None, "None"), (1.0, "1.0"), (True, "True")):
        with pytest.raises(TypeError, match=rf"QLinear: group must be an index .* = \[2, 8, 8\], got {got}"):
            actnn.QLinear(3, 4, group=group)
    with pytest.raises(TypeError, match=r"QReLU: config must be an actnn.Config or None, got str 'L3'"):
        actnn.QReLU(config="L3")
    assert actnn.QConv2d(3, 4, 3, config=None).config is actnn.config

    def fail(*args, **kwargs):
        raise RuntimeError("no scheme")

    layer = nn.Linear(3, 4)
    attributes = set(vars(layer))
    with monkeypatch.context() as patch:
        patch.setattr("actnn.layers.linear.QScheme", fail)
        with pytest.raises(RuntimeError, match="no scheme"):
            convert(layer, Config())
    assert type(layer) is nn.Linear and set(vars(layer)) == attributes
    assert convert(layer, Config()).count(CONVERTED) == 1


def test_a_conversion_that_fails_converts_nothing():
    compressed = actnn.QReLU()
    weight_norm = torch.nn.utils.parametrizations.weight_norm(nn.Linear(3, 4))
    impossible = nn.Conv2d(3, 4, 0)  # has no elements to scale by
    model = nn.Sequential(nn.Conv2d(3, 4, 3), weight_norm, compressed, impossible, nn.ReLU())
    before = [type(module).__name__ for module in model]
    with pytest.raises(ValueError, match="num_locations and depthwise_groups must be positive, got 0"):
        convert(model, Config())
    assert [type(module).__name__ for module in model] == before and model[2] is compressed
    assert not any(hasattr(module, "scheme") for module in model if module is not compressed)
    assert convert(model, Config(), skip="3").count(CONVERTED) == 3


# Copies.


def test_copies_learn_by_themselves():
    layer = nn.Conv2d(3, 4, 3)
    convert(layer, Config())
    other = copy.deepcopy(layer)
    layer(torch.randn(2, 3, 8, 8)).sum().backward()
    assert layer.scheme.scales > 0 and other.scheme.scales == 0
    assert other.weight is not layer.weight and other.weight.grad is None


def test_without_a_configuration_of_anybodys_there_are_four_bits(monkeypatch):
    process_config = Config()
    monkeypatch.setattr(sys.modules["actnn.convert"], "default_config", process_config)
    layer = nn.Conv2d(3, 4, 3)
    convert(layer)
    assert layer.config == Config("L2")
    actnn.set_optimization_level("L3", process_config)
    layer = nn.Conv2d(3, 4, 3)
    convert(layer)
    assert layer.config is process_config


def test_the_process_config_survives_pickling():
    layer = nn.Conv2d(3, 4, 3)
    convert(layer, actnn.config)
    assert layer.config is actnn.config
    assert pickle.loads(pickle.dumps(layer)).config is actnn.config
    own = Config("L2", group_size=64)
    model = small_net()
    convert(model, own)
    loaded = pickle.loads(pickle.dumps(model))
    assert loaded[0].config is loaded[1].config and loaded[0].config == own and loaded[0].config is not own


def test_a_wrapper_takes_skip_from_an_iterator():
    class Calls(nn.Module):
        def __init__(self):
            super().__init__()
            self.used = nn.Linear(3, 4)

        def forward(self, x):
            return nn.functional.linear(x, self.used.weight)

    x = torch.randn(64, 3)
    gradients = []
    for skip in (["used"], iter(["used"])):
        torch.manual_seed(0)
        model = actnn.QModule(Calls(), Config(activation_compression_bits=[1]), skip=skip)
        model(x).square().sum().backward()
        gradients.append(model.model.used.weight.grad)
    torch.testing.assert_close(*gradients, rtol=0, atol=0)


@pytest.mark.parametrize("layer", [
    lambda: actnn.QConv2d(3, 4, 3), lambda: actnn.QConvTranspose2d(3, 4, 3), lambda: actnn.QLinear(3, 4),
    lambda: actnn.QBatchNorm2d(3), lambda: actnn.QLayerNorm(3), actnn.QReLU, actnn.QGELU, actnn.QHardtanh,
    lambda: actnn.QSoftmax(dim=1), actnn.QDropout, lambda: actnn.QMaxPool2d(2), lambda: actnn.QAvgPool2d(2),
])  # fmt: skip
def test_an_input_that_is_no_tensor(layer):
    layer = layer()
    for value in (None, [1.0, 2.0]):
        with pytest.raises(
            TypeError, match=rf"{type(layer).__name__}: input must be a tensor, got {type(value).__name__}"
        ):
            layer(value)


def test_only_layers_with_quantized_copies_show_bits():
    model = nn.Sequential(nn.Linear(3, 4), nn.GELU(), nn.PReLU(), nn.ReLU(), nn.ReLU6(), nn.Dropout(), nn.MaxPool2d(2),
                          nn.AvgPool2d(2), nn.AdaptiveAvgPool2d(1), nn.Embedding(3, 4))  # fmt: skip
    parents = [module.extra_repr() for module in model]
    convert(model, Config(activation_compression_bits=[3]))
    shown = [module.extra_repr() for module in model]
    assert shown[:3] == ["in_features=3, out_features=4, bias=True, bits=3", "approximate='none', bits=5",
                         "num_parameters=1, bits=3"]  # fmt: skip
    assert shown[3:] == parents[3:]
