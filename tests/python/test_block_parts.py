"""Blocks that read parts of values: what they keep, and of what; with the library's own programs."""

import actnn
import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from block_programs import Program
from configurations import one_thread  # noqa: F401
from torch import nn

pytestmark = pytest.mark.usefixtures("one_thread")

WIDTH, LENGTH = 64, 512
PARTS = {
    "slice": lambda x: x[:, :4],
    "select": lambda x: x[:, 0],
    "index": lambda x: x.index_select(1, torch.arange(4)),
}


class OfParts(nn.Module):
    """Layers that read a few places of many."""

    def __init__(self, part, first=None):
        super().__init__()
        self.part, self.first = PARTS[part], first or nn.Identity()
        self.layers = nn.ModuleList(nn.Linear(WIDTH, WIDTH) for _ in range(3))
        self.norm = nn.LayerNorm(WIDTH)

    def forward(self, x):
        z = self.part(self.first(x))
        z = F.relu(self.layers[0](z)) + F.relu(self.layers[1](z))
        return self.norm(self.layers[2](z) + z)


def converted(model, bits=8):
    actnn.convert(model, actnn.Config("L2", activation_compression_bits=[bits]), blocks=actnn.BlockOptions(bits=bits))
    return model


@pytest.mark.parametrize("part", ["slice", "select"])
def test_an_input_may_be_overwritten_before_backward(part):
    """Torch refuses that; a block that keeps a part of an input keeps it as it was."""
    model = converted(OfParts(part))
    x, weights = torch.randn(1, LENGTH, WIDTH), torch.randn(WIDTH)
    gradients = []
    for overwritten in (False, True):
        model.zero_grad()
        y = x.clone()
        loss = (model(y) * weights).sum()
        if overwritten:
            y.zero_()
        loss.backward()
        gradients.append(model.layers[0].weight.grad.clone())
    assert (gradients[1] - gradients[0]).norm() < 0.05 * gradients[0].norm()


@pytest.mark.parametrize("samples", [1, 4])
@pytest.mark.parametrize("first", [False, True])
def test_of_a_part_no_more_is_kept_than_of_a_copy_of_it(first, samples):
    x = torch.randn(samples, LENGTH, WIDTH)
    kept = {}
    for part in ("slice", "index"):
        model = converted(OfParts(part, nn.Linear(WIDTH, WIDTH) if first else None), 4)
        model(x)
        kept[part] = actnn.measure_kept_bytes(model, lambda model=model: model(x).sum().backward()).total
    assert kept["slice"] < 2 * kept["index"] < x.nbytes


def test_what_is_concatenated_has_a_gradient_where_it_is_empty():
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b, self.c = (nn.Linear(WIDTH, WIDTH) for _ in range(3))
            self.norm = nn.LayerNorm(WIDTH)

        def forward(self, x):
            h = self.a(x)
            return self.norm(self.c(torch.cat([h, self.b(h[:, 6:])], 1)))

    model = converted(Model())
    model(torch.randn(2, 6, WIDTH)).sum().backward()
    assert torch.equal(model.b.weight.grad, torch.zeros(WIDTH, WIDTH))


def heads(program, value):
    split = program.step("reshape", value, sizes=[-1, 64, 2, 32])
    return program.step("permute", split, dimensions=[0, 2, 1, 3])


def test_a_product_whose_parts_are_turned_in_part_is_unpacked_once():
    """As partial rotary embeddings do."""
    program = Program(inputs=3)
    product = program.linear(0, 64, 192)
    of_attention = []
    parts = program.step("chunk", product, outputs=3, chunks=3, dimension=-1)
    for part in range(parts, parts + 3):
        head = heads(program, part)
        if part < parts + 2:
            halves = program.step("split", head, outputs=2, sizes=[16, 16], dimension=-1)
            turned = program.step("rotary", halves, 1, 2)
            head = program.step("concatenate", turned, halves + 1, dimension=-1)
        of_attention.append(head)
    program.step("attention", *of_attention)
    angles = torch.outer(torch.arange(64), 100 ** -torch.linspace(0, 1, 8)).repeat(1, 2)
    x = torch.randn(2, 64, 64, requires_grad=True)
    result = program.run(x, angles.cos(), angles.sin())
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        result.sum().backward()
    assert sum(event.name == "actnn::dequantize_columns" for event in profile.events()) == 2  # and that of x


@pytest.mark.parametrize("attention_bits", [0, 8])
def test_rows_that_a_mask_of_lowest_numbers_hides(attention_bits):
    """Their weights are all the same; with dropout on a CPU products and a softmax compute them."""
    program = Program(inputs=2)
    inputs = [heads(program, program.linear(0, 64, 64)) for _ in range(3)]
    program.step("attention", *inputs, 1, probability=1e-9)
    mask = torch.zeros(1, 1, 64, 64)
    mask[..., 5:9, :] = torch.finfo(torch.float32).min
    x = torch.randn(2, 64, 64)
    found = program.run(x, mask, attention_bits=attention_bits, bits=8)
    query, key, value = (
        F.linear(x, *program.parameters[i : i + 2]).view(2, 64, 2, 32).transpose(1, 2) for i in (0, 2, 4)
    )
    scores = query @ key.transpose(-1, -2) / 32**0.5 + mask
    expected = scores.softmax(-1) @ value
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    weights = torch.randn_like(expected)
    ours, theirs = (torch.autograd.grad((result * weights).sum(), program.parameters) for result in (found, expected))
    for one, other in zip(ours, theirs, strict=True):
        assert (one - other).norm() < 0.06 * other.norm() + 1e-3
