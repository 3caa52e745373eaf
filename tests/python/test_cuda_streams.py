"""Work on a GPU is queued on the current stream of the input's device, and waits for nothing."""

import pytest
import torch
from devices import assert_same_bits, rng
from test_per_sample import code_bytes

pytestmark = pytest.mark.cuda

ops = torch.ops.actnn
GPU = "cuda"
WINDOW = ([3, 3], [2, 2], [1, 1], [1, 1], False)
# Clock cycles for which a stream is kept busy: about 10 ms, and long enough to queue a training step.
DELAY = 20_000_000
LONG_DELAY = 400_000_000


def cases():
    """name -> (tensors, function of them): one for every op, with CPU tensors."""
    x = torch.randn(4, 16, 24, 24)
    grad = torch.randn(4, 16, 12, 12)
    bits = torch.tensor([2, 8, 3, 5], dtype=torch.uint8)
    room = code_bytes(x, bits)
    packed = ops.quantize(x, 3, 256, "dithered", rng())
    per_sample = ops.quantize_per_sample(x, bits, room, 256, "dithered", rng())
    mask = ops.pack_mask(x > 0)
    _, positions = ops.max_pool2d_pack(x, *WINDOW)
    layout = x.shape, x.stride()
    return {
        "quantize": ([x, rng()], lambda x, state: ops.quantize(x, 3, 256, "dithered", state)),
        "dequantize": ([packed], lambda p: ops.dequantize(p, *layout, torch.float32, 3, 256)),
        "quantize_per_sample": (
            [x, bits, rng()],
            lambda x, bits, state: ops.quantize_per_sample(x, bits, room, 256, "dithered", state),
        ),
        "dequantize_per_sample": (
            [per_sample, bits],
            lambda p, bits: ops.dequantize_per_sample(p, bits, *layout, torch.float32, 256),
        ),
        "pack_mask": ([x > 0], ops.pack_mask),
        "unpack_mask": ([mask], lambda mask: ops.unpack_mask(mask, *layout)),
        "relu_pack": ([x], ops.relu_pack),
        "relu_pack_": ([x.clone()], lambda x: (ops.relu_pack_(x), x)),
        "apply_mask": ([x, mask], lambda x, mask: ops.apply_mask(x, mask, x.stride())),
        "dropout_forward": ([x, rng()], lambda x, state: ops.dropout_forward(x, 0.5, state)),
        "dropout_forward_": ([x.clone(), rng()], lambda x, state: (ops.dropout_forward_(x, 0.5, state), x)),
        "apply_dropout": ([x, rng()], lambda x, state: ops.apply_dropout(x, 0.5, state, x.stride())),
        "max_pool2d_pack": ([x], lambda x: ops.max_pool2d_pack(x, *WINDOW)),
        "max_pool2d_pack_backward": (
            [grad, positions],
            lambda grad, positions: ops.max_pool2d_pack_backward(grad, positions, x.shape, False, *WINDOW),
        ),
        "max_pool2d_indices": (
            [positions],
            lambda positions: ops.max_pool2d_indices(positions, x.shape, False, *WINDOW),
        ),
        "group_range_squares": ([x], lambda x: ops.group_range_squares(x, 256)),
        "square_norms": ([x], lambda x: ops.square_norms(x)),
    }


CASES = list(cases())


def case(name):
    """The tensors, the function, and the expected results (computed on copies: some ops work in place)."""
    tensors, function = cases()[name]
    return tensors, function, results(function(*[t.clone() for t in tensors]))


def results(returned):
    return [returned] if isinstance(returned, torch.Tensor) else list(returned)


def assert_results(actual, expected, name):
    for a, e in zip(results(actual), expected, strict=True):
        if name in ("group_range_squares", "square_norms"):
            torch.testing.assert_close(a.cpu(), e, rtol=1e-5, atol=0)
        else:
            assert_same_bits(a, e, name)


@pytest.mark.parametrize("name", CASES)
def test_ops_are_queued_on_the_current_stream(name):
    tensors, function, expected = case(name)
    # Pinned: a copy from other memory would wait for the stream, and hide that an op did not.
    pinned = [t.pin_memory() for t in tensors]
    # What an op sees that runs too early; valid for every argument.
    on_gpu = [torch.full_like(t, 4, device=GPU) for t in tensors]
    torch.cuda.synchronize()
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        torch.cuda._sleep(DELAY)
        for target, source in zip(on_gpu, pinned, strict=True):
            target.copy_(source, non_blocking=True)
        actual = function(*on_gpu)
        # And what runs too late would see this.
        for target in set(on_gpu) - set(results(actual)):
            target.fill_(5)
    stream.synchronize()
    assert_results(actual, expected, name)


def test_events_order_work_on_several_streams():
    count, rounds = 4, 5
    x = torch.randn(count, 1_000_003)
    expected = [ops.quantize(row, 2, 256, "dithered", rng(i)) for i, row in enumerate(x)]
    values = [ops.dequantize(p, [x.shape[1]], [1], torch.float32, 2, 256) for p in expected]
    y = x.to(GPU)
    writers, readers = ([torch.cuda.Stream() for _ in range(count)] for _ in range(2))
    torch.cuda.synchronize()
    for _ in range(rounds):
        states = [rng(i, device=GPU) for i in range(count)]
        torch.cuda.synchronize()
        packed, decoded = [None] * count, [None] * count
        for i in range(count):
            with torch.cuda.stream(writers[i]):
                torch.cuda._sleep(DELAY // (i + 1))
                packed[i] = ops.quantize(y[i], 2, 256, "dithered", states[i])
                written = writers[i].record_event()
            with torch.cuda.stream(readers[i]):
                readers[i].wait_event(written)
                decoded[i] = ops.dequantize(packed[i], [x.shape[1]], [1], torch.float32, 2, 256)
                packed[i].record_stream(readers[i])
        torch.cuda.synchronize()
        for i in range(count):
            assert_same_bits(packed[i], expected[i])
            assert_same_bits(decoded[i], values[i])


def layers(x, conv_weight, gamma, beta, matrix, states):
    y = ops.convolution(x, conv_weight, None, [1, 1], [1, 1], [1, 1], False, [0, 0], 1, rng_state=states[0])
    y = ops.batch_norm(y, gamma, beta, None, None, True, 0.1, 1e-5, 4, 256, "dithered", states[1])
    y = ops.relu_(y)
    y = ops.max_pool2d(y, [3, 3], [2, 2], [1, 1])
    y = ops.dropout(y, 0.25, states[2])
    y = ops.avg_pool2d(ops.relu(y), [2, 2])
    y = ops.adaptive_avg_pool2d(y, [2, 2])
    return ops.linear(y.flatten(1), matrix, None, 4, 256, "dithered", states[3])


def layer_tensors(dtype=torch.float32):
    x = torch.randn(8, 4, 16, 16, device=GPU, dtype=dtype).to(memory_format=torch.channels_last)
    conv_weight = torch.randn(8, 4, 3, 3, device=GPU, dtype=dtype)
    parameters = [conv_weight, torch.rand(8, device=GPU), torch.randn(8, device=GPU),
                  torch.randn(5, 32, device=GPU, dtype=dtype)]  # fmt: skip
    return x.requires_grad_(), [p.requires_grad_() for p in parameters]


@pytest.mark.parametrize("with_states", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_layers_do_not_wait_for_the_gpu(with_states, dtype):
    x, parameters = layer_tensors(dtype)
    states = [rng(i, device=GPU) for i in range(4)] if with_states else [None] * 4
    layers(x, *parameters, states).square().sum().backward()  # loads kernels and libraries
    torch.cuda.synchronize()
    before = torch.cuda.get_sync_debug_mode()
    torch.cuda.set_sync_debug_mode("error")
    try:
        torch.cuda._sleep(LONG_DELAY)
        queued = torch.cuda.Event()
        layers(x, *parameters, states).square().sum().backward()
        queued.record()
        assert not queued.query(), "the host waited until the GPU had done everything"
    finally:
        torch.cuda.set_sync_debug_mode(before)
    torch.cuda.synchronize()
    assert all(torch.isfinite(t.grad).all() for t in [x, *parameters])


@pytest.mark.parametrize("name", CASES)
def test_ops_do_not_wait_for_the_gpu(name):
    tensors, function, _ = case(name)
    on_gpu = [t.to(GPU) for t in tensors]
    function(*[t.clone() for t in on_gpu])
    torch.cuda.synchronize()
    before = torch.cuda.get_sync_debug_mode()
    torch.cuda.set_sync_debug_mode("error")
    try:
        torch.cuda._sleep(LONG_DELAY)
        queued = torch.cuda.Event()
        function(*on_gpu)
        queued.record()
        assert not queued.query(), "the host waited until the GPU had done everything"
    finally:
        torch.cuda.set_sync_debug_mode(before)
        torch.cuda.synchronize()


def test_backward_runs_on_the_stream_of_forward():
    x, parameters = layer_tensors()
    states = [rng(i, device=GPU) for i in range(4)]
    inputs = [x, *parameters]
    expected = torch.autograd.grad(layers(x, *parameters, states).square().sum(), inputs)
    source = x.detach().clone()
    late = torch.zeros_like(source).requires_grad_()
    for i, state in enumerate(states):
        state.copy_(rng(i, device=GPU))
    torch.cuda.synchronize()
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        torch.cuda._sleep(DELAY)
        with torch.no_grad():
            late.copy_(source)
        y = layers(late, *parameters, states).square().sum()
    torch.cuda.current_stream().wait_stream(stream)
    actual = torch.autograd.grad(y, [late, *parameters])
    torch.cuda.synchronize()
    for a, e in zip(actual, expected, strict=True):
        torch.testing.assert_close(a, e)


# --- devices ---


@pytest.mark.parametrize("name", CASES)
def test_ops_run_on_the_device_of_their_input(name):
    if torch.cuda.device_count() < 2:
        pytest.skip("there is only one CUDA device")
    tensors, function, expected = case(name)
    assert torch.cuda.current_device() == 0
    actual = function(*[t.to("cuda:1") for t in tensors])
    assert all(t.device.index == 1 for t in results(actual))
    assert torch.cuda.current_device() == 0
    assert_results(actual, expected, name)


def test_default_noise_comes_from_the_generator_of_the_inputs_device():
    if torch.cuda.device_count() < 2:
        pytest.skip("there is only one CUDA device")
    x = torch.randn(1000, device="cuda:1")
    before = [generator.get_state() for generator in torch.cuda.default_generators[:2]]
    ops.quantize(x, 2, 256, "dithered", None)
    after = [generator.get_state() for generator in torch.cuda.default_generators[:2]]
    assert torch.equal(before[0], after[0]) and not torch.equal(before[1], after[1])


def ones(device, *shape):
    return torch.ones(shape, device=device)


def bytes_on(device, count):
    return torch.ones(count, dtype=torch.uint8, device=device)


# (call with the first tensor on one device and another tensor on another, the other's name)
MIXED_DEVICES = {
    "quantize": (lambda a, b: ops.quantize(ones(a, 9), 4, 256, "dithered", rng(device=b)), "rng_state"),
    "quantize_per_sample, state": (
        lambda a, b: ops.quantize_per_sample(ones(a, 2, 9), bytes_on(a, 2), 8, 32, "dithered", rng(device=b)),
        "rng_state",
    ),
    "quantize_per_sample, bits": (
        lambda a, b: ops.quantize_per_sample(ones(a, 2, 9), bytes_on(b, 2), 8, 32, "dithered", rng(device=a)),
        "bits",
    ),
    "dequantize_per_sample": (
        lambda a, b: ops.dequantize_per_sample(bytes_on(a, 24), bytes_on(b, 2), [2, 9], [9, 1], torch.float32, 32),
        "bits",
    ),
    "apply_mask": (lambda a, b: ops.apply_mask(ones(a, 9), bytes_on(b, 2), [1]), "mask"),
    "dropout_forward": (lambda a, b: ops.dropout_forward(ones(a, 9), 0.5, rng(device=b)), "rng_state"),
    "dropout_forward_": (lambda a, b: ops.dropout_forward_(ones(a, 9), 0.5, rng(device=b)), "rng_state"),
    "apply_dropout": (lambda a, b: ops.apply_dropout(ones(a, 9), 0.5, rng(device=b), [1]), "state"),
    "max_pool2d_pack_backward": (
        lambda a, b: ops.max_pool2d_pack_backward(
            ones(a, 1, 1, 2, 2), 4 * bytes_on(b, 4), [1, 1, 4, 4], False, *WINDOW
        ),
        "positions",
    ),
    "linear": (
        lambda a, b: ops.linear(ones(a, 3, 4), ones(a, 2, 4).requires_grad_(), None, 4, 256, "dithered", rng(device=b)),
        "rng_state",
    ),
    "batch_norm": (
        lambda a, b: ops.batch_norm(
            ones(a, 3, 4, 5).requires_grad_(),
            None,
            None,
            None,
            None,
            True,
            0.1,
            1e-5,
            4,
            256,
            "dithered",
            rng(device=b),
        ),
        "rng_state",
    ),
}


@pytest.mark.parametrize("name", MIXED_DEVICES)
@pytest.mark.parametrize("swapped", [False, True])
def test_an_argument_on_another_device_is_named(name, swapped):
    call, argument = MIXED_DEVICES[name]
    here, there = ("cpu", GPU) if swapped else (GPU, "cpu")
    with pytest.raises(ValueError, match=rf"{argument} must be on .*device {here}.*, got {there}"):
        call(here, there)
