"""Norms of inputs whose channels or rows differ in scale and are far from zero: what is packed has the scale 1."""

from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from devices import rng
from layer_checks import DTYPES, assert_unbiased, ops, saved_tensors

pytestmark = pytest.mark.usefixtures("device")


@dataclass(frozen=True)
class Norm:
    """A norm, and inputs that have another unit wherever it takes statistics of its own."""

    shape: tuple[int, ...]
    units: tuple[int, ...]  # the shape of the units; broadcasts
    weights: tuple[int, ...]
    compressed: Callable
    exact: Callable
    per_statistic: int  # elements
    centers: bool = True
    channels_last: bool = False

    def laid_out(self, x):
        return x.contiguous(memory_format=torch.channels_last) if self.channels_last else x

    def tensors(self, dtype=torch.float32, offset=7.0):
        """The input in units of its own, a leaf; what makes it raw; weight, bias, output gradient."""
        count = torch.Size(self.units).numel()
        units = 10 ** torch.linspace(-2, 4, count)[torch.randperm(count)].view(self.units)
        if dtype == torch.float16:
            units = units.sqrt()  # fits
        z = torch.randn(self.shape).requires_grad_()
        weight, bias = (torch.randn(self.weights).requires_grad_() for _ in range(2))

        def raw():
            return self.laid_out((units * (z + offset * self.centers)).to(dtype))

        return z, raw, weight, bias, torch.randn(self.shape)


def evaluated(x):
    dims = [d for d in range(x.dim()) if d != 1]
    var, mean = torch.var_mean(x.detach().float(), dims)
    return mean * 1.01, var * 1.2


NORMS = {
    "batch_norm of features": Norm(
        (48, 6), (1, 6), (6,),
        lambda x, w, b, *q: ops.batch_norm(x, w, b, None, None, True, 0.1, 1e-12, *q),
        lambda x, w, b: F.batch_norm(x, None, None, w, b, True, eps=1e-12), 48),
    "batch_norm in channels_last": Norm(
        (6, 5, 4, 6), (1, 5, 1, 1), (5,),
        lambda x, w, b, *q: ops.batch_norm(x, w, b, None, None, True, 0.1, 1e-12, *q),
        lambda x, w, b: F.batch_norm(x, None, None, w, b, True, eps=1e-12), 144, channels_last=True),
    "batch_norm in evaluation mode": Norm(
        (48, 6), (1, 6), (6,),
        lambda x, w, b, *q: ops.batch_norm(x, w, b, *evaluated(x), False, 0.1, 1e-12, *q),
        lambda x, w, b: F.batch_norm(x, *evaluated(x), w, b, False, eps=1e-12), 48),
    "layer_norm": Norm(
        (24, 16), (24, 1), (16,),
        lambda x, w, b, *q: ops.layer_norm(x, [16], w, b, 1e-12, *q),
        lambda x, w, b: F.layer_norm(x, (16,), w, b, 1e-12), 16),
    "rms_norm": Norm(
        (24, 16), (24, 1), (16,),
        lambda x, w, b, *q: ops.rms_norm(x, [16], w, 1e-12, *q),
        lambda x, w, b: F.rms_norm(x, (16,), w, 1e-12), 16, centers=False),
    "group_norm": Norm(
        (6, 2, 40), (6, 2, 1), (2,),
        lambda x, w, b, *q: ops.group_norm(x, 2, w, b, 1e-12, *q),
        lambda x, w, b: F.group_norm(x, 2, w, b, 1e-12), 40),
    "group_norm in channels_last": Norm(
        (6, 4, 5, 6), (6, 1, 1, 1), (4,),
        lambda x, w, b, *q: ops.group_norm(x, 2, w, b, 1e-12, *q),
        # torch's backward for channels_last crashes where the weight's gradient alone is wanted
        lambda x, w, b: F.group_norm(x.contiguous(), 2, w, b, 1e-12), 60, channels_last=True),
    "instance_norm": Norm(
        (6, 4, 40), (6, 4, 1), (4,),
        lambda x, w, b, *q: ops.instance_norm(x, w, b, None, None, True, 0.1, 1e-12, *q),
        lambda x, w, b: F.instance_norm(x, weight=w, bias=b, eps=1e-12), 40),
}  # fmt: skip


def error(actual, expected):
    return ((actual - expected).norm() / expected.norm()).item()


@pytest.mark.parametrize("name", NORMS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("affine", [True, False])
def test_gradients_at_8_bits_are_autograds(name, dtype, affine):
    norm = NORMS[name]
    z, raw, weight, bias, grad = norm.tensors(dtype)
    parameters = (weight, bias) if affine else (None, None)
    wanted = (z, weight) if affine else (z,)
    own = dtype if "layer" in name or "group" in name else torch.float32  # as torch takes them on CUDA
    y = norm.compressed(raw(), *(p if p is None else p.to(own) for p in parameters), 8, 256, "dithered", rng())
    exact = norm.exact(raw().float(), *parameters)
    actual, expected = (torch.autograd.grad(t, wanted, grad.to(t.dtype)) for t in (y, exact))
    for gradient, autograds in zip(actual, expected, strict=True):
        assert error(gradient, autograds) < (0.02 if dtype == torch.float32 else 0.05)


@pytest.mark.parametrize("name", NORMS)
@pytest.mark.parametrize("bits", [2, 4])
def test_gradients_are_unbiased_to_one_over_n(name, bits):
    norm = NORMS[name]
    z, raw, weight, bias, grad = norm.tensors()
    if "evaluation" in name:
        bias = bias.detach()  # the input's gradient is exact
    # The variance of a copy is at most step^2 / 4, with a range of about 6.5 deviations.
    allowance = (6.5 / (2**bits - 1)) ** 2 / 4 / norm.per_statistic * weight.abs().max().item()
    for parameter, allowed in ((weight, 0.0),) if "evaluation" in name else ((weight, 0.0), (z, allowance)):
        assert_unbiased(lambda state: (norm.compressed(raw(), weight, bias, bits, 256, "dithered", state) * grad).sum(),
                        lambda: (norm.exact(raw(), weight, bias) * grad).sum(), [parameter], draws=300,
                        allowance=allowed)  # fmt: skip


@pytest.mark.parametrize("name", [n for n in NORMS if "evaluation" not in n])
def test_noise_does_not_depend_on_units(name):
    norm = NORMS[name]
    z, raw, weight, bias, grad = norm.tensors()
    (exact,) = torch.autograd.grad(norm.exact(z, weight, bias), weight, grad)
    errors = []
    for x in (raw(), norm.laid_out(z)):
        y = norm.compressed(x, weight, bias, 4, 256, "dithered", rng())
        errors.append(error(torch.autograd.grad(y, weight, grad)[0], exact))
    assert errors[0] == pytest.approx(errors[1], rel=0.1)


@pytest.mark.parametrize(("mean", "deviation"), [(300.0, 1.0), (101325.0, 50.0), (-1e6, 100.0)])
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("affine", [True, False])
def test_a_mean_far_from_zero(mean, deviation, training, affine):
    # float32 has the mean to |mean| / deviation / 2^24 deviations.
    x = (mean + deviation * torch.randn(64, 3, 5)).requires_grad_()
    grad = torch.randn(64, 3, 5)
    weight = torch.randn(3).requires_grad_() if affine else None
    statistics = [t.detach() for t in reversed(torch.var_mean(x.double(), [0, 2]))]
    y = ops.batch_norm(
        x, weight, None, *(s.float() for s in statistics), training, 0.0, 1e-5, 8, 256, "dithered", rng()
    )
    double = x.detach().double().requires_grad_()
    exact = F.batch_norm(double, *statistics, None if weight is None else weight.double(), None, training, 0.0)
    ours = torch.autograd.grad(y, (x, weight) if affine else (x,), grad)
    theirs = torch.autograd.grad(exact, (double, weight) if affine else (double,), grad.double())
    for gradient, expected in zip(ours, theirs, strict=True):
        assert error(gradient.double(), expected.double()) < 0.02


@pytest.mark.parametrize("training", [True, False])
def test_samples_with_bits_of_their_own(training, device):
    norm = NORMS["batch_norm of features" if training else "batch_norm in evaluation mode"]
    z, raw, weight, bias, grad = norm.tensors()
    bits = torch.full((48,), 8, dtype=torch.uint8)
    mean_var = (None, None) if training else evaluated(raw())

    def gradients(**keeping):
        y = ops.batch_norm(raw(), weight, bias, *mean_var, training, 0.1, 1e-12, rng_state=rng(), **keeping)
        return torch.autograd.grad(y, (z, weight), grad)

    expected = gradients(compress=False)
    packed = gradients(sample_bits=bits, total_bits=8 * 48)
    for actual, exact in zip(packed, expected, strict=True):
        assert error(actual, exact) < 0.02
    simulated = gradients(sample_bits=bits, total_bits=8 * 48, simulate=True)
    for actual, other in zip(packed, simulated, strict=True):
        assert torch.equal(actual, other)


@pytest.mark.parametrize("name", NORMS)
@pytest.mark.parametrize("affine", [True, False])
def test_keeps_nothing_else_of_the_inputs_size(name, affine):
    norm = NORMS[name]
    _, raw, weight, bias, _ = norm.tensors()
    x = raw().detach().requires_grad_()
    parameters = (weight, bias) if affine else (None, None)
    kept, _ = saved_tensors(lambda: norm.compressed(x, *parameters, 4))
    assert not any(t.is_floating_point() and t.untyped_storage().nbytes() >= x.nbytes for t in kept)


def test_an_exact_batch_norm_is_torchs_own_bit_by_bit():
    norm = NORMS["batch_norm of features"]
    z, raw, weight, bias, grad = norm.tensors()
    y = ops.batch_norm(raw(), weight, bias, None, None, True, 0.1, 1e-12, compress=False)
    exact = norm.exact(raw(), weight, bias)
    for actual, expected in zip(*(torch.autograd.grad(t, (z, weight, bias), grad) for t in (y, exact)), strict=True):
        assert torch.equal(actual, expected)
