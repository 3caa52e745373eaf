"""Functions that models write out in several calls: each becomes one step, or stays what it is."""

import json
import math

import actnn
import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from configurations import one_thread  # noqa: F401
from lowering_checks import assert_computes_the_same, captured, outside, programs
from torch import nn

pytestmark = pytest.mark.usefixtures("one_thread")

WIDTH, HEADS = 8, 4


class Written(nn.Module):
    """A function between two layers, with a weight or an offset of it."""

    def __init__(self, function):
        super().__init__()
        self.function = function
        self.weight = nn.Parameter(torch.randn(WIDTH))
        self.before, self.behind = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)

    def forward(self, x):
        return self.behind(self.function(self.before(x), self.weight))


def llama(x, weight):
    before = x.dtype
    x = x.to(torch.float32)
    variance = x.pow(2).mean(-1, keepdim=True)
    return weight * (x * torch.rsqrt(variance + 1e-6)).to(before)


def t5(x, weight):
    variance = x.to(torch.float32).pow(2).mean(-1, keepdim=True)
    x = x * torch.rsqrt(variance + 1e-6)
    return weight * x.to(weight.dtype)


def gemma(x, weight):
    y = x.float()
    y = y * torch.rsqrt(1e-6 + torch.mean(torch.square(y), dim=-1, keepdim=True))
    return (y * (1 + weight.float())).type_as(x)


def of_products(x, weight):
    return torch.rsqrt((x * x).mean(dim=x.dim() - 1, keepdim=True).add(1e-6)).mul(x) * weight


def without_weight(x, weight):
    return x * torch.rsqrt((x**2).mean((-1,), True) + 1e-6)


NORMS = [llama, t5, gemma, of_products, without_weight]


@pytest.mark.parametrize("function", NORMS, ids=lambda function: function.__name__)
def test_an_rms_norm_is_one_step(function):
    lowered = assert_computes_the_same(Written(function), torch.randn(3, 5, WIDTH))
    assert programs(lowered) == ["before rms_norm behind"]


@pytest.mark.parametrize(
    ("function", "weight", "wanted"),
    [(llama, torch.bfloat16, torch.bfloat16), (llama, torch.float32, torch.float32),
     (gemma, torch.bfloat16, torch.bfloat16), (t5, torch.float32, torch.float32)],
)  # fmt: skip
@pytest.mark.filterwarnings("ignore:Mismatch dtype between input and weight")
def test_a_norm_of_a_narrow_input_has_the_type_of_the_models(function, weight, wanted):
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(WIDTH, WIDTH).bfloat16()
            self.weight = nn.Parameter(torch.randn(WIDTH, dtype=weight))

        def forward(self, x):
            return function(self.layer(x), self.weight)

    model = Model()
    call, lowered = captured(model)
    x = torch.randn(3, WIDTH).bfloat16()
    assert call(x).dtype == wanted
    torch.testing.assert_close(call(x), model(x), rtol=1e-2, atol=1e-2)
    assert programs(lowered) == ["layer rms_norm"]


def read_twice(x, weight):
    variance = x.pow(2).mean(-1, keepdim=True)
    return weight * (x * torch.rsqrt(variance + 1e-6)) + variance


def of_rows(x, weight):
    return weight * (x * torch.rsqrt(x.pow(2).mean(0, keepdim=True) + 1e-6))


def of_cubes(x, weight):
    return weight * (x * torch.rsqrt(x.abs().pow(3).mean(-1, keepdim=True) + 1e-6))


def of_another(x, weight):
    return weight * (x.tanh() * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6))


def written_between(x, weight):
    y = x.clone()
    variance = y.pow(2).mean(-1, keepdim=True)
    with torch.no_grad():
        y.mul_(2)
    return weight * (y * torch.rsqrt(variance + 1e-6))


def partly_without_gradients(x, weight):
    with torch.no_grad():
        factor = torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6)
    return weight * (x * factor)


@pytest.mark.parametrize(
    "function",
    [read_twice, of_rows, of_cubes, of_another, written_between, partly_without_gradients],
    ids=lambda function: function.__name__,
)
def test_what_only_resembles_an_rms_norm_stays(function):
    model, x = Written(function), torch.randn(3, 5, WIDTH)
    call, lowered = captured(model)
    if function is written_between:  # whose backward is an error, as torch's
        torch.testing.assert_close(call(x), model(x))
    else:
        lowered = assert_computes_the_same(model, x)
    assert "rms_norm" not in lowered[0].module.code and "rms_norm" not in str(programs(lowered))


def test_a_norm_that_is_to_stay_exact_does():
    model = Written(llama)
    call, lowered = captured(model, skipped=lambda path: path == "")
    call(torch.randn(3, WIDTH))
    assert "rms_norm" not in lowered[0].module.code


ROOT = math.sqrt(2 / math.pi)
ACTIVATIONS = {
    "of GPT-2": ("gelu_tanh", lambda x: 0.5 * x * (1.0 + torch.tanh(ROOT * (x + 0.044715 * torch.pow(x, 3.0))))),
    "fast": ("gelu_tanh", lambda x: 0.5 * x * (1.0 + torch.tanh(x * 0.7978845608 * (1.0 + 0.044715 * x * x)))),
    "of erf": ("gelu", lambda x: x * 0.5 * (1.0 + torch.erf(x / math.sqrt(2.0)))),
    "swish": ("silu", lambda x: x * torch.sigmoid(x)),
    "swish in float32": ("silu", lambda x: (x.float() * x.float().sigmoid()).to(x.dtype)),
}  # fmt: skip


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_an_activation_is_one_step(name):
    kind, function = ACTIVATIONS[name]
    lowered = assert_computes_the_same(Written(lambda x, weight: function(x)), torch.randn(3, 5, WIDTH))
    assert programs(lowered) == [f"before {kind} behind"]


@pytest.mark.parametrize(
    "function",
    [lambda x: x * torch.sigmoid(1.702 * x), lambda x: x * torch.sigmoid(x + 0.01),
     lambda x: 0.5 * x * (1 + torch.tanh(0.79 * (x + 0.044715 * x**3)))],
)  # fmt: skip
def test_other_activations_stay(function):
    lowered = assert_computes_the_same(Written(lambda x, weight: function(x)), torch.randn(3, 5, WIDTH))
    assert not {"silu", "gelu", "gelu_tanh"} & set(" ".join(programs(lowered)).split())


class Folded(nn.Module):
    """A layer whose weight is [inputs, outputs] and whose input becomes a matrix, as GPT-2's, between two others."""

    def __init__(self, shape=lambda x, y: (*x.shape[:-1], WIDTH), also_returns_rows=False):
        super().__init__()
        self.shape, self.also_returns_rows = shape, also_returns_rows
        self.before, self.behind = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)
        self.weight, self.bias = nn.Parameter(torch.randn(WIDTH, WIDTH)), nn.Parameter(torch.randn(WIDTH))

    def forward(self, x):
        x = self.before(x)
        rows = x.view(-1, WIDTH)
        y = torch.addmm(self.bias, rows, self.weight).view(self.shape(x, rows))
        result = self.behind(F.gelu(y))
        return (result, rows) if self.also_returns_rows else result


def steps_of(lowered):
    return [step["op"] for step in lowered[0].programs[0].body["program"]["steps"]]


def test_a_layer_of_its_inputs_rows_has_the_input_itself():
    lowered = assert_computes_the_same(Folded(), torch.randn(3, 5, WIDTH))
    assert steps_of(lowered) == ["linear", "linear", "activation", "linear"]


@pytest.mark.parametrize(
    "model",
    [Folded(lambda x, rows: (5, 3, WIDTH)), Folded(lambda x, rows: (-1, WIDTH)), Folded(also_returns_rows=True)],
    ids=["another shape", "rows", "rows are read"],
)  # fmt: skip
def test_other_layers_of_rows_stay(model):
    x = torch.randn(3, 5, WIDTH)
    call, lowered = captured(model)
    torch.testing.assert_close(call(x), model(x))
    assert "reshape" in steps_of(lowered) or outside(lowered)


def test_sizes_that_depend_on_data_leave_a_layer_of_rows_alone():
    class Chosen(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = Folded(lambda x, rows: (5, -1, WIDTH))

        def forward(self, x, places):
            return self.layer(x[places])

    model, x = Chosen(), torch.randn(10, 3, WIDTH)
    with torch._dynamo.config.patch(capture_dynamic_output_shape_ops=True):
        report = actnn.convert(model)
        found = model(x, torch.arange(10) % 2 == 0)
        assert found.shape == (5, 3, WIDTH) and len(report.blocks) == 1 and not report.without_blocks


@pytest.mark.parametrize("dtypes", [("float32", "bfloat16"), ("bfloat16", "float32")])
def test_neighbours_of_another_type_have_copies_of_their_own(dtypes):
    program = {
        "inputs": 1, "results": [1, 2], "dtypes": ["float32", *dtypes],
        "steps": [{"op": "linear", "inputs": [0], "weight": place} for place in range(2)],
    }  # fmt: skip
    text = json.dumps({"program": program, "options": {"exact": [0]}})
    x, weights = torch.randn(64, 8, requires_grad=True), [torch.randn(8, 8, requires_grad=True) for _ in range(2)]
    results = torch.ops.actnn.run_program(text, [x], weights, [], [], [])
    grads = [torch.randn_like(result) for result in results]
    found = torch.autograd.grad(results, weights, grads)[dtypes.index("float32")]
    torch.testing.assert_close(found, grads[dtypes.index("float32")].t() @ x)


def test_weights_that_are_transposed_have_gradients_in_their_layout():
    """As autograd stores them: it would copy others."""
    program = {"inputs": 1, "steps": [{"op": "linear", "inputs": [0], "weight": 0}], "results": [1]}
    text = json.dumps({"program": program, "options": {}})
    x, weight = torch.randn(5, 3, requires_grad=True), torch.randn(3, 4).t().requires_grad_()
    (y,) = torch.ops.actnn.run_program(text, [x], [weight], [], [], [])
    (gradient,) = torch.autograd.grad(y.sum(), weight)
    assert gradient.stride() == weight.stride() == (1, 4)


def test_an_activation_may_be_wider_than_its_input():
    """As autocast has powers in float32."""
    model = Written(lambda x, weight: 0.5 * x * (1 + torch.tanh(ROOT * (x + 0.044715 * x.float().pow(3)))))
    call, lowered = captured(model)
    x = torch.randn(3, WIDTH)
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(call(x), model(x), rtol=2e-2, atol=2e-2)
    assert programs(lowered) == ["before gelu_tanh behind"]
    assert lowered[0].programs[0].body["program"]["dtypes"] == ["float32", "bfloat16", "float32", "bfloat16"]


def test_products_read_what_was_there_before_it_was_widened():
    model = Written(lambda x, weight: torch.relu(x).to(weight.dtype))
    call, lowered = captured(model)
    x = torch.randn(3, WIDTH)
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(call(x), model(x))
    assert programs(lowered) == ["before relu behind"] and not outside(lowered)


def test_a_sum_may_overwrite_a_value_of_another_type():
    def add(x, weight):
        y = weight * x
        y += x
        return y

    model = Written(add)
    call, lowered = captured(model)
    x = torch.randn(3, WIDTH)
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(call(x), model(x))
    assert programs(lowered) == ["before multiply add behind"] and not outside(lowered)


def rotate_half(x):
    return torch.cat((-x[..., x.shape[-1] // 2 :], x[..., : x.shape[-1] // 2]), dim=-1)


def rotate_chunks(x):
    first, second = x.chunk(2, dim=-1)
    return torch.cat((-second, first), dim=-1)


def rotate_pairs(x):
    return torch.stack((-x[..., 1::2], x[..., ::2]), dim=-1).flatten(-2)


def named(q, k, v, attn_mask):
    return F.scaled_dot_product_attention(query=q, key=k, value=v, attn_mask=attn_mask)


def written(q, k, v, attn_mask):
    scores = (q @ k.transpose(2, 3) / math.sqrt(WIDTH)).masked_fill(~attn_mask, -math.inf)
    return F.softmax(scores, dim=-1) @ v


def with_query(q, k, v, attn_mask):
    return q + F.scaled_dot_product_attention(q, k, v, attn_mask=attn_mask)


class Attention(nn.Module):
    """Self-attention with rotary embeddings, and fewer heads of keys and values than of queries."""

    def __init__(
        self, rotate=rotate_half, groups=1, mask=False, learned=False, scale=1.0, attend=F.scaled_dot_product_attention
    ):
        super().__init__()
        self.rotate, self.groups, self.mask, self.scale, self.attend = rotate, groups, mask, scale, attend
        self.q, self.o = nn.Linear(WIDTH, HEADS * WIDTH), nn.Linear(HEADS * WIDTH, WIDTH)
        self.k, self.v = (nn.Linear(WIDTH, HEADS // groups * WIDTH) for _ in range(2))
        angles = torch.randn(7, WIDTH)
        self.cos = nn.Parameter(angles.cos(), requires_grad=learned)
        self.sin = nn.Parameter(angles.sin(), requires_grad=learned)

    def turned(self, x):
        if self.rotate is None:
            return x
        return x * self.cos + self.rotate(x) * self.sin

    def repeated(self, x):
        b, h, n, d = x.shape
        return x if self.groups == 1 else x[:, :, None].expand(b, h, self.groups, n, d).reshape(b, -1, n, d)

    def forward(self, x):
        q, k, v = (layer(x).view(*x.shape[:2], -1, WIDTH).transpose(1, 2) for layer in (self.q, self.k, self.v))
        q, k = self.turned(q), self.turned(k)
        if self.scale != 1:
            q = (q * self.scale).contiguous()
        mask = x.new_ones(7, 7).tril().bool() if self.mask else None
        y = self.attend(q, self.repeated(k), self.repeated(v), attn_mask=mask)
        return x + self.o(y.transpose(1, 2).flatten(2))


@pytest.mark.parametrize("rotate", [rotate_half, rotate_chunks])
def test_a_rotary_embedding_is_one_step(rotate):
    lowered = assert_computes_the_same(Attention(rotate), torch.randn(2, 7, WIDTH))
    assert programs(lowered) == ["q k v rotary rotary attention o add"] and not outside(lowered)


@pytest.mark.parametrize("options", [{"rotate": rotate_pairs}, {"learned": True}], ids=["pairs", "learned"])
def test_other_rotations_stay(options):
    lowered = assert_computes_the_same(Attention(**options), torch.randn(2, 7, WIDTH))
    assert "rotary" not in str(programs(lowered)) and "rotary_embedding" not in lowered[0].module.code


@pytest.mark.parametrize(
    "options",
    [{}, {"groups": 2}, {"attend": named}, {"attend": named, "groups": 2}, {"attend": written}],
    ids=["one group", "groups", "named", "named groups", "written out"],
)
def test_angles_of_another_type_leave_autocasts_to_attention(options):
    model, x = Attention(**options, mask=True), torch.randn(2, 7, WIDTH)
    call, lowered = captured(model)
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(call(x), model(x), rtol=2e-2, atol=2e-2)
    assert len(programs(lowered)) == 1 and programs(lowered)[0].count("rotary") == 2 and not outside(lowered)
    dtypes = set(lowered[0].programs[0].body["program"]["dtypes"][1:])
    assert dtypes - {"bool"} == {"float32", "bfloat16"}


def test_angles_of_another_type_make_what_others_read_of_that_type():
    model, x = Attention(mask=True, attend=with_query), torch.randn(2, 7, WIDTH)
    call, lowered = captured(model)
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(call(x), model(x), rtol=2e-2, atol=2e-2)
    assert str(programs(lowered)).count("rotary") == 2 and not outside(lowered)


@pytest.mark.parametrize(("mask", "heads"), [(False, "attention"), (True, "concatenate concatenate attention")])
def test_heads_of_groups(mask, heads):
    lowered = assert_computes_the_same(Attention(None, 2, mask), torch.randn(2, 7, WIDTH))
    assert programs(lowered) == [f"q k v {heads} o add"] and not outside(lowered)
    (attention,) = [s for s in lowered[0].programs[0].body["program"]["steps"] if s["op"] == "attention"]
    assert attention["grouped"] == (not mask)


def test_heads_of_any_number_and_length():
    model = Attention(None, 2, False)
    call, lowered = captured(model)
    x = torch.randn(2, 7, WIDTH)
    for dimension in (0, 1):
        torch._dynamo.mark_dynamic(x, dimension)
    for one in (x, torch.randn(3, 5, WIDTH)):
        torch.testing.assert_close(call(one), model(one))
    assert len(lowered) == 1 and programs(lowered) == ["q k v attention o add"]


def test_a_query_that_is_scaled():
    lowered = assert_computes_the_same(Attention(None, scale=0.3), torch.randn(2, 7, WIDTH))
    assert programs(lowered) == ["q k v attention o add"] and not outside(lowered)
    (attention,) = [s for s in lowered[0].programs[0].body["program"]["steps"] if s["op"] == "attention"]
    assert attention["scale"] == pytest.approx(0.3 / math.sqrt(WIDTH))


def test_a_query_that_is_scaled_by_a_negative_number_or_reinterpreted_stays():
    class Model(Attention):
        def forward(self, x):
            q = self.q(x).unflatten(-1, (-1, WIDTH)).transpose(1, 2)
            q = (q * 0.5).view(torch.int32).view(torch.float32)
            return self.o(F.scaled_dot_product_attention(q, q, q * -1).transpose(1, 2).flatten(2))

    model, x = Model(None), torch.randn(2, 7, WIDTH)
    call, lowered = captured(model)
    torch.testing.assert_close(call(x), model(x))
    assert "int32" in lowered[0].module.code


class Adapted(nn.Module):
    """A frozen layer with an adapter of low rank, as PEFT writes it."""

    def __init__(self, drop=0.0):
        super().__init__()
        self.base = nn.Linear(4 * WIDTH, 4 * WIDTH).requires_grad_(False)
        self.a, self.b = nn.Linear(4 * WIDTH, 2, bias=False), nn.Linear(2, 4 * WIDTH, bias=False)
        self.drop = nn.Dropout(drop) if drop else nn.Identity()

    def forward(self, x):
        y = self.base(x)
        z = y + self.b(self.a(self.drop(x.to(self.a.weight.dtype)))) * 1.5
        return z.to(y.dtype)


@pytest.mark.parametrize(
    ("drop", "base", "autocast"),
    [(0.0, torch.float32, False), (0.5, torch.float32, False), (0.0, torch.float32, True), (0.5, torch.float32, True),
     (0.0, torch.bfloat16, False)],
)  # fmt: skip
def test_an_adapter_is_in_the_program_of_its_layer(drop, base, autocast):
    model, x = nn.Sequential(Adapted(), nn.ReLU(), Adapted(drop)), torch.randn(64, 4 * WIDTH).to(base)
    for layer in (model[0], model[2]):
        layer.base.to(base)
    call, lowered = captured(model)
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        found, expected = call(x), model(x)
    assert found.dtype == expected.dtype
    if not drop:
        torch.testing.assert_close(found, expected, rtol=2e-2, atol=2e-2)
    dropout = "2.drop " if drop else ""
    assert " ".join(programs(lowered)) == f"0.base 0.a 0.b add 1 2.base {dropout}2.a 2.b add"
    assert not outside(lowered)


def test_a_weight_that_is_larger_than_the_result_is_not_multiplied():
    model, x = nn.Sequential(nn.Linear(8, 8), nn.ReLU()), torch.randn(2, 8)
    lowered = assert_computes_the_same(nn.Sequential(Written(lambda x, weight: x * 2.0), *model), x)
    assert "mul" in lowered[0].module.code and len(lowered[0].programs) == 1
