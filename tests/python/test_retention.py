"""How layers keep their input: by samples' bits, as one group, exactly, simulated, offloaded. Parts of a backward."""

import pytest
import torch

pytestmark = pytest.mark.usefixtures("device")
ops = torch.ops.actnn

BITS = torch.tensor([1, 3, 8, 2, 5], dtype=torch.uint8, device="cpu")


def rng(seed=7):
    return torch.tensor([seed, 0])


def convolution(x, weight, **keeping):
    return ops.convolution(x, weight, None, [1], [1], [1], False, [0], 1, **keeping)


def linear(x, weight, **keeping):
    return ops.linear(x, weight.flatten(1), None, **keeping)


def batch_norm(x, weight, **keeping):
    return ops.batch_norm(x, weight.flatten()[: x.shape[1]], None, None, None, True, 0.1, 1e-5, **keeping)


LAYERS = {
    "convolution": (convolution, (5, 4, 9, 11), (6, 4, 3, 3)),
    "linear": (linear, (5, 7, 36), (6, 4, 3, 3)),
    "batch_norm": (batch_norm, (5, 4, 9, 11), (6, 4, 3, 3)),
}


@pytest.fixture(params=LAYERS)
def layer(request):
    """(op of input and weight, input, weight)."""
    op, x_shape, w_shape = LAYERS[request.param]
    return op, torch.randn(x_shape), torch.randn(w_shape).requires_grad_()


def weight_gradient(op, x, weight, **keeping):
    weight.grad = None
    output = op(x, weight, **keeping)
    output.square().sum().backward()
    return output.detach(), weight.grad


def saved(function):
    """The tensors that a graph keeps: those that autograd is given to save."""
    kept = []

    def pack(tensor):
        kept.append(tensor.detach())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        function()
    return kept


def exact_gradient_at(op, x, copy, weight):
    """The gradient of the exact layer's backward at `copy`, with the output gradient of `x`."""
    grad = 2 * op(x, weight, compress=False).detach()
    (gradient,) = torch.autograd.grad(op(copy, weight, compress=False), weight, grad)
    return gradient


def decoded(x, bits=BITS, group_size=256, state=None):
    bits = bits.to(x.device)
    room = -(-x[0].numel() // 8) * int(bits.sum()) + 3 * len(x)
    packed = ops.quantize_per_sample(x, bits, room, group_size, "dithered", rng() if state is None else state)
    return ops.dequantize_per_sample(packed, bits, x.shape, x.stride(), x.dtype, group_size)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_bits_per_sample_give_the_gradient_of_the_decoded_input(layer, dtype, device):
    op, x, weight = layer
    if op is batch_norm:
        pytest.skip("its backward takes the statistics of the exact input")
    x, weight = x.to(dtype), weight.detach().to(dtype).requires_grad_()
    keeping = {"sample_bits": BITS.to(device), "total_bits": int(BITS.sum()), "rng_state": rng()}
    output, gradient = weight_gradient(op, x, weight, **keeping)
    assert torch.equal(output, op(x, weight, compress=False))
    torch.testing.assert_close(gradient, exact_gradient_at(op, x, decoded(x), weight), rtol=1e-2, atol=1e-2)


def test_bits_per_sample_are_what_is_saved(layer, device):
    op, x, weight = layer
    total = int(BITS.sum())
    kept = saved(lambda: op(x, weight, sample_bits=BITS.to(device), total_bits=total))
    sizes = [tensor.numel() for tensor in kept if tensor.dtype == torch.uint8 and tensor.numel() > len(x)]
    elements = x[0].numel()
    groups = -(-elements // 256) * len(x)
    assert sizes == [16 + -(-4 * groups // 16) * 16 + -(-elements // 8) * total + 3 * len(x)]
    assert not any(tensor.is_floating_point() and tensor.numel() == x.numel() for tensor in kept)


def test_more_bits_are_less_noise(layer, device):
    op, x, weight = layer
    _, exact = weight_gradient(op, x, weight, compress=False)
    errors = []
    for width in (1, 2, 4, 8):
        bits = torch.full((len(x),), width, dtype=torch.uint8)
        _, gradient = weight_gradient(op, x, weight, sample_bits=bits, total_bits=width * len(x), rng_state=rng())
        errors.append((gradient - exact).norm().item())
    assert errors == sorted(errors, reverse=True) and errors[-1] < 0.02 * errors[0]


def test_exact_keeps_the_input_itself(layer):
    op, x, weight = layer
    kept = saved(lambda: op(x, weight, compress=False))
    assert any(tensor.data_ptr() == x.data_ptr() and tensor.shape == x.shape for tensor in kept)
    _, gradient = weight_gradient(op, x, weight, compress=False)
    copy = x.clone()
    torch.testing.assert_close(gradient, exact_gradient_at(op, copy, copy, weight))


def test_an_exact_input_that_changed_is_noticed(layer):
    op, x, weight = layer
    output = op(x, weight, compress=False)
    x.add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        output.sum().backward()


@pytest.mark.parametrize("by_sample", [False, True])
def test_simulation_gives_the_numbers_of_packing(layer, by_sample, device):
    op, x, weight = layer
    keeping = {"sample_bits": BITS.to(device), "total_bits": int(BITS.sum())} if by_sample else {"bits": 2}
    _, packed = weight_gradient(op, x, weight, **keeping, rng_state=rng())
    _, simulated = weight_gradient(op, x, weight, **keeping, simulate=True, rng_state=rng())
    assert torch.equal(packed, simulated)
    kept = saved(lambda: op(x, weight, **keeping, simulate=True))
    assert any(tensor.is_floating_point() and tensor.numel() == x.numel() for tensor in kept)


def test_group_size_zero_is_one_group(layer):
    op, x, weight = layer
    whole = -(-x.numel() // 32) * 32
    _, zero = weight_gradient(op, x, weight, bits=2, group_size=0, rng_state=rng())
    _, explicit = weight_gradient(op, x, weight, bits=2, group_size=whole, rng_state=rng())
    assert torch.equal(zero, explicit)
    sizes = [tensor.numel() for tensor in saved(lambda: op(x, weight, bits=2, group_size=0))]
    assert 16 + 16 + -(-x.numel() // 8) * 2 in sizes


def test_group_size_zero_is_a_group_per_sample_where_samples_have_bits(layer, device):
    op, x, weight = layer
    keeping = {"sample_bits": BITS.to(device), "total_bits": int(BITS.sum())}
    _, zero = weight_gradient(op, x, weight, **keeping, group_size=0, rng_state=rng())
    whole = -(-x[0].numel() // 32) * 32
    _, explicit = weight_gradient(op, x, weight, **keeping, group_size=whole, rng_state=rng())
    assert torch.equal(zero, explicit)


def test_offloading_on_the_cpu_changes_nothing(layer, device):
    if device != "cpu":
        pytest.skip("about the CPU")
    op, x, weight = layer
    _, here = weight_gradient(op, x, weight, bits=2, rng_state=rng())
    _, offloaded = weight_gradient(op, x, weight, bits=2, offload=True, rng_state=rng())
    assert torch.equal(here, offloaded)


@pytest.mark.parametrize("keeping", [
    ({"sample_bits": BITS.clone().float(), "total_bits": 30}, "sample_bits must be a contiguous uint8 tensor"),
    ({"sample_bits": BITS[:3].clone(), "total_bits": 30}, r"sample_bits must be .* of shape \[5\]"),
    ({"sample_bits": BITS, "total_bits": 4}, r"total_bits must be at least one per sample \(5\), got 4"),
    ({"group_size": 33}, "group_size must be a positive multiple of 32, got 33"),
    ({"group_size": -32}, "group_size must be a positive multiple of 32, got -32"),
    ({"bits": 9}, "bits must be in 1..8, got 9"),
])  # fmt: skip
def test_bad_arguments(layer, keeping, device):
    op, x, weight = layer
    arguments, message = keeping
    arguments = {k: v.to(device) if isinstance(v, torch.Tensor) else v for k, v in arguments.items()}
    with pytest.raises(ValueError, match=message):
        op(x, weight, **arguments)


def test_a_budget_that_the_bits_exceed_is_an_error_on_the_cpu(layer, device):
    if device != "cpu":
        pytest.skip("CUDA does not read the bits: such samples decode to NaN")
    op, x, weight = layer
    with pytest.raises(ValueError, match="code_bytes must be at least"):
        op(x, weight, sample_bits=BITS, total_bits=int(BITS.sum()) - 4)


CONVOLUTIONS = {
    "2d": ((7, 4, 9, 11), (6, 4, 3, 3), {}),
    "strided, grouped": ((7, 4, 9, 11), (6, 2, 3, 3), {"stride": [2], "groups": 2}),
    "transposed": ((7, 4, 5, 6), (4, 3, 3, 3), {"transposed": True, "stride": [2]}),
    "3d": ((3, 2, 4, 5, 6), (3, 2, 3, 3, 3), {}),
    "1d": ((7, 4, 19), (6, 4, 3), {}),
}


@pytest.mark.parametrize("name", CONVOLUTIONS)
@pytest.mark.parametrize("samples", [1, 2, 3])
@pytest.mark.parametrize("channels_last", [False, True])
def test_a_backward_in_parts_gives_the_gradients_of_one(name, samples, channels_last):
    x_shape, w_shape, options = CONVOLUTIONS[name]
    x, weight = torch.randn(x_shape, requires_grad=True), torch.randn(w_shape, requires_grad=True)
    if channels_last and len(x_shape) == 4:
        x = x.detach().to(memory_format=torch.channels_last).requires_grad_()
    transposed = options.get("transposed", False)
    bias = torch.randn(w_shape[1] if transposed else w_shape[0], requires_grad=True)

    def gradients(threshold):
        y = ops.convolution(x, weight, bias, options.get("stride", [1]), [1], [1], transposed, [0],
                            options.get("groups", 1), pipeline_threshold=threshold, rng_state=rng())  # fmt: skip
        return torch.autograd.grad(y.square().sum(), (x, weight, bias)), y

    (whole, y) = gradients(None)
    bytes_of_a_sample = (y[0].numel() + 2 * x[0].numel()) * 4
    parts, _ = gradients(bytes_of_a_sample * samples)
    assert parts[0].is_contiguous(memory_format=torch.channels_last) or not channels_last or len(x_shape) != 4
    for whole_gradient, gradient in zip(whole, parts, strict=True):
        assert gradient.shape == whole_gradient.shape
        assert (gradient - whole_gradient).norm() < 1e-5 * whole_gradient.norm()


def test_a_backward_in_parts_calls_the_convolution_for_each():
    from torch.profiler import profile

    x, weight = torch.randn(6, 4, 9, 9, requires_grad=True), torch.randn(6, 4, 3, 3, requires_grad=True)
    bytes_of_a_sample = (6 * 81 + 2 * 4 * 81) * 4
    for samples, calls in ((6, 1), (2, 3), (4, 2), (0, 6)):
        threshold = max(1, bytes_of_a_sample * samples)
        y = convolution(x, weight, pipeline_threshold=threshold)
        with profile() as record:
            y.sum().backward()
        counted = sum(event.count for event in record.key_averages() if event.key == "aten::convolution_backward")
        assert counted == calls


def test_a_threshold_that_is_not_positive():
    with pytest.raises(ValueError, match="pipeline_threshold must be a positive number of bytes, got 0"):
        convolution(torch.randn(1, 4, 5, 5), torch.randn(6, 4, 3, 3), pipeline_threshold=0)


@pytest.mark.parametrize("wanted", [True, False, None])
def test_the_benchmark_mode_of_cudnn_comes_back(wanted):
    before = torch.backends.cudnn.benchmark
    x, weight = torch.randn(2, 4, 9, 9), torch.randn(6, 4, 3, 3, requires_grad=True)
    convolution(x, weight, cudnn_benchmark=wanted).sum().backward()
    assert torch.backends.cudnn.benchmark == before


@pytest.mark.cuda
def test_offloaded_inputs_come_back_from_pinned_memory(layer, device):
    op, x, weight = layer
    x, weight = x.cuda(), weight.detach().cuda().requires_grad_()
    state = torch.tensor([7, 0], device="cuda")
    _, here = weight_gradient(op, x, weight, bits=2, rng_state=state.clone())
    kept = saved(lambda: op(x, weight, bits=2, offload=True))
    assert any(tensor.device.type == "cpu" and tensor.is_pinned() for tensor in kept)
    output = op(x, weight, bits=2, offload=True, rng_state=state.clone())
    weight.grad = None
    for _ in range(2):  # the second time from the same host memory
        output.square().sum().backward(retain_graph=True)
    assert torch.equal(weight.grad, 2 * here)


@pytest.mark.cuda
def test_many_offloaded_layers_come_back_in_order():
    torch.manual_seed(0)
    weights = [torch.randn(64, 64, device="cuda", requires_grad=True) for _ in range(12)]

    def gradients(offload):
        x = torch.randn(256, 64, device="cuda", generator=torch.Generator("cuda").manual_seed(3))
        for i, weight in enumerate(weights):
            x = ops.linear(x, weight, bits=4, offload=offload, rng_state=torch.tensor([i, 0], device="cuda")).tanh()
        return torch.autograd.grad(x.sum(), weights)

    for _ in range(3):
        for here, offloaded in zip(gradients(False), gradients(True), strict=True):
            assert torch.equal(here, offloaded)
