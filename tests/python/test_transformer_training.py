"""Ways in which transformers are trained, converted: accumulation, scaled losses, checkpoints, generation, padding."""

import copy
from functools import partial

import actnn
import pytest
import torch
from configurations import one_thread  # noqa: F401
from torch.utils.checkpoint import checkpoint

transformers = pytest.importorskip("transformers")

pytestmark = pytest.mark.usefixtures("one_thread")

FINE = {"bits": 8, "output_bits": 8, "smooth_bits": 8, "attention_bits": 8, "norm_bits": 8, "group_rows": 64}
WORDS, LENGTH = 61, 24


def llama():
    config = transformers.LlamaConfig(
        vocab_size=WORDS, hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=64,
    )  # fmt: skip
    return transformers.LlamaForCausalLM(config)


@pytest.fixture
def models():
    """A converted model and its exact twin."""
    torch.manual_seed(0)
    exact = llama()
    converted = copy.deepcopy(exact)
    actnn.convert(converted, actnn.Config("L2", activation_compression_bits=[8]), blocks=actnn.BlockOptions(**FINE))
    return converted, exact


def batch(size=4):
    words = torch.randint(WORDS, (size, LENGTH))
    return {"input_ids": words, "labels": words, "use_cache": False}


def loss_of(model, one):
    return model(**one).loss


def assert_gradients_near(converted, exact, tolerance=0.06):
    found = torch.cat([p.grad.flatten().float() for p in converted.parameters()])
    expected = torch.cat([p.grad.flatten().float() for p in exact.parameters()])
    assert (found - expected).norm() / expected.norm() < tolerance


def test_gradients_accumulate(models):
    batches = [batch(), batch()]
    for model in models:
        for one in batches:
            (model(**one).loss / 2).backward()
    assert_gradients_near(*models)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_with_a_scaled_loss(models, dtype):
    one, scaler = batch(), torch.amp.GradScaler("cpu", init_scale=2.0**10)
    for model in models:
        optimizer = torch.optim.SGD(model.parameters(), 0.0)
        with torch.autocast("cpu", dtype):
            loss = model(**one).loss
        scaler.scale(loss).backward()
        scaler.unscale_(optimizer)
        scaler.step(optimizer)
        scaler.update()
    assert_gradients_near(*models)


def test_a_model_in_bfloat16(models):
    one = batch()
    for model in models:
        model.to(torch.bfloat16)(**one).loss.backward()
    assert_gradients_near(*models, tolerance=0.1)


def test_an_optimizer_that_steps_in_backward(models):
    one = batch()
    for model in models:
        optimizers = {p: torch.optim.SGD([p], 0.1) for p in model.parameters()}

        def step(parameter, optimizers=optimizers):
            optimizers[parameter].step()
            optimizers[parameter].zero_grad()

        for parameter in model.parameters():
            parameter.register_post_accumulate_grad_hook(step)
        before = [parameter.detach().clone() for parameter in model.parameters()]
        model(**one).loss.backward()
        assert all(parameter.grad is None for parameter in model.parameters())
        for parameter, old in zip(model.parameters(), before, strict=True):
            parameter.grad = (old - parameter.detach()) / 0.1
    assert_gradients_near(*models)


@pytest.mark.parametrize("use_reentrant", [False, True])
def test_a_checkpoint_around_the_model(models, use_reentrant):
    one = batch()

    def loss(model, anchor):
        return model(**one).loss * anchor

    for model in models:
        checkpoint(loss, model, torch.ones((), requires_grad=True), use_reentrant=use_reentrant).backward()
    assert_gradients_near(*models)


def test_checkpoints_of_the_models_own(models):
    one = batch()
    models[0].train().gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    for model in models:
        model(**one).loss.backward()
    assert_gradients_near(*models)


def test_generation_is_exact(models):
    converted, exact = models
    batch_of = batch()
    converted(**batch_of).loss.backward()  # with its programs captured
    prompt = torch.randint(WORDS, (2, 5))
    options = {"max_new_tokens": 12, "do_sample": False, "pad_token_id": 0}
    found, expected = (model.eval().generate(prompt, **options) for model in (converted, exact))
    torch.testing.assert_close(found, expected)
    with torch.no_grad():
        torch.testing.assert_close(converted(prompt).logits, exact(prompt).logits)


def test_padded_batches(models):
    """Their mask is of values, and stays."""
    one = batch()
    one["attention_mask"] = torch.ones(4, LENGTH, dtype=torch.int64)
    one["attention_mask"][1, 15:] = 0
    one["labels"] = one["labels"].masked_fill(one["attention_mask"] == 0, -100)
    losses = [model(**one).loss for model in models]
    torch.testing.assert_close(*losses, rtol=1e-4, atol=1e-4)
    for loss in losses:
        loss.backward()
    assert_gradients_near(*models)


def test_values_that_are_computed_again():
    """They cost no bytes, and the noise of one copy more."""
    torch.manual_seed(0)
    exact, one, kept = llama(), batch(), {}
    exact(**one).loss.backward()
    for again in ((), ("recompute_attention",), ("recompute_attention", "recompute_mlp")):
        model = copy.deepcopy(exact)
        model.zero_grad()
        config = actnn.Config("L2", activation_compression_bits=[8])
        report = actnn.convert(model, config, blocks=actnn.BlockOptions(**FINE, **dict.fromkeys(again, True)))
        report.measure(model, partial(loss_of, model, one))
        kept[len(again)] = sum(block.kept_bytes for block in report.blocks)
        model(**one).loss.backward()
        assert_gradients_near(model, exact)
        assert_gradients_are_not_wrong_together(model, exact, one)
    rows, heads = 4 * LENGTH, 64 + 2 * 32
    assert kept[0] - kept[1] > 2 * rows * heads  # of two layers, 8 bits each
    assert kept[1] - kept[2] > 2 * rows * 2 * 96


def assert_gradients_are_not_wrong_together(model, exact, one, draws=12):
    """The mean over draws is along the exact gradient, and as long."""
    expected = torch.cat([p.grad.flatten() for p in exact.parameters()])
    found = torch.zeros_like(expected)
    for _ in range(draws):
        model.zero_grad()
        model(**one).loss.backward()
        found += torch.cat([p.grad.flatten() for p in model.parameters()]) / draws
    projection = (found @ expected) / (expected @ expected)
    assert abs(projection - 1) < 0.01
