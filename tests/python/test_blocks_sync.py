"""Blocks with synchronized batch norms: those of one process, on the batches of all ranks."""

from dataclasses import dataclass
from functools import partial

import pytest
import torch
import torch.distributed as dist
from block_programs import PROGRAMS, basic_block
from ranks import AllReduces, Ranks

EXACT = {"bits": 8, "output_bits": 8, "smooth_bits": 8, "norm_bits": 8}


@pytest.fixture(scope="module")
def three_ranks(tmp_path_factory):
    with Ranks("gloo", 3, tmp_path_factory.mktemp("three") / "store") as ranks:
        yield ranks


@pytest.fixture(scope="module")
def nccl_ranks(tmp_path_factory):
    with Ranks("nccl", min(3, torch.cuda.device_count()), tmp_path_factory.mktemp("nccl") / "store") as ranks:
        yield ranks


@dataclass(frozen=True)
class Case:
    """A program, the batches of all ranks, and what is trained."""

    name: str
    batches: tuple[int, ...] = (4, 4, 4)
    training: bool = True
    recompute: bool = True
    frozen: str = ""

    def program(self):
        torch.manual_seed(11)
        program = PROGRAMS[self.name][0]()
        for place, parameter in enumerate(program.parameters):
            is_norm = parameter.dim() == 1
            frozen = {"norms": is_norm, "weights": not is_norm, "all but one": place != 3}
            parameter.requires_grad_(not frozen.get(self.frozen, False))
        return program

    def tensors(self):
        """Inputs and output gradient of all ranks; the ranks' are unlike."""
        torch.manual_seed(12)
        program, rows = self.program(), sum(self.batches)
        inputs = []
        for shape in PROGRAMS[self.name][1]:
            drift = torch.linspace(0, 2, rows).view(-1, *[1] * (len(shape) - 1))
            x = torch.randn(rows, *shape[1:]) * (1 + drift) + drift
            inputs.append(x.requires_grad_(self.frozen not in ("input", "all but one")))
        y = program.expected(*inputs, training=self.training)
        return inputs, torch.randn(y.shape) * torch.linspace(0.5, 2, rows).view(-1, *[1] * (y.dim() - 1))


def outcome(inputs, grad, program, run):
    """Output, gradients of inputs and parameters (None: not wanted), and buffers, which are left as they are then."""
    y = run(*inputs)
    tensors = [*inputs, *program.parameters]
    wanted = iter(torch.autograd.grad(y, [tensor for tensor in tensors if tensor.requires_grad], grad))
    gradients = [next(wanted) if tensor.requires_grad else None for tensor in tensors]
    gradients = [None if gradient is None else gradient.cpu() for gradient in gradients]
    return y.detach().cpu(), gradients, [buffer.detach().cpu().clone() for buffer in program.buffers]


def joined(program):
    """With the process group of all ranks in each norm."""
    for step in program.steps:
        if step["op"] == "batch_norm":
            step["group_name"] = dist.group.WORLD.group_name
    return program


def draws_on_a_rank(device, case, draws):
    torch.backends.cudnn.allow_tf32 = False

    def own(tensor):
        part = tensor.detach().split(case.batches)[dist.get_rank()].to(device)
        return part.requires_grad_(tensor.requires_grad)

    inputs, grad = case.tensors()
    inputs, grad = [own(x) for x in inputs], own(grad)
    program = joined(case.program())
    program.parameters = [p.detach().to(device).requires_grad_(p.requires_grad) for p in program.parameters]
    program.buffers = [buffer.to(device) for buffer in program.buffers]
    results = []
    for draw in range(draws):
        torch.manual_seed(dist.get_world_size() * draw + dist.get_rank())
        run = partial(program.run, training=case.training, recompute=case.recompute, **EXACT)
        results.append(outcome(inputs, grad, program, run))
    return results


def joined_gradients(case, gradients):
    """Of one draw, from the ranks': those of inputs side by side, those of parameters in sum."""
    inputs = len(PROGRAMS[case.name][1])
    for place, of_ranks in enumerate(zip(*gradients, strict=True)):
        if None in of_ranks:
            assert set(of_ranks) == {None}
            yield None
        else:
            yield torch.cat(of_ranks) if place < inputs else torch.stack(of_ranks).sum(0)


def check(case, ranks, draws=16):
    """Results and running statistics equal those of torch's functions for all batches, gradients in the mean."""
    results = ranks.run(draws_on_a_rank, case, draws)
    program = case.program()
    output, gradients, buffers = outcome(*case.tensors(), program, partial(program.expected, training=case.training))
    torch.testing.assert_close(torch.cat([of_rank[0][0] for of_rank in results]), output, rtol=1e-4, atol=1e-4)
    for of_rank in results:
        torch.testing.assert_close(of_rank[0][2], buffers, rtol=1e-4, atol=1e-5)
    drawn = [list(joined_gradients(case, [of_rank[draw][1] for of_rank in results])) for draw in range(draws)]
    largest = max(float(gradient.norm()) for gradient in gradients if gradient is not None)
    for wanted, *actual in zip(gradients, *drawn, strict=True):
        if wanted is None:
            assert set(actual) == {None}
            continue
        stack = torch.stack(actual).double()
        noise = float(stack.var(0).sum().sqrt())
        assert noise < 0.15 * float(wanted.norm()) + 2e-3 * largest
        error = float((stack.mean(0) - wanted).norm())
        assert error < 2 * noise / draws**0.5 + 1e-3 * largest


@pytest.mark.parametrize("recompute", [True, False])
@pytest.mark.parametrize("name", PROGRAMS)
def test_programs(name, recompute, three_ranks):
    case = Case(name, recompute=recompute)
    check(case, three_ranks)


@pytest.mark.parametrize("batches", [(7, 3, 2), (1, 1, 1), (5, 0, 4), (0, 0, 6)])
@pytest.mark.parametrize("name", ["bottleneck", "stem", "1-D"])
def test_unequal_and_empty_batches(name, batches, three_ranks):
    case = Case(name, batches=batches)
    check(case, three_ranks)


@pytest.mark.parametrize("frozen", ["input", "norms", "weights", "all but one"])
def test_frozen_parameters(frozen, three_ranks):
    case = Case("bottleneck", frozen=frozen)
    check(case, three_ranks)


def test_evaluation(three_ranks):
    case = Case("identity bottleneck", training=False)
    check(case, three_ranks)


@pytest.mark.cuda
@pytest.mark.parametrize("recompute", [True, False])
@pytest.mark.parametrize("name", PROGRAMS)
def test_on_cuda(name, recompute, nccl_ranks):
    check(Case(name, batches=(3, 0, 9)[-len(nccl_ranks) :], recompute=recompute), nccl_ranks)


def test_statistics_of_one_rank_would_be_seen():
    """The ranks' batches are so unlike that the tests above fail without an exchange."""
    case = Case("basic block")
    program, (inputs, grad) = case.program(), case.tensors()
    _, (joint, *_), _ = outcome(inputs, grad, program, program.expected)
    first = slice(case.batches[0])
    _, (alone, *_), _ = outcome([inputs[0].detach()[first].requires_grad_()], grad[first], program, program.expected)
    assert (joint[first] - alone).norm() > 0.3 * alone.norm()


def empty_everywhere(_):
    program = joined(basic_block())
    before = [buffer.clone() for buffer in program.buffers]
    y = program.run(torch.randn(0, 8, 6, 6, requires_grad=True))
    gradients = torch.autograd.grad(y.sum(), program.parameters)
    assert not any(gradient.any() for gradient in gradients)
    statistics = [buffer.is_floating_point() for buffer in before]
    return all(torch.equal(a, b) for a, b, s in zip(program.buffers, before, statistics, strict=True) if s)


def test_empty_batches_on_all_ranks_change_no_running_statistics(three_ranks):
    assert all(three_ranks.run(empty_everywhere))


def sizes_of_collectives(_, frozen, training):
    """The elements of every all-reduce in forward and in backward."""
    program = joined(basic_block())
    x = torch.randn(4, 8, 6, 6, requires_grad=frozen == "")
    if frozen == "input and first convolution":
        program.parameters[0].requires_grad_(False)
    with AllReduces() as forward:
        y = program.run(x, training=training)
    with AllReduces() as backward:
        y.sum().backward()
    return forward.sizes, backward.sizes


@pytest.mark.parametrize(
    ("frozen", "training", "expected"),
    [
        ("", True, ([17, 17], [16, 16])),
        ("input", True, ([17, 17], [16, 16])),
        ("input and first convolution", True, ([17, 17], [16])),
        ("", False, ([], [])),
    ],
)
def test_collectives(frozen, training, expected, three_ranks):
    assert three_ranks.run(sizes_of_collectives, frozen, training) == 3 * [expected]


def with_weights_of_their_own(_):
    """The bends of ranks' copies are elsewhere: what is summed must not depend on them."""
    program = joined(basic_block())
    with torch.no_grad():
        program.parameters[1].mul_(torch.tensor([1.0, -1.0, 3.0])[dist.get_rank()])
        program.parameters[2].mul_(torch.tensor([1.0, 30.0, -1.0])[dist.get_rank()])
    x = torch.randn(4, 8, 6, 6, generator=torch.Generator().manual_seed(dist.get_rank())).requires_grad_()
    group = dist.group.WORLD.group_name

    def layers(x):
        w1, a1, b1, w2, a2, b2 = program.parameters

        def norm(x, weight, bias):
            return torch.ops.actnn.sync_batch_norm(x, weight, bias, None, None, True, 0.1, 1e-5, group, compress=False)

        y = norm(torch.conv2d(x, w1, padding=1), a1, b1).relu()
        return (x + norm(torch.conv2d(y, w2, padding=1), a2, b2)).relu()

    gradients = [torch.autograd.grad(y.square().sum(), x)[0] for y in (program.run(x, **EXACT), layers(x))]
    return float((gradients[0] - gradients[1]).norm() / gradients[1].norm())


def test_weights_may_differ_between_ranks(three_ranks):
    assert max(three_ranks.run(with_weights_of_their_own)) < 0.05


def test_a_group_that_is_not_there_gets_a_sentence():
    program = basic_block()
    program.steps[1]["group_name"] = "absent"
    x = torch.randn(4, 8, 6, 6)
    with pytest.raises(ValueError, match=r"block: group_name must be the name of a process group .* got 'absent'"):
        program.run(x)
    assert program.buffers[2] == 0
    expected = program.expected(x, training=False)
    torch.testing.assert_close(program.run(x, training=False), expected)


def test_a_group_must_be_a_name():
    program = basic_block()
    program.steps[1]["group_name"] = 7
    with pytest.raises(ValueError, match="group_name"):
        program.description()
