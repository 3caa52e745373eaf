"""torch.library.opcheck for every op, and a registry that fails on an op without it."""

import pytest
import torch
import torch.distributed as dist
from block_programs import attention_half, basic_block, squeeze_and_excitation
from devices import DEVICES
from torch._C import _distributed_c10d as dist_c10d
from torch._C._distributed_c10d import FakeProcessGroup
from torch.utils._pytree import tree_map_only

ops = torch.ops.actnn


def rng():
    return torch.tensor([1, 0], dtype=torch.int64)


def grad(*shape, dtype=torch.float32):
    return torch.randn(*shape).to(dtype).requires_grad_()


def packed_sample(bits=3, shape=(5, 7)):
    return ops.quantize(torch.randn(shape), bits, 256, "dithered", rng())


def pass_packed(rows, channels, activation="leaky_relu", bits=3):
    """With masks, as the activation has them, and codes of `bits`."""
    maps = torch.rand(channels, 5)
    return ops.norm_act(torch.randn(rows, channels), None, maps, activation, 0.1, bits, True, "dithered", rng())[1]


def program(build, *shape, integers=(), **options):
    """Copies are rounded to nearest: noise would differ from call to call."""
    made = build()
    text = made.text(rounding="nearest", **options)
    return text, [torch.randn(shape, requires_grad=True)], made.parameters, made.buffers, [], list(integers)


def attention():
    return attention_half(features=8, heads=2, length=5, dropout=0.0, integers=1)


def program_forward():
    """All gradients are wanted."""
    text, inputs, parameters, buffers, copies, integers = program(basic_block, 2, 8, 5, 5)
    wanted = [True] * (len(inputs) + len(parameters))
    return (text, [x.detach() for x in inputs], [p.detach() for p in parameters], buffers, copies, integers, wanted,
            True, torch.float32)  # fmt: skip


def program_backward():
    text, inputs, parameters, buffers, copies, integers, wanted, exports, dtype = program_forward()
    result, *others = ops.program_forward(text, inputs, parameters, buffers, copies, integers, wanted, exports, dtype)
    saved = others[: len(others) - len(buffers)]
    return (text, [torch.randn_like(result)], saved, parameters, copies, integers, list(inputs[0].shape), [4], wanted,
            exports, wanted, [6], dtype)  # fmt: skip


GROUP = "opcheck"


@pytest.fixture(scope="module", autouse=True)
def process_group():
    """A group of this process alone, whose collectives do nothing."""
    group = dist.ProcessGroup(0, 1)
    backend = FakeProcessGroup._create_internal(0, 1)
    for device in ("cpu", "cuda"):
        group._register_backend(torch.device(device), dist.ProcessGroup.BackendType.CUSTOM, backend)
    dist_c10d._register_process_group(GROUP, group)
    yield
    dist_c10d._unregister_process_group(GROUP)


BITS = torch.tensor([1, 4, 8], dtype=torch.uint8)
CODES = torch.arange(33, dtype=torch.uint8).view(3, 11)
POOL = ([2, 2], [2, 2], [0, 0], [1, 1], False)
CHANNELS_LAST = torch.randn(2, 3, 8, 8).to(memory_format=torch.channels_last)


def per_sample():
    x = torch.randn(3, 100)
    return x, ops.quantize_per_sample(x, BITS, 200, 64, "dithered", rng())


SAMPLES = {
    "quantize": [
        lambda: (torch.randn(5, 7), 3, 256, "dithered", rng()),
        lambda: (grad(300), 8, 64, "nearest", rng()),
        lambda: (CHANNELS_LAST, 2, 256, "dithered", rng()),
        lambda: (torch.randn(0, 4), 2, 256, "dithered", rng()),
        lambda: (torch.randn(9, 6)[:, ::2].bfloat16(), 2, 256, "dithered", rng()),
        lambda: (torch.randn(5, 7), 3, 256, "nearest"),  # without a state, noise would differ from call to call
    ],
    "dequantize": [lambda: (packed_sample(), [5, 7], [7, 1], torch.float32, 3, 256),
                   lambda: (packed_sample(), [5, 7], [1, 5], torch.bfloat16, 3, 256)],
    "quantize_columns": [
        lambda: (torch.randn(70, 5), 3, 64, "dithered", rng()),
        lambda: (grad(2, 3, 4), 8, 256, "nearest", rng()),
        lambda: (torch.randn(0, 4), 2, 128, "dithered", rng()),
        lambda: (torch.randn(9, 6).bfloat16().t(), 2, 256, "stochastic", rng()),
        lambda: (torch.randn(5, 7), 3, 256, "nearest"),  # without a state, noise would differ from call to call
    ],
    "dequantize_columns": [lambda: (ops.quantize_columns(torch.randn(70, 5), 3, 64, "dithered", rng()), 70, 5,
                                    torch.bfloat16, 3, 64)],
    "quantize_per_sample": [lambda: (torch.randn(3, 100), BITS, 200, 64, "dithered", rng())],
    "dequantize_per_sample": [lambda: (per_sample()[1], BITS, [3, 100], [100, 1], torch.float32, 64)],
    "group_range_squares": [lambda: (torch.randn(3, 100), 64), lambda: (torch.randn(2, 300), 256),
                            lambda: (CHANNELS_LAST, 32)],
    "allocate_bits": [
        lambda: (torch.tensor([8, 3, 1, 6], dtype=torch.uint8), torch.rand(4), torch.arange(1, 5), 20),
        lambda: (torch.full((5,), 8, dtype=torch.uint8), grad(5).abs(), torch.ones(5, dtype=torch.int64), 3)],
    "allocate_sample_bits": [
        lambda: (torch.rand(5), torch.tensor(2.0), 0.5, 8, 12),
        lambda: (torch.rand(5), None, 1.0, 4, 20),
    ],
    "update_gradient_norm_": [lambda: (torch.tensor(2.0), torch.rand(5))],
    "allocate_bits_for_noise": [
        lambda: (torch.full((5,), 8, dtype=torch.uint8), grad(5).abs(), torch.ones(5, dtype=torch.int64),
                 torch.tensor(0.1))],
    "allocate_bits_dp": [lambda: (torch.rand(4), torch.rand(4), 8, 2.0, 3),
                         lambda: (grad(5).abs(), grad(5), 4, 1.5, 2)],
    "pack_codes": [lambda: (CODES, BITS, 2 * (1 + 4 + 8)), lambda: (CODES[:, ::2], BITS, 13)],
    "unpack_codes": [lambda: (ops.pack_codes(CODES, BITS, 26), BITS, 11)],
    "square_norms": [lambda: (torch.randn(3, 100),), lambda: (CHANNELS_LAST.bfloat16(),)],
    "pack_mask": [lambda: (torch.randn(5, 7) > 0,), lambda: (torch.zeros(0, dtype=torch.bool),)],
    "unpack_mask": [lambda: (ops.pack_mask(torch.randn(5, 7) > 0), [5, 7], [7, 1])],
    "relu_pack": [lambda: (torch.randn(5, 7),), lambda: (CHANNELS_LAST,)],
    "relu_pack_": [lambda: (torch.randn(5, 7),)],
    "apply_mask": [lambda: (grad(5, 7), ops.pack_mask(torch.randn(5, 7) > 0), [7, 1])],
    "dropout_forward": [lambda: (torch.randn(5, 7), 0.3, rng())],
    "dropout_forward_": [lambda: (torch.randn(5, 7), 0.3, rng())],
    "apply_dropout": [lambda: (grad(5, 7), 0.3, rng(), [7, 1])],
    "max_pool2d_pack": [lambda: (torch.randn(2, 3, 8, 8), *POOL), lambda: (CHANNELS_LAST, *POOL)],
    "max_pool2d_pack_backward": [
        lambda: (torch.randn(2, 3, 4, 4), ops.max_pool2d_pack(torch.randn(2, 3, 8, 8), *POOL)[1], [2, 3, 8, 8], False,
                 *POOL)],
    "max_pool2d_indices": [
        lambda: (ops.max_pool2d_pack(torch.randn(2, 3, 8, 8), *POOL)[1], [2, 3, 8, 8], False, *POOL)],
    "convolution": [
        lambda: (grad(2, 4, 8, 8), grad(6, 4, 3, 3), grad(6), [1, 1], [1, 1], [1, 1], False, [0, 0], 1, None, None, 4,
                 256, "dithered", rng()),
        lambda: (torch.randn(2, 4, 8), grad(4, 2, 3), None, [2], [0], [1], True, [1], 2, None, None, 2, 64, "dithered",
                 rng()),
        lambda: (grad(2, 4, 8, 8, dtype=torch.bfloat16), grad(6, 4, 3, 3, dtype=torch.bfloat16), None, [1, 1], [1, 1],
                 [1, 1], False, [0, 0], 1, None, None, 4, 256, "dithered", rng()),
        lambda: (grad(3, 4, 8, 8), grad(6, 4, 3, 3), None, [1], [1], [1], False, [0], 1, False, 100, 4, 64,
                 "dithered", rng(), BITS, 13),
    ],
    "linear_cross_entropy": [
        lambda: (grad(6, 5), grad(9, 5), torch.randint(9, (6,)), grad(9)),
        lambda: (grad(2, 3, 5), grad(9, 5), torch.randint(9, (2, 3)), None, 0, 0.1, 0.01, "sum"),
        lambda: (torch.randn(6, 5), torch.randn(9, 5), torch.randint(9, (6,))),
    ],
    "linear_cross_entropy_and_logits": [
        lambda: (grad(6, 5), grad(9, 5), torch.randint(9, (6,)), grad(9)),
        lambda: (grad(2, 3, 5), grad(9, 5), torch.randint(9, (2, 3)), None, 0, 0.1, 0.01, "sum"),
        lambda: (torch.randn(6, 5), torch.randn(9, 5), torch.randint(9, (6,))),
    ],
    "linear_cross_entropy_forward": [
        lambda: (torch.randn(6, 5), torch.randn(9, 5), torch.randn(9), torch.randint(9, (6,)), [True] * 3, 0, 0.1, 0.01,
                 True, True),
        lambda: (torch.randn(6, 5).bfloat16(), torch.randn(9, 5).bfloat16(), None, torch.randint(9, (6,)),
                 [False, True, False], 0, 0.0, 0.0, False, False),
    ],
    "linear": [lambda: (grad(2, 3, 5), grad(4, 5), grad(4), 4, 256, "dithered", rng()),
               lambda: (grad(6, 5), torch.randn(4, 5), None, 4, 256, "dithered", rng()),
               lambda: (grad(3, 2, 5), grad(4, 5), None, 4, 0, "dithered", rng(), BITS, 13, True, True),
               lambda: (grad(6, 5), grad(4, 5), None, 4, 256, "dithered", rng(), None, 0, False, False, True)],
    "batch_norm": [
        lambda: (grad(2, 4, 6, 6), grad(4), grad(4), torch.zeros(4), torch.ones(4), True, 0.1, 1e-5, 4, 256, "dithered",
                 rng()),
        lambda: (grad(2, 4, 6), grad(4), grad(4), torch.zeros(4), torch.ones(4), False, 0.1, 1e-5, 4, 256, "dithered",
                 rng()),
    ],
    "layer_norm": [
        lambda: (grad(2, 3, 8), [8], grad(8), grad(8), 1e-5, 4, 256, "dithered", rng()),
        lambda: (grad(2, 3, 8, dtype=torch.bfloat16), [3, 8], None, None, 1e-5, 2, 64, "dithered", rng())],
    "rms_norm": [lambda: (grad(2, 3, 8), [8], grad(8), None, 4, 256, "dithered", rng()),
                 lambda: (grad(2, 3, 8, dtype=torch.bfloat16), [3, 8], None, 1e-3, 2, 64, "dithered", rng())],
    "group_norm": [
        lambda: (grad(2, 6, 5, 4), 3, grad(6), grad(6), 1e-5, 4, 256, "dithered", rng()),
        lambda: (torch.randn(2, 6, 5, 4).to(memory_format=torch.channels_last).requires_grad_(), 2, None, None, 1e-5, 4,
                 256, "dithered", rng())],
    "instance_norm": [
        lambda: (grad(2, 3, 8), grad(3), grad(3), torch.zeros(3), torch.ones(3), True, 0.1, 1e-5, 4, 256, "dithered",
                 rng()),
        lambda: (grad(2, 3, 8), None, None, torch.zeros(3), torch.ones(3), False, 0.1, 1e-5, 4, 256, "dithered",
                 rng())],
    "gelu": [lambda: (grad(5, 7), "tanh", 4, 256, "dithered", rng()), lambda: (torch.randn(5, 7),)],
    "silu": [lambda: (grad(5, 7), 4, 256, "dithered", rng()), lambda: (torch.randn(5, 7),)],
    "silu_": [lambda: (torch.randn(5, 7), 4, 256, "dithered", rng())],
    "hardswish": [lambda: (grad(5, 7, dtype=torch.bfloat16), 4, 256, "dithered", rng())],
    "hardswish_": [lambda: (torch.randn(5, 7), 4, 256, "dithered", rng())],
    "sigmoid": [lambda: (grad(5, 7), 4, 256, "dithered", rng())],
    "tanh": [lambda: (grad(5, 7), 4, 256, "dithered", rng()),
             lambda: (CHANNELS_LAST.clone().requires_grad_(), 4, 64, "nearest")],
    "leaky_relu": [lambda: (grad(5, 7),), lambda: (CHANNELS_LAST.clone().requires_grad_(), 0.3)],
    "leaky_relu_": [lambda: (torch.randn(5, 7), 0.3)],
    "hardtanh": [lambda: (grad(5, 7),), lambda: (grad(5, 7), 0, 6)],
    "hardtanh_": [lambda: (torch.randn(5, 7), -0.5, 0.5)],
    "prelu": [lambda: (grad(2, 3, 8), grad(3), 4, 256, "dithered", rng()),
              lambda: (grad(2, 3, 8), torch.randn(1), 4, 256, "dithered", rng())],
    "softmax": [lambda: (grad(5, 7), 1, 4, 256, "dithered", rng()), lambda: (grad(5, 7), 0, 4, 256, "nearest")],
    "log_softmax": [lambda: (grad(5, 7), 1, 4, 256, "dithered", rng())],
    "embedding": [lambda: (grad(9, 4), torch.randint(0, 9, (2, 3))),
                  lambda: (grad(9, 4), torch.randint(0, 9, (2, 3)), 3, True)],
    "max_pool3d": [lambda: (grad(2, 3, 4, 6, 6), [2, 2, 2]),
                   lambda: (grad(2, 3, 4, 6, 6), [3, 3, 3], [2, 2, 2], [1, 1, 1], [1, 1, 1], True)],
    "max_pool3d_with_indices": [lambda: (grad(2, 3, 4, 6, 6), [2, 2, 2])],
    "add_act": [
        lambda: (grad(2, 4, 6, 6), grad(2, 4, 6, 6), 0.0, 3, "dithered", rng()),
        lambda: (grad(3, 5, dtype=torch.bfloat16), torch.randn(3, 5).bfloat16(), 0.1, 2, "dithered", rng()),
        lambda: (torch.randn(3, 5), torch.randn(3, 5)),
    ],
    "batch_norm_act": [
        lambda: (grad(2, 4, 6, 6), grad(4), grad(4), torch.zeros(4), torch.ones(4), True, 0.1, 1e-5, 0.0, 4, "dithered",
                 rng()),
        lambda: (grad(2, 4, 6, dtype=torch.bfloat16), grad(4), None, None, None, True, 0.1, 1e-5, 0.1, 3, "dithered",
                 rng()),
        lambda: (grad(2, 4), grad(4), grad(4), torch.zeros(4), torch.ones(4), False, 0.1, 1e-5, 1.0, 2, "dithered",
                 rng()),
        lambda: (torch.randn(2, 4), None, None, torch.zeros(4), torch.ones(4), True, 0.1, 1e-5),
        lambda: (grad(2, 4, 6, 6), grad(4), grad(4), torch.zeros(4), torch.ones(4), True, 0.1, 1e-5, 0.0, 4, "dithered",
                 rng(), "relu6"),
        lambda: (grad(2, 4, 6, 6), grad(4), grad(4), None, None, True, 0.1, 1e-5, 0.0, 5, "dithered", rng(), "silu"),
    ],
    "batch_norm_channels": [
        lambda: (torch.randn(7, 5), torch.randn(5), None, torch.zeros(5), torch.ones(5), torch.tensor(3), None, 1e-5,
                 True),
        lambda: (torch.randn(7, 5), None, torch.randn(5), None, None, None, 0.1, 1e-5, False),
    ],
    "channel_moments": [lambda: (torch.randn(7, 5),)],
    "norm_act_channels": [lambda: (torch.randn(5), torch.rand(5), torch.randn(5), None, 1e-5, True)],
    "norm_act": [
        lambda: (torch.randn(7, 5), torch.randn(7, 5), torch.rand(5, 5), "leaky_relu", 0.1, 3, True, "dithered",
                 rng()),
        lambda: (torch.randn(7, 5), None, torch.rand(5, 5), "leaky_relu", 0.0, None),
        lambda: (torch.randn(7, 5), torch.randn(7, 5), torch.rand(5, 5), "relu6", 0.0, 0, False, "nearest", rng()),
        lambda: (torch.randn(70, 5), None, torch.rand(5, 5), "hardswish", 0.0, 8, True, "dithered", rng()),
        lambda: (torch.randn(0, 5), None, torch.rand(5, 5), "identity", 0.0, 2, True, "stochastic", rng()),
    ],
    "norm_add_act": [
        lambda: (torch.randn(7, 5), torch.randn(7, 5), torch.rand(5, 5), torch.rand(5, 5), "leaky_relu", 0.0, 3, 2,
                 False, "dithered", rng()),
        lambda: (torch.randn(7, 5), torch.randn(7, 5), torch.rand(5, 5), torch.rand(5, 5), "identity", 0.0, None, 8,
                 True, "nearest", rng()),
    ],
    "norm_act_sums": [
        lambda: (pass_packed(7, 5), torch.randn(7, 5), None, torch.rand(5, 5), "leaky_relu", 0.1, 3),
        lambda: (None, torch.randn(7, 5), None, torch.rand(5, 5), "identity", 0.0, 0, torch.randn(7, 5),
                 torch.rand(5, 5)),
        lambda: (pass_packed(7, 5, bits=0), torch.randn(7, 5), None, torch.rand(5, 5), "leaky_relu", 0.1, 0, None, None,
                 pass_packed(7, 5, "identity", 2), 2),
        lambda: (pass_packed(7, 5, "relu6"), torch.randn(7, 5), None, torch.rand(5, 5), "relu6", 0.0, 3),
        lambda: (pass_packed(7, 5, "silu", 5), torch.randn(7, 5), torch.randn(7, 5), torch.rand(5, 5), "silu", 0.0, 5),
    ],
    "sum_channels": [lambda: (None, torch.randn(7, 5)), lambda: (torch.rand(5, 5), torch.randn(7, 5))],
    "norm_act_sums_and_gradients": [
        lambda: (pass_packed(7, 5), torch.randn(7, 5), None, torch.rand(5, 5), None, torch.rand(5), 7, "leaky_relu",
                 0.1, 3),
        lambda: (None, torch.randn(7, 5), None, torch.rand(5, 5), None, torch.rand(5), 7, "identity", 0.0, 0, None,
                 None, pass_packed(7, 5, "identity", 2), 2),
        lambda: (pass_packed(7, 5, "hardswish", 5), torch.randn(7, 5), None, torch.rand(5, 5), None, torch.rand(5), 7,
                 "hardswish", 0.0, 5),
    ],
    "norm_act_gradients": [lambda: (torch.randn(2, 5), torch.rand(5, 5), torch.randn(5), torch.rand(5), 7)],
    "norm_act_input_gradient": [
        lambda: (pass_packed(7, 5), torch.randn(7, 5), torch.randn(7, 5), torch.rand(5, 6), "leaky_relu", 0.1, 3),
        lambda: (pass_packed(7, 5), torch.randn(7, 5), None, torch.rand(5, 6), "leaky_relu", 0.1, 3, torch.randn(7, 5),
                 torch.rand(5, 5)),
        lambda: (pass_packed(7, 5), torch.randn(7, 5), None, torch.rand(5, 6), "leaky_relu", 0.1, 3, None, None,
                 pass_packed(7, 5, "identity", 2), 2),
        lambda: (pass_packed(7, 5, "relu6", 0), torch.randn(7, 5), None, torch.rand(5, 6), "relu6", 0.0, 0,
                 torch.randn(7, 5), torch.rand(5, 5)),
        lambda: (pass_packed(7, 5, "silu", 5), torch.randn(7, 5), None, torch.rand(5, 6), "silu", 0.0, 5),
    ],
    "norm_act_input_gradient_out": [
        lambda: (pass_packed(7, 5), torch.randn(7, 5), None, torch.rand(5, 6), "leaky_relu", 0.1, 3, None, None, None,
                 0, torch.empty(7, 5), torch.empty(7, 5)),
        lambda: (pass_packed(7, 5, "silu", 5), torch.randn(7, 5), None, torch.rand(5, 6), "silu", 0.0, 5, None, None,
                 None, 0, torch.empty(7, 5), None),
    ],
    "norm_act_output": [
        lambda: (pass_packed(7, 5), torch.rand(5, 5), 7, torch.bfloat16, "leaky_relu", 0.1, 3),
        lambda: (pass_packed(7, 5, "relu6"), torch.rand(5, 5), 7, torch.float32, "relu6", 0.0, 3),
        lambda: (pass_packed(7, 5, "silu", 5), torch.rand(5, 5), 7, torch.float16, "silu", 0.0, 5),
    ],
    "sync_batch_norm": [
        lambda: (grad(2, 4, 6, 6), grad(4), grad(4), torch.zeros(4), torch.ones(4), True, 0.1, 1e-5, GROUP, 4, 256,
                 "dithered", rng()),
        lambda: (grad(2, 4, 6, dtype=torch.bfloat16), grad(4), None, None, None, True, 0.1, 1e-5, GROUP, 4, 256,
                 "dithered", rng()),
        lambda: (torch.randn(2, 4), None, None, torch.zeros(4), torch.ones(4), True, 0.1, 1e-5, GROUP),
        lambda: (grad(2, 4, 6), grad(4), grad(4), torch.zeros(4), torch.ones(4), False, 0.1, 1e-5, "none", 4, 256,
                 "dithered", rng()),
    ],
    "shared_copy": [lambda: (torch.randn(5, 7),)],
    "relu": [lambda: (grad(5, 7),), lambda: (torch.randn(5, 7),)],
    "relu_": [lambda: (torch.randn(5, 7),)],
    "dropout": [lambda: (grad(5, 7), 0.3, rng())],
    "dropout_": [lambda: (torch.randn(5, 7), 0.3, rng())],
    "max_pool2d": [lambda: (grad(2, 3, 8, 8), [2, 2]),
                   lambda: (CHANNELS_LAST.clone().requires_grad_(), [3, 3], [1, 1])],
    "max_pool2d_with_indices": [lambda: (grad(2, 3, 8, 8), [2, 2])],
    "avg_pool2d": [lambda: (grad(2, 3, 8, 8), [2, 2])],
    "avg_pool3d": [lambda: (grad(2, 3, 4, 6, 6), [2, 2, 2])],
    "adaptive_avg_pool2d": [lambda: (grad(2, 3, 8, 8), [3, 3]), lambda: (grad(2, 3, 8, 8), [1, 1])],
    "adaptive_avg_pool3d": [lambda: (grad(2, 3, 4, 6, 6), [2, 2, 2])],
    "run_program": [
        lambda: program(basic_block, 2, 8, 5, 5),
        lambda: program(squeeze_and_excitation, 2, 8, 5, 5, exact=[8, 9, 10, 11]),
        lambda: program(attention, 2, 5, 8, integers=[2]),
    ],
    "program_forward": [program_forward],
    "program_backward": [program_backward],
    "trace_program_forward": [program_forward],
    "trace_program_backward": [program_backward],
}  # fmt: skip


ALL_UTILITIES = ("test_schema", "test_autograd_registration", "test_faketensor", "test_aot_dispatch_dynamic")

# These call torch's wait_tensor, which returns its argument, as no op may under the two other utilities.
WAITING = {("sync_batch_norm", 0), ("sync_batch_norm", 1), ("sync_batch_norm", 2)}
WAITING_UTILITIES = ("test_autograd_registration", "test_aot_dispatch_dynamic")


def registered_ops():
    """Those with tensors: the others are plain questions and answers."""
    return {schema.name.removeprefix("actnn::") for schema in torch._C._jit_get_all_schemas()
            if schema.name.startswith("actnn::") and "Tensor" in str(schema)}  # fmt: skip


def test_every_op_has_samples():
    assert registered_ops() == set(SAMPLES)


def moved(tensor, device):
    return tensor.detach().to(device).requires_grad_(tensor.requires_grad)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(
    ("name", "index"), [(name, i) for name, samples in SAMPLES.items() for i in range(len(samples))]
)
def test_opcheck(name, index, device):
    arguments = tree_map_only(torch.Tensor, lambda tensor: moved(tensor, device), SAMPLES[name][index]())
    utilities = WAITING_UTILITIES if (name, index) in WAITING else ALL_UTILITIES
    torch.library.opcheck(getattr(ops, name).default, arguments, test_utils=utilities)
