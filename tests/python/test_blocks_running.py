"""convert and blocks: what stays, when the layers run one by one, and changes after conversion."""

import copy
import gc
import io
import pickle
import weakref

import actnn
import pytest
import torch
import torch.nn.utils.prune
from actnn import BlockOptions, Config, convert
from actnn.blocks.running import BlockForward
from block_checks import assert_same, converted, forward_of, reference_blocks, steps  # noqa: F401
from block_models import FEATURES, IMAGE, BasicBlock, Bottleneck, ResNet, conv
from configurations import eight_bits, one_thread  # noqa: F401
from reference_block import ReferenceBlock
from torch import nn

pytestmark = pytest.mark.usefixtures("one_thread", "reference_blocks")


def test_everything_else_about_a_module_stays():
    model = ResNet()
    exact = copy.deepcopy(model)
    children, keys = list(model.modules()), list(model.state_dict())
    parameters = list(model.parameters())
    convert(model, eight_bits())
    assert all(a is b for a, b in zip(model.modules(), children, strict=True))
    assert all(a is b for a, b in zip(model.parameters(), parameters, strict=True))
    assert list(model.state_dict()) == keys and type(model) is ResNet
    changed = {"__class__", "forward", "config", "group", "name", "scheme"}
    for mine, theirs in zip(model.modules(), exact.modules(), strict=True):
        assert set(vars(mine)) - set(vars(theirs)) <= changed and set(vars(theirs)) <= set(vars(mine))
    assert [n for n, m in model.named_modules() if "forward" in vars(m)] == ["", "layer1.0", "layer1.1"]


def test_parameters_are_read_at_each_call():
    model, exact, _ = converted(BasicBlock)
    state = {name: torch.randn_like(value) if value.is_floating_point() else value
             for name, value in BasicBlock().state_dict().items()}  # fmt: skip
    state = {name: value.abs() if "var" in name else value for name, value in state.items()}
    model.eval(), exact.eval()
    for m in (model, exact):
        m.load_state_dict(state, assign=True)
    assert_same(model, exact, torch.randn(FEATURES), blocks=1)
    model.requires_grad_(False)
    assert not model(torch.randn(FEATURES)).requires_grad
    model.requires_grad_(True).bfloat16(), exact.bfloat16()
    assert_same(model, exact, torch.randn(FEATURES, dtype=torch.bfloat16), blocks=1)


@pytest.mark.parametrize(
    "duplicate",
    [
        copy.deepcopy,
        lambda m: pickle.loads(pickle.dumps(m)),
        lambda m: torch.load(_saved(m), weights_only=False),
        lambda m: nn.Sequential(copy.deepcopy(nn.Sequential(m))[0])[0],
    ],
)
def test_copies_are_independent(duplicate):
    model, exact, _ = converted(ResNet)
    model(torch.randn(IMAGE))
    other = duplicate(model)
    exact.load_state_dict(other.state_dict())
    assert isinstance(other.forward, BlockForward) and other.forward.module is other
    assert other.forward.config is other.conv1.config and other.forward.options == model.forward.options
    with torch.no_grad():
        for p in model.parameters():
            p.zero_()
    del model
    assert_same(other, exact, torch.randn(IMAGE), blocks=3)


def _saved(model):
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    return file


def test_a_forward_keeps_no_module_alive():
    model = BasicBlock()
    convert(model, eight_bits())
    model(torch.randn(FEATURES)).sum().backward()
    forward, gone = model.forward, weakref.ref(model)
    gc.disable()
    try:
        del model
        assert gone() is None
    finally:
        gc.enable()
    with pytest.raises(ReferenceError, match="the module of this forward is gone"):
        forward(torch.randn(FEATURES))


def test_without_gradients():
    model, exact, _ = converted(BasicBlock)
    with torch.no_grad():
        assert torch.equal(model(x := torch.randn(FEATURES)), exact(x)) and ReferenceBlock.runs == 1


# When the layers run one by one.


@pytest.mark.parametrize("kind", ["forward", "forward_pre", "full_backward", "full_backward_pre"])
def test_hooks_on_layers_fire(kind):
    model, _, _ = converted(BasicBlock, 8, 16, 2)
    model.relu.inplace = False  # torch's hooks on gradients refuse the other, and `+=` of what they have had
    for module in (model.conv1, model.relu, model.downsample[0]):
        fired = []
        handle = getattr(module, f"register_{kind}_hook")(lambda *_, fired=fired: fired.append(1) and None)
        model(torch.randn(FEATURES, requires_grad=True)).sum().backward()
        assert fired
        handle.remove()
        ReferenceBlock.runs = 0
        model(torch.randn(FEATURES))
        assert ReferenceBlock.runs == 1


def test_hooks_that_were_there_before():
    model = BasicBlock()
    fired = []
    model.bn1.register_forward_hook(lambda *_: fired.append(1))
    report = convert(model, eight_bits())
    assert report.without_blocks["bn1"] == "it has hooks" and steps(report) == ["conv2 bn2 add relu"]
    model(torch.randn(FEATURES))
    assert fired == [1]


def test_hooks_on_the_module_itself_and_on_every_module():
    model, _, _ = converted(BasicBlock)
    fired = []
    with model.register_forward_hook(lambda *_: fired.append("own")):
        model(torch.randn(FEATURES))
    assert fired == ["own"] and ReferenceBlock.runs == 1
    with nn.modules.module.register_module_forward_hook(lambda *_: fired.append("any")):
        model(torch.randn(FEATURES))
    assert fired.count("any") == 7 and ReferenceBlock.runs == 1


@pytest.mark.parametrize(
    "flags",
    [
        {"compress_activation": False}, {"training": False}, {"simulate": True}, {"pergroup": False},
        {"debug_remove_relu": True}, {"debug_memory_op_forward": True}, {"activation_compression_bits": [1]},
        {"pipeline_threshold": 1},
    ],
)  # fmt: skip
def test_flags_that_blocks_do_not_have(flags, capsys):
    config = eight_bits()
    model = BasicBlock()
    convert(model, config)
    for name, value in flags.items():
        setattr(config, name, value)
    model(torch.randn(FEATURES)).sum().backward()
    assert ReferenceBlock.runs == 0
    (name,) = flags
    if flags not in ({"compress_activation": False},):
        report = convert(BasicBlock(), Config("L2", **flags))
        assert not report.blocks and name in report.without_blocks[""]
        assert f"no block: (root): {report.without_blocks['']}" in str(report)


def test_configurations_that_allocate_bits_have_no_blocks():
    for flags in ({}, {"adaptive_conv_scheme": False}, {"adaptive_bn_scheme": False}):
        report = convert(BasicBlock(), Config("L3", **flags))
        assert report.without_blocks == {"": "the configuration allocates bits among layers"}
    assert not convert(BasicBlock(), Config("L1")).blocks
    assert not convert(nn.Sequential(nn.Linear(3, 3)), Config()).without_blocks


def test_layers_with_another_configuration():
    model = BasicBlock()
    convert(model.bn2, eight_bits())
    report = convert(model, eight_bits())
    assert report.without_blocks["bn2"] == "it has a configuration or a group of its own"
    assert steps(report) == ["conv1 bn1 relu conv2"]


def test_bits_are_those_of_the_configuration_at_each_call():
    config = eight_bits()
    model = BasicBlock()
    convert(model, config)
    plan = model.forward.plan()

    def used():
        model(torch.randn(FEATURES))
        return list(plan.executors.values())[-1][0].options

    assert used() == {"bits": 8, "output_bits": 8, "recompute": True, "norm_bits": 2, "stochastic": True}
    config.activation_compression_bits, config.stochastic = [5], False
    assert used() == {"bits": 5, "output_bits": 5, "recompute": True, "norm_bits": 2, "stochastic": False}
    other = BasicBlock()
    convert(other, config, blocks=BlockOptions(bits=2, output_bits=4, recompute=False))
    (executors,) = other.forward.plan().executors.values()
    assert executors[0].options == {
        "bits": 2,
        "output_bits": 4,
        "recompute": False,
        "norm_bits": 2,
        "stochastic": False,
    }


# Changes after conversion.


def replaces_a_layer(model):
    model.conv2 = conv(8, 8)


def adds_a_shortcut(model):
    model.downsample = nn.Sequential(conv(8, 8, 1), nn.BatchNorm2d(8))


def changes_a_norm(model):
    model.bn1.momentum, model.bn2.eps = 0.5, 0.1


def changes_a_convolution(model):
    model.conv1.padding, model.conv1.dilation = (2, 2), (2, 2)


def adds_a_bias(model):
    model.conv1.bias = nn.Parameter(torch.ones(8))


def replaces_an_activation(model):
    model.relu = nn.GELU()


def replaces_a_forward(model):
    model.bn1.forward = lambda x: 2 * x


def prunes(model):
    torch.nn.utils.prune.l1_unstructured(model.conv1, "weight", 0.5)


@pytest.mark.parametrize(
    ("change", "blocks"),
    [
        (replaces_a_layer, 2), (adds_a_shortcut, 2), (changes_a_norm, 1), (changes_a_convolution, 1), (adds_a_bias, 1),
        (replaces_an_activation, 2), (replaces_a_forward, 1), (prunes, 1),
    ],
)  # fmt: skip
def test_changes_after_conversion(change, blocks):
    model, exact, _ = converted(BasicBlock)
    for m in (model, exact):
        torch.manual_seed(1)
        change(m)
    ReferenceBlock.runs = 0
    x = torch.randn(FEATURES)
    torch.testing.assert_close(model(x), exact(x), rtol=1e-6, atol=1e-6)
    assert 0 <= ReferenceBlock.runs <= blocks


def test_attributes_that_a_forward_reads():
    def forward(self, x):
        y = self.block(x)
        return y + x if self.p else y

    model, exact, _ = converted(forward_of(forward))
    for value in (0.5, 0.0):
        model.p = exact.p = value
        assert_same(model, exact, torch.randn(FEATURES), blocks=1)


def test_containers_that_change():
    model, exact, _ = converted(lambda: nn.Sequential(conv(8, 8), nn.Sequential(nn.BatchNorm2d(8), nn.ReLU())))
    for change in (lambda m: m[1].append(nn.Hardtanh()), lambda m: m.append(nn.Tanh()), lambda m: m[1].pop(1)):
        change(model), change(exact)
        assert_same(model, exact, torch.randn(FEATURES), blocks=1)


# Other systems.


def test_compiled_models_run_the_layers():
    model, exact, _ = converted(BasicBlock)
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    ReferenceBlock.runs = 0
    x = torch.randn(FEATURES)
    torch.testing.assert_close(compiled(x), exact(x))
    assert ReferenceBlock.runs == 0


def test_transforms_run_the_layers():
    model, exact, _ = converted(BasicBlock)
    model.eval(), exact.eval()
    x = torch.randn(FEATURES)
    parameters = dict(model.named_parameters())
    assert torch.equal(torch.func.functional_call(model, parameters, (x,)), exact(x)) and ReferenceBlock.runs == 1
    gradient = torch.func.grad(lambda p: torch.func.functional_call(model, p, (x,)).sum())(parameters)
    assert ReferenceBlock.runs == 1 and gradient["conv1.weight"].shape == model.conv1.weight.shape
    traced = torch.jit.trace(model, x, check_trace=False)
    assert ReferenceBlock.runs == 1 and torch.equal(traced(x), exact(x))


def test_a_wrapper_has_blocks():
    model = Bottleneck()
    exact = copy.deepcopy(model)
    wrapped = actnn.QModule(model, eight_bits())
    assert len(wrapped.report.blocks) == 1
    other = copy.deepcopy(wrapped)
    for wrapper in (wrapped, other):
        ReferenceBlock.runs = 0
        assert torch.equal(wrapper(x := torch.randn(FEATURES)), exact(x)) and ReferenceBlock.runs == 1
        exact = copy.deepcopy(exact)
