"""Attention that models write as products and a softmax, and masks that are learned or repeat over windows."""

import math

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from configurations import one_thread  # noqa: F401
from lowering_checks import assert_computes_the_same, captured, outside, programs
from torch import nn

pytestmark = pytest.mark.usefixtures("one_thread")

WIDTH, HEADS, LENGTH, WINDOWS = 8, 2, 6, 3


class Attention(nn.Module):
    """Self-attention around a function of query, key and value; it has a bias, masks of windows and a causal one."""

    def __init__(self, attend):
        super().__init__()
        self.attend = attend
        self.q, self.k, self.v, self.o = (nn.Linear(WIDTH, WIDTH) for _ in range(4))
        self.bias = nn.Parameter(torch.randn(1, HEADS, LENGTH, LENGTH))
        self.register_buffer("windows", torch.where(torch.rand(WINDOWS, LENGTH, LENGTH) < 0.3, -100.0, 0.0))
        self.register_buffer("seen", torch.ones(LENGTH, LENGTH).tril().view(1, 1, LENGTH, LENGTH))

    def forward(self, x):
        q, k, v = (layer(x).view(*x.shape[:2], HEADS, -1).transpose(1, 2) for layer in (self.q, self.k, self.v))
        return x + self.o(self.attend(self, q, k, v).transpose(1, 2).reshape(x.shape))


def min_gpt(self, q, k, v):
    scores = (q @ k.transpose(-2, -1)) * (1.0 / math.sqrt(k.size(-1)))
    scores = scores.masked_fill(self.seen[:, :, :LENGTH, :LENGTH] == 0, float("-inf"))
    return F.dropout(F.softmax(scores, dim=-1), 0.0, self.training) @ v


def bert(self, q, k, v):
    scores = torch.matmul(q, k.transpose(-1, -2)) / math.sqrt(WIDTH // HEADS)
    mask = (1.0 - self.seen) * torch.finfo(torch.float32).min
    return torch.matmul(nn.Softmax(dim=-1)(scores + mask), v)


def in_float32(self, q, k, v):
    weights = torch.softmax(torch.matmul(q, k.permute(0, 1, 3, 2)).float(), dim=3, dtype=torch.float32).to(q.dtype)
    return torch.matmul(weights, v)


def learned(self, q, k, v):
    return F.softmax(0.5 * (q * 0.3).matmul(k.transpose(2, 3)) + self.bias + self.bias[:, :1], -1).matmul(v)


def swin(self, q, k, v):
    scores = (q * 0.3).matmul(k.transpose(-2, -1)) + self.bias
    scores = scores.view(q.size(0) // WINDOWS, WINDOWS, HEADS, LENGTH, LENGTH)
    scores = (scores + self.windows.unsqueeze(1).unsqueeze(0)).view(-1, HEADS, LENGTH, LENGTH)
    return F.softmax(scores, dim=-1).matmul(v)


def windows_of_all_pictures(self, q, k, v):
    windows = self.windows.view(1, WINDOWS, 1, LENGTH, LENGTH)
    windows = windows.expand(q.size(0) // WINDOWS, -1, HEADS, -1, -1).reshape(-1, HEADS, LENGTH, LENGTH)
    return F.scaled_dot_product_attention(q, k, v, attn_mask=self.bias + windows)


WRITTEN = [min_gpt, bert, in_float32, learned, swin, windows_of_all_pictures]


def name(function):
    return function.__name__


def inputs():
    return torch.randn(2 * WINDOWS, LENGTH, WIDTH)


def attention_of(lowered):
    (step,) = [step for p in lowered[0].programs for step in p.body["program"]["steps"] if step["op"] == "attention"]
    return step


@pytest.mark.parametrize("attend", WRITTEN, ids=name)
def test_attention_is_one_step(attend):
    lowered = assert_computes_the_same(Attention(attend), inputs())
    assert programs(lowered) == ["q k v attention o add"]
    assert {target for target, _ in outside(lowered)} <= {"added_mask"}
    repeats = attend in (swin, windows_of_all_pictures)
    assert attention_of(lowered).get("mask_repeats", False) == repeats


@pytest.mark.parametrize("attend", WRITTEN, ids=name)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_attention_under_autocast(attend, dtype):
    model, x = Attention(attend), inputs()
    call, lowered = captured(model)
    with torch.autocast("cpu", dtype):
        torch.testing.assert_close(call(x), model(x), rtol=2e-2, atol=2e-2)
    assert programs(lowered) == ["q k v attention o add"]


def test_rows_that_see_nothing_are_what_they_were():
    model, x = Attention(bert), inputs()
    model.seen[:, :, 2] = 0
    call, lowered = captured(model)
    for enabled in (False, True):
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            torch.testing.assert_close(call(x), model(x), rtol=2e-2, atol=2e-2)
    assert all("attention" in text for text in programs(lowered))


def causal(self, q, k, v):
    """As transformers has it without a function of torch."""
    places = torch.arange(q.shape[2])
    hidden = places[None, :] > places[:, None]
    mask = torch.zeros(hidden.shape).masked_fill(hidden, torch.finfo(torch.float32).min)[None, None]
    return F.softmax(q @ k.transpose(2, 3) * 0.5 + mask, -1, dtype=torch.float32).to(q.dtype) @ v


def test_a_causal_mask_is_left_out():
    lowered = assert_computes_the_same(Attention(causal), inputs())
    attention = attention_of(lowered)
    assert len(attention["inputs"]) == 3 and attention["causal"] and not outside(lowered)


def alibi(self, q, k, v):
    """Numbers that a 16-bit type would round to steps of 4."""
    distances = torch.tensor([0.7, 0.3]).view(1, HEADS, 1, 1) * torch.arange(-999 - LENGTH, -999.0)
    scores = (q @ k.mT + distances).masked_fill(self.seen == 0, torch.finfo(q.dtype).min)
    return F.softmax(scores.float(), -1).to(v.dtype) @ v


def test_large_numbers_are_not_rounded():
    model, x = Attention(alibi), inputs()
    call, lowered = captured(model)
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(call(x), model(x), rtol=2e-2, atol=2e-2)
    assert attention_of(lowered)


@pytest.mark.parametrize("number", [-1e4, -1e9, None])
@pytest.mark.parametrize("dtype", [None, torch.bfloat16], ids=str)
def test_a_row_that_is_filled_is_what_it_was(number, dtype):
    def attend(self, q, k, v):
        scores = q @ k.mT
        least = torch.finfo(scores.dtype).min if number is None else number
        return F.softmax(scores.masked_fill(self.seen == 0, least).masked_fill(self.hidden, least), dim=-1) @ v

    model, x = Attention(attend), inputs()
    model.register_buffer("hidden", torch.arange(LENGTH)[:, None] == 2)
    call, lowered = captured(model)
    with torch.autocast("cpu", torch.bfloat16, enabled=dtype is not None):
        torch.testing.assert_close(call(x), model(x), rtol=2e-2, atol=2e-2)
    assert attention_of(lowered)


def test_boolean_windows_hide_and_are_not_added():
    def attend(self, q, k, v):
        windows = (self.windows == 0).view(1, WINDOWS, 1, LENGTH, LENGTH)
        windows = windows.expand(q.size(0) // WINDOWS, -1, HEADS, -1, -1).reshape(-1, HEADS, LENGTH, LENGTH)
        return F.scaled_dot_product_attention(q, k, v, attn_mask=windows)

    model = Attention(attend)
    model.windows[:, range(LENGTH), range(LENGTH)] = 0  # each sees something
    assert_computes_the_same(model, inputs())


def test_a_mask_that_is_written_to_later_stays_a_sum():
    def attend(self, q, k, v):
        mask = torch.zeros(1, 1, LENGTH, LENGTH)
        first = F.softmax(q @ k.mT + mask, -1) @ v
        mask[..., 0] = 3
        return first + F.softmax(q @ k.mT + mask, -1) @ v

    assert_computes_the_same(Attention(attend), inputs())


def test_weights_that_are_dropped():
    def attend(self, q, k, v):
        return F.dropout(F.softmax(q @ k.mT, dim=-1), 0.25, self.training) @ v

    model = Attention(attend)
    call, lowered = captured(model)
    call(inputs())
    assert programs(lowered) == ["q k v attention o add"] and attention_of(lowered)["probability"] == 0.25


def test_pictures_of_any_number():
    class Model(Attention):
        def forward(self, x):
            return super().forward(x.flatten(0, 1))

    model = Model(swin)
    call, lowered = captured(model)
    for pictures in (2, 3, 5):
        x = torch.randn(pictures, WINDOWS, LENGTH, WIDTH)
        torch.testing.assert_close(call(x), model(x))
    assert len(lowered) == 2 and str(programs(lowered)).count("q k v attention") == 2


def weights_too(self, q, k, v):
    weights = F.softmax(q @ k.transpose(-2, -1), dim=-1)
    return weights @ v + weights.mean()


def of_queries(self, q, k, v):
    return F.softmax(q @ k.transpose(-2, -1), dim=-2) @ v


def scaled_with_its_mask(self, q, k, v):
    return F.softmax((q @ k.transpose(-2, -1) + self.bias) * 0.3, dim=-1) @ v


def of_a_learned_scale(self, q, k, v):
    return F.softmax(q @ k.transpose(-2, -1) * self.bias[:, :, :1, :1], dim=-1) @ v


def filled_with_zeros(self, q, k, v):
    return F.softmax((q @ k.transpose(-2, -1)).masked_fill(self.seen == 0, 0.0), dim=-1) @ v


def of_another_order(self, q, k, v):
    return v.transpose(-2, -1).matmul(F.softmax(q @ k.transpose(-2, -1), dim=-1)).transpose(-2, -1)


def that_broadens(self, q, k, v):
    return (F.softmax((q @ k.transpose(-2, -1))[:1] + self.bias.expand(6, -1, -1, -1), dim=-1)) @ v


OTHERS = [weights_too, of_queries, scaled_with_its_mask, of_a_learned_scale, filled_with_zeros, of_another_order,
          that_broadens]  # fmt: skip


@pytest.mark.parametrize("attend", OTHERS, ids=name)
def test_other_products_stay(attend):
    lowered = assert_computes_the_same(Attention(attend), inputs())
    assert "attention" not in str(programs(lowered))
