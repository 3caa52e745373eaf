"""Checkpoints whose inputs are packed: what backward computes again from them, and what is kept."""

import copy
import weakref

import actnn
import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from actnn import checkpoint, measure_kept_bytes
from configurations import one_thread  # noqa: F401
from ranks import Ranks
from saved_memory import packed_bytes
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.checkpoint import CheckpointError
from torch.utils.checkpoint import checkpoint as exact_checkpoint

pytestmark = pytest.mark.usefixtures("one_thread")

HIDDEN = 64


class Layer(nn.Module):
    """Of a transformer, without its projections."""

    def __init__(self, dropout=0.0):
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(HIDDEN), nn.LayerNorm(HIDDEN)
        self.qkv = nn.Linear(HIDDEN, 3 * HIDDEN)
        self.mlp = nn.Sequential(
            nn.Linear(HIDDEN, 2 * HIDDEN), nn.GELU(), nn.Linear(2 * HIDDEN, HIDDEN), nn.Dropout(dropout)
        )

    def forward(self, x):
        heads = self.qkv(self.norm1(x)).unflatten(-1, (3, 4, -1)).permute(2, 0, 3, 1, 4)
        x = x + F.scaled_dot_product_attention(*heads, is_causal=True).transpose(1, 2).flatten(2)
        return x + self.mlp(self.norm2(x))


class Model(nn.Module):
    def __init__(self, run, dropout=0.0):
        super().__init__()
        self.run = run
        self.embedding = nn.Linear(16, HIDDEN)
        self.layers = nn.ModuleList(Layer(dropout) for _ in range(3))

    def forward(self, x):
        x = self.embedding(x)
        for layer in self.layers:
            x = self.run(layer, x)
        return x.float().square().mean()


def plain(function, *args):
    return function(*args)


def exactly(function, *args):
    return exact_checkpoint(function, *args, use_reentrant=False)


def nested(function, *args):
    return checkpoint(lambda *inner: checkpoint(function, *inner), *args)


def inside_of_an_exact_one(function, *args):
    return exact_checkpoint(lambda *inner: checkpoint(function, *inner), *args, use_reentrant=False)


def twins(run):
    """An exact model, and one with the same weights whose layers `run` calls."""
    exact = Model(plain)
    model = copy.deepcopy(exact)
    model.run = run
    return exact, model, torch.randn(8, 32, 16)


def worst(model, exact):
    """The largest relative error of a parameter's gradient."""
    pairs = zip(model.parameters(), exact.parameters(), strict=True)
    return max(float((p.grad - q.grad).norm() / q.grad.norm()) for p, q in pairs)


class Recorder:
    """A function that remembers what it was given in each call."""

    def __init__(self):
        self.calls = []

    def __call__(self, *args, **kwargs):
        self.calls.append((args, kwargs))
        return sum(arg.sum() for arg in args if isinstance(arg, torch.Tensor) and arg.is_floating_point()).square()


def given_again(*args, **kwargs):
    """What a checkpointed function is given in backward."""
    record = Recorder()
    checkpoint(record, *args, **kwargs).backward()
    (first, _), (again, _) = record.calls
    assert len(first) == len(again) == len(args) and all(a is b for a, b in zip(first, args, strict=True))
    return again


# Gradients.


@pytest.mark.parametrize("bits, error", [(8, 0.006), (6, 0.025), (4, 0.11)])
def test_gradients_are_near_the_exact_ones(device, bits, error):
    exact, model, x = twins(lambda layer, x: checkpoint(layer, x, bits=bits))
    loss = model(x)
    assert torch.equal(loss, exact(x))
    loss.backward()
    exact(x).backward()
    assert error / 6 < worst(model, exact) < error


@pytest.mark.parametrize("run", [nested, inside_of_an_exact_one])
def test_checkpoints_in_checkpoints(run):
    exact, model, x = twins(run)
    model(x).backward()
    exact(x).backward()
    assert 0.001 < worst(model, exact) < 0.01


def test_autocast_and_a_scaled_loss():
    exact, model, x = twins(checkpoint)
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    for one in (exact, model):
        with torch.autocast("cpu", torch.bfloat16):
            loss = one(x)
        scaler.scale(loss).backward()
    assert 0.001 < worst(model, exact) < 0.02
    assert scaler.step(torch.optim.SGD(model.parameters(), 0.1)) is None


def shaped(*shape, memory_format=torch.contiguous_format):
    scales = torch.rand(shape[1]).exp().view(-1, *[1] * (len(shape) - 2))
    return (torch.randn(shape) * scales).contiguous(memory_format=memory_format)


INPUTS = {
    "columns": lambda: shaped(128, 64),
    "few rows": lambda: shaped(16, 256),
    "pictures": lambda: shaped(4, 16, 8, 8),
    "channels last": lambda: shaped(4, 16, 8, 8, memory_format=torch.channels_last),
}


@pytest.mark.parametrize("kind", INPUTS)
def test_gradients_of_what_is_linear_are_unbiased(kind):
    x, draws = INPUTS[kind](), 64
    exact = torch.randn(x.shape)
    weight = nn.Parameter(torch.zeros(x.shape))
    coefficients = torch.randn(x.shape)
    found = []
    for _ in range(draws):
        weight.grad = None
        source = x.clone().requires_grad_()
        checkpoint(lambda value: (value * weight * coefficients).sum(), source * 1, bits=4).backward()
        found.append(weight.grad)
        assert torch.equal(source.grad, weight.detach() * coefficients)
    exact = x * coefficients
    mean = torch.stack(found).mean(0)
    noise = sum((one - exact).square().sum() for one in found) / draws
    assert 1e-5 < noise / exact.square().sum() < 0.03
    assert 0.8 < (mean - exact).square().sum() * draws / noise < 1.2  # `draws` if each were off by the same


def test_gradients_add_up_and_backward_runs_again():
    exact, model, x = twins(checkpoint)
    loss = model(x)
    loss.backward(retain_graph=True)
    loss.backward()
    exact(x).mul(2).backward()
    assert worst(model, exact) < 0.006


def test_second_derivatives():
    x = torch.randn(64, 64, requires_grad=True)

    def second(run):
        (gradient,) = torch.autograd.grad(run(lambda y: y.exp().sum(), x * 1), x, create_graph=True)
        return torch.autograd.grad(gradient.sum(), x)[0]

    found, exact = second(checkpoint), second(plain)
    assert 0.001 < (found - exact).norm() / exact.norm() < 0.02


# What the function is given.


def test_copies_lie_in_memory_as_the_tensors_do():
    values = [
        torch.randn(8, 32, 64),
        torch.randn(64, 32, 8).transpose(0, 2),
        torch.randn(4, 16, 8, 8).contiguous(memory_format=torch.channels_last),
        torch.randn(4, 8, 8, 16),
        torch.randn(2048),
        torch.randn(64, 1, 64).bfloat16().as_strided((64, 1, 64), (64, 7, 1)),
        torch.randn(2, 64, 64).half()[1],
    ]
    values = [value.requires_grad_() * 1 for value in values]
    again = given_again(*values)
    for copied, value in zip(again, values, strict=True):
        assert (copied.shape, copied.stride(), copied.dtype) == (value.shape, value.stride(), value.dtype)
        assert copied.requires_grad and not torch.equal(copied, value)
        torch.testing.assert_close(copied, value, rtol=0, atol=0.04)


def test_other_arguments_are_kept_as_they_are():
    big = torch.randn(64, 64, requires_grad=True)
    values = [
        big, nn.Parameter(torch.randn(64, 64)), torch.randn(64, 64), big.double() * 1, big[:8, :8] * 1, big[:, :32],
        (torch.zeros(1, 1, requires_grad=True) * 1).expand(64, 64), big[:0], torch.arange(4096), big > 0,
    ]  # fmt: skip
    others = [None, 3, "text", [big * 1], {"a": big * 1}]
    again = given_again(*values, *others)
    for given, value in zip(again, values, strict=False):
        assert torch.equal(given, value) and given.requires_grad == value.requires_grad
    assert all(given is other for given, other in zip(again[len(values) :], others, strict=True))


def test_a_tensor_that_is_given_twice_is_packed_once():
    x, other = (torch.randn(64, 64, requires_grad=True) * 1 for _ in range(2))
    first, second, third = given_again(x, other, x)
    assert first is third and first is not second
    model = nn.Identity()
    once = measure_kept_bytes(model, lambda: checkpoint(torch.add, x, other)).total
    assert measure_kept_bytes(model, lambda: checkpoint(lambda *args: args[0].tanh(), x, other, x)).total == once


def test_keywords_are_of_the_function_and_kept_exactly():
    x, shift = (torch.randn(64, 64, requires_grad=True) * 1 for _ in range(2))
    record = Recorder()
    checkpoint(record, x, shift=shift, preserve_rng_state=False, use_reentrant=False, early_stop=False).backward()
    assert [list(kwargs) for _, kwargs in record.calls] == [["shift"], ["shift"]]
    assert torch.equal(record.calls[1][1]["shift"], shift)


def test_the_function_may_write_to_its_input():
    source = torch.randn(64, 64, requires_grad=True)
    checkpoint(lambda x: x.mul_(2).square().sum(), source * 1).backward()
    torch.testing.assert_close(source.grad, 8 * source.detach(), rtol=0, atol=0.2)


def test_several_outputs():
    weight = nn.Parameter(torch.randn(64, 64))
    x = torch.randn(64, 64, requires_grad=True) * 1
    product, (shape, tanh) = checkpoint(lambda x: (x @ weight, (x.shape, x.tanh())), x)
    assert shape == x.shape and torch.equal(tanh, x.tanh())
    (product.sum() + tanh.sum()).backward()
    torch.testing.assert_close(weight.grad, x.detach().sum(0)[:, None].expand(64, 64), rtol=0, atol=0.2)


def test_without_gradients_it_is_a_plain_call():
    x = torch.randn(64, 64, requires_grad=True) * 1
    state = torch.random.get_rng_state()
    record = Recorder()
    with torch.no_grad():
        assert not checkpoint(record, x).requires_grad
    assert len(record.calls) == 1 and torch.equal(state, torch.random.get_rng_state())


# Random numbers.


@pytest.mark.parametrize("run", [checkpoint, nested, inside_of_an_exact_one])
def test_dropout_has_the_same_mask_again(device, run):
    source = torch.randn(64, 64, requires_grad=True)
    result = run(lambda x: F.dropout(F.dropout(x, 0.5).exp(), 0.5), source * 1)
    torch.rand(3)
    state = torch.random.get_rng_state()
    result.sum().backward()
    assert torch.equal(state, torch.random.get_rng_state())
    # The gradient of exp is its result: 0 where either mask is.
    kept = (result != 0) & (result != 2)
    assert 0.2 < kept.float().mean() < 0.3 and torch.equal(source.grad != 0, kept)


# What is kept.


def test_kept_bytes(device):
    x = torch.randn(8, 32, 16)
    elements = 8 * 32 * HIDDEN
    copied = 3 * packed_bytes(elements, 8)  # a column has 256 elements
    around = x.nbytes + 4 * elements  # of the embedding and the loss
    bytes_of = {}
    for run in (plain, exactly, checkpoint, inside_of_an_exact_one):
        model = Model(run)
        bytes_of[run] = measure_kept_bytes(model, lambda m=model: m(x)).total - around
    assert bytes_of[checkpoint] == copied
    assert bytes_of[exactly] == bytes_of[inside_of_an_exact_one] == 3 * 4 * elements < bytes_of[plain] / 10


def test_the_inputs_themselves_are_let_go():
    x = torch.randn(64, 64, requires_grad=True) * 1
    alive = weakref.ref(x)
    result = checkpoint(torch.tanh, x)
    del x
    assert alive() is None
    result.sum().backward()


def test_converted_layers_inside():
    exact, model, x = twins(checkpoint)
    for layer in model.layers:
        actnn.convert(layer)
    loss = model(x)
    torch.testing.assert_close(loss, exact(x))
    loss.backward()
    exact(x).backward()
    assert worst(model, exact) < 0.2
    whole = Model(checkpoint)
    assert measure_kept_bytes(model, lambda: model(x)).total == measure_kept_bytes(whole, lambda: whole(x)).total


def test_a_converted_model_that_calls_it():
    exact, model, x = twins(checkpoint)
    report = actnn.convert(model)
    model(x).backward()
    exact(x).backward()
    assert worst(model, exact) < 0.2
    assert report["layers.0.mlp.0"].block and report["layers.2.mlp.0"].block
    whole = Model(checkpoint)
    kept = measure_kept_bytes(model, lambda: model(x)).total
    assert kept < measure_kept_bytes(whole, lambda: whole(x)).total


# Together with others.


def test_torch_compile_breaks_the_graph():
    exact, model, x = twins(checkpoint)
    torch.compile(model, backend="aot_eager")(x).backward()
    exact(x).backward()
    assert worst(model, exact) < 0.006
    torch.compiler.reset()
    with pytest.raises(torch._dynamo.exc.Unsupported, match=r"actnn\.checkpoint decides"):
        torch.compile(model, backend="aot_eager", fullgraph=True)(x)


def gradients_of_a_rank(device, rank_count):
    torch.manual_seed(0)
    exact, model, _ = twins(checkpoint)
    batches = torch.randn(rank_count, 8, 32, 16)
    parallel = DistributedDataParallel(model)
    parallel(batches[torch.distributed.get_rank()]).backward()
    sum(exact(batch) / rank_count for batch in batches).backward()
    return worst(model, exact), [parameter.grad for parameter in model.parameters()]


def test_data_parallel_training(tmp_path):
    with Ranks("gloo", 2, tmp_path / "store") as ranks:
        (error, one), (_, other) = ranks.run(gradients_of_a_rank, 2)
    assert 0 < error < 0.01 and all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


# Errors.


def test_wrong_arguments():
    x = torch.randn(64, 64)
    with pytest.raises(TypeError, match=r"^checkpoint: function must be callable, got a float32 tensor of shape"):
        checkpoint(x, x)
    for bits in (3, 9):
        with pytest.raises(ValueError, match=rf"^checkpoint: bits must be an integer in 4..8, got {bits}$"):
            checkpoint(torch.tanh, x, bits=bits)
    with pytest.raises(TypeError, match=r"^checkpoint: bits must be an integer in 4..8, got float 8.0$"):
        checkpoint(torch.tanh, x, bits=8.0)
    with pytest.raises(ValueError, match=r"^checkpoint: use_reentrant must be False, for there is no reentrant one$"):
        checkpoint(torch.tanh, x, use_reentrant=True)
    with pytest.raises(ValueError, match="determinism_check should be one of"):
        checkpoint(torch.tanh, x, determinism_check="some")


def test_a_function_that_does_something_else_the_second_time():
    sizes = iter([64, 8])
    result = checkpoint(lambda x: x[: next(sizes)].exp(), torch.randn(64, 64, requires_grad=True) * 1)
    with pytest.raises(CheckpointError, match="different metadata than during the forward pass"):
        result.sum().backward()


def test_arguments_that_share_memory_are_kept():
    """So that torch notices what is written to one of them."""
    weight = torch.randn(64, 64, requires_grad=True)
    x = torch.randn(128, 64, requires_grad=True) * 2

    def function(first, second):
        first.add_(1.0)
        return (first @ weight) * second

    y = actnn.checkpoint(function, x, x[:, :])
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()
