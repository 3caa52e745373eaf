"""Every order of forwards and backwards, and every device, in which a policy has to hold."""

import copy
import gc
import os
import subprocess
import sys
from pathlib import Path

import actnn
import pytest
import torch
from actnn import Config
from configurations import gradients, one_thread, process_config, small_net  # noqa: F401
from policy_checks import Recorder, assert_allocated, network, ranges, scaled, squares
from torch import nn
from torch.utils.checkpoint import checkpoint

ops = torch.ops.actnn
pytestmark = pytest.mark.usefixtures("one_thread")

# Orders of forwards and backwards.


def test_gradient_accumulation():
    flags = Config()
    model, recorder = network(flags)
    for size in (8, 3, 8):
        recorder.clear()
        model(scaled(size, 3, 12, 12)).square().sum().backward()
    assert_allocated(recorder, flags)  # by the last backward


def test_several_forwards_before_their_backwards():
    flags = Config()
    model, recorder = network(flags)
    outputs = [model(scaled(size, 3, 12, 12)) for size in (6, 4)]
    for y in outputs:
        y.square().sum().backward()
    assert_allocated(recorder, flags)  # by both
    assert recorder.actual() != [2, 2, 2]


def test_a_backward_after_the_next_forward():
    flags = Config()
    model, recorder = network(flags)
    waiting = [model(scaled(6, 3, 12, 12))]
    for _ in range(4):  # as the stages of a pipeline do
        waiting.append(model(scaled(6, 3, 12, 12)))
        waiting.pop(0).square().sum().backward()
    bits = recorder.actual()
    for layer in recorder.layers:
        layer.scheme.bits = 2
    model(scaled(6, 3, 12, 12))
    assert recorder.actual() != [2, 2, 2] and bits != [2, 2, 2]


def test_several_losses():
    flags = Config()
    trunk, heads = actnn.QLinear(64, 64, config=flags), [actnn.QLinear(64, n, config=flags) for n in (3, 4)]
    recorder = Recorder(trunk, *heads)
    hidden = trunk(scaled(8, 64))
    losses = [head(hidden).square().sum() for head in heads]
    losses[0].backward(retain_graph=True)
    losses[1].backward()
    sensitivity_uses = recorder.inputs[trunk]
    recorder.inputs[trunk] = 2 * sensitivity_uses  # two backwards went through it
    assert recorder.expected() == pytest.approx((flags.policy.allocate_per_layer(), recorder.actual())[1], abs=0.2)
    assert recorder.actual() != [2, 2, 2]


def test_a_layer_used_twice_counts_twice():
    flags = Config(perlayer=False)
    layer, last = actnn.QLinear(64, 64, config=flags), actnn.QLinear(64, 3, config=flags)
    recorder = Recorder(layer, last)
    last(layer(layer(scaled(8, 64)).tanh())).square().sum().backward()
    assert len(recorder.inputs[layer]) == 2
    # Each use saw the norm that the uses before it had left.
    norms = [squares(grad).mean() for grad in recorder.grads[layer]]
    scales = [norms[0], 0.5 * norms[0] + 0.5 * norms[1]]
    torch.testing.assert_close(layer.scheme.scales.double(), scales[1])
    sensitivity, weight, index = [], [], []
    for x, g in zip(reversed(recorder.inputs[layer]), scales, strict=True):
        sensitivity.append(64 * ranges(x) * g)
    sensitivity.append(64 * ranges(recorder.inputs[last][0]) * last.scheme.scales.double())
    weight, index = torch.full((24,), 64), torch.tensor([0] * 16 + [1] * 8)
    bits = ops.allocate_bits(torch.full((24,), 8, dtype=torch.uint8), torch.cat(sensitivity), weight, 2 * 24 * 64)
    flags.policy.allocate_per_layer()
    assert recorder.actual() == pytest.approx(recorder.means(bits, weight, index), abs=0.02)


def test_layers_that_a_step_leaves_out_keep_their_bits():
    flags = Config()
    layers = [actnn.QLinear(64, 64, config=flags) for _ in range(3)]
    nn.Sequential(*layers)(scaled(8, 64)).square().sum().backward()
    recorder = Recorder(layers[0], layers[2])
    hidden = layers[0](scaled(8, 64))  # allocates
    layers[1].scheme.bits = left_out = 3.25
    layers[2](hidden).square().sum().backward()
    expected = recorder.expected()
    layers[0](scaled(8, 64))
    assert recorder.actual() == pytest.approx(expected, abs=0.02) and layers[1].scheme.bits == left_out


def test_frozen_layers_take_no_part():
    flags = Config()
    model, recorder = network(flags)
    model[0].requires_grad_(False)
    recorder.layers = recorder.layers[1:]
    for _ in range(2):
        recorder.clear()
        gradients(model, scaled(8, 3, 12, 12))
    assert_allocated(recorder, flags)
    assert model[0].scheme.bits == 2 and model[0].scheme.C is None
    assert model[1].scheme.bits == 8  # there is no layer before this batch norm


@pytest.mark.parametrize("reentrant", [False, True])
def test_activation_checkpointing(reentrant):
    flags = Config()
    model, recorder = network(flags)
    plain = copy.deepcopy(model)
    exact = small_net()
    exact.load_state_dict(model.state_dict())
    for _ in range(3):
        recorder.clear()
        x = scaled(8, 3, 12, 12).requires_grad_()
        hidden = checkpoint(model[:6], x, use_reentrant=reentrant, preserve_rng_state=False)
        model[6:](hidden).square().sum().backward()
        bits = recorder.actual()
    assert bits != [2, 2, 2] and all(1 <= b <= 8 for b in bits)
    exact.load_state_dict(model.state_dict())
    assert set(plain.state_dict()) == set(model.state_dict())
    # The copies are few-bit ones, but of the right activations.
    with torch.no_grad():
        for layer in recorder.layers:
            layer.scheme.bits = 8
    flags.initial_bits = 8
    model.zero_grad()
    hidden = checkpoint(model[:6], x, use_reentrant=reentrant)
    model[6:](hidden).square().sum().backward()
    exact(x).square().sum().backward()
    assert (model[3].weight.grad - exact[3].weight.grad).norm() < 0.3 * exact[3].weight.grad.norm()


def test_evaluation_changes_nothing():
    flags = Config()
    model, recorder = network(flags)
    gradients(model, scaled(8, 3, 12, 12))
    model(scaled(8, 3, 12, 12))
    before = recorder.actual(), [layer.scheme.scales.clone() for layer in recorder.layers]
    for _ in range(3):
        model(scaled(4, 3, 12, 12))  # forward without backward
    with torch.no_grad():
        model(scaled(5, 3, 12, 12))
    with torch.inference_mode():
        model.eval()(scaled(5, 3, 12, 12))
    assert recorder.actual() == before[0]
    assert all(torch.equal(layer.scheme.scales, s) for layer, s in zip(recorder.layers, before[1], strict=True))
    model.train()
    gradients(model, scaled(8, 3, 12, 12))
    recorder.clear()
    gradients(model, scaled(8, 3, 12, 12))
    assert_allocated(recorder, flags)


LEAK = """
import os, actnn, torch
from pathlib import Path
layer = actnn.QLinear(2, 1, config=actnn.Config())
x = torch.randn(50_000, 2)
resident = lambda: int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
for _ in range(3):
    layer(x)
before = resident()
for _ in range(20):
    layer(x)
print((resident() - before) / 1e6)
"""


def test_forwards_without_backward_do_not_pile_up():
    environment = os.environ | {"PYTHONPATH": str(Path(actnn.__file__).parent.parent), "OMP_NUM_THREADS": "1"}
    environment |= {"MALLOC_ARENA_MAX": "1", "MALLOC_MMAP_THRESHOLD_": "65536"}  # what is freed goes back
    command = [sys.executable, "-c", LEAK]
    output = subprocess.run(command, env=environment, check=True, capture_output=True, text=True).stdout
    assert float(output) < 2  # of the 5 x 50 000 x 20 bytes = 5 MB that were planned


def test_a_scheme_dies_with_its_layer():
    flags = Config()
    model, _ = network(flags)
    gradients(model, torch.randn(4, 3, 8, 8))
    assert len(flags.policy.schemes()) == 5
    del model, _
    gc.collect()
    assert len(flags.policy.schemes()) == 0
    other, _ = network(flags)
    gradients(other, torch.randn(4, 3, 8, 8))
    gradients(other, torch.randn(4, 3, 8, 8))


@pytest.mark.cuda
def test_nothing_waits_for_the_device():
    flags = Config()
    model, recorder = network(flags)
    model.cuda()
    x, y = torch.randn(16, 3, 12, 12, device="cuda"), torch.arange(16, device="cuda") % 5
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)

    def train():
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x), y).backward()
        optimizer.step()

    for _ in range(3):
        train()
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        for _ in range(3):
            train()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert recorder.actual() != [2, 2, 2]


@pytest.mark.cuda
def test_the_table_of_gradients_does_not_wait_either():
    flags = Config(use_gradient=True)
    flags.policy.set_num_samples(64)
    model, _ = network(flags)
    model.cuda()
    x, index = torch.randn(16, 3, 12, 12, device="cuda"), torch.arange(16, device="cuda")

    def train():
        flags.policy.set_batch(index)
        model(x).square().sum().backward()

    train()
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        train()
        train()
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.cuda
def test_on_a_device_bits_act_one_forward_later():
    flags = Config()
    model, recorder = network(flags)
    model.cuda()
    x = scaled(8, 3, 12, 12).cuda()
    gradients(model, x)
    model(x)
    assert recorder.actual() == [2, 2, 2]
    gradients(model, x)
    model(x)
    assert recorder.actual() != [2, 2, 2]


@pytest.mark.cuda
def test_a_model_on_two_devices_is_one_problem():
    flags = Config()
    model, recorder = network(flags)
    model[2:].cuda()
    x = scaled(8, 3, 12, 12)

    def step():
        model[2:](model[:2](x).cuda()).square().sum().backward()

    for _ in range(3):
        step()
    assert recorder.actual() != [2, 2, 2]
    sensitive = [scheme.sensitivity().device.type for scheme in flags.policy.schemes() if not scheme.normalization()]
    assert set(sensitive) == {"cpu", "cuda"}


@pytest.mark.cuda
def test_a_model_may_move_between_devices():
    flags = Config()
    model, _ = network(flags)
    x = scaled(8, 3, 12, 12)
    for device in ("cpu", "cuda", "cpu", "cuda"):
        model.to(device)
        for _ in range(2):
            model(x.to(device)).square().sum().backward()
        scales = [s.scales() for s in flags.policy.schemes() if not s.normalization()]
        assert all(scale.device.type == device and scale > 0 for scale in scales)
