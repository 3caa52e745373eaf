"""CUDA graphs: everything can be captured, and every replay draws fresh noise."""

import itertools
import math

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from devices import assert_same_bits, rng
from test_cuda_streams import CASES, assert_results, case, results
from test_default_noise import RANDOMIZED

pytestmark = pytest.mark.cuda

ops = torch.ops.actnn
GPU = "cuda"


def capture(function, warm_up=3):
    """A graph of a call of the function, and what that returned: replays write it anew."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(warm_up):
            function()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        returned = function()
    # torch fills the graph's seed and offset on the stream of the capture, for which the first replay does not wait.
    torch.cuda.synchronize()
    return graph, returned


@pytest.mark.parametrize("name", CASES)
def test_replays_give_what_a_call_gives(name):
    tensors, function, _ = case(name)
    static = [t.to(GPU) for t in tensors]
    graph, outputs = capture(lambda: function(*static))
    for seed in range(3):
        fresh = [torch.randn_like(t) if t.is_floating_point() else t.clone() for t in tensors]
        states = [t for t in fresh if t.shape == (2,)]
        for state in states:
            state.copy_(rng(seed, 7))
        for target, source in zip(static, fresh, strict=True):
            target.copy_(source)
        graph.replay()
        assert_results(outputs, results(function(*fresh)), name)  # advances the states too
        for target, source in zip(static, fresh, strict=True):
            assert_same_bits(target, source)


def test_replays_advance_the_random_state():
    x, state = torch.randn(3000), rng(7, device=GPU)
    y = x.to(GPU)
    graph, packed = capture(lambda: ops.quantize(y, 2, 256, "dithered", state))
    state.copy_(rng(7, 5))
    for offset in (5, 6, 7):
        graph.replay()
        assert_same_bits(packed, ops.quantize(x, 2, 256, "dithered", rng(7, offset)))
        assert state.tolist() == [7, offset + 1]


@pytest.mark.parametrize("name", RANDOMIZED)
def test_replays_draw_fresh_noise_from_the_default_generator(name):
    with torch.device(GPU):
        x = torch.randn(5, 400)
        graph, drawn = capture(lambda: RANDOMIZED[name](x, None))

        def replays():
            torch.manual_seed(5)
            for _ in range(3):
                graph.replay()
                yield drawn.clone()

        first, again = list(replays()), list(replays())
    assert not torch.equal(first[0], first[1]) and not torch.equal(first[1], first[2])
    assert all(map(torch.equal, first, again))


def test_what_replays_pack_is_within_a_step():
    x = torch.randn(3000, device=GPU)

    def pack_and_unpack():
        packed = ops.quantize(x, 2, 256, "dithered", None)
        return packed, ops.dequantize(packed, x.shape, x.stride(), x.dtype, 2, 256)

    graph, (packed, decoded) = capture(pack_and_unpack)
    groups = math.ceil(x.numel() / 256)
    seen = set()
    for _ in range(10):
        graph.replay()
        seen.add(bytes(packed.tolist()))
        step = packed[16 : 16 + 4 * groups].view(torch.bfloat16).view(groups, 2)[:, 1].float()
        assert ((decoded - x).abs() <= step.repeat_interleave(256)[: x.numel()]).all()
    assert len(seen) == 10


class Classifier:
    """A small network; `states`: the random states of its layers."""

    def __init__(self, states):
        torch.manual_seed(3)
        shapes = (8, 3, 3, 3), (8,), (8,), (10, 32)
        self.parameters = [torch.randn(s).mul_(0.3).to(GPU).requires_grad_() for s in shapes]
        self.statistics = [torch.zeros(8, device=GPU), torch.ones(8, device=GPU)]
        self.states = states
        self.optimizer = torch.optim.SGD(self.parameters, lr=0.1)

    def loss(self, images, labels):
        weight, gamma, beta, matrix = self.parameters
        states = self.states
        y = ops.convolution(images, weight, None, [1, 1], [1, 1], [1, 1], False, [0, 0], 1, bits=8, rng_state=states[0])
        y = ops.batch_norm(y, gamma, beta, *self.statistics, True, 0.1, 1e-5, 8, 256, "dithered", states[1])
        y = ops.max_pool2d(ops.relu_(y), [3, 3], [2, 2], [1, 1])
        y = ops.adaptive_avg_pool2d(ops.dropout(y, 0.25, states[2]), [2, 2])
        y = ops.linear(y.flatten(1), matrix, None, 8, 256, "dithered", states[3])
        return F.cross_entropy(y, labels)

    def step(self, images, labels):
        self.optimizer.zero_grad(set_to_none=True)
        loss = self.loss(images, labels)
        loss.backward()
        self.optimizer.step()
        return loss

    def variables(self):
        return [*self.parameters, *self.statistics, *(s for s in self.states if s is not None)]


def batch(seed):
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, 10, (16,), generator=generator)
    images = torch.randn(16, 3, 16, 16, generator=generator) + labels[:, None, None, None] / 5
    return images.to(memory_format=torch.channels_last).to(GPU), labels.to(GPU)


def test_a_captured_training_step_trains_as_an_eager_one():
    captured, eager = (Classifier([rng(i, device=GPU) for i in range(4)]) for _ in range(2))
    images, labels = batch(0)
    initial = [v.detach().clone() for v in captured.variables()]
    graph, loss = capture(lambda: captured.step(images, labels))
    with torch.no_grad():
        for variable, value in zip(captured.variables(), initial, strict=True):
            variable.copy_(value)
    for i in range(1, 6):
        fresh_images, fresh_labels = batch(i)
        images.copy_(fresh_images)
        labels.copy_(fresh_labels)
        graph.replay()
        expected = eager.step(fresh_images, fresh_labels)
        torch.testing.assert_close(loss, expected, rtol=1e-4, atol=1e-4)
        for actual, wanted in zip(captured.variables(), eager.variables(), strict=True):
            torch.testing.assert_close(actual, wanted, rtol=1e-3, atol=1e-4)
        assert [state.tolist() for state in captured.states] == [[seed, i] for seed in range(4)]


def test_a_captured_training_step_draws_fresh_noise_and_learns():
    model = Classifier([None] * 4)
    images, labels = batch(0)
    graph, loss = capture(lambda: model.step(images, labels))
    graph.replay()
    first = loss.item()
    for _ in range(100):
        graph.replay()
    assert loss.item() < 0.5 * first
    # At a learning rate of 0 only the noise changes.
    model.optimizer.param_groups[0]["lr"] = 0.0
    graph, _ = capture(lambda: model.step(images, labels))
    gradients = []
    for _ in range(5):
        graph.replay()
        gradients.append([p.grad.clone() for p in model.parameters])
    for before, after in itertools.pairwise(gradients):
        assert not any(map(torch.equal, before, after))


def test_gradients_of_replays_are_unbiased():
    draws = 600
    x, weight = torch.randn(32, 20, device=GPU), torch.randn(7, 20, device=GPU).requires_grad_()
    grad = torch.randn(32, 7, device=GPU)
    graph, drawn = capture(
        lambda: torch.autograd.grad((ops.linear(x, weight, None, 1, 64, "dithered", None) * grad).sum(), weight)[0]
    )
    all_drawn = []
    for _ in range(draws):
        graph.replay()
        all_drawn.append(drawn.double())
    samples = torch.stack(all_drawn)
    (exact,) = torch.autograd.grad((F.linear(x, weight) * grad).sum(), weight)
    error = samples.std(0) / math.sqrt(draws)
    assert (error > 0).all()
    assert ((samples.mean(0) - exact).abs() <= 5 * error + 1e-5).all()
