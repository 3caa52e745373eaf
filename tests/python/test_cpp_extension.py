"""actnn.cpp_extension: the original's extension modules against plain PyTorch, on every device."""

import math

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from actnn.cpp_extension.backward_func import (
    cudnn_batch_norm,
    cudnn_batch_norm_backward,
    cudnn_convolution_backward,
    cudnn_convolution_transpose_backward,
    native_batch_norm,
    native_batch_norm_backward,
)
from actnn.cpp_extension.calc_precision import calc_precision, calc_precision_dp
from actnn.cpp_extension.minimax import minimax
from actnn.cpp_extension.quantization import (
    act_quantized_dropout,
    act_quantized_max_pool2d,
    act_quantized_relu,
    pack_mixed_precision,
    pack_single_precision,
    unpack_mixed_precision,
    unpack_single_precision,
)
from hypothesis import given, settings
from hypothesis import strategies as st

pytestmark = pytest.mark.usefixtures("device")
DTYPES = [torch.float32, torch.float16, torch.bfloat16]


def ranges(data):
    return data.amin(2, keepdim=True), data.amax(2, keepdim=True)


def mixed_round_trip(data, mn, mx, bits, stochastic=False):
    packed, scale = pack_mixed_precision(data, mn, mx, bits, stochastic)
    assert packed.dtype == torch.uint8 and scale.dtype == torch.float32 and scale.shape == mn.shape
    assert packed.numel() == -(-data.shape[1] * data.shape[2] // 8) * int(bits.sum())
    return unpack_mixed_precision(packed, bits, scale, mn, *data.shape), scale


def plain_copy(data, mn, mx, bits):
    """What rounding to nearest gives, in float64."""
    data, mn, mx = data.double(), mn.double(), mx.double()
    levels = (2.0 ** bits.double() - 1).view(-1, 1, 1)
    step = torch.where(mx > mn, (mx - mn) / levels, 1.0)
    return ((data - mn) / step).round().minimum(levels).clamp_min(0) * step + mn


# --- quantization ---------------------------------------------------------------------------------


@settings(deadline=None)
@given(st.lists(st.integers(1, 8), max_size=5), st.integers(0, 4), st.integers(1, 40), st.sampled_from(DTYPES),
       st.sampled_from([1e-30, 1e-3, 1.0, 1e4]), st.integers(0, 2**31))  # fmt: skip
def test_a_round_trip_gives_the_plain_copy(bits, groups, group_size, dtype, magnitude, seed):
    torch.manual_seed(seed)
    data = (torch.randn(len(bits), groups, group_size) * magnitude).to(dtype)
    mn, mx = ranges(data)
    widths = torch.tensor(bits, dtype=torch.int32)
    copy, _ = mixed_round_trip(data, mn, mx, widths)
    assert copy.shape == data.shape and copy.dtype == dtype
    expected = plain_copy(data, mn, mx, widths)
    largest = max(data.double().abs().max().item(), 1e-45) if data.numel() else 1.0
    wrong = (copy.double() - expected).abs() > 4 * torch.finfo(dtype).eps * largest
    # An element halfway between two points of the grid may go to either.
    step = (mx.double() - mn.double()) / (2.0 ** widths.double() - 1).view(-1, 1, 1)
    distance = (copy.double() - data.double()).abs()
    assert (distance[wrong] <= (step / 2 * (1 + 1e-5)).expand_as(distance)[wrong] + 4e-3 * largest).all()
    assert wrong.sum() <= 0.02 * wrong.numel() + 1


@pytest.mark.parametrize("bits", range(1, 9))
@pytest.mark.parametrize("stochastic", [False, True])
def test_single_precision_is_mixed_precision_with_one_width(bits, stochastic):
    data = torch.randn(6, 3, 20)
    mn, mx = ranges(data)
    torch.manual_seed(1)
    packed, scale = pack_single_precision(data, mn, mx, bits, stochastic)
    torch.manual_seed(1)
    mixed, mixed_scale = pack_mixed_precision(data, mn, mx, torch.full((6,), bits, dtype=torch.int32), stochastic)
    assert torch.equal(packed, mixed) and torch.equal(scale, mixed_scale)
    copy = unpack_single_precision(packed, bits, scale, mn, 6, 3, 20)
    assert ((copy - data).abs() <= (1.0 if stochastic else 0.5) * 1.0001 / scale + 1e-6).all()


def test_stochastic_rounding_is_unbiased():
    data = torch.rand(1, 1, 64).expand(4000, 1, 64)
    mn, mx = ranges(data)
    packed, scale = pack_single_precision(data, mn, mx, 2, True)
    copy = unpack_single_precision(packed, 2, scale, mn, 4000, 1, 64)
    assert (copy.mean(0) - data[0]).abs().max() < 5 * (1 / 3 / 2) / math.sqrt(4000)
    assert copy.std(0).max() > 0.1


def test_more_samples_than_65535():
    data = torch.randn(65_600, 1, 8)
    mn, mx = ranges(data)
    bits = torch.randint(1, 9, (65_600,), dtype=torch.int32)
    copy, scale = mixed_round_trip(data, mn, mx, bits)
    assert ((copy - data).abs() <= 0.5001 / scale + 1e-6).all()


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_group_of_equal_values_is_exact(dtype):
    data = torch.tensor([[[0.0] * 8, [1.5] * 8, [-3e4] * 8]], dtype=dtype)
    for stochastic in (False, True):
        copy, scale = mixed_round_trip(data, *ranges(data), torch.tensor([2]), stochastic)
        assert torch.equal(copy, data) and scale.isfinite().all()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_what_is_not_finite_spoils_its_group_visibly(dtype, bad):
    data = torch.randn(2, 3, 16).to(dtype)
    data[1, 2, 5] = bad
    copy, _ = mixed_round_trip(data, *ranges(data), torch.tensor([4, 3]), stochastic=True)
    assert copy[1, 2].isnan().all() and copy.isnan().sum() == 16


def test_a_range_that_is_none_gives_nan():
    data = torch.zeros(1, 3, 8)
    mn = torch.tensor([0.0, -3e38, math.nan]).view(1, 3, 1)
    mx = torch.tensor([-1.0, 3e38, 1.0]).view(1, 3, 1)
    assert mixed_round_trip(data, mn, mx, torch.tensor([8]))[0].isnan().all()


def test_elements_outside_of_the_range_get_its_ends():
    data = torch.tensor([[[-9.0, 0.0, 1.0, 9.0]]])
    copy, _ = mixed_round_trip(data, torch.zeros(1, 1, 1), torch.ones(1, 1, 1), torch.tensor([2]))
    assert copy.flatten().tolist() == [0, 0, 1, 1]


def test_strided_data_and_data_that_requires_grad():
    data = torch.randn(4, 10, 3).transpose(1, 2).requires_grad_()
    mn, mx = ranges(data)
    packed, scale = pack_single_precision(data, mn, mx, 8, False)
    assert not packed.requires_grad and not scale.requires_grad
    copy = unpack_single_precision(packed, 8, scale, mn, 4, 3, 10)
    assert torch.allclose(copy, data, atol=0.02)


def packing(**change):
    data = torch.randn(2, 3, 8)
    mn, mx = ranges(data)
    bits = torch.tensor([2, 3], dtype=torch.int32)
    return {"data": data, "mn": mn, "mx": mx, "bits": bits, "stochastic": True} | change


@pytest.mark.parametrize(("change", "error", "message"), [
    (lambda: {"data": [1, 2]}, TypeError, r"data must be a strided tensor of float32 or .*, got list"),
    (lambda: {"data": torch.zeros(2, 3, 8, dtype=torch.int32)}, TypeError, "data must .* got a int32 tensor"),
    (lambda: {"data": torch.zeros(2, 24)}, ValueError, r"data must have 3 dimensions, got .* shape \[2, 24\]"),
    (lambda: {"mn": torch.zeros(2, 3)}, ValueError, r"mn must have shape \[2, 3, 1\] on .*, got .* shape \[2, 3\]"),
    (lambda: {"mx": torch.zeros(2, 3, 1, device="meta")}, ValueError, r"mx must have .* on meta"),
    (lambda: {"bits": torch.tensor([2, 9])}, ValueError, "bits must be in 1..8, got 9 for sample 1"),
    (lambda: {"bits": torch.tensor([0, 8])}, ValueError, "bits must be in 1..8, got 0 for sample 0"),
    (lambda: {"bits": torch.tensor([2])}, ValueError, r"bits must have shape \[2\]"),
    (lambda: {"bits": torch.tensor([2.0, 3.0])}, TypeError, "bits must be a strided tensor of uint8 or"),
    (lambda: {"bits": 2}, TypeError, "bits must be a strided tensor .*, got int 2"),
    (lambda: {"stochastic": "no"}, TypeError, "stochastic must be a bool, got str 'no'"),
    (lambda: {"stochastic": None}, TypeError, "stochastic must be a bool, got NoneType None"),
])  # fmt: skip
def test_bad_arguments_of_pack_mixed_precision(change, error, message):
    with pytest.raises(error, match=message):
        pack_mixed_precision(**packing(**change()))


@pytest.mark.parametrize(("bits", "error"), [(0, ValueError), (9, ValueError), (-1, ValueError), (2.0, TypeError),
                                             (True, TypeError), (None, TypeError)])  # fmt: skip
def test_bad_bits_of_single_precision(bits, error):
    with pytest.raises(error, match=r"pack_single_precision: bits must be an integer in 1..8, got"):
        pack_single_precision(**packing(bits=bits))


@pytest.mark.parametrize(("change", "error", "message"), [
    (lambda: {"data": torch.zeros(6)}, TypeError, "data must be a strided tensor of uint8"),
    (lambda: {"data": torch.zeros(1, 6, dtype=torch.uint8)}, ValueError, "data must have 1 dimensions"),
    (lambda: {"data": torch.zeros(5, dtype=torch.uint8)}, ValueError, "data must have 6 bytes for 2 samples .*, got 5"),
    (lambda: {"N": -1}, ValueError, "N must be an integer of at least 0, got -1"),
    (lambda: {"N": 3}, ValueError, r"scale must have shape \[3, 1, 1\]"),
    (lambda: {"num_groups": 1.0}, TypeError, "num_groups must be an integer of at least 0, got float 1.0"),
    (lambda: {"group_size": -8}, ValueError, "group_size must be an integer of at least 0, got -8"),
    (lambda: {"group_size": 2**70}, ValueError, r"must be below 2\^62"),
    (lambda: {"scale": torch.ones(2, 1, 1, dtype=torch.int64)}, TypeError, "scale must be a strided tensor of float32"),
    (lambda: {"mn": torch.ones(2, 1)}, ValueError, r"mn must have shape \[2, 1, 1\]"),
])  # fmt: skip
def test_bad_arguments_of_unpacking(change, error, message):
    arguments = {"data": torch.zeros(6, dtype=torch.uint8), "bits": 3, "scale": torch.ones(2, 1, 1),
                 "mn": torch.ones(2, 1, 1), "N": 2, "num_groups": 1, "group_size": 8} | change()  # fmt: skip
    with pytest.raises(error, match=message):
        unpack_single_precision(**arguments)
    with pytest.raises(error, match=message):
        unpack_mixed_precision(**(arguments | {"bits": torch.full((2,), 3)}))


ANYTHING = st.one_of(
    st.none(), st.integers(-3, 300), st.floats(), st.text(max_size=2), st.booleans(),
    st.builds(lambda shape, dtype: torch.ones(shape).to(dtype), st.lists(st.integers(0, 4), max_size=4),
              st.sampled_from([torch.float32, torch.float64, torch.float16, torch.uint8, torch.int32, torch.bool])),
)  # fmt: skip


@settings(deadline=None, max_examples=300)
@given(st.data())
def test_any_arguments_are_taken_or_refused_with_a_sentence(data):
    function, count = data.draw(st.sampled_from([
        (pack_single_precision, 5), (pack_mixed_precision, 5), (unpack_single_precision, 7),
        (unpack_mixed_precision, 7), (minimax, 1), (calc_precision, 4), (calc_precision_dp, 5),
    ]))  # fmt: skip
    arguments = [data.draw(ANYTHING) for _ in range(count)]
    try:
        function(*arguments)
    except (ValueError, TypeError) as error:
        assert str(error).startswith(f"{function.__name__}: ") and " must " in str(error)


def test_relu_dropout_and_max_pool_are_torchs():
    x = torch.randn(2, 3, 9, 9, requires_grad=True)
    assert torch.equal(act_quantized_relu(x), F.relu(x))
    window = ((3, 3), (2, 2), (1, 1), (1, 1), True)
    y, indices = act_quantized_max_pool2d(x, *window, True)
    expected, expected_indices = F.max_pool2d(x, *window, return_indices=True)
    assert torch.equal(y, expected) and torch.equal(indices, expected_indices)
    assert torch.equal(act_quantized_max_pool2d(x, *window, False), expected)
    (grad,) = torch.autograd.grad(y.sum(), x)
    assert torch.equal(grad, torch.autograd.grad(expected.sum(), x)[0])
    dropped = act_quantized_dropout(x, 0.25)
    kept = dropped != 0
    assert torch.allclose(dropped[kept], x[kept] / 0.75) and 0.6 < kept.float().mean() < 0.9


# --- minimax and calc_precision -------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES)
def test_minimax(dtype):
    data = torch.randn(50, 37).to(dtype)
    mn, mx = minimax(data)
    assert torch.equal(mn, data.min(1)[0]) and torch.equal(mx, data.max(1)[0])
    data[3, 4] = math.nan
    assert [t.isnan().nonzero().tolist() for t in minimax(data)] == [[[3]], [[3]]]


@pytest.mark.parametrize("data", [torch.ones(3), torch.ones(3, 0)])
def test_minimax_refuses_what_has_no_rows(data):
    with pytest.raises(ValueError, match="minimax: data must"):
        minimax(data)


def greedy(b, c, w, target):
    """The definition, one bit at a time."""
    b = list(b)
    while sum(x * y for x, y in zip(b, w, strict=True)) > target and max(b) > 1:
        rise = [
            c[i] * (1 / (2 ** (b[i] - 1) - 1) ** 2 - 1 / (2 ** b[i] - 1) ** 2) / w[i] if b[i] > 1 else math.inf
            for i in range(len(b))
        ]
        b[rise.index(min(rise))] -= 1
    return b


@settings(deadline=None)
@given(st.lists(st.tuples(st.integers(1, 8), st.floats(2**-10, 2**20, width=32), st.integers(1, 50)), min_size=1,
                max_size=8), st.floats(0, 1.2))  # fmt: skip
def test_calc_precision_is_greedy_and_in_place(elements, share):
    b, c, w = zip(*elements, strict=True)
    target = share * sum(x * y for x, y in zip(b, w, strict=True))
    bits = torch.tensor(b, dtype=torch.int32)
    result = calc_precision(bits, torch.tensor(c, dtype=torch.float64), torch.tensor(w, dtype=torch.int32), target)
    assert result is bits and result.tolist() == greedy(b, c, w, target)


@pytest.mark.parametrize(("change", "error", "message"), [
    (lambda: {"b": torch.ones(3)}, TypeError, "b must be a strided tensor of uint8 or"),
    (lambda: {"b": torch.tensor([1, 2, 9])}, ValueError, r"b must be in 1..8, got 1..9"),
    (lambda: {"C": torch.ones(2)}, ValueError, r"C must have shape \[3\]"),
    (lambda: {"w": torch.tensor([1, 0, 2])}, ValueError, "w must be above 0, got 0"),
    (lambda: {"target": "8"}, TypeError, "target must be a number, got str '8'"),
    (lambda: {"target": math.nan}, ValueError, "target must be finite, got nan"),
])  # fmt: skip
def test_bad_arguments_of_calc_precision(change, error, message):
    arguments = {"b": torch.ones(3, dtype=torch.int32), "C": torch.ones(3), "w": torch.ones(3, dtype=torch.int32),
                 "target": 8} | change()  # fmt: skip
    with pytest.raises(error, match="calc_precision: " + message):
        calc_precision(**arguments)


def test_calc_precision_dp_spends_the_budget_where_it_helps():
    bits, probability = calc_precision_dp(torch.tensor([1.0, 1.0]), torch.tensor([1.0, 4096.0]), 8, 3, 2)
    assert bits.dtype == probability.dtype == torch.float32 and bits[1] > bits[0]
    assert (bits * probability).sum() <= 6
    with pytest.raises(ValueError, match="calc_precision_dp: target must be at least 1 / states"):
        calc_precision_dp(torch.ones(2), torch.ones(2), 8, 0, 2)


# --- backward_func --------------------------------------------------------------------------------

CONVOLUTIONS = {
    "1d": ((2, 4, 17), (6, 4, 3), {"stride": [2], "padding": [1], "dilation": [1], "groups": 1}),
    "2d": ((2, 4, 9, 8), (6, 2, 3, 3), {"stride": [2, 1], "padding": [1, 0], "dilation": [1, 2], "groups": 2}),
    "3d": ((2, 3, 5, 6, 7), (4, 3, 3, 3, 3), {"stride": [1] * 3, "padding": [1] * 3, "dilation": [1] * 3, "groups": 1}),
}


@pytest.mark.parametrize("case", CONVOLUTIONS)
@pytest.mark.parametrize("mask", [[True, True], [True, False], (False, True), [False, False]])
@pytest.mark.parametrize("transposed", [False, True])
def test_convolution_backward_is_autograds(case, mask, transposed):
    x_shape, w_shape, geometry = CONVOLUTIONS[case]
    x, weight = torch.randn(x_shape, requires_grad=True), torch.randn(w_shape, requires_grad=True)
    d = len(geometry["stride"])
    if transposed:
        x = torch.randn(2, w_shape[0], *x_shape[2:], requires_grad=True)
        output = getattr(F, f"conv_transpose{d}d")(x, weight, **geometry)
    else:
        output = getattr(F, f"conv{d}d")(x, weight, **geometry)
    grad = torch.randn_like(output)
    expected = torch.autograd.grad(output, [x, weight], grad)
    arguments = [geometry["stride"], geometry["dilation"], geometry["groups"], False, True, False, mask]
    if transposed:
        actual = cudnn_convolution_transpose_backward(x, grad, weight, geometry["padding"], [0] * d, *arguments)
    else:
        actual = cudnn_convolution_backward(x, grad, weight, geometry["padding"], *arguments)
    assert len(actual) == 2
    for value, reference, wanted in zip(actual, expected, mask, strict=True):
        assert (value is not None) == wanted
        if wanted:
            torch.testing.assert_close(value, reference)


@pytest.mark.parametrize("format", [torch.contiguous_format, torch.channels_last])
def test_batch_norm_and_its_backward_are_torchs(format):
    x = torch.randn(8, 5, 6, 6).to(memory_format=format).requires_grad_()
    weight, bias = torch.rand(5, requires_grad=True), torch.randn(5, requires_grad=True)
    statistics = [torch.zeros(5), torch.ones(5)]
    expected_statistics = [t.clone() for t in statistics]
    expected = F.batch_norm(x, *expected_statistics, weight, bias, True, 0.1, 1e-5)
    grad = torch.randn_like(expected)
    gradients = torch.autograd.grad(expected, [x, weight, bias], grad)

    with torch.no_grad():
        output, *saved, reserve = cudnn_batch_norm(x, weight, bias, *statistics, True, 0.1, 1e-5)
        torch.testing.assert_close([output, *statistics], [expected, *expected_statistics])
        back = cudnn_batch_norm_backward(x, grad, weight, *statistics, *saved, 1e-5, reserve)
        torch.testing.assert_close(list(back), list(gradients))

        output, *saved = native_batch_norm(x, weight, bias, None, None, True, 0.1, 1e-5)
        torch.testing.assert_close(output, expected)
        mask = [True, False, True]
        back = native_batch_norm_backward(grad, x, weight, None, None, *saved, True, 1e-5, mask)
        assert back[1] is None
        torch.testing.assert_close([back[0], back[2]], [gradients[0], gradients[2]])


def test_batch_norm_in_evaluation_mode():
    x, mean, var = torch.randn(4, 3, 5), torch.randn(3), torch.rand(3) + 0.5
    output = cudnn_batch_norm(x, torch.ones(3), torch.zeros(3), mean, var, False, 0.1, 1e-5)[0]
    torch.testing.assert_close(output, F.batch_norm(x, mean, var))


def test_vectors_of_a_batch_norm_have_an_entry_per_channel():
    x, ones, short = torch.randn(2, 3, 4), torch.ones(3), torch.ones(2)
    saved = (torch.zeros(3), torch.ones(3))

    def refused(name, got, function, *arguments):
        sentence = rf"{function.__name__}: {name} must have shape \[.*3.*\] on .*, got {got}"
        with pytest.raises(ValueError, match=sentence):
            function(*arguments)

    two = r"a float32 tensor of shape \[2\]"
    for function in (cudnn_batch_norm, native_batch_norm):
        refused("weight", two, function, x, short, None, None, None, True, 0.1, 1e-5)
        refused("bias", two, function, x, None, short, None, None, True, 0.1, 1e-5)
        refused("running_mean", two, function, x, None, None, short, ones, True, 0.1, 1e-5)
        refused("running_var", "float 1.0", function, x, None, None, ones, 1.0, False, 0.1, 1e-5)
        with pytest.raises(ValueError, match=r"batch_norm: input must be a tensor \[N, C, ...\], got .* shape \[2\]"):
            function(short, None, None, None, None, True, 0.1, 1e-5)
    refused("weight", two, cudnn_batch_norm_backward, x, x, short, None, None, *saved, 1e-5)
    refused("save_var", two, cudnn_batch_norm_backward, x, x, ones, None, None, ones, short, 1e-5)
    refused("grad_output", ".*", cudnn_batch_norm_backward, x, x[:1], ones, None, None, *saved, 1e-5)
    mask = [True, True, True]
    refused("save_mean", two, native_batch_norm_backward, x, x, ones, None, None, short, ones, True, 1e-5, mask)
    refused("running_mean", two, native_batch_norm_backward, x, x, ones, short, ones, *saved, False, 1e-5, mask)
    refused("grad_output", ".*", native_batch_norm_backward, x[:1], x, ones, None, None, *saved, True, 1e-5, mask)


def test_a_gradient_that_no_convolution_gives_is_refused():
    x, weight = torch.randn(2, 3, 8, 8), torch.randn(4, 3, 3, 3)

    def gradients(grad, x=x, weight=weight, padding=(0, 0)):
        flags = (1, False, False, True, [True, True])
        return cudnn_convolution_backward(x, grad, weight, padding, [1, 1], [1, 1], *flags)

    assert gradients(torch.randn(2, 4, 6, 6))[0].shape == x.shape
    for shape in ([1, 4, 6, 6], [2, 4, 8, 8], [2, 3, 6, 6], [4, 6, 6]):
        with pytest.raises(
            ValueError, match=r"backward: grad_output must have shape \[2, 4, 6, 6\] on .*, got a float32"
        ):
            gradients(torch.randn(shape))
    with pytest.raises(TypeError, match="grad_output must have the dtype of input, got a float16 tensor"):
        gradients(torch.randn(2, 4, 6, 6).half())
    for arguments, name in (
        ({"grad": None}, "grad_output"),
        ({"grad": x, "x": None}, "input"),
        ({"grad": x, "weight": None}, "weight"),
    ):
        with pytest.raises(TypeError, match=f"backward: {name} must be a tensor, got NoneType None"):
            gradients(**arguments)
    shape = r"\[2, 3, 10, 10\]"
    with pytest.raises(ValueError, match=f"transpose_backward: grad_output must have shape {shape}"):
        cudnn_convolution_transpose_backward(
            torch.randn(2, 4, 8, 8), torch.randn(2, 3, 8, 8), weight, [0, 0], [0, 0], [1, 1], [1, 1], 1, False, False,
            True, [True, True],
        )  # fmt: skip


def test_a_mask_of_the_wrong_size_is_refused():
    x, weight = torch.randn(1, 1, 3, 3), torch.randn(1, 1, 1, 1)
    with pytest.raises(ValueError, match=r"cudnn_convolution_backward: output_mask must be 2 bools, got \[True\]"):
        cudnn_convolution_backward(x, x, weight, [0, 0], [1, 1], [1, 1], 1, False, False, False, [True])
