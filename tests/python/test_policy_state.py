"""The state of schemes: checkpoints, wrappers, copies; what a scheme refuses."""

import copy
import io
import math
import pickle

import actnn
import pytest
import torch
from actnn import Config, QModule, QScheme, config, convert
from configurations import gradients, one_thread, process_config, small_net  # noqa: F401
from policy_checks import per_sample, scaled, step
from torch import nn

ops = torch.ops.actnn
pytestmark = pytest.mark.usefixtures("one_thread")

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


def test_the_state_has_the_version_of_the_format():
    scheme = QScheme(None, config=Config())
    state = scheme.state()
    assert state["format_version"] == actnn.FORMAT_VERSION
    scheme.load_state({name: value for name, value in state.items() if name != "format_version"})  # of version 1
    with pytest.raises(ValueError, match="state must be of version 2 of the packed format, got version 3"):
        scheme.load_state(state | {"format_version": torch.tensor(3)})


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
