"""Frozen linear layers of 8 bits that are no layers of torch's, and a transformer layer with adapters on them."""

import torch
import torch.nn.functional as F  # noqa: N812
from torch import nn

WIDTH, LENGTH = 64, 64


class Product(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, codes, scales):
        ctx.save_for_backward(codes, scales)
        return F.linear(x, codes * scales)

    @staticmethod
    def backward(ctx, grad):
        codes, scales = ctx.saved_tensors
        return grad @ (codes * scales).to(grad.dtype), None, None


def product(x, codes, scales):
    return Product.apply(x, codes, scales)


@torch.library.custom_op("actnn_tests::frozen_product", mutates_args=())
def frozen_product(x: torch.Tensor, codes: torch.Tensor, scales: torch.Tensor) -> torch.Tensor:
    return F.linear(x, codes * scales)


@frozen_product.register_fake
def _(x, codes, scales):
    return x.new_empty(*x.shape[:-1], codes.shape[0])


def _keep(ctx, inputs, output):
    ctx.save_for_backward(*inputs[1:])


frozen_product.register_autograd(Product.backward, setup_context=_keep)


class FrozenLinear(nn.Module):
    """Of 8 bits."""

    def __init__(self, linear, product):
        super().__init__()
        weight = linear.weight.detach()
        scales = weight.abs().amax(1, keepdim=True) / 127
        self.product = product
        self.register_buffer("codes", (weight / scales).round().to(torch.int8))
        self.register_buffer("scales", scales)

    def forward(self, x):
        return self.product(x, self.codes, self.scales)

    def dense(self):
        """The same with a weight of torch's."""
        layer = nn.Linear(self.codes.shape[1], self.codes.shape[0], bias=False).requires_grad_(False)
        layer.weight.copy_(self.codes * self.scales)
        return layer


class Adapted(nn.Module):
    """A layer with an adapter of low rank, as PEFT writes it."""

    def __init__(self, base, inputs, outputs, rank=2):
        super().__init__()
        self.base = base
        self.lora_A, self.lora_B = nn.Linear(inputs, rank, bias=False), nn.Linear(rank, outputs, bias=False)

    def forward(self, x):
        return self.base(x) + self.lora_B(self.lora_A(x)) * 2.0


class Layer(nn.Module):
    """Attention and SwiGLU, with norms in front."""

    def __init__(self, frozen, adapted):
        super().__init__()
        sizes = dict.fromkeys(("query", "key", "value", "out"), (WIDTH, WIDTH))
        sizes |= {"gate": (WIDTH, 2 * WIDTH), "up": (WIDTH, 2 * WIDTH), "down": (2 * WIDTH, WIDTH)}
        for name, (inputs, outputs) in sizes.items():
            base = frozen(nn.Linear(inputs, outputs, bias=False))
            setattr(self, name, Adapted(base, inputs, outputs) if name in adapted or not adapted else base)
        self.norm1, self.norm2 = (nn.RMSNorm(WIDTH).requires_grad_(False) for _ in range(2))

    def forward(self, x):
        inner = self.norm1(x)
        heads = [layer(inner).unflatten(-1, (2, -1)).transpose(1, 2) for layer in (self.query, self.key, self.value)]
        mixed = F.scaled_dot_product_attention(*heads, is_causal=True).transpose(1, 2).flatten(2)
        x = x + self.out(mixed)
        inner = self.norm2(x)
        return x + self.down(F.silu(self.gate(inner)) * self.up(inner))


class Model(nn.Module):
    """Layers behind one that trains, so that all gradients reach back to it."""

    def __init__(self, frozen, adapted=()):
        super().__init__()
        torch.manual_seed(0)
        self.first = nn.Linear(WIDTH, WIDTH)
        self.layers = nn.Sequential(*(Layer(frozen, adapted) for _ in range(2)))

    def forward(self, x):
        return self.layers(self.first(x)).square().mean()
