"""Training a small network: mixed precision, memory formats, recomputation."""

import math

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from devices import rng

pytestmark = pytest.mark.usefixtures("device")

ops = torch.ops.actnn


def make_parameters():
    shapes = (8, 3, 3, 3), (8,), (8,), (10, 32)
    return [(torch.randn(s) * 0.3).requires_grad_() for s in shapes]


def make_batch():
    labels = torch.randint(0, 10, (32,))
    images = torch.randn(32, 3, 16, 16) + labels[:, None, None, None] / 3
    return images.to(memory_format=torch.channels_last), labels


def compressed(x, parameters, bits=4, states=(None,) * 4):
    """The activations of all layers."""
    weight, gamma, beta, matrix = parameters
    layers = [
        lambda t: ops.convolution(
            t, weight, None, [1, 1], [1, 1], [1, 1], False, [0, 0], 1, bits=bits, rng_state=states[0]
        ),
        lambda t: ops.batch_norm(t, gamma, beta, None, None, True, 0.1, 1e-5, bits, 256, "dithered", states[1]),
        ops.relu,
        lambda t: ops.max_pool2d(t, [3, 3], [2, 2], [1, 1]),
        lambda t: ops.adaptive_avg_pool2d(t, [2, 2]),
        lambda t: ops.linear(t.flatten(1), matrix, None, bits, 256, "dithered", states[2]),
    ]
    return in_turn(layers, x)


def exact(x, parameters):
    weight, gamma, beta, matrix = parameters
    layers = [
        lambda t: F.conv2d(t, weight, padding=1),
        lambda t: F.batch_norm(t, None, None, gamma, beta, True),
        F.relu,
        lambda t: F.max_pool2d(t, 3, 2, 1),
        lambda t: F.adaptive_avg_pool2d(t, 2),
        lambda t: F.linear(t.flatten(1), matrix),
    ]
    return in_turn(layers, x)


def in_turn(layers, x):
    activations = [x]
    for layer in layers:
        activations.append(layer(activations[-1]))
    return activations[1:]


@pytest.mark.parametrize("dtype", [None, torch.float16, torch.bfloat16])
def test_the_forward_pass_is_torchs_in_every_precision(dtype, device):
    (images, _), parameters = make_batch(), make_parameters()
    with torch.autocast(device, dtype=dtype, enabled=dtype is not None):
        for actual, expected in zip(compressed(images, parameters), exact(images, parameters), strict=True):
            assert torch.equal(actual, expected)
            assert (actual.dtype, actual.stride()) == (expected.dtype, expected.stride())


def test_channels_last_is_kept_from_the_input_to_its_gradient():
    (images, _), parameters = make_batch(), make_parameters()
    activations = [images.requires_grad_(), *compressed(images, parameters)[:-2]]
    grads = torch.autograd.grad(activations[-1].square().sum(), [images, *activations[1:]])
    for activation, grad in zip(activations, grads, strict=True):
        assert not activation.is_contiguous() and activation.is_contiguous(memory_format=torch.channels_last)
        assert grad.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_it_learns_in_mixed_precision(dtype, device):
    (images, labels), parameters = make_batch(), make_parameters()
    optimizer = torch.optim.SGD(parameters, lr=0.2)
    scaler = torch.amp.GradScaler(device, enabled=dtype == torch.float16)
    losses = []
    for _ in range(20):
        optimizer.zero_grad()
        with torch.autocast(device, dtype=dtype):
            loss = F.cross_entropy(compressed(images, parameters)[-1].float(), labels)
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
        losses.append(loss.item())
    assert all(p.dtype == p.grad.dtype == torch.float32 for p in parameters)
    assert losses[-1] < 0.8 * losses[0]


def test_the_scaler_sees_a_step_that_went_wrong(device):
    (images, labels), parameters = make_batch(), make_parameters()
    images[0, 0, 0, 0] = math.inf
    before = [p.detach().clone() for p in parameters]
    optimizer = torch.optim.SGD(parameters, lr=0.2)
    scaler = torch.amp.GradScaler(device, init_scale=1024.0)
    with torch.autocast(device, dtype=torch.float16):
        loss = F.cross_entropy(compressed(images, parameters)[-1].float(), labels)
    scaler.scale(loss).backward()
    scaler.step(optimizer)
    scaler.update()
    assert scaler.get_scale() == 512.0
    assert all(map(torch.equal, parameters, before)), "the step was skipped"


def test_scaled_gradients_are_the_gradients():
    (images, labels), parameters = make_batch(), make_parameters()

    def gradients(scale):
        states = [rng(i) for i in range(4)]
        loss = F.cross_entropy(compressed(images, parameters, states=states)[-1], labels)
        return torch.autograd.grad(loss * scale, parameters)

    for scaled, wanted in zip(gradients(1024.0), gradients(1.0), strict=True):
        torch.testing.assert_close(scaled / 1024.0, wanted)


def test_checkpointed_blocks_give_the_gradients_of_the_whole():
    (images, labels), parameters = make_batch(), make_parameters()

    def gradients(run):
        torch.manual_seed(1)
        return torch.autograd.grad(F.cross_entropy(run(), labels), parameters)

    def network(x):
        return compressed(x, parameters, bits=2)[-1]

    expected = gradients(lambda: network(images))
    actual = gradients(lambda: torch.utils.checkpoint.checkpoint(network, images, use_reentrant=False))
    assert all(map(torch.equal, actual, expected))
