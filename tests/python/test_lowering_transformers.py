"""Lowered graphs of transformers: programs of layers, masks, sizes that change, shared copies."""

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from actnn.capture.values import path_of
from configurations import one_thread  # noqa: F401
from lowering_checks import assert_computes_the_same, captured, outside, programs
from torch import nn

pytestmark = pytest.mark.usefixtures("one_thread")

WIDTH, HEADS = 16, 2


class Layer(nn.Module):
    """A pre-norm layer as timm and Hugging Face write it."""

    def __init__(self, drop=0.0):
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.qkv, self.proj = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)
        self.fc1, self.act, self.fc2 = nn.Linear(WIDTH, 4 * WIDTH), nn.GELU(), nn.Linear(4 * WIDTH, WIDTH)
        self.drop = nn.Dropout(drop)

    def forward(self, x, mask=None):
        b, n, d = x.shape
        q, k, v = self.qkv(self.norm1(x)).reshape(b, n, 3, HEADS, d // HEADS).permute(2, 0, 3, 1, 4).unbind(0)
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        x = x + self.drop(self.proj(y.transpose(1, 2).reshape(b, n, d)))
        return x + self.drop(self.fc2(self.drop(self.act(self.fc1(self.norm2(x))))))


class ViT(nn.Module):
    def __init__(self):
        super().__init__()
        self.patch = nn.Conv2d(3, WIDTH, 4, 4)
        self.cls, self.pos = nn.Parameter(torch.randn(1, 1, WIDTH)), nn.Parameter(torch.randn(1, 17, WIDTH))
        self.layers = nn.Sequential(Layer(), Layer())
        self.norm, self.head = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, 5)

    def forward(self, x):
        x = self.patch(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.cls.expand(x.shape[0], -1, -1), x], 1) + self.pos
        return self.head(self.norm(self.layers(x))[:, 0])


LAYERS = [
    f"layers.{i}.norm1 layers.{i}.qkv attention layers.{i}.proj add "
    f"layers.{i}.norm2 layers.{i}.fc1 layers.{i}.act layers.{i}.fc2 add"
    for i in range(2)
]


def test_a_vision_transformer():
    lowered = assert_computes_the_same(ViT(), torch.randn(2, 3, 16, 16))
    assert programs(lowered) == ["patch concatenate add", *LAYERS, "norm head"]
    assert not outside(lowered)


def test_autocast_around_and_inside():
    class Inside(nn.Module):
        def __init__(self):
            super().__init__()
            self.model = ViT()

        def forward(self, x):
            with torch.autocast("cpu", torch.bfloat16):
                return self.model(x).float()

    with torch.autocast("cpu", torch.bfloat16):
        (around,) = assert_computes_the_same(ViT(), torch.randn(2, 3, 16, 16))
    (inside,) = assert_computes_the_same(Inside(), torch.randn(2, 3, 16, 16))
    for graph in (around, inside):
        assert len(graph.programs) == 4
        assert "bfloat16" in graph.programs[1].body["program"]["dtypes"]


def test_sizes_that_change_are_integers_of_the_run():
    model = nn.Sequential(Layer(), Layer())
    x = torch.randn(2, 5, WIDTH)
    for dimension in (0, 1):
        torch._dynamo.mark_dynamic(x, dimension)
    call, lowered = captured(model)
    call(x)
    y = torch.randn(3, 7, WIDTH)
    torch.testing.assert_close(call(y), model(y))
    (graph,) = lowered
    assert len(graph.programs) == 2 and not graph.outside
    assert graph.programs[0].body["program"]["integers"] == 2


@pytest.mark.parametrize(
    ("make", "shapes", "arguments", "wanted"),
    [
        (lambda: nn.TransformerEncoderLayer(8, 2, 16, 0.0, batch_first=True), [(2, 5, 8)],
         {"src_key_padding_mask": torch.tensor([[False] * 4 + [True]] * 2)}, 1),
        (lambda: nn.TransformerEncoderLayer(8, 2, 16, 0.0, norm_first=True), [(5, 2, 8)],
         {"src_mask": nn.Transformer.generate_square_subsequent_mask(5), "is_causal": True}, 1),
        (lambda: nn.TransformerDecoderLayer(8, 2, 16, 0.0), [(5, 2, 8), (6, 2, 8)], {}, 2),
    ],
)  # fmt: skip
def test_torchs_own_layers_and_their_masks(make, shapes, arguments, wanted):
    lowered = assert_computes_the_same(make(), *(torch.randn(shape) for shape in shapes), **arguments)
    assert len(lowered[0].programs) == wanted
    assert sum(steps.count("attention") for steps in programs(lowered)) == len(shapes)


def test_attention_weights_stay_outside():
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.attention = nn.MultiheadAttention(8, 2)

        def forward(self, x):
            return self.attention(x, x, x)

    lowered = assert_computes_the_same(Model(), torch.randn(5, 2, 8))
    assert not programs(lowered)


class WeightsOfInputs(nn.Module):
    """A layer as GPT-2 has it, with a weight of [inputs, outputs]."""

    def __init__(self, inputs, outputs):
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.randn(inputs, outputs) / 4), nn.Parameter(torch.randn(outputs))

    def forward(self, x):
        return torch.addmm(self.bias, x.view(-1, x.size(-1)), self.weight).view(*x.shape[:-1], -1)


def test_a_product_with_a_bias_is_a_linear_layer():
    model = nn.Sequential(nn.LayerNorm(8), WeightsOfInputs(8, 32), nn.GELU("tanh"), WeightsOfInputs(32, 8))
    lowered = assert_computes_the_same(model, torch.randn(2, 5, 8))
    assert programs(lowered) == ["0 linear 2 linear"] and not outside(lowered)


def test_a_copy_that_two_programs_read_is_made_once():
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b, self.norm = nn.Linear(8, 8), nn.Linear(8, 8), nn.LayerNorm(8)

        def forward(self, x):
            return torch.stack([F.relu(self.a(x)), self.norm(self.b(x))])

    (graph,) = assert_computes_the_same(Model(), torch.randn(4, 8))
    first, second = graph.programs
    assert first.body["exports"] == [0] and second.body["imports"] == [{"input": 0, "copy": {"bits": 4}}]
    assert [save["value"] for save in second.plan["saves"] if save["form"] == "copy"] == []


def test_keys_of_few_heads_are_not_exact():
    """They are a sixteenth of the MLP here, as small as what gates others, which is exact."""

    class Grouped(nn.Module):
        def __init__(self):
            super().__init__()
            self.norm1, self.norm2 = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
            self.q, self.kv = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH // 2)
            self.proj, self.fc1, self.fc2 = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, 128), nn.Linear(128, WIDTH)
            self.gate = nn.Linear(WIDTH, WIDTH)

        def forward(self, x):
            b, n, d = x.shape
            y = self.norm1(x)
            k, v = self.kv(y).view(b, n, 2, 1, d // 4).permute(2, 0, 3, 1, 4).unbind(0)
            q = self.q(y).view(b, n, 4, d // 4).transpose(1, 2)
            y = F.scaled_dot_product_attention(q, k, v, enable_gqa=True).transpose(1, 2).reshape(b, n, d)
            x = x + self.proj(y) * self.gate(x.mean(1, keepdim=True))
            return x + self.fc2(F.gelu(self.fc1(self.norm2(x))))

    (lowered,) = assert_computes_the_same(Grouped(), torch.randn(2, 8, WIDTH))
    (program,) = lowered.programs
    made = {path_of(node, "").rpartition(".")[2]: number for node, number in program.value_of.items()}
    (attention,) = [step for step in program.body["program"]["steps"] if step["op"] == "attention"]
    exact = program.body["options"]["exact"]
    assert made["gate"] in exact and not {made["kv"], *attention["inputs"]}.intersection(exact)
