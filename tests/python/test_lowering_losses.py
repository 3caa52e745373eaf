"""Heads of language models and their losses in captured graphs, which the library computes together."""

import copy

import actnn
import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from configurations import one_thread  # noqa: F401
from lowering_checks import captured, outcome
from torch import nn

CLASSES, FEATURES = 19, 8

pytestmark = pytest.mark.usefixtures("one_thread")


class Model(nn.Module):
    """Words in, a loss out; `head` says what is between the last layer and it."""

    def __init__(self, head, tied=False, bias=True):
        super().__init__()
        self.head = head
        self.embedding, self.layer = nn.Embedding(CLASSES, FEATURES), nn.Linear(FEATURES, FEATURES)
        self.lm_head = nn.Linear(FEATURES, CLASSES, bias=bias and not tied)
        if tied:
            self.lm_head.weight = self.embedding.weight

    def forward(self, words):
        return self.head(self.lm_head, torch.tanh(self.layer(self.embedding(words))), words)


def whole(head, x, words):
    return F.cross_entropy(head(x).view(-1, CLASSES), words.view(-1), ignore_index=3)


def shifted(head, x, words):
    logits = head(x).float()[..., :-1, :].contiguous()
    return F.cross_entropy(logits.view(-1, logits.size(-1)), words[..., 1:].reshape(-1), label_smoothing=0.1)


def summed(head, x, words):
    return nn.CrossEntropyLoss(reduction="sum")(head(x).flatten(0, 1).to(torch.float32), words.flatten()) / 7


def of_rows(head, x, words):
    return F.cross_entropy(head(x[:, -1]), words[:, 0])


def with_autocast(head, x, words):
    with torch.autocast(x.device.type, torch.bfloat16):
        return whole(head, x, words)


def joined(lowered):
    code = lowered[0].module.code
    return "linear_cross_entropy" in code


def returned(head, x, words):
    logits = head(x)
    return F.cross_entropy(logits.view(-1, CLASSES), words.view(-1)), logits


def returned_and_used(head, x, words):
    loss, logits = returned(head, x, words)
    return loss + logits.float().logsumexp(-1).square().mean()


@pytest.mark.parametrize(
    "head", [whole, shifted, summed, of_rows, returned, returned_and_used], ids=lambda head: head.__name__
)
@pytest.mark.parametrize("tied", [False, True])
def test_a_head_and_its_loss_are_one_node(head, tied):
    model = Model(head, tied)
    exact = copy.deepcopy(model)
    call, lowered = captured(model, replaces_functions=True, quantization=EXACT)
    words = torch.randint(CLASSES, (2, 5))
    for found, expected in zip(outcome(call, model, [words]), outcome(exact, exact, [words]), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-4)
    assert joined(lowered)
    assert "cross_entropy" in {call.target for call in lowered[0].outside if call.replaced}


EXACT = {"bits": 8, "group_size": 64, "rounding": "dithered"}


def test_the_loss_is_the_autocast_one():
    model = Model(with_autocast)
    exact = copy.deepcopy(model)
    call, lowered = captured(model, replaces_functions=True, quantization=EXACT)
    words = torch.randint(CLASSES, (2, 5))
    torch.testing.assert_close(call(words), exact(words), rtol=1e-2, atol=1e-3)
    assert joined(lowered)


def in_bfloat16(head, x, words):
    """Its loss is a bfloat16."""
    logits = F.linear(x.bfloat16(), head.weight.bfloat16())
    return F.cross_entropy(logits.view(-1, CLASSES), words.view(-1))


def test_the_loss_of_a_model_in_bfloat16_is_one():
    model = Model(in_bfloat16, bias=False)
    exact = copy.deepcopy(model)
    call, lowered = captured(model, replaces_functions=True, quantization=EXACT)
    words = torch.randint(CLASSES, (2, 5))
    found, expected = call(words), exact(words)
    assert found.dtype == expected.dtype == torch.bfloat16
    torch.testing.assert_close(found, expected)
    assert joined(lowered)


def read_before(head, x, words):
    """By somebody who needs the logits before the loss is there."""
    logits = head(x)
    words = words + logits.argmax(-1) % 2
    return F.cross_entropy(logits.view(-1, CLASSES), words.view(-1).clamp_max(CLASSES - 1))


def sliced_and_returned(head, x, words):
    logits = head(x)
    return F.cross_entropy(logits[:, :-1].reshape(-1, CLASSES), words[:, 1:].reshape(-1)), logits


def weighted(head, x, words):
    return F.cross_entropy(head(x).view(-1, CLASSES), words.view(-1), weight=torch.ones(CLASSES))


def unreduced(head, x, words):
    return F.cross_entropy(head(x).view(-1, CLASSES), words.view(-1), reduction="none")


def soft(head, x, words):
    return F.cross_entropy(head(x).view(-1, CLASSES), F.one_hot(words, CLASSES).float().view(-1, CLASSES))


def changed(head, x, words):
    return F.cross_entropy((head(x) * 0.5).view(-1, CLASSES), words.view(-1))


def mixed(head, x, words):
    """Other classes than the layer's."""
    return F.cross_entropy(head(x).view(-1, 1, CLASSES).squeeze(1)[:, 1:], (words.view(-1) - 1).clamp_min(0))


def reinterpreted(head, x, words):
    """Which has no gradient."""
    logits = head(x).view(torch.int32).view(torch.float32)
    return F.cross_entropy(logits.view(-1, CLASSES), words.view(-1)) + x.sum()


def of_channels(head, x, words):
    return F.cross_entropy(head(x).transpose(1, 2), words)


def with_other_modes(head, x, words):
    """The layer's products are rounded to bfloat16, of its float32 input."""
    with torch.autocast(x.device.type, torch.bfloat16):
        logits = head(x)
    return F.cross_entropy(logits.float().view(-1, CLASSES), words.view(-1))


def without_gradients(head, x, words):
    with torch.no_grad():
        logits = head(x)
    return F.cross_entropy(logits.view(-1, CLASSES), words.view(-1)) + x.sum()


def written(head, x, words):
    """The layer's input is another one when the loss is computed."""
    logits = head(x)
    x.mul_(2)
    return F.cross_entropy(logits.view(-1, CLASSES), words.view(-1)) + x.sum()


class OfBuffers(nn.Module):
    """Writes to a buffer, or to a tensor of its own, that the linear layer has read."""

    def __init__(self, writes):
        super().__init__()
        self.writes = writes
        self.layer = nn.Linear(FEATURES, FEATURES)
        self.register_buffer("prior", torch.zeros(CLASSES))
        self.register_buffer("weight", torch.randn(CLASSES, FEATURES))

    def forward(self, x, target):
        h = torch.tanh(self.layer(x)) + 0.0
        own = x.clone()
        logits = F.linear(own if self.writes == "clone" else h, self.weight, self.prior)
        own.mul_(3) if self.writes == "clone" else self.prior.add_(torch.arange(float(CLASSES)))
        return F.cross_entropy(logits, target) + h.sum()


@pytest.mark.parametrize("writes", ["buffer", "clone"])
def test_what_a_linear_layer_has_read_may_be_written_behind_it(writes):
    model = OfBuffers(writes)
    exact = copy.deepcopy(model)
    call, lowered = captured(model, replaces_functions=True, quantization=EXACT)
    x, target = torch.randn(6, FEATURES, requires_grad=True), torch.randint(CLASSES, (6,))
    torch.testing.assert_close(call(x, target), exact(x, target))
    assert not joined(lowered)


class OfAnyFeatures(nn.Module):
    """A weight that is no parameter, of a size that changes."""

    def __init__(self):
        super().__init__()
        self.factor = nn.Parameter(torch.ones(()))

    def forward(self, x, weight, target):
        return F.cross_entropy(F.linear(x.view(-1, x.size(-1)) * self.factor / x.size(-1), weight), target)


def test_features_of_other_numbers():
    model = OfAnyFeatures()
    exact = copy.deepcopy(model)
    call, _ = captured(model, replaces_functions=True, quantization=EXACT)
    for features in (8, 9, 10):
        x, weight = torch.randn(2, 3, features), torch.randn(CLASSES, features)
        target = torch.randint(CLASSES, (6,))
        torch.testing.assert_close(call(x, weight, target), exact(x, weight, target))


@pytest.mark.parametrize(
    "head",
    [
        read_before,
        sliced_and_returned,
        weighted,
        unreduced,
        soft,
        changed,
        mixed,
        of_channels,
        reinterpreted,
        with_other_modes,
        without_gradients,
        written,
    ],
    ids=lambda head: head.__name__,
)
def test_other_losses_stay_torchs(head):
    model = Model(head)
    exact = copy.deepcopy(model)
    call, lowered = captured(model, replaces_functions=True, quantization=EXACT)
    words = torch.randint(CLASSES, (2, 5))
    results = torch.utils._pytree.tree_leaves(call(words))
    for found, expected in zip(results, torch.utils._pytree.tree_leaves(exact(words)), strict=True):
        torch.testing.assert_close(found, expected)
    assert not joined(lowered)


def test_sequences_of_other_lengths():
    model = Model(shifted)
    exact = copy.deepcopy(model)
    call, lowered = captured(model, replaces_functions=True, quantization=EXACT)
    for shape in ((2, 5), (3, 7), (4, 11)):
        words = torch.randint(CLASSES, shape)
        torch.testing.assert_close(call(words), exact(words))
    assert len(lowered) == 2  # the second one for any
    assert joined(lowered[1:])


def test_a_converted_model_says_that_the_library_computes_its_loss():
    model = Model(whole)
    exact = copy.deepcopy(model)
    report = actnn.convert(model)
    words = torch.randint(CLASSES, (2, 5))
    loss = model(words)
    torch.testing.assert_close(loss, exact(words))
    loss.backward()
    exact(words).backward()
    torch.testing.assert_close(model.lm_head.weight.grad, exact.lm_head.weight.grad)
    assert not [call for call in report.without_blocks if call.target == "cross_entropy" and not call.replaced]


@pytest.mark.parametrize("skipped", ["lm_head", ""])
def test_a_head_that_is_to_stay_exact_does(skipped):
    call, lowered = captured(Model(whole), replaces_functions=True, skipped=lambda path: path == skipped)
    call(torch.randint(CLASSES, (2, 5)))
    assert not joined(lowered)


def test_nothing_is_joined_where_functions_are_not_replaced():
    call, lowered = captured(Model(whole), replaces_functions=False)
    call(torch.randint(CLASSES, (2, 5)))
    assert not joined(lowered)
