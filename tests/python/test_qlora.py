"""Adapters of low rank on frozen layers of 4 and 8 bits: bitsandbytes' and ones of the tests' own."""

import copy

import actnn
import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from actnn.capture.frozen_weights import FrozenWeight
from configurations import one_thread, relative_error  # noqa: F401
from frozen_layers import LENGTH, WIDTH, FrozenLinear, Model, frozen_product, product
from model_families import FAMILIES, WithLoss
from torch import nn

pytestmark = pytest.mark.usefixtures("one_thread")


def nf4(linear, nested=False, dtype=torch.float32):
    bnb = pytest.importorskip("bitsandbytes")
    layer = bnb.nn.Linear4bit(linear.in_features, linear.out_features, False, dtype, nested, "nf4")
    layer.weight = bnb.nn.Params4bit(
        linear.weight.data, requires_grad=False, quant_type="nf4", compress_statistics=nested, module=layer
    ).to("cpu")
    return layer


def int8(linear):
    bnb = pytest.importorskip("bitsandbytes")
    layer = bnb.nn.Linear8bitLt(linear.in_features, linear.out_features, False, has_fp16_weights=False)
    layer.weight = bnb.nn.Int8Params(linear.weight.data, requires_grad=False, has_fp16_weights=False).to("cpu")
    return layer


def function(linear):
    return FrozenLinear(linear, product)


def op(linear):
    return FrozenLinear(linear, frozen_product)


def dense(linear):
    return function(linear).dense()


IN_BLOCKS = {
    "function": function, "nf4": nf4, "nested nf4": lambda linear: nf4(linear, True), "int8": int8,
    "nf4 in bfloat16": lambda linear: nf4(linear, dtype=torch.bfloat16),
}  # fmt: skip
LAYERS = IN_BLOCKS | {"op": op}


def batch(samples=4):
    return torch.randn(samples, LENGTH, WIDTH)


def gradients(model, loss):
    model.zero_grad()
    loss.backward()
    return torch.cat([p.grad.flatten() for p in model.parameters() if p.requires_grad])


def check_same(exact, converted, loss_of=lambda model, x: model(x), x=None, tolerance=1e-5):
    x = batch() if x is None else x
    wanted, found = loss_of(exact, x), loss_of(converted, x)
    torch.testing.assert_close(found, wanted, rtol=tolerance, atol=tolerance)
    assert relative_error(gradients(converted, found), gradients(exact, wanted)) < 0.1


def converted_pair(layer, **options):
    exact, model = Model(LAYERS[layer]), Model(LAYERS[layer])
    return exact, model, actnn.convert(model, blocks=actnn.BlockOptions(bits=8), **options)


@pytest.mark.parametrize("layer", ["function", "int8", "op"])
def test_results_and_gradients(layer):
    exact, model, report = converted_pair(layer)
    check_same(exact, model)
    check_same(exact, model, x=batch(6))
    assert not report.record.breaks and not report.record.fallback and all(graph.programs for graph in report.graphs)


def kept_bytes(layer, adapted=(), first_trains=True):
    model = Model(layer, adapted)
    model.first.requires_grad_(first_trains)
    report = actnn.convert(model)
    x = batch()
    return report.measure(model, lambda: model(x)).total, report


@pytest.mark.parametrize("layer", IN_BLOCKS)
def test_no_more_is_kept_than_with_weights_of_torchs(layer):
    kept, report = kept_bytes(IN_BLOCKS[layer])
    wanted, as_wanted = kept_bytes(dense)
    assert kept == wanted and report.without_blocks == as_wanted.without_blocks
    assert [len(block.steps) for block in report.blocks] == [len(block.steps) for block in as_wanted.blocks]


@pytest.mark.parametrize("layer", ["function", "int8"])
def test_a_weight_in_front_of_all_gradients_is_not_kept(layer):
    assert kept_bytes(IN_BLOCKS[layer], first_trains=False)[0] <= kept_bytes(dense, first_trains=False)[0]


@pytest.mark.parametrize("layer", ["function", "op"])
def test_adapters_share_the_copy_of_what_they_read(layer):
    one, three = (kept_bytes(LAYERS[layer], names)[0] for names in (["query"], ["query", "key", "value"]))
    # Two more in two layers: of each its rows of 2 numbers, exact, and the second weight times the scale.
    assert three - one <= 2 * 2 * (4 * LENGTH + WIDTH) * 2 * 4


def test_gradients_are_unbiased():
    exact, model = Model(function), Model(function)
    actnn.convert(model, blocks=actnn.BlockOptions(bits=2))
    x = batch(2)
    wanted = gradients(exact, exact(x))
    found = [gradients(model, model(x)) for _ in range(32)]
    each = sum(relative_error(one, wanted) ** 2 for one in found) / len(found)
    assert relative_error(torch.stack(found).mean(0), wanted) ** 2 < 3 * each / len(found) + 1e-3


def test_a_whole_weight_is_there_for_whoever_asks():
    exact, model, _ = converted_pair("function")
    found = []

    def pack(tensor):
        if isinstance(tensor, FrozenWeight):
            found.append(tensor.clone())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        model(batch())
    layer = exact.layers[0].query.base
    assert len(found) == 14
    torch.testing.assert_close(found[0], layer.codes * layer.scales)


def test_with_autocast_hooks_and_checkpoints():
    exact, model, _ = converted_pair("function")

    def on_cpu(one, x):
        with torch.autograd.graph.save_on_cpu():
            return one(x)

    def checkpointed(one, x):
        return torch.utils.checkpoint.checkpoint(one, x, use_reentrant=False)

    def in_bfloat16(one, x):
        with torch.autocast("cpu", torch.bfloat16):
            return one(x)

    check_same(exact, model, on_cpu)
    check_same(exact, model, checkpointed)
    check_same(exact, model, in_bfloat16, tolerance=1e-2)


def test_what_is_compiled_has_the_functions_as_they_are():
    check_same(*converted_pair("function", compile="aot_eager")[:2])


class StraightThrough(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x.round()

    @staticmethod
    def backward(ctx, grad):
        return grad


class WithItsInput(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, weight):
        ctx.save_for_backward(x, weight)
        return F.linear(x, weight).relu()

    @staticmethod
    def backward(ctx, grad):
        x, weight = ctx.saved_tensors
        return (grad * (F.linear(x, weight) > 0)) @ weight, None


class Drawn(torch.autograd.Function):
    """What it keeps is never the same."""

    @staticmethod
    def forward(ctx, x, weight):
        drawn = weight * torch.rand(WIDTH, 1)
        ctx.save_for_backward(drawn)
        return F.linear(x, drawn)

    @staticmethod
    def backward(ctx, grad):
        return grad @ ctx.saved_tensors[0], None


def test_what_draws_is_no_product():
    class WithDrawn(Model):
        def forward(self, x):
            return Drawn.apply(self.layers(self.first(x)), torch.eye(WIDTH)).square().mean()

    model = WithDrawn(function)
    report = actnn.convert(model)
    model(batch()).backward()
    assert any("autograd_function_apply" in name for name in report.without_blocks)


def test_a_weight_that_is_written_to_in_front_of_backward_is_noticed():
    model = Model(function)
    actnn.convert(model)
    loss = model(batch())
    frozen = next(module for module in model.modules() if hasattr(module, "codes"))
    frozen.scales.mul_(2)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


@pytest.mark.parametrize("other", [StraightThrough.apply, lambda x: WithItsInput.apply(x, torch.eye(WIDTH))])
def test_other_functions_are_no_products(other):
    class WithOther(Model):
        def forward(self, x):
            return other(self.layers(self.first(x))).square().mean()

    exact = WithOther(function)
    model = copy.deepcopy(exact)
    report = actnn.convert(model, blocks=actnn.BlockOptions(bits=8))
    check_same(exact, model)
    assert any("autograd_function_apply" in name for name in report.without_blocks)


@pytest.mark.parametrize(("layer", "dtype"), [("nf4", torch.bfloat16), ("int8", torch.float32)])
def test_llama_with_adapters_of_pefts(layer, dtype):
    peft = pytest.importorskip("peft")
    pytest.importorskip("bitsandbytes")
    torch.manual_seed(0)
    model = FAMILIES["Llama"].make().to(dtype).model
    for path, linear in list(model.named_modules()):
        if isinstance(linear, nn.Linear) and path != "lm_head":
            model.set_submodule(path, nf4(linear, dtype=dtype) if layer == "nf4" else int8(linear))
    model.is_loaded_in_4bit, model.is_loaded_in_8bit = layer == "nf4", layer == "int8"
    if dtype == torch.float32:
        model = peft.prepare_model_for_kbit_training(model, use_gradient_checkpointing=False)
    config = peft.LoraConfig(r=2, target_modules="all-linear", task_type="CAUSAL_LM", init_lora_weights=False)
    exact = WithLoss(peft.get_peft_model(model, config))
    model = copy.deepcopy(exact)
    report = actnn.convert(model, blocks=actnn.BlockOptions(bits=8))
    (words,) = FAMILIES["Llama"].inputs()
    check_same(exact, model, x=words, tolerance=1e-3)
    assert len(report.graphs[0].programs) == 4 and not report.without_blocks
