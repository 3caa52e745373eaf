"""What blocks save: what the plan says, what hooks see, and what two programs share."""

import pytest
import torch
from block_programs import (
    Program,
    attention_half,
    basic_block,
    bottleneck,
    dense_block,
    gated_half,
    inverted_residual,
    squeeze_and_excitation,
)
from packed_columns import packed_bytes as column_bytes
from saved_memory import packed_bytes, saved_bytes
from test_block import EIGHT_BITS, gradients, make, relative_error
from torch.utils._python_dispatch import TorchDispatchMode

ops = torch.ops.actnn
pytestmark = pytest.mark.usefixtures("device")


def saves(program, *forms, **options):
    """(value, form, bits) of what is saved in these forms, and what is computed again."""
    description = program.description(**options)
    found = [(save["value"], save["form"], save.get("bits")) for save in description["saves"] if save["form"] in forms]
    return found, description["recomputes"]


def fusions(program, **options):
    return [(fusion["name"], fusion["steps"]) for fusion in program.description(**options)["fusions"]]


COPIES = ("copy", "exact", "normalized", "derivative")


def test_a_plan_of_a_residual_block():
    program = bottleneck(32)
    copies = [(0, "copy", 4), (3, "copy", 4), (6, "copy", 4), (10, "copy", 3)]
    assert saves(program, *COPIES, output_bits=3) == (copies, [7])
    assert fusions(program) == [("norm_act", [1, 2]), ("norm_act", [4, 5]), ("norm_act", [7, 8, 9])]
    stored, recomputes = saves(program, *COPIES, recompute=False, output_bits=3)
    assert stored == [*copies, (10, "normalized", 3)] and recomputes == []
    # Two bits are too coarse to compute a convolution again from.
    assert saves(program, *COPIES, bits=2)[1] == []
    chosen, _ = saves(program, "copy", value_bits={"0": 8, "3": 2, "10": 5})
    assert chosen == [(0, "copy", 8), (3, "copy", 2), (6, "copy", 4), (10, "copy", 5)]


def test_all_activations_are_in_the_pass_of_their_norm():
    # ReLU6's two masks, one of them beside the bits.
    copies = [(0, "copy", 4), (3, "copy", 5), (6, "copy", 5)]
    assert saves(inverted_residual(), *COPIES) == (copies, [7])
    # One copy is for the derivative of a smooth activation and for whoever reads its result.
    silu = inverted_residual(kind="silu")
    assert saves(silu, *COPIES) == (copies, [7])
    found, _ = saves(silu, *COPIES, bits=8, smooth_bits=6, value_bits={"6": 3})
    assert found == [(0, "copy", 8), (3, "copy", 6), (6, "copy", 3)]
    # A smooth one behind a sum is by itself; ReLU6 where the norm saves its input beside the sum.
    apart = basic_block(kind="silu")
    for recompute in (True, False):
        assert (7, "derivative", 4) in saves(apart, "derivative", recompute=recompute)[0]
        assert fusions(apart, recompute=recompute)[-1] == ("norm_act", [4, 5])
    apart = basic_block(kind="relu6")
    assert saves(apart, "mask", recompute=False)[0] == [(7, "mask", None)]
    assert fusions(apart, recompute=False)[-1] == ("norm_act", [4, 5])
    assert fusions(apart)[-1] == ("norm_act", [4, 5, 6])


def test_one_copy_serves_all_readers():
    """Of a concatenation, the copies of its parts; of a gate that is small, the value."""
    program = dense_block()
    found, recomputes = saves(program, *COPIES)
    assert [value for value, *_ in found] == [0, 4, 8, 12] and recomputes == [1, 5, 9]
    program = squeeze_and_excitation()
    gate = program.steps[11]["inputs"][1]
    assert (gate, "exact", None) in saves(program, "exact", exact=[gate])[0]
    program = attention_half()
    exact = [value for value, *_ in saves(program, "exact", attention_bits=0)[0]]
    assert set(exact) == {*program.steps[5]["inputs"], 8}
    assert not saves(program, "exact")[0]
    copies = {value: bits for value, _, bits in saves(program, *COPIES)[0]}
    assert copies[8] == 4 and 6 in copies.values()


def described_bytes(program, values, **options):
    """The bytes of what a description says is saved, with statistics and random states; `values`: sizes, by number."""
    total = 0
    for save in program.description(**options)["saves"]:
        count = values[save["value"]].numel()
        match save["form"]:
            case "copy" | "normalized" | "derivative":
                channels = values[save["value"]].shape[-1]
                in_columns = "group_rows" in save and count >= 64 * channels
                total += (
                    column_bytes(count // channels, channels, save["bits"], save["group_rows"])
                    if in_columns
                    else packed_bytes(count, save["bits"])
                )
            case "exact":
                total += 4 * count
            case "mask":
                total += -(-count // 8)
            case "random state":
                total += 16
            case "statistics":
                total += 4 * values[save["value"]].shape[:-1].numel()
    return total


@pytest.mark.parametrize("build", [gated_half, lambda: attention_half(dropout=0.3)])
@pytest.mark.parametrize("bits", [2, 5])
def test_hooks_see_what_the_description_says(build, bits):
    """To the byte, where no pass packs several things in one tensor."""
    program = build()
    x = torch.randn(3, 10, 16, requires_grad=True)
    count, results = program.values, program.results
    program.results = list(range(1, count))
    with torch.no_grad():
        values = [x, *program.run(x)]
    program.results = results
    found, y = saved_bytes(lambda: program.run(x, bits=bits))
    assert y.requires_grad and found == described_bytes(program, values, bits=bits)


def test_bytes_of_residual_blocks():
    pixels = 4 * 16 * 16
    x = torch.randn(4, 32, 16, 16, requires_grad=True)
    program = bottleneck(32)
    found, _ = saved_bytes(lambda: program.run(x, output_bits=3))
    bits = pixels * (32 * 4 + 8 * 4 + 8 * 4 + 32 * 3)
    assert bits / 8 < found < 1.2 * bits / 8
    # Normalized inputs beside the sum.
    computed, stored = (saved_bytes(lambda r=r: program.run(x, recompute=r))[0] for r in (True, False))
    assert 0.95 * pixels * 32 * 3 / 8 < stored - computed < 1.05 * pixels * 32 * 3 / 8


@pytest.mark.parametrize(("kind", "bits"), [("relu6", 2 * 32 * (4 + 1)), ("silu", 2 * 32 * 5)])
def test_bytes_of_passes_with_activations(kind, bits):
    pixels = 4 * 16 * 16
    x = torch.randn(4, 8, 16, 16, requires_grad=True)
    program = inverted_residual(hidden=32, kind=kind)
    found, _ = saved_bytes(lambda: program.run(x))
    total = pixels * (8 * 4.125 + bits)
    assert total / 8 < found < 1.1 * total / 8


def test_a_concatenation_is_the_copies_of_its_parts():
    x = torch.randn(4, 8, 16, 16, requires_grad=True)
    program = dense_block(growth=8)
    found, _ = saved_bytes(lambda: program.run(x))
    bits = 4 * 16 * 16 * (8 + 3 * 8) * 4
    assert bits / 8 < found < 1.2 * bits / 8


@pytest.mark.parametrize("frozen", ["everything", "weights", "input"])
def test_only_what_the_wanted_gradients_read_is_saved(frozen):
    x = torch.randn(4, 8, 16, 16, requires_grad=frozen == "weights")
    program = Program()
    program.convolution(program.activation(program.convolution(0, 8, 8, 3), "gelu"), 8, 8, 3)
    for number, parameter in enumerate(program.parameters):
        parameter.requires_grad_(frozen == "input" and number == 1)
    found, y = saved_bytes(lambda: program.run(x, bits=4))
    # The copy of the activation's input is for its derivative, and for who reads its output.
    packed = 0 if frozen == "everything" else column_bytes(1024, 8, 5, 256)
    weights = 0 if frozen == "everything" else sum(p.nbytes for p in program.parameters if not p.requires_grad)
    assert found == packed + weights
    assert y.requires_grad == (frozen != "everything")


def test_hooks_may_replace_what_is_saved():
    program = basic_block()
    x = torch.randn(4, 8, 6, 6, requires_grad=True)
    torch.manual_seed(2)
    plain = gradients(program.run(x), [x, *program.parameters])
    torch.manual_seed(2)
    with torch.autograd.graph.saved_tensors_hooks(
        lambda t: t.cpu().numpy(), lambda a: torch.from_numpy(a).to(x.device)
    ):
        y = program.run(x)
    for a, w in zip(gradients(y, [x, *program.parameters]), plain, strict=True):
        torch.testing.assert_close(a, w)


def test_exact_copies_have_no_noise():
    for name in ("gated", "U-Net"):
        program, inputs = make(name)
        exact = list(range(program.values))
        tensors = [*inputs, *program.parameters]
        result = program.run(*inputs, exact=exact, **EIGHT_BITS)
        for a, w in zip(gradients(result, tensors), gradients(program.expected(*inputs), tensors), strict=True):
            assert relative_error(a, w) < 0.06
    program = Program()
    program.linear(program.linear(0, 16, 16), 16, 8)
    x = torch.randn(5, 16, requires_grad=True)
    tensors = [x, *program.parameters]
    for a, w in zip(
        gradients(program.run(x, exact=[0, 1]), tensors), gradients(program.expected(x), tensors), strict=True
    ):
        torch.testing.assert_close(a, w)


def test_value_bits_are_those_of_the_value():
    program = Program()
    program.linear(program.linear(0, 256, 256), 256, 8)
    for rows in (5, 63, 64, 300):
        x = torch.randn(rows, 256, requires_grad=True)
        for group_rows in (64, 256):
            options = {"bits": 4, "value_bits": {"0": 2, "1": 7}, "group_rows": group_rows}
            found, _ = saved_bytes(lambda x=x, options=options: program.run(x, **options))
            # Few rows do not fill column groups.
            expected = [
                packed_bytes(x.numel(), bits) if rows < 64 else column_bytes(rows, 256, bits, group_rows)
                for bits in (2, 7)
            ]
            assert found == sum(expected)


def joined(first, second, x, share, **options):
    """The results of two programs in a row, the second on the first's result and its copy."""
    value = first.values - 1
    if not share:
        return second.run(first.run(x, **options), **options)
    description = first.description(**options)["copies"][str(value)]
    between, *copies = first.run(x, exports=[value], **options)
    assert len(copies) == description["tensors"] and not any(copy.requires_grad for copy in copies)
    return second.run(between, copies=copies, imports=[{"input": 0, "copy": description["copy"]}], **options)


@pytest.mark.parametrize("kind", ["relu", "relu6"])
def test_programs_share_the_copy_between_them(kind):
    first, second = basic_block(kind=kind), basic_block(kind=kind)
    x = torch.randn(4, 8, 16, 16, requires_grad=True)
    apart, together = (saved_bytes(lambda s=s: joined(first, second, x, s))[0] for s in (False, True))
    assert apart - together >= packed_bytes(x.numel(), 4)
    tensors = [x, *first.parameters, *second.parameters]
    expected = gradients(second.expected(first.expected(x)), tensors)
    actual = gradients(joined(first, second, x, True, **EIGHT_BITS), tensors)
    for a, w in zip(actual, expected, strict=True):
        assert relative_error(a, w) < 0.1


def test_gradients_of_a_shared_copy_are_equal_in_distribution():
    first, second = basic_block(), basic_block()
    x = torch.randn(4, 8, 6, 6, requires_grad=True)
    tensors = [x, *first.parameters, *second.parameters]
    found = []
    for share in (False, True):
        drawn = []
        for seed in range(150):
            torch.manual_seed(seed)
            y = joined(first, second, x, share, bits=3, output_bits=3)
            drawn.append(torch.cat([g.flatten() for g in gradients(y, tensors)]).double())
        found.append(torch.stack(drawn))
    noise = [float(drawn.var(0).sum().sqrt()) for drawn in found]
    difference = float((found[0].mean(0) - found[1].mean(0)).norm())
    assert abs(noise[0] / noise[1] - 1) < 0.1
    assert difference < 2 * (noise[0] ** 2 / 150 + noise[1] ** 2 / 150) ** 0.5


def test_an_inputs_copy_is_shared_too():
    """Of an input that two programs read."""
    first, second = Program(), Program()
    first.linear(0, 256, 16)
    second.linear(0, 256, 16)
    x = torch.randn(6, 256, requires_grad=True)
    copy = first.description()["copies"]["0"]

    def run():
        y, *copies = first.run(x, exports=[0])
        return y, second.run(x, copies=copies, imports=[{"input": 0, "copy": copy["copy"]}])

    found, (y, z) = saved_bytes(run)
    assert found == packed_bytes(x.numel(), 4)
    grad = torch.randn(6, 16)
    a, b = torch.autograd.grad([y, z], [first.parameters[0], second.parameters[0]], [grad, grad])
    assert torch.equal(a, b), "one copy has one noise"


def test_copies_are_exported_without_gradients_wanted():
    program = basic_block()
    for parameter in program.parameters:
        parameter.requires_grad_(False)
    y, *copies = program.run(torch.randn(4, 8, 6, 6), exports=[7])
    assert len(copies) == 2 and not y.requires_grad
    copy = program.description()["copies"]["7"]["copy"]
    reader = Program()
    reader.convolution(0, 8, 8)
    found, z = saved_bytes(lambda: reader.run(y, copies=copies, imports=[{"input": 0, "copy": copy}]))
    (gradient,) = torch.autograd.grad(z.square().sum(), reader.parameters)
    (wanted,) = torch.autograd.grad(reader.expected(y).square().sum(), reader.parameters)
    assert found == sum(c.nbytes for c in copies) and relative_error(gradient, wanted) < 0.2


def test_nothing_is_exported_without_gradients():
    program = basic_block()
    with torch.no_grad():
        results = ops.run_program(program.text(exports=[7]), [torch.randn(4, 8, 6, 6)], program.parameters,
                                  program.buffers, [], [])  # fmt: skip
    assert len(results) == 1


class ConvolutionBackwards(TorchDispatchMode):
    """Counts the calls, and sees to it that the tensors which they are given have the memory of their shapes."""

    calls = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func is torch.ops.aten.convolution_backward.default:
            self.calls += 1
            for tensor in args[:3]:
                last = sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True))
                end = (tensor.storage_offset() + last + 1) * tensor.element_size()
                assert tensor.untyped_storage().nbytes() >= end
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize(
    ("name", "frozen"), [("bottleneck", None), ("strided bottleneck", "weights"), ("U-Net", "weights"), ("U-Net", None)]
)
def test_convolutions_without_cudnn(name, frozen):
    """Whose backward reads the memory that it is given as its input, whether it needs it or not."""
    program, inputs = make(name)
    for tensor in program.parameters:
        tensor.requires_grad_(frozen != "weights" or tensor.dim() == 1)
    wanted = [*inputs, *(p for p in program.parameters if p.requires_grad)]
    with torch.backends.cudnn.flags(enabled=False), torch.backends.mkldnn.flags(enabled=False):
        result = program.run(*inputs, **EIGHT_BITS)
        with ConvolutionBackwards() as seen:
            actual = gradients(result, wanted)
    assert seen.calls >= sum(step["op"] == "convolution" for step in program.steps)
    for a, w in zip(actual, gradients(program.expected(*inputs), wanted), strict=True):
        assert relative_error(a, w) < 0.1


def test_efficientnets_block_saves_at_least_seven_times_less():
    program = squeeze_and_excitation(channels=32, hidden=192, squeezed=8)
    gate = next(place for place, step in enumerate(program.steps) if step["op"] == "mean") + 1
    small = list(range(gate, gate + 5))
    x = torch.randn(8, 32, 14, 14, requires_grad=True)
    exact, _ = saved_bytes(lambda: program.expected(x))
    found, _ = saved_bytes(lambda: program.run(x, exact=small))
    assert exact / found > 7
