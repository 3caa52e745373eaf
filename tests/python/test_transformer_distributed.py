"""Converted transformers under DistributedDataParallel and FSDP2: gradients of both ranks, next to those of exact
models."""

import copy
from contextlib import nullcontext

import actnn
import pytest
import torch
import torch.distributed as dist
from configurations import eight_bits
from ranks import Ranks
from torch import nn
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel

transformers = pytest.importorskip("transformers")

FINE = {"output_bits": 8, "smooth_bits": 8, "attention_bits": 8, "norm_bits": 8, "group_rows": 64}
WORDS, LENGTH = 61, 24


def gpt2():
    """The weight of its embedding is that of its head."""
    config = transformers.GPT2Config(
        vocab_size=WORDS, n_embd=64, n_layer=2, n_head=4, n_positions=64, resid_pdrop=0.0, embd_pdrop=0.0,
        attn_pdrop=0.0, use_cache=False, bos_token_id=0, eos_token_id=0,
    )  # fmt: skip
    return transformers.GPT2LMHeadModel(config)


def llama():
    config = transformers.LlamaConfig(
        vocab_size=WORDS, hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=64, use_cache=False,
    )  # fmt: skip
    return transformers.LlamaForCausalLM(config)


def bert():
    config = transformers.BertConfig(
        vocab_size=WORDS, hidden_size=64, num_hidden_layers=2, num_attention_heads=4, intermediate_size=96,
        max_position_embeddings=64, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0,
    )  # fmt: skip
    return transformers.BertForMaskedLM(config)


MODELS = {"GPT-2": gpt2, "Llama": llama, "BERT": bert}


@pytest.fixture(scope="module")
def two_ranks(tmp_path_factory):
    with Ranks("gloo", 2, tmp_path_factory.mktemp("two") / "store") as ranks:
        yield ranks


def twins(name):
    """The same on all ranks."""
    torch.manual_seed(0)
    exact = MODELS[name]()
    return copy.deepcopy(exact), exact


def convert(model):
    return actnn.convert(model, eight_bits(), blocks=actnn.BlockOptions(**FINE))


def loss_of(model, number):
    """Of the rank's own batch."""
    generator = torch.Generator().manual_seed(10 * number + dist.get_rank())
    words = torch.randint(WORDS, (4, LENGTH), generator=generator)
    return model(input_ids=words, labels=words).loss


def whole(tensor):
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def gradient_of(model):
    return torch.cat([whole(parameter.grad).flatten().float() for parameter in model.parameters()])


def assert_gradients_near(model, exact, tolerance=0.01):
    """On the whole, and for each parameter that has much of it."""
    expected = gradient_of(exact)
    assert (gradient_of(model) - expected).norm() < tolerance * expected.norm()
    for (name, ours), theirs in zip(model.named_parameters(), exact.parameters(), strict=True):
        gradient, wanted = whole(ours.grad), whole(theirs.grad)
        assert wanted.norm() < 1e-3 * expected.norm() or (gradient - wanted).norm() < 0.05 * wanted.norm(), name


def step(models):
    """The same step for the models, which stay near to one another."""
    with torch.no_grad():
        for parameters in zip(*(model.parameters() for model in models), strict=True):
            gradient = parameters[-1].grad.clone()
            for parameter in parameters:
                parameter -= 0.1 * gradient
                parameter.grad = None


# --- DistributedDataParallel -----------------------------------------------------------------------------------------


def trains_in_parallel(_, order, options):
    model, exact = twins("GPT-2")
    assert model.lm_head.weight is model.transformer.wte.weight
    if order == "inside":
        report = convert(model)
    parallel, exact = (DistributedDataParallel(m, bucket_cap_mb=0.02, **options) for m in (model, exact))
    if order == "around":
        report = convert(parallel)
    for number in range(3):
        for one in (parallel, exact):
            with one.no_sync() if number else nullcontext():  # torch's static graphs need a first step with all
                loss_of(one, 2 * number).backward()
            if number:
                loss_of(one, 2 * number + 1).backward()
        assert_gradients_near(parallel, exact)
        ours = gradient_of(parallel)
        first = ours.clone()
        dist.broadcast(first, 0)
        assert torch.equal(ours, first)
        step([parallel, exact])
    assert len(report.blocks) == 2 and not report.record.fallback and not report.record.troubles


@pytest.mark.parametrize(
    ("order", "options"),
    [("inside", {}), ("around", {}), ("inside", {"static_graph": True}), ("around", {"find_unused_parameters": True})],
    ids=str,
)
def test_gradients_are_averaged(two_ranks, order, options):
    two_ranks.run(trains_in_parallel, order, options)


# --- FSDP2 -----------------------------------------------------------------------------------------------------------


def layers_of(model):
    return next(module for module in model.modules() if isinstance(module, nn.ModuleList))


def shard(model, parts=(), **options):
    """Each layer by itself, and what is left."""
    for layer in layers_of(model):
        fully_shard(layer, **options)
    for part in parts:
        fully_shard(part, **options)
    return fully_shard(model, **options)


def converted_and_sharded(model, order, **options):
    if order == "convert":
        report = convert(model)
    shard(model, **options)
    return report if order == "convert" else convert(model)


def bytes_of_whole_parameters(model):
    """Of its layers, as autograd may have saved them."""
    states = [layer._get_fsdp_state()._fsdp_param_group for layer in layers_of(model)]
    return [parameter._unsharded_param.untyped_storage().size() for state in states for parameter in state.fsdp_params]


def trains_sharded(_, name, order, dtype):
    model, exact = twins(name)
    options = {"mp_policy": MixedPrecisionPolicy(dtype, torch.float32), "reshard_after_forward": True}
    report = converted_and_sharded(model, order, **options)
    shard(exact, **options)
    for number in range(2):
        for one in (model, exact):
            loss = loss_of(one, number)
            assert set(bytes_of_whole_parameters(one)) == {0}
            loss.backward()
        assert all(isinstance(parameter.grad, DTensor) for parameter in model.parameters())
        assert_gradients_near(model, exact, 0.01 if dtype is None else 0.02)
        step([model, exact])
    blocks = [block.name.partition("#")[0] for block in report.blocks]
    for path, module in model.named_modules():
        if module in set(layers_of(model)):
            assert sum(block.startswith(path) for block in blocks) == 1
    assert not report.record.fallback and not report.record.troubles


@pytest.mark.parametrize(
    ("name", "order", "dtype"),
    [
        ("GPT-2", "convert", None),
        ("GPT-2", "shard", torch.bfloat16),
        ("Llama", "shard", None),
        ("Llama", "convert", torch.bfloat16),
        ("BERT", "shard", None),
    ],
    ids=str,
)
def test_layers_are_sharded(two_ranks, name, order, dtype):
    two_ranks.run(trains_sharded, name, order, dtype)


def accumulates_sharded(_):
    model, exact = twins("GPT-2")
    converted_and_sharded(model, "convert")
    shard(exact)
    for one in (model, exact):
        for number in range(3):
            one.set_requires_gradient_sync(number == 2)
            loss_of(one, number).backward()
    assert_gradients_near(model, exact)


def test_sharded_gradients_accumulate(two_ranks):
    two_ranks.run(accumulates_sharded)


def kept(model, report=None):
    def run():
        return loss_of(model, 0)

    run().backward()
    return (actnn.measure_kept_bytes(model, run) if report is None else report.measure(model, run)).total


def keeps_what_it_keeps_whole(_):
    """Neither the parameters that are gathered count, nor masks that say no more than that attention is causal."""
    (model, exact), (whole_model, whole_exact) = twins("Llama"), twins("Llama")
    exact_bytes, bytes_ = kept(whole_exact), kept(whole_model, convert(whole_model))
    assert bytes_ < 0.4 * exact_bytes
    assert kept(shard(exact)) == exact_bytes
    assert kept(model, converted_and_sharded(model, "shard")) == bytes_


def test_sharded_models_keep_as_much(two_ranks):
    two_ranks.run(keeps_what_it_keeps_whole)


def compresses_single_layers(_):
    """Those that are sharded by themselves, before they are converted."""
    model, _ = twins("Llama")
    report = converted_and_sharded(model, "shard", parts=[model.model.embed_tokens, [model.model.norm, model.lm_head]])
    kept(model, report)
    for path, exact in (("model.embed_tokens", 4 * LENGTH * 8), ("lm_head", 4 * LENGTH * 64 * 4)):
        assert report[path].outcome == "converted"
        assert report[path].kept_bytes < 0.3 * exact


def test_single_sharded_layers(two_ranks):
    two_ranks.run(compresses_single_layers)
