"""Batch norm over the ranks of a process group: torch's batch norm of the concatenated batches."""

from dataclasses import dataclass, replace

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F  # noqa: N812
from devices import rng
from ranks import AllReduces, Ranks

ops = torch.ops.actnn
EPS = 1e-5
MOMENTUM = 0.3


@pytest.fixture(scope="module")
def one_rank(tmp_path_factory):
    with Ranks("gloo", 1, tmp_path_factory.mktemp("one") / "store") as ranks:
        yield ranks


@pytest.fixture(scope="module")
def two_ranks(tmp_path_factory):
    with Ranks("gloo", 2, tmp_path_factory.mktemp("two") / "store") as ranks:
        yield ranks


@pytest.fixture(scope="module")
def nccl_ranks(tmp_path_factory):
    with Ranks("nccl", min(2, torch.cuda.device_count()), tmp_path_factory.mktemp("nccl") / "store") as ranks:
        yield ranks


@dataclass(frozen=True)
class Case:
    """The batches of all ranks, in shape and numbers, and how the layer is called."""

    batches: tuple[int, ...] = (6, 6)
    channels: int = 5
    spatial: tuple[int, ...] = (7, 6)
    dtype: torch.dtype = torch.float32
    parameter_dtype: torch.dtype = torch.float32
    channels_last: bool = False
    permuted: bool = False  # neither of the usual memory formats
    affine: bool = True
    tracked: bool = True
    training: bool = True
    wanted: tuple[bool, bool, bool] = (True, True, True)  # gradients of input, weight, bias
    mean: float = 0.5
    compress: bool = False
    bits: int = 8

    def tensors(self):
        """Input and output gradient of all ranks, and weight, bias and running statistics."""
        generator = torch.Generator().manual_seed(3)

        def normal(*shape):
            return torch.randn(*shape, generator=generator)

        shape = (sum(self.batches), self.channels, *self.spatial)
        # Ranks have unlike batches, channels unlike means.
        drift = torch.linspace(0, 1, max(shape[0], 1)).view(-1, *[1] * (len(shape) - 1))
        offset = torch.linspace(-1, 2, self.channels).view(1, -1, *[1] * len(self.spatial))
        x = (normal(*shape) * (1 + drift) + drift + self.mean * (1 + offset)).to(self.dtype)
        grad = (normal(*shape) * (1 + drift)).to(self.dtype)
        parameters = [normal(self.channels).to(self.parameter_dtype) for _ in range(3)]
        parameters.append(torch.rand(self.channels, generator=generator).to(self.parameter_dtype) + 0.5)
        return x, grad, parameters

    def laid_out(self, x):
        if self.channels_last:
            x = x.to(memory_format=torch.channels_last if x.dim() == 4 else torch.channels_last_3d)
        return x.transpose(0, -1).contiguous().transpose(0, -1) if self.permuted else x


def layer_of(case, device, x, grad, parameters, function):
    """What `function` gives: output, gradients and running statistics."""
    x = case.laid_out(x.to(device)).requires_grad_(case.wanted[0])
    weight, bias, mean, var = (tensor.to(device) for tensor in parameters)
    weight, bias = (weight.requires_grad_(case.wanted[1]), bias.requires_grad_(case.wanted[2]))
    if not case.affine:
        weight = bias = None
    if not case.tracked:
        mean = var = None
    output = function(x, weight, bias, mean, var)
    named = {"output": output, "running_mean": mean, "running_var": var}
    if output.requires_grad:
        output.backward(case.laid_out(grad.to(device)))
    named |= {"input": x.grad, "weight": None if weight is None else weight.grad,
              "bias": None if bias is None else bias.grad}  # fmt: skip
    assert output.stride() == x.stride() or case.permuted
    return {name: None if tensor is None else tensor.detach().cpu() for name, tensor in named.items()}


def on_a_rank(device, case):
    """Run by every rank on its part."""
    x, grad, parameters = case.tensors()
    rank = dist.get_rank()
    x, grad = x.split(case.batches)[rank], grad.split(case.batches)[rank]

    def layer(*tensors):
        return ops.sync_batch_norm(*tensors, case.training, MOMENTUM, EPS, dist.group.WORLD.group_name, bits=case.bits,
                                   rng_state=rng(rank, device=device), compress=case.compress)  # fmt: skip

    return layer_of(case, device, x, grad, parameters, layer)


def expected_of(case, device="cpu"):
    """torch's batch norm of the concatenated batches, which sees float64: the statistics of half inputs too."""
    x, grad, parameters = case.tensors()
    exact = replace(case, dtype=torch.float64, channels_last=False, permuted=False)

    def layer(x, weight, bias, mean, var):
        return F.batch_norm(x, mean, var, weight, bias, case.training, MOMENTUM, EPS)

    return layer_of(exact, device, x.double(), grad.double(), [p.double() for p in parameters], layer)


TOLERANCE = {
    torch.float32: {"rtol": 2e-5, "atol": 2e-5},
    torch.float16: {"rtol": 2e-3, "atol": 2e-3},
    torch.bfloat16: {"rtol": 2e-2, "atol": 2e-2},
}


def relative_error(actual, expected):
    return ((actual.double() - expected).norm() / expected.norm()).item()


def check(case, results, expected):
    """The ranks' results against that of all batches, up to rounding, or to the noise of a copy."""
    tolerance = TOLERANCE[case.dtype]
    for name in ("running_mean", "running_var"):
        for result in results:
            if case.tracked:
                assert result[name].dtype == case.parameter_dtype
                torch.testing.assert_close(result[name].double(), expected[name], **TOLERANCE[case.parameter_dtype])
                assert torch.equal(result[name], results[0][name])
    outputs = torch.cat([result["output"] for result in results])
    assert outputs.dtype == case.dtype
    torch.testing.assert_close(outputs.double(), expected["output"], **tolerance)
    for name, is_wanted in zip(("input", "weight", "bias"), case.wanted, strict=True):
        gradients = [result[name] for result in results]
        if not is_wanted or (name != "input" and not case.affine):
            assert all(gradient is None for gradient in gradients)
            continue
        assert {g.dtype for g in gradients} == {case.dtype if name == "input" else case.parameter_dtype}
        actual = torch.cat(gradients) if name == "input" else torch.stack([g.double() for g in gradients]).sum(0)
        if name != "bias" and case.compress:
            assert 0 < relative_error(actual, expected[name]) < 0.02
        elif name == "input":
            torch.testing.assert_close(actual.double(), expected[name], **tolerance)
        else:
            assert relative_error(actual, expected[name]) < tolerance["rtol"]


CASES = {
    "float32": Case(),
    "float16": Case(dtype=torch.float16),
    "bfloat16": Case(dtype=torch.bfloat16),
    "float16 throughout": Case(dtype=torch.float16, parameter_dtype=torch.float16),
    "channels_last": Case(channels_last=True),
    "channels_last bfloat16": Case(channels_last=True, dtype=torch.bfloat16),
    "permuted": Case(permuted=True),
    "2-D": Case(spatial=()),
    "3-D": Case(spatial=(9,)),
    "5-D": Case(spatial=(2, 3, 4)),
    "5-D channels_last": Case(spatial=(2, 3, 4), channels_last=True),
    "unequal": Case(batches=(9, 2)),
    "one empty": Case(batches=(7, 0)),
    "the other empty": Case(batches=(0, 7), dtype=torch.bfloat16),
    "one value each": Case(batches=(1, 1), spatial=()),
    "not affine": Case(affine=False, wanted=(True, False, False)),
    "not tracked": Case(tracked=False),
    "frozen parameters": Case(wanted=(True, False, False)),
    "frozen input": Case(wanted=(False, True, True)),
    "only bias": Case(wanted=(False, False, True)),
    "only weight, bfloat16": Case(wanted=(False, True, False), dtype=torch.bfloat16),
    "nothing wanted": Case(wanted=(False, False, False)),
    "evaluation": Case(training=False),
    "compressed": Case(compress=True),
    "compressed bfloat16": Case(compress=True, dtype=torch.bfloat16, channels_last=True, parameter_dtype=torch.float32),
    "compressed, unequal": Case(compress=True, batches=(9, 2)),
    "compressed, one empty": Case(compress=True, batches=(0, 5)),
    "compressed, frozen input": Case(compress=True, wanted=(False, True, True)),
    "compressed, means apart": Case(compress=True, mean=30.0, batches=(9, 5)),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_it_is_batch_norm_of_the_concatenated_batches(name, two_ranks):
    case = CASES[name]
    check(case, two_ranks.run(on_a_rank, case), expected_of(case))


@pytest.mark.parametrize("name", CASES)
def test_one_rank_is_batch_norm(name, one_rank):
    case = replace(CASES[name], batches=(sum(CASES[name].batches),))
    check(case, one_rank.run(on_a_rank, case), expected_of(case))


@pytest.mark.cuda
@pytest.mark.parametrize("name", CASES)
def test_on_cuda(name, nccl_ranks):
    case = CASES[name]
    if len(nccl_ranks) == 1:
        case = replace(case, batches=(sum(case.batches),))
    check(case, nccl_ranks.run(on_a_rank, case), expected_of(case))


def test_a_mean_far_from_zero_leaves_the_variance_exact(two_ranks):
    # Mean / deviation = 1000, squared 1e6: raw moments in float32 would have no digit left. One pass of them would.
    case = Case(mean=1000.0, batches=(40, 60))
    expected = expected_of(case)
    for result in two_ranks.run(on_a_rank, case):
        torch.testing.assert_close(result["running_var"].double(), expected["running_var"], rtol=1e-4, atol=0)
        torch.testing.assert_close(result["running_mean"].double(), expected["running_mean"], rtol=1e-6, atol=0)


def test_empty_batches_on_all_ranks_change_no_running_statistics(two_ranks):
    case = Case(batches=(0, 0))
    _, _, (_, _, mean, var) = case.tensors()
    for result in two_ranks.run(on_a_rank, case):
        assert torch.equal(result["running_mean"], mean) and torch.equal(result["running_var"], var)
        assert result["output"].shape == result["input"].shape == (0, 5, 7, 6)
        assert not result["weight"].any() and not result["bias"].any()


def decoded_gradients(device, case):
    x, grad, (weight, *_) = case.tensors()
    state = rng(4, device=device)
    var, mean = torch.var_mean(x.double(), [0, 2, 3], correction=0)
    deviation = (var + EPS).sqrt()

    def channels(tensor):
        return tensor.view(1, -1, 1, 1)

    exact = ((x - channels(mean)) / channels(deviation)).to(x.dtype)
    packed = ops.quantize(exact, case.bits, 256, "dithered", state.clone())
    normalized = ops.dequantize(packed, x.shape, x.stride(), x.dtype, case.bits, 256).double()
    products = (grad * normalized).mean([0, 2, 3])
    expected = channels(weight / deviation) * (
        grad - channels(grad.double().mean([0, 2, 3])) - normalized * channels(products)
    )
    x.requires_grad_()
    output = ops.sync_batch_norm(x, weight, None, None, None, True, MOMENTUM, EPS, dist.group.WORLD.group_name,
                                 bits=case.bits, rng_state=state)  # fmt: skip
    return torch.autograd.grad(output, x, grad)[0].double(), expected


def test_gradients_are_those_of_the_decoded_copy(one_rank):
    ((actual, expected),) = one_rank.run(decoded_gradients, Case(batches=(8,), bits=2))
    torch.testing.assert_close(actual, expected, rtol=1e-5, atol=1e-5)


def sizes_of_collectives(_, wanted, training):
    """The elements of every all-reduce in forward and in backward."""
    tensors = [torch.randn(s).requires_grad_(w) for s, w in zip(((4, 5), (5,), (5,)), wanted, strict=True)]
    with AllReduces() as forward:
        output = ops.sync_batch_norm(*tensors, torch.zeros(5), torch.ones(5), training, MOMENTUM, EPS,
                                     dist.group.WORLD.group_name)  # fmt: skip
    with AllReduces() as backward:
        output.sum().backward()
    return forward.sizes, backward.sizes


@pytest.mark.parametrize(
    ("wanted", "training", "expected"),
    [
        ((True, True, True), True, ([11], [10])),
        ((True, False, False), True, ([11], [10])),
        ((False, True, True), True, ([11], [])),
        ((False, False, True), True, ([11], [])),
        ((True, True, True), False, ([], [])),
    ],
)
def test_collectives(wanted, training, expected, two_ranks):
    assert two_ranks.run(sizes_of_collectives, wanted, training) == [expected, expected]


def kept_bytes(_):
    sizes = []

    def pack(tensor):
        sizes.append(tensor.numel() * tensor.element_size())
        return tensor

    x = torch.randn(16, 8, 16, 16, requires_grad=True)
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        ops.sync_batch_norm(x, None, None, None, None, True, MOMENTUM, EPS, dist.group.WORLD.group_name, bits=2)
    return sum(sizes), x.numel()


def test_what_is_kept_is_small(one_rank):
    ((kept, elements),) = one_rank.run(kept_bytes)
    assert kept == 16 + elements * 2.125 / 8 + 8 * 4 + 8  # the copy; 1 / deviation; the number of values


def compiled(_, dynamic):
    """The largest differences between eager mode's results and the compiler's."""
    torch.manual_seed(dist.get_rank())
    group = dist.group.WORLD.group_name
    mean, var = torch.zeros(5), torch.ones(5)

    def layer(x, weight, mean, var):
        return ops.sync_batch_norm(x, weight, None, mean, var, True, MOMENTUM, EPS, group, compress=False).relu()

    function = torch.compile(layer, backend="aot_eager", fullgraph=True, dynamic=dynamic)
    differences = []
    for batch in (4, 6):
        x, weight = torch.randn(batch, 5, 3, 3, requires_grad=True), torch.rand(5, requires_grad=True)
        states = [(mean.clone(), var.clone()) for _ in range(2)]
        outputs = [run(x, weight, *state) for run, state in zip((layer, function), states, strict=True)]
        gradients = [torch.autograd.grad(output.square().sum(), (x, weight)) for output in outputs]
        pairs = zip((outputs[0], *states[0], *gradients[0]), (outputs[1], *states[1], *gradients[1]), strict=True)
        differences += [(eager - other).abs().max().item() for eager, other in pairs]
    return max(differences)


@pytest.mark.parametrize("dynamic", [False, True])
def test_it_compiles_whole(dynamic, two_ranks):
    assert max(two_ranks.run(compiled, dynamic)) < 1e-4


def modes(_):
    x = torch.randn(4, 5, requires_grad=True)
    arguments = (None, None, None, None, True, MOMENTUM, EPS, dist.group.WORLD.group_name)
    expected = F.batch_norm(x, None, None, training=True, eps=EPS)
    with torch.no_grad():
        torch.testing.assert_close(ops.sync_batch_norm(x, *arguments), expected)
    with torch.inference_mode():
        torch.testing.assert_close(ops.sync_batch_norm(x.detach().clone(), *arguments), expected.detach())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert ops.sync_batch_norm(x, *arguments).dtype == torch.float32
    output = ops.sync_batch_norm(x, *arguments)
    first = torch.autograd.grad(output.square().sum(), x, retain_graph=True)[0]
    assert torch.equal(torch.autograd.grad(output.square().sum(), x, retain_graph=True)[0], first)
    with pytest.raises(NotImplementedError, match="cannot be differentiated"):
        torch.autograd.grad(output.sum(), x, create_graph=True)


def test_modes(one_rank):
    one_rank.run(modes)


def call(*tensors, training=True, group="absent", **options):
    return ops.sync_batch_norm(*tensors, training, MOMENTUM, EPS, group, **options)


NONE = (None, None, None, None)


@pytest.mark.parametrize(("function", "message"), [
    (lambda: call(torch.ones(4, 3), *NONE),
     "actnn::sync_batch_norm: group_name must be the name of a process group .* got 'absent'"),
    (lambda: call(torch.ones(4, 3, requires_grad=True), *NONE, group=""), "group_name must be .* got ''"),
    (lambda: call(torch.ones(3), *NONE), r"actnn::sync_batch_norm: input must have shape \[N, C\]"),
    (lambda: call(torch.ones(4, 3), torch.ones(4), *NONE[1:]), r"weight must have shape \[C\] = \[3\], got"),
    (lambda: call(torch.ones(4, 3), *NONE, training=False), "running_mean and running_var must be given"),
    (lambda: call(torch.ones(4, 3), *NONE, bits=9), "bits must be in 1..8, got 9"),
])  # fmt: skip
def test_bad_arguments_get_a_sentence(function, message):
    assert not dist.is_initialized()
    with pytest.raises(ValueError, match=message):
        function()


def test_evaluation_needs_no_group():
    x = torch.randn(4, 3)
    mean, var = torch.randn(3), torch.rand(3) + 0.5
    output = call(x, None, None, mean, var, training=False)
    assert torch.equal(output, F.batch_norm(x, mean, var, eps=EPS))
