"""The end of a language model without its logits, against torch's linear and cross_entropy."""

import itertools

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from actnn.functional import linear_cross_entropy
from saved_memory import saved_bytes
from torch import nn

CLASSES, FEATURES = 37, 24
MANY = 40000
"""Classes of which 128 rows are computed at a time."""
DTYPES = [torch.float32, torch.bfloat16, torch.float16]


def tensors(rows=300, classes=CLASSES, features=FEATURES, dtype=torch.float32, bias=True, shape=None):
    """300 rows are three parts of 128 or less."""
    x = torch.randn(*(shape or (rows,)), features).to(dtype).requires_grad_()
    weight = (torch.randn(classes, features) * 0.5).to(dtype).requires_grad_()
    target = torch.randint(classes, shape or (rows,))
    return x, weight, target, torch.randn(classes).to(dtype).requires_grad_() if bias else None


def reference(x, weight, target, bias, z_loss=0.0, **options):
    """In double precision, of logits as they are there: torch's own sums over many classes are coarse."""
    logits = F.linear(x, weight, bias).double().flatten(0, -2)
    target = target.flatten()
    loss = F.cross_entropy(logits, target, **options)
    if z_loss:
        counts = target != options.get("ignore_index", -100)
        squares = logits.logsumexp(1).square()[counts]
        loss = loss + z_loss * (squares.sum() if options.get("reduction") == "sum" else squares.mean())
    return loss.float()


def gradients(loss, wanted):
    """Scaled, as a GradScaler does it, and summed with those of other losses."""
    return torch.autograd.grad(loss * 3.0, [tensor for tensor in wanted if tensor is not None and tensor.requires_grad])


def assert_close(found, expected, dtype):
    """To a few roundings of the largest element."""
    relative = {torch.float32: 2e-5, torch.bfloat16: 4e-2, torch.float16: 1e-2}[dtype]
    assert found.dtype == expected.dtype and found.shape == expected.shape
    largest = expected.abs().amax() if expected.numel() else 0.0
    assert ((found.float() - expected.float()).abs() <= relative * largest + 1e-12).all()


OPTIONS = [
    {},
    {"reduction": "sum"},
    {"ignore_index": 5},
    {"label_smoothing": 0.1},
    {"label_smoothing": 1.0, "reduction": "sum"},
    {"z_loss": 1e-2},
    {"ignore_index": -1, "label_smoothing": 0.2, "z_loss": 1e-3},
]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_loss_and_gradients_are_those_of_linear_and_cross_entropy(device, options, dtype):
    x, weight, target, bias = tensors(classes=MANY, dtype=dtype)
    target[::7] = options.get("ignore_index", -100)
    found = linear_cross_entropy(x, weight, target, bias, **options)
    # Of float32 tensors: torch's 16-bit gradients of a mean are too small for float16.
    wide = [tensor.detach().float().requires_grad_() for tensor in (x, weight, bias)]
    expected = reference(*wide[:2], target, wide[2], **options)
    assert found.dtype == torch.float32 and found.shape == ()
    torch.testing.assert_close(found, expected, rtol=1e-5 if dtype == torch.float32 else 2e-3, atol=1e-6)
    for ours, theirs in zip(gradients(found, (x, weight, bias)), gradients(expected, wide), strict=True):
        assert_close(ours, theirs.to(dtype), dtype)


@pytest.mark.parametrize("rows", [0, 1, 127, 128, 129, 1000])
@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_any_number_of_rows(device, rows, reduction):
    x, weight, target, bias = tensors(rows, classes=MANY)
    found = linear_cross_entropy(x, weight, target, bias, reduction=reduction)
    expected = reference(x, weight, target, bias, reduction=reduction)
    torch.testing.assert_close(found, expected, equal_nan=True)
    for ours, theirs in zip(gradients(found, (x, weight, bias)), gradients(expected, (x, weight, bias)), strict=True):
        assert_close(ours, torch.nan_to_num(theirs), torch.float32)


def test_rows_of_any_shape_and_without_a_bias(device):
    x, weight, target, _ = tensors(shape=(3, 2, 50), bias=False)
    found = linear_cross_entropy(x.transpose(0, 1), weight, target.transpose(0, 1))
    expected = reference(x, weight, target, None)
    torch.testing.assert_close(found, expected)
    for ours, theirs in zip(gradients(found, (x, weight)), gradients(expected, (x, weight)), strict=True):
        assert_close(ours, theirs, torch.float32)


def test_only_ignored_targets(device):
    x, weight, target, bias = tensors(10)
    target.fill_(-100)
    loss = linear_cross_entropy(x, weight, target, bias)
    assert loss.isnan()
    assert not any(gradient.any() for gradient in torch.autograd.grad(loss, (x, weight, bias)))
    assert linear_cross_entropy(x, weight, target, bias, reduction="sum") == 0


def test_what_is_ignored_may_be_anything(device):
    """Padding that holds infinity or NaN does not reach the loss, nor the gradients of other rows."""
    x, weight, target, bias = tensors(200)
    target[::2] = -100
    clean = linear_cross_entropy(x, weight, target, bias)
    dirty_x = x.detach().clone()
    dirty_x[::4] = float("nan")
    dirty_x[2::4] = float("inf")
    dirty_x.requires_grad_()
    dirty = linear_cross_entropy(dirty_x, weight, target, bias)
    torch.testing.assert_close(dirty, clean)
    (found,), (expected,) = torch.autograd.grad(dirty, (dirty_x,)), torch.autograd.grad(clean, (x,))
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("wanted", list(itertools.product([True, False], repeat=3)))
def test_only_wanted_gradients_are_kept(device, wanted):
    x, weight, target, bias = tensors(256)
    for tensor, wants in zip((x, weight, bias), wanted, strict=True):
        tensor.requires_grad_(wants)
    found, loss = saved_bytes(lambda: linear_cross_entropy(x, weight, target, bias))
    assert loss.requires_grad == any(wanted)
    # On a GPU there are whole vectors of classes.
    padding = -len(weight) % 8 if weight.is_cuda else 0
    more = (0, padding * weight[0].nbytes, padding * bias.element_size())
    sizes = [t.nbytes + extra for t, extra, wants in zip((x, weight, bias), more, wanted, strict=True) if wants]
    assert found == (sum(sizes) + 4 if sizes else 0)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("classes", [1, 2, CLASSES, 64, 1001])
@pytest.mark.parametrize("has_gradients", [True, False])
def test_logits_are_what_torch_computes(device, dtype, classes, has_gradients):
    x, weight, target, bias = tensors(300, classes, dtype=dtype)
    target[::3] = -100  # ignored; their logits are there
    wanted = [has_gradients] * 3
    found = torch.ops.actnn.linear_cross_entropy_forward(
        x.detach(), weight.detach(), bias.detach(), target, wanted, -100, 0.0, 0.0, True, True
    )
    assert_close(found[5], F.linear(x, weight, bias).detach(), dtype)
    assert found[5].is_contiguous()


def test_a_weight_is_an_embeddings_too(device):
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.embedding = nn.Embedding(CLASSES, FEATURES)
            self.layer = nn.Linear(FEATURES, FEATURES)

        def forward(self, words, loss):
            x = torch.tanh(self.layer(self.embedding(words)))
            return loss(x[:, :-1], self.embedding.weight, words[:, 1:])

    model = Model()
    words = torch.randint(CLASSES, (4, 20))
    results = []
    for loss in (linear_cross_entropy, lambda x, weight, target: reference(x, weight, target, None)):
        model.zero_grad()
        value = model(words, loss)
        value.backward()
        results.append([value.detach(), *(parameter.grad for parameter in model.parameters())])
    for found, expected in zip(*results, strict=True):
        torch.testing.assert_close(found, expected)


def test_autocast_computes_logits_in_its_dtype(device):
    x, weight, target, bias = tensors()
    with torch.autocast(device, torch.bfloat16):
        found = linear_cross_entropy(x, weight, target, bias)
        expected = F.cross_entropy(F.linear(x, weight, bias), target)
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-4)
    for ours, theirs in zip(gradients(found, (x, weight, bias)), gradients(expected, (x, weight, bias)), strict=True):
        assert ours.dtype == torch.float32
        assert_close(ours, theirs, torch.bfloat16)


def test_float16_gradients_survive_a_mean_over_many_rows(device):
    """A mean over n rows has gradients of 1 / n, which a GradScaler's factor makes representable only behind."""
    x, weight, target, _ = tensors(20000, classes=1000, dtype=torch.float16, bias=False)
    loss = linear_cross_entropy(x, weight, target)
    found = torch.autograd.grad(loss * 2**14, (x, weight))
    wide_x, wide_weight = (tensor.detach().float().requires_grad_() for tensor in (x, weight))
    expected = torch.autograd.grad(reference(wide_x, wide_weight, target, None) * 2**14, (wide_x, wide_weight))
    for ours, theirs in zip(found, expected, strict=True):
        assert (ours.float() - theirs).norm() < 2e-3 * theirs.norm()


def test_float16_gradients_of_large_inputs_are_finite(device):
    """The sum over rows is beyond float16, their mean is not."""
    x = torch.full((2048, 256), 100.0, dtype=torch.float16)
    weight = torch.zeros(10, 256, dtype=torch.float16, requires_grad=True)
    target = torch.zeros(2048, dtype=torch.int64)
    (found,) = torch.autograd.grad(linear_cross_entropy(x, weight, target), (weight,))
    torch.testing.assert_close(found, torch.autograd.grad(reference(x, weight, target, None), (weight,))[0])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_16_bit_gradients_are_scaled_in_float32(device, dtype):
    """The mean over 300 rows has no 16-bit factor: rounded, it would be off by a thousandth everywhere."""
    x, weight, target, _ = tensors(dtype=dtype, bias=False)
    (found,) = torch.autograd.grad(linear_cross_entropy(x, weight, target) * 1000, (x,))
    wide = x.detach().float().requires_grad_()
    (expected,) = torch.autograd.grad(reference(wide, weight.detach().float(), target, None) * 1000, (wide,))
    ratio = (found.double() * expected.double()).sum() / expected.double().square().sum()
    assert abs(ratio - 1) < 5e-4


def test_it_can_be_compiled(device):
    x, weight, target, bias = tensors()

    def doubled(*arguments):
        return 2 * linear_cross_entropy(*arguments, label_smoothing=0.1)

    compiled = torch.compile(doubled, backend="aot_eager", fullgraph=True)
    found, expected = compiled(x, weight, target, bias), doubled(x, weight, target, bias)
    torch.testing.assert_close(found, expected)
    for ours, theirs in zip(gradients(found, (x, weight, bias)), gradients(expected, (x, weight, bias)), strict=True):
        torch.testing.assert_close(ours, theirs)


def test_gradients_are_not_differentiated(device):
    x, weight, target, bias = tensors(10)
    with pytest.raises(NotImplementedError, match="linear_cross_entropy: its backward cannot be differentiated"):
        torch.autograd.grad(linear_cross_entropy(x, weight, target, bias), (x,), create_graph=True)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"label_smoothing": 1.5}, ValueError, r"label_smoothing must be in \[0, 1\], got 1.5"),
        ({"z_loss": -1.0}, ValueError, "z_loss must be 0 or more, got -1"),
        ({"reduction": "none"}, ValueError, "reduction must be 'mean' or 'sum', got 'none'"),
        ({"target": torch.zeros(3, dtype=torch.int64)}, ValueError, "target must have the input's shape without"),
        ({"target": torch.zeros(10)}, TypeError, "target must be int64, got Float"),
        ({"target": torch.full((10,), 37)}, IndexError, r"target must be in 0\.\.36 or ignore_index = -100, got 37"),
        ({"weight": torch.zeros(CLASSES)}, ValueError, r"weight must have shape \[classes, features\]"),
        ({"weight": torch.zeros(CLASSES, 5)}, ValueError, "input must have features = 5 as its last dimension"),
        ({"weight": torch.zeros(CLASSES, FEATURES, dtype=torch.bfloat16)}, ValueError, "must have the same dtype"),
        ({"bias": torch.zeros(CLASSES).bfloat16()}, ValueError, "bias must have the weight's dtype and device, got"),
        ({"bias": torch.zeros(CLASSES, device="meta")}, ValueError, "bias must have the weight's dtype and device"),
        ({"bias": torch.zeros(5)}, ValueError, r"bias must have shape \[classes\] = \[37\]"),
        ({"input": torch.zeros(10, FEATURES, dtype=torch.float64)}, TypeError, "input must be float32, float16"),
    ],
)  # fmt: skip
def test_what_makes_no_sense_is_refused_with_a_sentence(change, error, message):
    x, weight, target, bias = tensors(10)
    arguments = {"input": x, "weight": weight, "target": target, "bias": bias} | change
    with pytest.raises(error, match=message):
        linear_cross_entropy(**arguments)
