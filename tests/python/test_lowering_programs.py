"""Programs in captured graphs: which ones are found in convolutional networks, and what their texts say."""

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from block_checks import forward_of
from block_models import FEATURES, IMAGE, PATTERNS, MBConv, ResNet, conv
from configurations import one_thread  # noqa: F401
from lowering_checks import assert_computes_the_same, captured, outside, programs
from torch import nn

pytestmark = pytest.mark.usefixtures("one_thread")

SQUEEZE = "block.2.avgpool block.2.fc1 relu block.2.fc2 sigmoid multiply"
FOUND = {
    "BasicBlock": ["conv1 bn1 relu conv2 bn2 add relu"],
    "BasicBlock with downsample": ["conv1 bn1 relu conv2 bn2 downsample.0 downsample.1 add relu"],
    "ResNet": [
        "conv1 bn1 relu maxpool",
        "layer1.0.conv1 layer1.0.bn1 layer1.0.relu layer1.0.conv2 layer1.0.bn2 add layer1.0.relu",
        "layer1.1.conv1 layer1.1.bn1 layer1.1.relu layer1.1.conv2 layer1.1.bn2 layer1.1.relu layer1.1.conv3"
        " layer1.1.bn3 layer1.1.downsample.0 layer1.1.downsample.1 add layer1.1.relu",
        "avgpool fc",
    ],
    "MobileNetV2 with shortcut": ["conv.0.0 conv.0.1 conv.0.2 conv.1.0 conv.1.1 conv.1.2 conv.2 conv.3 add"],
    "MobileNetV2": ["conv.0.0 conv.0.1 conv.0.2", "conv.1.0 conv.1.1 conv.1.2", "conv.2 conv.3"],
    "MobileNetV3": [
        f"block.0.0 block.0.1 block.0.2 block.1.0 block.1.1 block.1.2 {SQUEEZE} block.3.0 block.3.1 add"
    ],
    "DenseNet": [
        "features.conv0 features.norm0 features.relu0 features.pool0",
        " ".join(
            f"concatenate {' '.join(f'features.denseblock1.denselayer{i}.{name}' for name in names.split())}"
            for i, names in ((1, "norm1 relu1 conv1 norm2 relu2 conv2"), (2, "norm1 relu1 conv1 norm2 relu2 conv2"))
        )
        + " concatenate " + " ".join(f"features.transition1.{i}" for i in range(4)),
        "features.norm5 relu adaptive_avg_pool",
    ],
    "timm": ["conv1 bn1 act1 conv2 bn2 act2 conv3 bn3 downsample.0 downsample.1 downsample.2 add act3"],
    "timm's norms": ["conv_exp bn1 bn1.act conv_pwl bn2 add"],
    "functions": ["norm0 conv1 norm1 leaky_relu max_pool", "conv2 norm2 relu conv2 norm2 silu add relu"],
    "pre-activation": ["bn1 relu conv1 bn2 relu conv2 add"],
    "branches": ["a.0 a.1 a.2 b.0 b.1 b.2 c.0 c.1 c.2 concatenate"],
    "one dimension": ["conv norm1 relu", "mean fc norm2 relu"],
}  # fmt: skip


@pytest.mark.parametrize("name", PATTERNS)
def test_known_models(name):
    make, shape, _ = PATTERNS[name]
    lowered = assert_computes_the_same(make().train(), torch.randn(shape))
    if name in FOUND:
        assert programs(lowered) == FOUND[name]


def test_the_text():
    model = nn.Sequential(
        nn.Conv2d(3, 8, (3, 1), 2, (1, 0), bias=True), nn.BatchNorm2d(8, eps=1e-3), nn.LeakyReLU(0.2),
        nn.MaxPool2d(3, padding=1, ceil_mode=True),
    )  # fmt: skip
    ((program,),) = [graph.programs for graph in assert_computes_the_same(model, torch.randn(IMAGE))]
    assert program.body["program"] == {
        "inputs": 1, "integers": 0, "dtypes": ["float32"] * 5,
        "steps": [
            {"op": "convolution", "inputs": [0], "stride": [2, 2], "padding": [1, 0], "dilation": [1, 1], "groups": 1,
             "transposed": False, "output_padding": [], "weight": 0, "bias": 1},
            {"op": "batch_norm", "inputs": [1], "training": True, "momentum": 0.1, "eps": 1e-3, "weight": 2, "bias": 3,
             "running_mean": 0, "running_var": 1, "num_batches_tracked": 2},
            {"op": "activation", "inputs": [2], "kind": "leaky_relu", "slope": 0.2},
            {"op": "max_pool", "inputs": [3], "kernel_size": [3, 3], "stride": [3, 3], "padding": [1, 1],
             "dilation": [1, 1], "ceil_mode": True},
        ],
        "results": [4],
    }  # fmt: skip


def test_evaluation_and_frozen_norms():
    model = ResNet().eval()
    lowered = assert_computes_the_same(model, torch.randn(IMAGE))
    assert len(lowered[0].programs) == 4
    model.train()
    model.bn1.eval().requires_grad_(False)
    assert_computes_the_same(model, torch.randn(IMAGE))


def test_absent_parameters_and_statistics():
    model = nn.Sequential(conv(3, 8), nn.BatchNorm2d(8, affine=False, track_running_stats=False), nn.ReLU())
    ((program,),) = [graph.programs for graph in assert_computes_the_same(model, torch.randn(IMAGE))]
    norm = program.body["program"]["steps"][1]
    assert [norm[name] for name in ("weight", "bias", "running_mean", "running_var")] == [None] * 4
    assert "num_batches_tracked" not in norm


def test_a_norm_that_is_called_twice_counts_twice():
    def forward(self, x):
        return F.relu(self.norm(self.conv2(F.relu(self.norm(self.conv(x))))))

    model = forward_of(forward)()
    assert programs(assert_computes_the_same(model, torch.randn(FEATURES))) == ["conv norm relu", "conv2 norm relu"]
    assert model.norm.num_batches_tracked == 1 + 1


def test_small_values_of_gates_are_exact():
    (graph,) = assert_computes_the_same(MBConv(), torch.randn(4, 8, 16, 16))
    (program,) = graph.programs
    names = [step.op for step in program.steps]
    made = {len(program.inputs) + i: name for i, name in enumerate(names)}
    wanted = ["adaptive_avg_pool", "convolution", "relu", "convolution", "sigmoid"]
    assert [made[value] for value in program.body["options"]["exact"]] == wanted


class Gated(nn.Module):
    """Without a residual connection, and with activations that backward needs the input of."""

    def __init__(self):
        super().__init__()
        self.expand = nn.Sequential(conv(8, 16, 1), nn.BatchNorm2d(16), nn.SiLU())
        self.spatial = nn.Sequential(conv(16, 16), nn.BatchNorm2d(16), nn.SiLU())
        self.gate = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Conv2d(16, 4, 1), nn.SiLU(), nn.Conv2d(4, 16, 1))
        self.project = nn.Sequential(conv(16, 8, 1), nn.BatchNorm2d(8))

    def forward(self, x):
        x = self.spatial(self.expand(x))
        return self.project(torch.sigmoid(self.gate(x)) * x)


def test_a_gate_is_in_one_program_with_what_it_gates_and_the_weights_behind():
    (graph,) = assert_computes_the_same(nn.Sequential(Gated(), Gated()), torch.randn(4, 8, 16, 16))
    assert [program.name for program in graph.programs] == ["0#0", "1#1"]
    assert all(len(program.steps) == 14 for program in graph.programs)


class UNet(nn.Module):
    def __init__(self):
        super().__init__()
        widths = (4, 8, 16, 32)
        self.down = nn.ModuleList([_double(i, o) for i, o in zip((3, *widths), widths, strict=False)])
        self.up = nn.ModuleList([nn.ConvTranspose2d(2 * w, w, 2, 2) for w in widths[-2::-1]])
        self.back = nn.ModuleList([_double(2 * w, w) for w in widths[-2::-1]])

    def forward(self, x):
        skips = []
        for i, layer in enumerate(self.down):
            x = layer(x if i == 0 else F.max_pool2d(x, 2))
            skips.append(x)
        skips.pop()
        for up, back in zip(self.up, self.back, strict=True):
            x = back(torch.cat([skips.pop(), up(x)], 1))
        return x


def _double(inputs, outputs):
    return nn.Sequential(
        conv(inputs, outputs), nn.BatchNorm2d(outputs), nn.ReLU(True), conv(outputs, outputs), nn.BatchNorm2d(outputs),
        nn.ReLU(True),
    )  # fmt: skip


def test_skips_are_results_and_inputs_of_several_programs():
    (graph,) = assert_computes_the_same(UNet(), torch.randn(2, 3, 16, 16))
    assert [len(program.results) for program in graph.programs][:4] == [1, 2, 1, 2]
    assert max(len(program.steps) for program in graph.programs) < 20 and not graph.outside


def test_sizes_may_change():
    model = UNet()
    x = torch.randn(2, 3, 16, 16)
    for dimension in (0, 2, 3):
        torch._dynamo.mark_dynamic(x, dimension)
    call, lowered = captured(model)
    call(x)
    y = torch.randn(3, 3, 24, 32)
    torch.testing.assert_close(call(y), model(y))
    assert len(lowered) == 1


@pytest.mark.parametrize(
    ("make", "target", "reason"),
    [
        (lambda: nn.Conv2d(8, 8, 2, padding="same"), "conv2d", "its padding is not symmetric"),
        (lambda: nn.Hardtanh(-1, 1), "hardtanh", "its bounds are not 0 and 6"),
        (lambda: nn.ELU(), "elu", "programs have no such step"),
        (lambda: nn.InstanceNorm2d(8, track_running_stats=True), "instance_norm", "it has running statistics"),
    ],
)
def test_what_no_step_computes_has_a_reason(make, target, reason):
    model = nn.Sequential(conv(8, 8), nn.BatchNorm2d(8), make(), conv(8, 8), nn.BatchNorm2d(8))
    lowered = assert_computes_the_same(model, torch.randn(FEATURES))
    assert outside(lowered) == {(target, reason)} and programs(lowered) == ["0 1", "3 4"]


def test_skipped_modules_stay_exact():
    call, lowered = captured(ResNet(), skipped=lambda path: path == "layer1.0.relu" or path.startswith("layer1.1"))
    call(torch.randn(IMAGE))
    assert programs(lowered)[1:] == ["layer1.0.conv1 layer1.0.bn1", "layer1.0.conv2 layer1.0.bn2 add", "avgpool fc"]


def test_double_precision_and_no_gradients():
    model = ResNet().double()
    (graph,) = assert_computes_the_same(model, torch.randn(IMAGE, dtype=torch.float64))
    assert not graph.programs and {"float64" in call.reason for call in graph.outside} == {True}
    call, lowered = captured(ResNet())
    with torch.no_grad():
        call(torch.randn(IMAGE))
    assert not lowered[0].programs and lowered[0].reason == "gradients are off"
