"""Every flag of the configuration does what it says; those of memory are in test_config_levels.py."""

import copy
import pickle
import re

import actnn
import pytest
import torch
from actnn import Config, QModule, config, convert
from configurations import DEFAULTS, fixed, gradients, one_thread, relative_error, small_net  # noqa: F401
from saved_memory import packed_bytes, saved_bytes
from torch import nn

pytestmark = pytest.mark.usefixtures("one_thread")


def linear(flags, features=96, **arguments):
    """A linear layer with these flags."""
    layer = actnn.QLinear(features, 4, bias=False, config=flags, **arguments)
    with torch.no_grad():
        layer.weight.copy_(torch.randn(4, features))
    return layer


def weight_gradient(layer, x):
    """The gradient of the sum of the output; the same noise each time."""
    layer.weight.grad = None
    torch.manual_seed(3)
    layer(x).sum().backward()
    return layer.weight.grad


def test_there_are_the_originals_flags_and_defaults():
    assert Config().flags() == DEFAULTS and list(Config().flags()) == list(actnn.conf.FLAGS)
    assert set(DEFAULTS) == set(re.findall(r"^    (\w+)  +\S", Config.__doc__, re.MULTILINE))  # all are documented


# What is kept.


@pytest.mark.parametrize("flag", ["compress_activation", "training"])
def test_without_compression_activations_are_exact(flag, device):
    model = small_net()
    exact = copy.deepcopy(model)
    flags = Config()
    convert(model, flags)
    x = torch.randn(4, 3, 16, 16)
    compressed, _ = saved_bytes(lambda: model(x))
    setattr(flags, flag, False)  # at run time
    kept, _ = saved_bytes(lambda: model(x))
    assert kept > 3 * compressed
    for name, gradient in gradients(exact, x).items():
        torch.testing.assert_close(gradients(model, x)[name], gradient)
    setattr(flags, flag, True)
    assert saved_bytes(lambda: model(x))[0] == compressed


@pytest.mark.parametrize("bits", range(1, 9))
def test_activation_compression_bits(bits, device):
    x = torch.randn(7, 96)
    layer = linear(fixed(activation_compression_bits=[bits]))
    assert saved_bytes(lambda: layer(x))[0] == packed_bytes(x.numel(), bits)


def test_activation_compression_bits_are_by_group(device):
    flags = fixed(activation_compression_bits=[1, 4, 8])
    x = torch.randn(7, 96)
    layers = [linear(flags, group=group) for group in range(3)]
    sizes = [saved_bytes(lambda layer=layer: layer(x))[0] for layer in layers]
    assert sizes == [packed_bytes(x.numel(), bits) for bits in (1, 4, 8)]
    adaptive = Config(activation_compression_bits=[1, 4, 8])
    assert [linear(adaptive, group=group).scheme.bits for group in range(3)] == [1, 4, 8]


def test_group_size(device):
    x = torch.randn(16, 96)
    x[:, ::64] *= 100  # outliers coarsen their group
    errors = []
    for group_size in (32, 256, 1024):
        layer = linear(fixed(group_size=group_size, activation_compression_bits=[4]))
        assert saved_bytes(lambda layer=layer: layer(x))[0] == packed_bytes(x.numel(), 4, group_size)
        errors.append((weight_gradient(layer, x) - x.sum(0)).norm())
    assert errors[0] < errors[1]


def layers_with_copies(flags):
    """(layer, input, bytes kept besides the copies, copies)."""
    return [
        (actnn.QLinear(96, 4, config=flags), torch.randn(20, 96), 0, 1),
        (actnn.QGELU(config=flags), torch.randn(20, 96, requires_grad=True) * 1, 0, 1),
        (actnn.QTanh(config=flags), torch.randn(20, 96, requires_grad=True) * 1, 0, 1),
        (actnn.QSoftmax(-1, config=flags), torch.randn(20, 96, requires_grad=True) * 1, 0, 2),
        (actnn.QLogSoftmax(-1, config=flags), torch.randn(20, 96, requires_grad=True) * 1, 0, 1),
        (actnn.QLayerNorm(96, config=flags), torch.randn(20, 96, requires_grad=True) * 1, 20 * 4, 1),
        (actnn.QRMSNorm(96, config=flags), torch.randn(20, 96, requires_grad=True) * 1, 20 * 4, 1),
        (actnn.QGroupNorm(4, 96, config=flags), torch.randn(20, 96, requires_grad=True) * 1, 80 * 4, 1),
    ]


@pytest.mark.parametrize("pergroup", [True, False])
def test_pergroup(pergroup, device):
    flags = fixed(pergroup=pergroup, activation_compression_bits=[6])
    for layer, x, statistics, copies in layers_with_copies(flags):
        wanted = copies * packed_bytes(x.numel(), 6, 256 if pergroup else x.numel()) + statistics
        assert saved_bytes(lambda layer=layer, x=x: layer(x))[0] == wanted, layer


def test_without_pergroup_a_sample_with_bits_of_its_own_has_one_range(device):
    x = torch.randn(4, 8, 12, 12) * torch.tensor([1.0, 10, 1, 1])[:, None, None, None]
    sizes = []
    for pergroup in (True, False):
        layer = actnn.QConv2d(8, 4, 3, config=Config(pergroup=pergroup))
        sizes.append(saved_bytes(lambda layer=layer: layer(x))[0])
    groups = -(-8 * 144 // 256)
    assert sizes[0] - sizes[1] == 4 * 4 * groups - 16


def test_rounding(device):
    x = torch.rand(4096, 8)
    layer = linear(fixed(rounding="nearest", activation_compression_bits=[1]), 8)
    with torch.no_grad():
        x[:] = 0.3 * x[:1] + 0.1  # below the middle of the range of each group, a column of 256 rows
        x[::256], x[1::256] = 0.0, 1.0
    nearest = weight_gradient(layer, x)
    torch.manual_seed(9)
    layer.weight.grad = None
    layer(x).sum().backward()
    assert torch.equal(layer.weight.grad, nearest)  # no noise
    assert ((nearest - x.sum(0)) / x.sum(0)).max() < -0.5  # and far off
    for rounding in ("stochastic", "dithered"):
        layer.config.rounding = rounding
        random = weight_gradient(layer, x)
        assert relative_error(random, x.sum(0).expand_as(random)) < 0.1


def test_stochastic_is_the_originals_view_of_rounding():
    assert Config().rounding == "dithered" and Config().stochastic is True
    assert Config(stochastic=False) == Config(rounding="nearest")
    assert Config(stochastic=True) == Config()
    flags = Config(rounding="stochastic")
    assert flags.stochastic is True
    flags.stochastic = True
    assert flags.rounding == "stochastic"
    flags.stochastic = False
    assert (flags.rounding, flags.stochastic, flags.flags()["rounding"]) == ("nearest", False, "nearest")
    flags.stochastic = True
    assert flags.rounding == "dithered"
    assert "stochastic" not in flags.flags() and "stochastic=" not in repr(flags)


@pytest.mark.parametrize("stochastic", [False, True])
def test_flags_that_were_saved_with_stochastic_load(stochastic):
    saved = {name: value for name, value in DEFAULTS.items() if name != "rounding"} | {"stochastic": stochastic}
    assert Config(**saved).rounding == ("dithered" if stochastic else "nearest")


def test_simulate(device):
    x = torch.randn(40, 96)
    for make in (fixed, Config):  # fixed and adaptive bits
        layers = [linear(make(simulate=simulate)) for simulate in (False, True)]
        sizes = [saved_bytes(lambda layer=layer: layer(x))[0] for layer in layers]
        # The simulated copy is as large as the input; adaptive bits besides.
        assert sizes[0] < x.nbytes / 8 and x.nbytes <= sizes[1] <= x.nbytes + 40
        for layer in layers:
            layer.weight.grad = None
        packed, simulated = (weight_gradient(layer, x) for layer in layers)
        assert torch.equal(packed, simulated)  # same numbers
        assert not torch.equal(packed, x.sum(0).expand_as(packed))


def test_enable_quantized_bn():
    for flag in (True, False):
        model = nn.Sequential(
            nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.BatchNorm1d(4), nn.BatchNorm3d(4), nn.SyncBatchNorm(4)
        )
        report = convert(model, Config(enable_quantized_bn=flag))
        assert [type(module).__name__.startswith("Q") for module in model] == [True] + 4 * [flag]
        assert flag or report["1"].reason == "enable_quantized_bn is off"


# Who gets how many bits.


@pytest.mark.parametrize("blocks", [True, False])
def test_adaptive_schemes(blocks):
    for conv in (True, False):
        for bn in (True, False):
            model = small_net()
            report = convert(model, Config(adaptive_conv_scheme=conv, adaptive_bn_scheme=bn), blocks=blocks)
            # Blocks have no bits of a layer's or a sample's own: with a scheme, layers are converted.
            assert (report.record is not None) == (blocks and not conv and not bn)
            assert bool(report.layers_only) == (blocks and (conv or bn))
            assert [getattr(model[i], "scheme", None) is not None for i in (0, 3, 8)] == 3 * [conv]
            assert [getattr(model[i], "scheme", None) is not None for i in (1, 4)] == 2 * [bn]


@pytest.mark.parametrize("flag", ["adaptive_conv_scheme", "adaptive_bn_scheme"])
def test_adaptive_schemes_act_at_run_time(flag, device):
    layer_type = actnn.QConv2d if flag == "adaptive_conv_scheme" else actnn.QBatchNorm2d
    flags = Config()
    layer = layer_type(4, 4, 3, config=flags) if layer_type is actnn.QConv2d else layer_type(4, config=flags)
    x = torch.randn(8, 4, 9, 9) * torch.logspace(-2, 1, 8)[:, None, None, None]

    def spread():
        layer.scheme.bits = 4
        bits = layer.scheme.plan(x)["sample_bits"]
        return 0 if bits is None else (bits.max() - bits.min()).item()

    assert spread() > 0 or flag == "adaptive_bn_scheme"  # a batch norm without a layer before it has 8 bits
    setattr(flags, flag, False)
    assert spread() == 0


def test_initial_bits(device):
    x = torch.randn(16, 4, 9, 9) * torch.logspace(-3, 2, 16)[:, None, None, None]
    widest = {}
    for initial in (3, 5, 8):
        scheme = actnn.QConv2d(4, 4, 3, config=Config(initial_bits=initial)).scheme
        bits, _ = scheme.compute_quantization_bits(x)
        assert scheme.initial_bits == initial and bits.sum() <= 2 * 16
        widest[initial] = bits.max().item()
    assert widest[3] == 3 and widest[5] == 5 and widest[8] > 5


def test_initial_bits_below_the_average_do_not_lower_it():
    scheme = actnn.QConv2d(4, 4, 3, config=Config(initial_bits=1)).scheme
    bits, _ = scheme.compute_quantization_bits(torch.randn(6, 4, 9, 9))
    assert bits.tolist() == [2] * 6


@pytest.mark.parametrize("perlayer", [True, False])
def test_perlayer(perlayer, device):
    model = small_net()
    flags = Config(perlayer=perlayer)
    convert(model, flags)
    x = torch.randn(8, 3, 12, 12)
    for _ in range(3):
        gradients(model, x)
    if device == "cuda":
        torch.cuda.synchronize()
    model(x)
    bits = [model[i].scheme.bits for i in (0, 3, 8)]
    assert (bits == [2, 2, 2]) != perlayer


def test_use_gradient(device):
    flags = Config(use_gradient=True)
    flags.policy.set_num_samples(50)
    layer = linear(flags)
    flags.policy.set_batch(torch.tensor([3, 49, 7]))
    layer(torch.randn(3, 96)).sum().backward()
    assert layer.scheme.scales.shape == (50,)
    assert layer.scheme.scales.nonzero().flatten().tolist() == [3, 7, 49]
    flags = Config()
    layer = linear(flags)
    layer(torch.randn(3, 96)).sum().backward()
    assert layer.scheme.scales.shape == () and layer.scheme.scales > 0


def test_noise_target(device):
    x = torch.randn(32, 3, 12, 12)
    kept, noise = [], []
    for target in (1e-4, 1e-2, 1.0):
        torch.manual_seed(0)
        model = small_net()
        flags = Config(noise_target=target)
        convert(model, flags)
        for _ in range(3):
            gradients(model, x)
        kept.append(saved_bytes(lambda model=model: model(x))[0])
        gradients(model, x)
        noise.append(actnn.predicted_gradient_noise(flags))
        assert noise[-1] < 2 * target
    assert kept[0] > kept[1] > kept[2] and noise[0] < noise[1] < noise[2]


# Debugging.


def lines_of(capsys):
    return capsys.readouterr().out.splitlines()


@pytest.mark.parametrize("flag", ["debug_memory_model", "debug_speed", "debug_memory_op_forward",
                                  "debug_memory_op_backward"])  # fmt: skip
def test_debugging_flags_print(flag, capsys, device):
    flags = Config()
    model = QModule(small_net(), flags)
    x = torch.randn(2, 3, 8, 8)
    model(x).sum().backward()
    assert lines_of(capsys) == []
    setattr(flags, flag, True)
    model(x).sum().backward()
    lines = lines_of(capsys)
    used = r"\d+\.\d\d MiB in use"
    if flag == "debug_memory_model":
        assert [re.sub(used, "", line) for line in lines] == ["before forward: ", "after forward: "]
    elif flag == "debug_speed":
        assert len(lines) == 1 and re.fullmatch(r"forward: \d+\.\d\d ms", lines[0])
    else:
        way = flag.removeprefix("debug_memory_op_")
        names = ["0", "1", "2", "3", "4", "5", "6", "8"]  # by path
        expected = [f"{name} {way}: " for name in (names if way == "forward" else names[::-1])]
        assert [re.sub(used, "", line) for line in lines] == expected


def test_debug_memory_op_is_for_every_layer(capsys):
    flags = fixed(debug_memory_op_forward=True, debug_memory_op_backward=True)
    for layer, x, *_ in layers_with_copies(flags):
        layer(x).sum().backward()
        name = type(layer).__name__
        assert [line.split(":")[0] for line in lines_of(capsys)] == [f"{name} forward", f"{name} backward"]


def test_debug_remove_bn_and_relu(device):
    flags = Config()
    norm, relu, x = actnn.QBatchNorm2d(3, config=flags), actnn.QReLU(config=flags), torch.randn(2, 3, 4, 4)
    assert not torch.equal(norm(x), x) and not torch.equal(relu(x), x)
    flags.debug_remove_bn = True
    assert norm(x) is x and relu(x) is not x
    flags.debug_remove_relu = True
    assert relu(x) is x
    flags.debug_remove_bn = False
    assert not torch.equal(norm(x), x)


# Errors, copies.


@pytest.mark.parametrize(("flag", "value", "kind", "rule"), [
    ("group_size", 100, ValueError, "must be a positive multiple of 32, got 100"),
    ("group_size", 0, ValueError, "must be a positive multiple of 32, got 0"),
    ("group_size", 64.0, TypeError, r"must be an int, got .*\(Double\)"),
    ("group_size", "64", TypeError, r"must be an int, got .*\(String\)"),
    ("activation_compression_bits", [2, 9], ValueError, r"must be one width in 1..8 or more, got \[2, 9\]"),
    ("activation_compression_bits", [0], ValueError, r"must be one width in 1..8 or more, got \[0\]"),
    ("activation_compression_bits", [], ValueError, "must not be an empty list"),
    ("activation_compression_bits", 4, TypeError, r"must be a list of ints, got .*\(Int\)"),
    ("activation_compression_bits", [2.5], TypeError, "must be a list of ints, got .*List"),
    ("initial_bits", 9, ValueError, "must be in 1..8, got 9"),
    ("adapt_interval", 0, ValueError, "must be positive, got 0"),
    ("adapt_interval", 2.5, TypeError, r"must be an int, got .*\(Double\)"),
    ("initial_bits", True, TypeError, r"must be an int, got .*\(Bool\)"),
    ("initial_bits", None, TypeError, "must be an int, got None"),
    ("empty_cache_threshold", 1.5, ValueError, "must be in 0..1 or None, got 1.5"),
    ("empty_cache_threshold", float("nan"), ValueError, "must be in 0..1 or None, got nan"),
    ("pipeline_threshold", 0, ValueError, "must be a positive number of bytes or None, got 0"),
    ("pipeline_threshold", 2.5, TypeError, r"must be an int or None, got .*\(Double\)"),
    ("noise_target", 0, ValueError, "must be positive or None, got 0"),
    ("noise_target", -1.0, ValueError, "must be positive or None, got -1"),
    ("noise_target", "low", TypeError, r"must be a number or None, got .*\(String\)"),
    ("rounding", "up", ValueError, 'must be "dithered", "stochastic" or "nearest", got "up"'),
    ("rounding", False, TypeError, r"must be a str, got .*\(Bool\)"),
    ("rounding", None, TypeError, "must be a str, got None"),
    ("stochastic", 1, TypeError, r"must be a bool, got .*\(Int\)"),
    ("swap", None, TypeError, "must be a bool, got None"),
])  # fmt: skip
def test_errors_name_flag_rule_and_value(flag, value, kind, rule):
    flags = Config()
    with pytest.raises(kind, match=f"actnn::Config: {flag} {rule}"):
        setattr(flags, flag, value)
    assert flags.flags() == DEFAULTS
    with pytest.raises(kind, match=f"{flag} {rule}"):
        Config(**{flag: value})


def test_values_of_no_type_that_a_flag_could_have():
    for value in (object(), [1, "a"], {"a": 1}, torch.nn.ReLU(), torch.float32, b"64", 2**70):
        with pytest.raises(TypeError, match=r"actnn::Config: group_size must be .*, got "):
            Config(group_size=value)
    np = pytest.importorskip("numpy")
    assert Config(group_size=np.int64(64), noise_target=np.float32(0.5)).group_size == 64
    flags = Config(perlayer=np.bool_(False), activation_compression_bits=np.array([4, 8]), group_size=np.array(32))
    assert (flags.perlayer, flags.activation_compression_bits, flags.group_size) == (False, [4, 8], 32)
    assert Config(activation_compression_bits=[np.int64(4)]).activation_compression_bits == [4]


def test_tensors_are_the_numbers_in_them():
    flags = Config(group_size=torch.tensor(64), activation_compression_bits=torch.tensor([4, 8]))
    assert (flags.group_size, flags.activation_compression_bits) == (64, [4, 8])
    flags.activation_compression_bits[0] = torch.tensor(3)
    assert flags.policy.get_flag("activation_compression_bits") == [3, 8]


def test_flags_are_taken_over_from_a_configuration():
    with pytest.raises(TypeError, match=r"other must be an actnn.Config, got dict {'group_size': 64}"):
        Config().update({"group_size": 64})


def test_unknown_flags():
    with pytest.raises(ValueError, match=r"there is no flag 'groupsize'; there are .*group_size"):
        config.groupsize = 64
    with pytest.raises(ValueError, match="there is no flag 'bits'"):
        Config(bits=3)
    with pytest.raises(AttributeError):
        config.groupsize  # noqa: B018


@pytest.mark.parametrize(("change", "result"), [
    (lambda bits: bits.__setitem__(0, 4), [4, 8, 8]),
    (lambda bits: bits.__setitem__(slice(1, 3), [1]), [2, 1]),
    (lambda bits: bits.append(3), [2, 8, 8, 3]),
    (lambda bits: bits.extend([3, 5]), [2, 8, 8, 3, 5]),
    (lambda bits: bits.insert(0, 6), [6, 2, 8, 8]),
    (lambda bits: bits.pop(), [2, 8]),
    (lambda bits: bits.remove(8), [2, 8]),
    (lambda bits: bits.reverse(), [8, 8, 2]),
    (lambda bits: bits.sort(reverse=True), [8, 8, 2]),
    (lambda bits: bits.__delitem__(0), [8, 8]),
    (lambda bits: bits.__iadd__([1]), [2, 8, 8, 1]),
    (lambda bits: bits.__imul__(2), [2, 8, 8, 2, 8, 8]),
])  # fmt: skip
def test_lists_can_be_changed_in_place(change, result):
    flags = Config()
    bits = flags.activation_compression_bits
    change(bits)
    assert flags.activation_compression_bits == bits == flags.policy.get_flag("activation_compression_bits") == result
    change(flags.activation_compression_bits)  # again, on what is there now
    assert flags.activation_compression_bits == flags.policy.get_flag("activation_compression_bits")


def test_a_change_in_place_that_is_wrong_changes_nothing():
    flags = Config()
    for change in (lambda bits: bits.append(9), lambda bits: bits.clear(), lambda bits: bits.__setitem__(0, 0)):
        with pytest.raises(ValueError, match="activation_compression_bits must"):
            change(flags.activation_compression_bits)
        assert flags.activation_compression_bits == flags.policy.get_flag("activation_compression_bits") == [2, 8, 8]
    flags.activation_compression_bits += [4]
    assert flags.policy.get_flag("activation_compression_bits") == [2, 8, 8, 4]


def test_tuples_and_tensors_as_lists():
    assert Config(activation_compression_bits=(3, 4)).activation_compression_bits == [3, 4]


def test_copies_of_a_configuration():
    flags = Config("L2", group_size=64)
    assert copy.deepcopy(flags) is flags  # the same policy
    assert pickle.loads(pickle.dumps(flags)) == flags
    assert pickle.loads(pickle.dumps(config)) is config
    assert pickle.loads(pickle.dumps(flags.activation_compression_bits)) == [4]
    assert type(copy.deepcopy(flags.activation_compression_bits)) is list
    other = Config(**flags.flags())
    assert other == flags and other is not flags
    other.group_size = 32
    assert other != flags and flags.group_size == 64
    other.update(flags)
    assert other == flags
    assert eval(repr(flags), {"Config": Config}) == flags
