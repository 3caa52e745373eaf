"""Scripts written for the original run unchanged: its names, its functions, its training loop."""

import importlib
import inspect

import actnn
import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from configurations import one_thread, process_config, relative_error  # noqa: F401
from torch import nn

pytestmark = pytest.mark.usefixtures("process_config", "one_thread")

LAYERS = (
    "QConv1d QConv2d QConv3d QConvTranspose1d QConvTranspose2d QConvTranspose3d QLinear QBatchNorm1d QBatchNorm2d "
    "QBatchNorm3d QSyncBatchNorm QReLU QDropout QMaxPool2d QAvgPool2d"
)
TOP = (
    f"{LAYERS} config set_optimization_level QModule QScheme QBNScheme DataLoader get_memory_usage "
    "compute_tensor_bytes exp_recorder ops layers conf qscheme qbnscheme module utils dataloader"
)
MODULES = {
    "ops": "quantize_activation dequantize_activation quantize_and_pack dequantize_and_unpack conv1d conv2d conv3d "
    "conv_transpose1d conv_transpose2d conv_transpose3d linear batch_norm sync_batch_norm adaptive_avg_pool2d",
    "layers": LAYERS,
    "conf": "config set_optimization_level",
    "qscheme": "QScheme",
    "qbnscheme": "QBNScheme",
    "module": "QModule",
    "utils": "get_memory_usage compute_tensor_bytes exp_recorder empty_cache",
    "dataloader": "DataLoader",
    "cpp_extension.quantization": "pack_single_precision pack_mixed_precision unpack_single_precision "
    "unpack_mixed_precision act_quantized_relu act_quantized_dropout act_quantized_max_pool2d",
    "cpp_extension.minimax": "minimax",
    "cpp_extension.calc_precision": "calc_precision calc_precision_dp",
    "cpp_extension.backward_func": "cudnn_convolution_backward cudnn_convolution_transpose_backward cudnn_batch_norm "
    "cudnn_batch_norm_backward native_batch_norm native_batch_norm_backward",
}

FLAGS = (
    "compress_activation activation_compression_bits pergroup perlayer initial_bits stochastic training group_size "
    "use_gradient adaptive_conv_scheme adaptive_bn_scheme simulate enable_quantized_bn empty_cache_threshold "
    "pipeline_threshold cudnn_benchmark_conv2d swap debug_memory_model debug_speed debug_memory_op_forward "
    "debug_memory_op_backward debug_remove_bn debug_remove_relu"
)


def test_names_at_the_top():
    assert not [name for name in TOP.split() if not hasattr(actnn, name)]


@pytest.mark.parametrize("module", MODULES)
def test_names_of_modules(module):
    imported = importlib.import_module(f"actnn.{module}")
    assert not [name for name in MODULES[module].split() if not hasattr(imported, name)]
    if module == "ops":
        differentiable = [getattr(imported, name) for name in MODULES[module].split()[4:]]
        assert all(callable(function.apply) for function in differentiable)


def test_flags_and_attributes_of_schemes():
    assert not [name for name in FLAGS.split() if not hasattr(actnn.config, name)]
    class_level = "layers num_layers num_samples batch prev_layer update_scale allocate_perlayer if_allocate_perlayer"
    own = "C bits initial_bits dim scales num_locations depthwise_groups group name"
    layer = actnn.QConv2d(8, 8, 3, groups=2, group=1)
    for name in class_level.split():
        getattr(actnn.QScheme, name)
        if name != "if_allocate_perlayer":
            getattr(actnn.QBNScheme, name)
    for name in own.split():
        getattr(layer.scheme, name)
    scheme = layer.scheme
    assert (scheme.bits, scheme.initial_bits, scheme.num_locations, scheme.depthwise_groups, scheme.group) == (
        8,
        8,
        9,
        2,
        1,
    )
    scheme.if_allocate_perlayer()
    actnn.QScheme.allocate_perlayer()
    actnn.QBNScheme.allocate_perlayer()


@pytest.mark.parametrize("name", LAYERS.split())
def test_layers_take_the_arguments_of_their_parents_and_group(name):
    parent = getattr(nn, name[1:])
    arguments = {"Conv": (3, 4, 3, 2), "Batc": (3, 1e-4, 0.2), "Line": (3, 4, False), "Sync": (3,), "Drop": (0.3, True),
                 "ReLU": (True,), "MaxP": (3, 2, 1), "AvgP": (3, 2)}[name[1:5]]  # fmt: skip
    made, wanted = getattr(actnn, name)(*arguments, group=1), parent(*arguments)
    assert isinstance(made, parent) and made.group == 1
    assert made.extra_repr().startswith(wanted.extra_repr())
    assert set(inspect.signature(parent.__init__).parameters) >= {"self"}
    assert [tuple(p.shape) for p in made.parameters()] == [tuple(p.shape) for p in wanted.parameters()]


# The training script of CIFAR experiments, with the original's lines.


class Block(nn.Module):
    def __init__(self, channels, stride):
        super().__init__()
        self.bn1, self.conv1 = nn.BatchNorm2d(channels), nn.Conv2d(channels, 2 * channels, 3, stride, 1, bias=False)
        self.bn2, self.conv2 = nn.BatchNorm2d(2 * channels), nn.Conv2d(2 * channels, 2 * channels, 3, 1, 1, bias=False)
        self.shortcut = nn.Conv2d(channels, 2 * channels, 1, stride, bias=False)
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x):
        out = self.relu(self.bn1(x))
        shortcut = self.shortcut(out)
        return self.conv2(F.relu(self.bn2(self.conv1(out)))) + shortcut


class PreActResNet(nn.Module):
    def __init__(self, classes=4):
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, 1, 1, bias=False)
        self.layers = nn.Sequential(Block(8, 1), Block(16, 2))
        self.bn, self.pool, self.fc = nn.BatchNorm2d(32), nn.AvgPool2d(4), nn.Linear(32, classes)

    def forward(self, x):
        out = self.pool(F.relu(self.bn(self.layers(self.conv(x)))))
        return self.fc(out.view(out.size(0), -1))


class Images(torch.utils.data.Dataset):
    """Classes that differ by the colour of a corner."""

    def __init__(self, count=64):
        generator = torch.Generator().manual_seed(1)
        self.y = torch.arange(count) % 4
        self.x = torch.randn(count, 3, 8, 8, generator=generator) * 0.5
        for i, y in enumerate(self.y.tolist()):
            self.x[i, y % 3, 4 * (y // 3) : 4 * (y // 3) + 4] += 2

    def __len__(self):
        return len(self.y)

    def __getitem__(self, index):
        return self.x[index], int(self.y[index])


@pytest.fixture
def plain_script(device):
    """Tensors are made on the CPU, as in a script, and moved to the device by its own lines."""
    with torch.device("cpu"):
        yield


def train(device, epochs=3):
    """Losses of every step."""
    torch.manual_seed(0)
    from actnn import QModule, QScheme, config

    model = PreActResNet()
    model = QModule(model)
    model = model.to(device)
    criterion = nn.CrossEntropyLoss()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9, weight_decay=1e-4)
    trainset = Images()
    QScheme.num_samples = len(trainset)
    trainloader = actnn.DataLoader(trainset, batch_size=24, shuffle=True, generator=torch.Generator().manual_seed(2))
    losses = []
    for _ in range(epochs):
        model.train()
        for inputs, targets, index in trainloader:
            if config.use_gradient:
                QScheme.batch = index
            inputs, targets = inputs.to(device), targets.to(device)
            optimizer.zero_grad()
            outputs = model(inputs)
            loss = criterion(outputs, targets)
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        model.eval()
        with torch.no_grad():
            outputs = model(trainset.x.to(device))
            accuracy = (outputs.argmax(1).cpu() == trainset.y).float().mean().item()
    return model, losses, accuracy


def schemes_of(model):
    """Of the model's convolutions and linear layers."""
    schemes = [getattr(module, "scheme", None) for module in model.modules()]
    return [scheme for scheme in schemes if type(scheme) is actnn.QScheme]


@pytest.mark.usefixtures("plain_script")
@pytest.mark.parametrize("level", ["L0", "L1", "L2", "L3", "L3.1", "L4", "L5", "swap"])
@pytest.mark.filterwarnings("ignore:actnn")
def test_a_training_script_at_every_level(level, device):
    actnn.set_optimization_level(level)
    model, losses, accuracy = train(device)
    assert sum(losses[-3:]) < 0.6 * sum(losses[:3]) and accuracy > 0.7
    bits = [scheme.bits for scheme in schemes_of(model)]
    assert len(bits) <= actnn.QScheme.num_layers
    assert bool(bits) == (level.startswith("L3") or level in ("L4", "L5"))
    assert not bits or len(set(bits)) > 3
    assert all(value.isfinite().all() for value in model.state_dict().values())
    assert list(model.state_dict()) == list(PreActResNet().state_dict())
    if level == "L5" and device == "cuda":
        torch.cuda.memory._set_allocator_settings("expandable_segments:False")


@pytest.mark.usefixtures("plain_script")
@pytest.mark.parametrize("flags", [
    {"use_gradient": True}, {"pergroup": False}, {"perlayer": False}, {"simulate": True}, {"stochastic": False},
    {"use_gradient": True, "adaptive_bn_scheme": False}, {"adaptive_conv_scheme": False}, {"initial_bits": 4},
    {"group_size": 64}, {"activation_compression_bits": [4]},
])  # fmt: skip
def test_a_training_script_with_flags(flags, device):
    actnn.set_optimization_level("L3")
    for name, value in flags.items():
        setattr(actnn.config, name, value)
    model, losses, accuracy = train(device, epochs=2 if "use_gradient" not in flags else 3)
    assert sum(losses[-2:]) < 0.9 * sum(losses[:2])
    if "use_gradient" in flags:
        assert accuracy > 0.7
        tables = [scheme.scales for scheme in schemes_of(model)]
        assert len(tables) == 8 and all(table.shape == (64,) and (table > 0).all() for table in tables)


@pytest.mark.usefixtures("plain_script")
def test_a_checkpoint_of_the_script(device, tmp_path):
    actnn.set_optimization_level("L3")
    model, *_ = train(device, epochs=1)
    torch.save({"net": model.state_dict(), "epoch": 1}, tmp_path / "ckpt.pth")
    other = actnn.QModule(PreActResNet()).to(device)
    other.load_state_dict(torch.load(tmp_path / "ckpt.pth", weights_only=True)["net"])
    x = Images().x[:4].to(device)
    assert torch.equal(model.eval()(x), other.eval()(x))


# Its functions, called directly.


@pytest.mark.parametrize("scheme", [None, "conv", "bn"])
@pytest.mark.parametrize("simulate", [False, True])
def test_quantize_and_dequantize_activations(scheme, simulate, device):
    x = torch.randn(8, 4, 12, 12) * torch.logspace(-1, 1, 8).view(-1, 1, 1, 1)
    actnn.config.simulate = simulate
    made = {"conv": actnn.QScheme, "bn": actnn.QBNScheme}[scheme]() if scheme else None
    if made is not None:
        made.bits = 5
    quantized = actnn.ops.quantize_activation(x, made)
    copy = actnn.ops.dequantize_activation(quantized, x.shape)
    assert copy.shape == x.shape and copy.dtype == x.dtype
    error = relative_error(copy, x)
    assert 1e-4 < error < (0.02 if scheme is None else 0.1 if scheme == "conv" else 0.02)
    size = actnn.compute_tensor_bytes(quantized)
    assert size >= x.nbytes if simulate else size < x.nbytes / 3.5
    actnn.config.compress_activation = False
    assert torch.equal(actnn.ops.dequantize_activation(actnn.ops.quantize_activation(x, made), x.shape), x)
    actnn.config.compress_activation, actnn.config.training = True, False
    assert torch.equal(actnn.ops.dequantize_activation(actnn.ops.quantize_activation(x, made), x.shape), x)


@pytest.mark.parametrize("bits", [2, torch.tensor([1, 2, 4, 8])])
def test_quantize_and_pack(bits, device):
    bits = bits.to(device) if isinstance(bits, torch.Tensor) else bits
    x = torch.rand(4, 3, 256)
    mn, mx = x.amin(2, keepdim=True), x.amax(2, keepdim=True)
    packed, scale = actnn.ops.quantize_and_pack(x, bits, mn, mx)
    copy = actnn.ops.dequantize_and_unpack(packed, torch.Size([4, 3, 16, 16]), bits, scale, mn)
    assert copy.shape == (4, 3, 256) and ((copy - x).abs() <= 1.01 / scale).all()


@pytest.mark.parametrize("dimensions", [1, 2, 3])
@pytest.mark.parametrize("with_scheme", [False, True])
@pytest.mark.parametrize("transposed", [False, True])
def test_convolutions_by_apply(dimensions, with_scheme, transposed, device):
    scheme = actnn.QScheme(num_locations=3**dimensions) if with_scheme else None
    x = torch.randn(4, 6, *[7] * dimensions, requires_grad=True)
    weight = torch.randn(6, 4, *[3] * dimensions) if transposed else torch.randn(4, 6, *[3] * dimensions)
    weight, bias = weight.requires_grad_(), torch.randn(4, requires_grad=True)
    if transposed:
        function = getattr(actnn.ops, f"conv_transpose{dimensions}d")
        y = function.apply(x, weight, bias, 2, [1] * dimensions, 1, 1, 1, scheme)
        exact = getattr(F, f"conv_transpose{dimensions}d")(x, weight, bias, 2, 1, 1)
    else:
        function = getattr(actnn.ops, f"conv{dimensions}d")
        y = function.apply(x, weight, bias, 1, [1] * dimensions, 1, 1, scheme)
        exact = getattr(F, f"conv{dimensions}d")(x, weight, bias, 1, 1)
    assert torch.equal(y, exact)
    if scheme:
        scheme.bits = 8
        y = function.apply(x, weight, bias, *([2, 1, 1, 1, 1] if transposed else [1, 1, 1, 1]), scheme)
    grads, wanted = (torch.autograd.grad(z.square().sum(), [x, weight, bias]) for z in (y, exact))
    assert torch.equal(grads[0], wanted[0]) and torch.equal(grads[2], wanted[2])
    assert relative_error(grads[1], wanted[1]) < 0.02
    assert scheme is None or scheme.scales > 0


def test_linear_by_apply(device):
    x, weight = torch.randn(8, 40, requires_grad=True), torch.randn(3, 40, requires_grad=True)
    scheme = actnn.QScheme(channel_dim=-1)
    for arguments in ((x, weight), (x, weight, torch.randn(3)), (x, weight, None, scheme)):
        y = actnn.ops.linear.apply(*arguments)
        assert torch.equal(y, F.linear(*arguments[:3]))
        y.sum().backward()
    assert scheme.scales > 0 and scheme.C.shape == (8,)


def test_batch_norms_by_apply(device):
    x = torch.randn(8, 4, 9, 9, requires_grad=True)
    weight, bias = torch.ones(4, requires_grad=True), torch.zeros(4, requires_grad=True)
    for scheme in (None, actnn.QBNScheme()):
        mean, var = torch.zeros(4), torch.ones(4)
        means, variances = mean.clone(), var.clone()
        exact = F.batch_norm(x, means, variances, weight, bias, True, 0.1)
        y = actnn.ops.batch_norm.apply(x, weight, bias, mean, var, True, 0.1, 1e-5, scheme)
        assert torch.equal(y, exact) and torch.equal(mean, means) and torch.equal(var, variances)
        grads, wanted = (torch.autograd.grad((z**3).sum(), [x, weight, bias]) for z in (y, exact))
        assert all(relative_error(g, w) < 0.02 for g, w in zip(grads[1:2], wanted[1:2], strict=True))
        y = actnn.ops.sync_batch_norm.apply(x, weight, bias, mean, var, 1e-5, 0.1, None, 1, scheme)
        torch.testing.assert_close(y, exact)


def test_adaptive_average_pool_by_apply(device):
    x = torch.randn(2, 3, 9, 9)
    for size in (1, (2, 3)):
        assert torch.equal(actnn.ops.adaptive_avg_pool2d.apply(x, size), F.adaptive_avg_pool2d(x, size))


def test_its_extension_modules(device):
    import actnn.cpp_extension.calc_precision as ext_calc_precision
    import actnn.cpp_extension.minimax as ext_minimax
    import actnn.cpp_extension.quantization as ext_quantization

    data = torch.randn(4, 5, 256)
    mn, mx = ext_minimax.minimax(data.view(-1, 256))
    mn, mx = mn.view(4, 5, 1), mx.view(4, 5, 1)
    packed, scale = ext_quantization.pack_single_precision(data, mn, mx, 4, True)
    copy = ext_quantization.unpack_single_precision(packed, 4, scale, mn, 4, 5, 256)
    assert ((copy - data).abs() <= 1.01 / scale).all()
    b = torch.full((4,), 8, dtype=torch.int32)
    ext_calc_precision.calc_precision(b, torch.rand(4), torch.full((4,), 10), 120.0)
    assert b.sum() == 12
    x = torch.randn(2, 3, 8, 8)
    assert torch.equal(ext_quantization.act_quantized_relu(x), x.relu())
    y = ext_quantization.act_quantized_max_pool2d(x, (2, 2), (2, 2), (0, 0), (1, 1), False, False)
    assert torch.equal(y, F.max_pool2d(x, 2))
    assert ext_quantization.act_quantized_dropout(x, 0.5).shape == x.shape


def test_memory_helpers(capsys, tmp_path):
    assert actnn.get_memory_usage(False) > 0
    assert actnn.compute_tensor_bytes([torch.zeros(3), torch.zeros(2, dtype=torch.uint8)]) == 14
    actnn.exp_recorder.record("network", "resnet")
    actnn.exp_recorder.dump(tmp_path / "results.json")
    actnn.exp_recorder.clear()
    assert (tmp_path / "results.json").read_text() == '{"network": "resnet"}\n'


def test_wrong_arguments_of_the_quantizers():
    x = torch.randn(2, 3, 256)
    mn, mx = x.amin(2, keepdim=True), x.amax(2, keepdim=True)
    packed, scale = actnn.ops.quantize_and_pack(x, torch.tensor(4), mn, mx)
    for bits, got in ((4.5, "float 4.5"), ("4", "str '4'"), (torch.tensor(4.5), "float 4.5"), (None, "NoneType None")):
        for call in (
            lambda bits=bits: actnn.ops.quantize_and_pack(x, bits, mn, mx),
            lambda bits=bits: actnn.ops.dequantize_and_unpack(packed, x.shape, bits, scale, mn),
        ):
            with pytest.raises(TypeError, match=f"pack_single_precision: bits must be an integer in 1..8, got {got}"):
                call()
    with pytest.raises(TypeError, match=r"quantize_activation: input must be a strided tensor .*, got NoneType None"):
        actnn.ops.quantize_activation(None, None)
    with pytest.raises(ValueError, match=r"quantize_activation: input must be \[N, ...\], got .* shape \[\]"):
        actnn.ops.quantize_activation(torch.tensor(1.0), None)
    with pytest.raises(TypeError, match=r"scheme must be a QScheme or None, got str 'x'"):
        actnn.ops.quantize_activation(x, "x")
