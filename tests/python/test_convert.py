"""convert and restore: what stays, what is reported, and that every layer computes what its parent does."""

import copy
import io
import pickle

import actnn
import pytest
import torch
from actnn import Config, convert, restore
from actnn.convert import CONVERTED, LEFT, TRAVERSED, Entry
from actnn.layers import CONVERSIONS, QuantizedLayer
from configurations import one_thread, relative_error, small_net  # noqa: F401
from devices import assert_same_bits
from saved_memory import saved_bytes
from torch import nn
from torch.nn.utils import parametrizations, parametrize

pytestmark = pytest.mark.usefixtures("one_thread")


def eight_bits(**flags):
    """Fixed bits, and so few errors that gradients are compared with the exact ones."""
    return Config("L2", activation_compression_bits=[8], **flags)


class Case:
    def __init__(self, make, *shape, make_input=None, tolerance=0.02):
        self.make, self.shape, self.make_input, self.tolerance = make, shape, make_input, tolerance

    def input(self):
        return self.make_input() if self.make_input else torch.randn(self.shape)


NORM = 0.05  # of few elements
IMAGE, VOLUME, LINE = (4, 4, 9, 8), (2, 4, 6, 5, 7), (4, 4, 17)

CASES = {
    "Conv1d": Case(lambda: nn.Conv1d(4, 6, 3, 2, 1), *LINE),
    "Conv1d reflect": Case(lambda: nn.Conv1d(4, 6, 3, padding=2, padding_mode="reflect"), *LINE),
    "Conv1d same even": Case(lambda: nn.Conv1d(4, 6, 4, padding="same"), *LINE),
    "Conv1d unbatched": Case(lambda: nn.Conv1d(4, 6, 3), 4, 17),
    "Conv2d": Case(lambda: nn.Conv2d(4, 6, 3, padding=1), *IMAGE),
    "Conv2d stride, no bias": Case(lambda: nn.Conv2d(4, 6, (3, 2), (2, 1), (1, 0), bias=False), *IMAGE),
    "Conv2d dilation, groups": Case(lambda: nn.Conv2d(4, 6, 3, dilation=2, groups=2), *IMAGE),
    "Conv2d depthwise": Case(lambda: nn.Conv2d(4, 8, 3, groups=4), *IMAGE),
    "Conv2d circular": Case(lambda: nn.Conv2d(4, 6, 3, padding=(1, 2), padding_mode="circular"), *IMAGE),
    "Conv2d replicate": Case(lambda: nn.Conv2d(4, 6, 3, padding=(1, 2), padding_mode="replicate"), *IMAGE),
    "Conv2d same": Case(lambda: nn.Conv2d(4, 6, 3, padding="same", dilation=2), *IMAGE),
    "Conv2d same even": Case(lambda: nn.Conv2d(4, 6, (2, 4), padding="same", dilation=(3, 1)), *IMAGE),
    "Conv2d same even, reflect": Case(lambda: nn.Conv2d(4, 6, (2, 4), padding="same", padding_mode="reflect"), *IMAGE),
    "Conv2d valid": Case(lambda: nn.Conv2d(4, 6, 3, padding="valid"), *IMAGE),
    "Conv2d unbatched": Case(lambda: nn.Conv2d(4, 6, 3, padding=1), 4, 9, 8),
    "Conv2d channels last": Case(
        lambda: nn.Conv2d(4, 6, 3), make_input=lambda: torch.randn(IMAGE).to(memory_format=torch.channels_last)
    ),
    "Conv3d": Case(lambda: nn.Conv3d(4, 6, 3, padding=1), *VOLUME),
    "Conv3d same even": Case(lambda: nn.Conv3d(4, 6, (2, 3, 4), padding="same"), *VOLUME),
    "Conv3d unbatched": Case(lambda: nn.Conv3d(4, 6, 2, bias=False), 4, 6, 5, 7),
    "ConvTranspose1d": Case(lambda: nn.ConvTranspose1d(4, 6, 3, 2, 1, 1), *LINE),
    "ConvTranspose1d unbatched": Case(lambda: nn.ConvTranspose1d(4, 6, 3), 4, 17),
    "ConvTranspose2d": Case(lambda: nn.ConvTranspose2d(4, 6, 3, 2, 1, 1, groups=2), *IMAGE),
    "ConvTranspose2d dilation, no bias": Case(lambda: nn.ConvTranspose2d(4, 6, 3, dilation=2, bias=False), *IMAGE),
    "ConvTranspose3d": Case(lambda: nn.ConvTranspose3d(4, 6, 3, 2, 1), *VOLUME),
    "Linear": Case(lambda: nn.Linear(20, 7), 16, 20),
    "Linear no bias, 3-D": Case(lambda: nn.Linear(20, 7, bias=False), 3, 16, 20),
    "Linear unbatched": Case(lambda: nn.Linear(200, 7), 200),
    "BatchNorm1d": Case(lambda: nn.BatchNorm1d(5), 64, 5),
    "BatchNorm1d lines": Case(lambda: nn.BatchNorm1d(5, affine=False), 8, 5, 20),
    "BatchNorm2d": Case(lambda: nn.BatchNorm2d(4), *IMAGE, tolerance=NORM),
    "BatchNorm2d not affine": Case(lambda: nn.BatchNorm2d(4, affine=False), *IMAGE, tolerance=NORM),
    "BatchNorm2d momentum None": Case(lambda: nn.BatchNorm2d(4, momentum=None), *IMAGE, tolerance=NORM),
    "BatchNorm2d not tracking": Case(lambda: nn.BatchNorm2d(4, track_running_stats=False), *IMAGE, tolerance=NORM),
    "BatchNorm3d": Case(lambda: nn.BatchNorm3d(4, eps=1e-3), *VOLUME),
    "SyncBatchNorm": Case(lambda: nn.SyncBatchNorm(4), *IMAGE, tolerance=NORM),
    "LayerNorm": Case(lambda: nn.LayerNorm(40), 6, 10, 40),
    "LayerNorm not affine": Case(lambda: nn.LayerNorm((10, 40), elementwise_affine=False), 6, 10, 40),
    "LayerNorm no bias": Case(lambda: nn.LayerNorm(40, bias=False), 6, 10, 40),
    "RMSNorm": Case(lambda: nn.RMSNorm(40), 6, 10, 40),
    "RMSNorm eps, not affine": Case(lambda: nn.RMSNorm(40, eps=1e-3, elementwise_affine=False), 6, 10, 40),
    "GroupNorm": Case(lambda: nn.GroupNorm(2, 4), *IMAGE, tolerance=NORM),
    "GroupNorm not affine": Case(lambda: nn.GroupNorm(2, 4, affine=False), *IMAGE, tolerance=NORM),
    "InstanceNorm1d": Case(lambda: nn.InstanceNorm1d(4, affine=True), *LINE),
    "InstanceNorm2d": Case(lambda: nn.InstanceNorm2d(4), *IMAGE, tolerance=NORM),
    "InstanceNorm2d tracking": Case(lambda: nn.InstanceNorm2d(4, 1e-5, 0.1, True, True), *IMAGE, tolerance=NORM),
    "InstanceNorm2d momentum None": Case(lambda: nn.InstanceNorm2d(4, 1e-5, None, False, True), *IMAGE, tolerance=NORM),
    "InstanceNorm2d unbatched": Case(lambda: nn.InstanceNorm2d(4), 4, 9, 8),
    "InstanceNorm3d": Case(lambda: nn.InstanceNorm3d(4, affine=True), *VOLUME),
    "ReLU": Case(lambda: nn.ReLU(), *IMAGE, tolerance=0),
    "ReLU inplace": Case(lambda: nn.ReLU(inplace=True), *IMAGE, tolerance=0),
    "ReLU6": Case(lambda: nn.ReLU6(), make_input=lambda: 9 * torch.randn(IMAGE), tolerance=0),
    "ReLU6 inplace": Case(lambda: nn.ReLU6(True), make_input=lambda: 9 * torch.randn(IMAGE), tolerance=0),
    "Hardtanh": Case(lambda: nn.Hardtanh(-0.5, 0.25), *IMAGE, tolerance=0),
    "Hardtanh inplace": Case(lambda: nn.Hardtanh(-0.5, 0.25, inplace=True), *IMAGE, tolerance=0),
    "LeakyReLU": Case(lambda: nn.LeakyReLU(0.2), *IMAGE, tolerance=1e-6),
    "LeakyReLU inplace": Case(lambda: nn.LeakyReLU(0.2, inplace=True), *IMAGE, tolerance=1e-6),
    "PReLU": Case(lambda: nn.PReLU(), *IMAGE),
    "PReLU channels": Case(lambda: nn.PReLU(4, 0.1), *IMAGE),
    "GELU": Case(lambda: nn.GELU(), *IMAGE),
    "GELU tanh": Case(lambda: nn.GELU("tanh"), *IMAGE),
    "SiLU": Case(lambda: nn.SiLU(), *IMAGE),
    "SiLU inplace": Case(lambda: nn.SiLU(inplace=True), *IMAGE),
    "Hardswish": Case(lambda: nn.Hardswish(), *IMAGE),
    "Hardswish inplace": Case(lambda: nn.Hardswish(inplace=True), *IMAGE),
    "Sigmoid": Case(lambda: nn.Sigmoid(), *IMAGE),
    "Tanh": Case(lambda: nn.Tanh(), *IMAGE),
    "Softmax": Case(lambda: nn.Softmax(dim=-1), 6, 10, 40, tolerance=0.05),
    "Softmax dim": Case(lambda: nn.Softmax(dim=1), 6, 10, 40, tolerance=0.05),
    "LogSoftmax": Case(lambda: nn.LogSoftmax(dim=-1), 6, 10, 40, tolerance=0.05),
    "Embedding": Case(lambda: nn.Embedding(30, 5), make_input=lambda: torch.randint(30, (4, 7)), tolerance=1e-6),
    "Embedding padding": Case(
        lambda: nn.Embedding(30, 5, padding_idx=3), make_input=lambda: torch.randint(5, (4, 7)), tolerance=1e-6
    ),
    "Embedding max_norm": Case(
        lambda: nn.Embedding(30, 5, max_norm=1.0), make_input=lambda: torch.randint(30, (4, 7)), tolerance=1e-6
    ),
    "MaxPool1d": Case(lambda: nn.MaxPool1d(3, 2, 1), *LINE, tolerance=1e-6),
    "MaxPool1d ceil, dilation": Case(lambda: nn.MaxPool1d(2, 3, dilation=2, ceil_mode=True), *LINE, tolerance=1e-6),
    "MaxPool2d": Case(lambda: nn.MaxPool2d(2), *IMAGE, tolerance=1e-6),
    "MaxPool2d ceil, overlapping": Case(lambda: nn.MaxPool2d(3, 2, 1, ceil_mode=True), *IMAGE, tolerance=1e-6),
    "MaxPool2d large window": Case(lambda: nn.MaxPool2d((9, 8)), *IMAGE, tolerance=1e-6),
    "MaxPool2d unbatched": Case(lambda: nn.MaxPool2d(2, (1, 2), dilation=2), 4, 9, 8, tolerance=1e-6),
    "MaxPool3d": Case(lambda: nn.MaxPool3d(2), *VOLUME, tolerance=1e-6),
    "MaxPool3d ceil": Case(lambda: nn.MaxPool3d(2, (1, 2, 3), 1, ceil_mode=True), *VOLUME, tolerance=1e-6),
    "MaxPool1d unbatched": Case(lambda: nn.MaxPool1d(2), 4, 17, tolerance=1e-6),
    "AvgPool1d": Case(lambda: nn.AvgPool1d(3, 2, 1, ceil_mode=True, count_include_pad=False), *LINE, tolerance=1e-6),
    "AvgPool1d unbatched": Case(lambda: nn.AvgPool1d(3), 4, 17, tolerance=1e-6),
    "AvgPool2d": Case(lambda: nn.AvgPool2d(2), *IMAGE, tolerance=1e-6),
    "AvgPool2d divisor": Case(lambda: nn.AvgPool2d(3, 2, 1, divisor_override=4), *IMAGE, tolerance=1e-6),
    "AvgPool2d ceil": Case(lambda: nn.AvgPool2d(3, 2, 1, True, False), *IMAGE, tolerance=1e-6),
    "AvgPool3d": Case(lambda: nn.AvgPool3d(2, ceil_mode=True), *VOLUME, tolerance=1e-6),
    "AdaptiveAvgPool1d": Case(lambda: nn.AdaptiveAvgPool1d(5), *LINE, tolerance=1e-6),
    "AdaptiveAvgPool2d": Case(lambda: nn.AdaptiveAvgPool2d(1), *IMAGE, tolerance=1e-6),
    "AdaptiveAvgPool2d None": Case(lambda: nn.AdaptiveAvgPool2d((None, 3)), *IMAGE, tolerance=1e-6),
    "AdaptiveAvgPool2d unbatched": Case(lambda: nn.AdaptiveAvgPool2d(2), 4, 9, 8, tolerance=1e-6),
    "AdaptiveAvgPool3d": Case(lambda: nn.AdaptiveAvgPool3d((2, None, 3)), *VOLUME, tolerance=1e-6),
}


def test_every_conversion_has_a_case():
    covered = {type(case.make()) for case in CASES.values()}
    assert set(CONVERSIONS) - covered == {nn.Dropout}  # its mask is another: a test of its own
    assert all(issubclass(compressed, parent) for parent, compressed in CONVERSIONS.items())
    assert all(getattr(actnn, compressed.__name__) is compressed for compressed in CONVERSIONS.values())


def run(layer, x):
    """(output, gradients of input and parameters)."""
    differentiable = x.is_floating_point()
    x = x.clone(memory_format=torch.preserve_format).requires_grad_(differentiable)
    y = layer(x * 1 if differentiable else x)  # a leaf cannot be changed in place
    torch.manual_seed(7)
    wanted = ([x] if differentiable else []) + list(layer.parameters())
    grads = torch.autograd.grad(y, wanted, torch.randn_like(y)) if y.requires_grad else []
    return y.detach(), grads


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("name", CASES)
def test_a_converted_layer_computes_what_its_parent_does(name, training, device):
    case = CASES[name]
    parent = case.make().train(training)
    layer = copy.deepcopy(parent)
    report = convert(layer, eight_bits())
    assert type(layer) is CONVERSIONS[type(parent)] and report.count(CONVERTED) == 1
    if name == "SyncBatchNorm" and device == "cpu":
        parent.__class__ = nn.BatchNorm2d  # torch's refuses the CPU; of one process, it is a batch norm
    x = case.input()
    expected, expected_grads = run(parent, x)
    actual, grads = run(layer, x)
    assert_same_bits(actual, expected)
    assert list(layer.state_dict()) == list(parent.state_dict())
    for key, value in layer.state_dict().items():
        assert torch.equal(value, parent.state_dict()[key]), key
    assert len(grads) == len(expected_grads)
    for grad, wanted in zip(grads, expected_grads, strict=True):
        assert grad.shape == wanted.shape and grad.dtype == wanted.dtype
        # By the norm of the norm: a gradient that is 0 but for rounding has none of its own.
        assert (grad - wanted).norm() <= case.tolerance * wanted.norm() + 1e-5


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("name", ["Conv2d", "ConvTranspose2d", "Linear", "BatchNorm2d", "LayerNorm", "GELU", "ReLU",
                                  "Softmax", "MaxPool2d", "AvgPool2d", "GroupNorm", "PReLU", "RMSNorm"])  # fmt: skip
def test_half_precision(name, dtype, device):
    case = CASES[name]
    parent = case.make().to(dtype)
    layer = copy.deepcopy(parent)
    convert(layer, eight_bits())
    assert isinstance(layer, QuantizedLayer)
    x = case.input().to(dtype)
    expected, expected_grads = run(parent, x)
    actual, grads = run(layer, x)
    assert_same_bits(actual, expected)
    for grad, wanted in zip(grads, expected_grads, strict=True):
        assert relative_error(grad.float(), wanted.float()) < 0.06


@pytest.mark.parametrize("name", CASES)
def test_without_grad_and_with_float64_it_is_its_parent(name):
    case = CASES[name]
    parent = case.make()
    if isinstance(parent, nn.SyncBatchNorm):
        pytest.skip("torch's refuses the CPU")
    layer = copy.deepcopy(parent)
    convert(layer, eight_bits())
    x = case.input()
    with torch.no_grad():
        assert_same_bits(layer(x.clone()), parent(x.clone()))
    if x.is_floating_point():  # converted, then made float64
        layer, parent, x = layer.double(), parent.double(), x.double()
        for actual, wanted in zip(run(layer, x)[1], run(parent, x)[1], strict=True):
            assert torch.equal(actual, wanted)


@pytest.mark.parametrize("pool", [nn.MaxPool1d, nn.MaxPool2d, nn.MaxPool3d])
def test_max_pool_returns_indices(pool, device):
    shape = {nn.MaxPool1d: LINE, nn.MaxPool2d: IMAGE, nn.MaxPool3d: VOLUME}[pool]
    parent = pool(3, 2, 1, ceil_mode=True, return_indices=True)
    layer = copy.deepcopy(parent)
    convert(layer, eight_bits())
    x, z = (torch.randn(shape).requires_grad_() for _ in range(2))
    z = x.detach().clone().requires_grad_()
    (y, indices), (expected, expected_indices) = layer(x), parent(z)
    assert torch.equal(y, expected) and torch.equal(indices, expected_indices)
    grad = torch.randint_like(y, -2, 3)  # exact sums, in whatever order CUDA adds
    y.backward(grad)
    expected.backward(grad)
    assert torch.equal(x.grad, z.grad)


def test_max_pool_and_unpool_go_together(device):
    pool, unpool = nn.MaxPool2d(2, return_indices=True), nn.MaxUnpool2d(2)
    x = torch.randn(2, 3, 8, 8)
    expected = unpool(*pool(x))
    convert(pool, eight_bits())
    assert torch.equal(unpool(*pool(x)), expected)


@pytest.mark.parametrize("inplace", [False, True])
@pytest.mark.parametrize("p", [0.0, 0.3, 1.0])
def test_dropout(p, inplace, device):
    layer = nn.Dropout(p, inplace=inplace)
    convert(layer, eight_bits())
    x = torch.ones(100_000, requires_grad=True)
    y = layer(x * 1)
    if p < 1:
        assert y.mean().item() == pytest.approx(1, abs=0.02)
        assert ((y == 0).float().mean().item()) == pytest.approx(p, abs=0.02)
    else:
        assert (y == 0).all()
    y.sum().backward()
    assert torch.equal(x.grad, y.detach())
    layer.eval()
    assert torch.equal(layer(torch.ones(7)), torch.ones(7))


@pytest.mark.parametrize("level", ["L1", "L2", "L3", "L4", "swap"])
@pytest.mark.filterwarnings("ignore:actnn")
def test_forward_is_exact_at_every_level(level, device):
    model = small_net()
    converted = copy.deepcopy(model)
    convert(converted, Config(level))
    for _ in range(3):
        x = torch.randn(4, 3, 8, 8)
        y = converted(x)
        assert_same_bits(y, model(x))
        y.sum().backward()
    for key, value in converted.state_dict().items():
        assert torch.equal(value, model.state_dict()[key]), key


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
    with pytest.raises(TypeError, match="skip must hold paths and types of modules"):
        convert(small_net(), skip=[3])
    with pytest.raises(TypeError, match=r"model must be a torch.nn.Module, got list"):
        convert([nn.Linear(3, 3)])
    with pytest.raises(TypeError, match=r"config must be an actnn.Config or None, got str"):
        convert(small_net(), "L3")


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


@pytest.mark.parametrize("wrap", [convert, lambda model, config: actnn.QModule(model, config).report])
@pytest.mark.parametrize(
    ("attribute", "value"),
    [("name", "stem"), ("group", None), ("group", torch.zeros(2)), ("config", {"depth": 3}), ("scheme", Scheme())],
)
def test_layers_with_an_attribute_that_conversion_would_set_are_left_alone(attribute, value, wrap):
    model = small_net()
    if isinstance(value, torch.Tensor):
        model[0].register_buffer(attribute, value)
    else:
        setattr(model[0], attribute, value)
    exact = copy.deepcopy(model)
    report = wrap(model, eight_bits())
    assert type(model[0]) is nn.Conv2d and getattr(model[0], attribute) is value
    assert report["0"] == Entry("0", "Conv2d", LEFT, reason=f"its attribute '{attribute}' would be overwritten")
    assert report.count(CONVERTED) == 7
    x = torch.randn(2, 3, 8, 8)
    assert torch.equal(model(x), exact(x))
    restore(model)
    assert [type(m) for m in model] == [type(m) for m in exact] and getattr(model[0], attribute) is value
    delattr(model[0], attribute)
    assert convert(model, eight_bits()).count(CONVERTED) == 8


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
    report = convert(model, eight_bits(), skip="0", verbose=True)
    text = capsys.readouterr().out
    assert text == f"{report}\n"
    lines = text.splitlines()
    assert lines[0].split() == ["(root)", "Sequential", "traversed"]
    assert lines[1].split() == ["0", "Conv2d", "left", "alone", "skipped"]
    assert lines[2].split() == ["1", "BatchNorm2d", "QBatchNorm2d"]
    assert lines[-1] == "7 converted, 2 left alone" and len(lines) == 11
    assert report["1"] == Entry("1", "BatchNorm2d", CONVERTED, "QBatchNorm2d")
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
        flag: saved_bytes(lambda flag=flag: actnn.QModule(Functional(), eight_bits(enable_quantized_bn=flag))(x))[0]
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


# Copies.


@pytest.mark.parametrize("name", CASES)
def test_layers_are_copied_and_pickled(name):
    case = CASES[name]
    layer = case.make()
    convert(layer, Config())
    if isinstance(layer, nn.SyncBatchNorm):
        layer.eval()
    x = case.input()
    if layer(x.clone()).requires_grad:
        layer(x.clone()).sum().backward()  # there is something that a scheme has learned
    stream = io.BytesIO()
    torch.save(layer, stream)
    stream.seek(0)
    for other in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer)), torch.load(stream, weights_only=False)):
        assert type(other) is type(layer) and other.config == layer.config
        assert (other.scheme is None) == (layer.scheme is None)
        if layer.scheme is not None:
            assert other.scheme is not layer.scheme and other.scheme.bits == layer.scheme.bits
            assert torch.equal(other.scheme.scales, layer.scheme.scales)
        assert torch.equal(other.eval()(x.clone()), layer.eval()(x.clone()))
        assert repr(other) == repr(layer)


def test_copies_learn_by_themselves():
    layer = nn.Conv2d(3, 4, 3)
    convert(layer, Config())
    other = copy.deepcopy(layer)
    layer(torch.randn(2, 3, 8, 8)).sum().backward()
    assert layer.scheme.scales > 0 and other.scheme.scales == 0
    assert other.weight is not layer.weight and other.weight.grad is None


def test_the_process_config_survives_pickling():
    layer = nn.Conv2d(3, 4, 3)
    convert(layer)
    assert layer.config is actnn.config
    assert pickle.loads(pickle.dumps(layer)).config is actnn.config
    own = Config("L2", group_size=64)
    model = small_net()
    convert(model, own)
    loaded = pickle.loads(pickle.dumps(model))
    assert loaded[0].config is loaded[1].config and loaded[0].config == own and loaded[0].config is not own
