"""Every layer that convert knows computes what its parent does, and is copied and pickled."""

import copy
import io
import pickle

import actnn
import pytest
import torch
from actnn import Config, convert
from actnn.convert import CONVERTED
from actnn.layers import CONVERSIONS, QuantizedLayer
from configurations import eight_bits, one_thread, relative_error, small_net  # noqa: F401
from devices import assert_same_bits
from torch import nn

pytestmark = pytest.mark.usefixtures("one_thread")


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
    report = convert(layer, eight_bits(), blocks=False)
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
    convert(layer, eight_bits(), blocks=False)
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
    convert(layer, eight_bits(), blocks=False)
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
    convert(layer, eight_bits(), blocks=False)
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
    convert(pool, eight_bits(), blocks=False)
    assert torch.equal(unpool(*pool(x)), expected)


@pytest.mark.parametrize("inplace", [False, True])
@pytest.mark.parametrize("p", [0.0, 0.3, 1.0])
def test_dropout(p, inplace, device):
    layer = nn.Dropout(p, inplace=inplace)
    convert(layer, eight_bits(), blocks=False)
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
    convert(converted, Config(level), blocks=False)
    for _ in range(3):
        x = torch.randn(4, 3, 8, 8)
        y = converted(x)
        assert_same_bits(y, model(x))
        y.sum().backward()
    for key, value in converted.state_dict().items():
        assert torch.equal(value, model.state_dict()[key]), key


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


TRANSFORMED = {
    "QReLU": (nn.ReLU, (2, 5)),
    "QGELU": (nn.GELU, (2, 5)),
    "QSoftmax": (lambda: nn.Softmax(dim=-1), (2, 5)),
    "QMaxPool2d": (lambda: nn.MaxPool2d(2), (2, 3, 4, 4)),
    "QConv2d": (lambda: nn.Conv2d(3, 4, 3), (2, 3, 4, 4)),
    "QLinear": (lambda: nn.Linear(5, 4), (2, 5)),
    "QLayerNorm": (lambda: nn.LayerNorm(5), (2, 5)),
    "QBatchNorm2d": (lambda: nn.BatchNorm2d(3, track_running_stats=False), (2, 3, 4, 4)),
}


@pytest.mark.parametrize("level", ["L2", "L3"])
@pytest.mark.parametrize("name", TRANSFORMED)
def test_transforms_of_functions_see_torchs_layer(name, level):
    make, shape = TRANSFORMED[name]
    exact = make()
    layer = copy.deepcopy(exact)
    actnn.convert(layer, actnn.Config(level), blocks=False)
    assert type(layer).__name__ == name
    x, direction = torch.randn(shape), torch.randn(shape)

    def results(module):
        parameters = dict(module.named_parameters())

        def call(parameters, x):
            return torch.func.functional_call(module, parameters, (x,))

        def dual():
            with torch.autograd.forward_ad.dual_level():
                return torch.autograd.forward_ad.unpack_dual(module(torch.autograd.forward_ad.make_dual(x, direction)))[
                    1
                ]

        return (
            torch.func.jvp(module, (x,), (direction,)),
            dual(),
            torch.func.grad(lambda p: call(p, x).square().sum())(parameters),
            torch.func.jacrev(module)(x),
            torch.func.vmap(lambda x: call(parameters, x))(torch.stack([x, direction])),
        )

    torch.testing.assert_close(results(layer), results(exact))


def test_transforms_of_functions_see_torchs_embedding():
    layer, index = actnn.QEmbedding(4, 3), torch.tensor([[0, 1], [3, 3]])
    assert torch.equal(torch.func.vmap(layer)(index), layer(index))
    weights = {"weight": layer.weight.detach()}
    gradient = torch.func.grad(lambda p: torch.func.functional_call(layer, p, (index,)).sum())(weights)["weight"]
    assert gradient.sum(1).tolist() == [3, 3, 0, 6]


def test_transforms_of_functions_see_torchs_functions():
    x, weights = torch.randn(2, 3), torch.randn(5, 4, 3)

    def call(weight):
        with actnn.CompressFunctions(bits=1):
            return torch.relu(nn.functional.linear(x, weight))

    exact = torch.relu(x @ weights.mT)
    torch.testing.assert_close(torch.func.vmap(call)(weights), exact)
    _, tangent = torch.func.jvp(call, (weights[0],), (weights[0],))
    torch.testing.assert_close(tangent, exact[0])
