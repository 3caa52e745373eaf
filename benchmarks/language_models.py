"""Small language models, written out: layers as in GPT-2 (Radford et al. 2019) and as in Llama (arXiv:2302.13971)."""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn


@dataclass(frozen=True)
class Sizes:
    vocabulary: int
    context: int = 256
    layers: int = 6
    hidden: int = 384
    heads: int = 6
    dropout: float = 0.0


def dropout(sizes: Sizes) -> nn.Module:
    """Without a probability it is no dropout: nothing in the model draws then."""
    return nn.Dropout(sizes.dropout) if sizes.dropout else nn.Identity()


def initialize(model: nn.Module, layers: int) -> None:
    """As in GPT-2: normal, and what is added to the residual stream smaller, the more layers add to it."""
    for name, parameter in model.named_parameters():
        if parameter.dim() > 1:
            nn.init.normal_(parameter, std=0.02 / (math.sqrt(2 * layers) if name.endswith("out.weight") else 1))
        elif name.endswith("bias"):
            nn.init.zeros_(parameter)


class Attention(nn.Module):
    def __init__(self, sizes: Sizes, bias: bool, rotary: bool):
        super().__init__()
        self.heads, self.probability = sizes.heads, sizes.dropout
        self.queries_keys_values = nn.Linear(sizes.hidden, 3 * sizes.hidden, bias=bias)
        self.out = nn.Linear(sizes.hidden, sizes.hidden, bias=bias)
        self.rotary = Rotary(sizes.hidden // sizes.heads, sizes.context) if rotary else None

    def forward(self, x: Tensor) -> Tensor:
        parts = self.queries_keys_values(x).chunk(3, -1)
        query, key, value = (part.unflatten(-1, (self.heads, -1)).transpose(1, 2) for part in parts)
        if self.rotary is not None:
            query, key = self.rotary(query), self.rotary(key)
        probability = self.probability if self.training else 0.0
        y = F.scaled_dot_product_attention(query, key, value, dropout_p=probability, is_causal=True)
        return self.out(y.transpose(1, 2).flatten(2))


class Rotary(nn.Module):
    """Turns pairs of channels by angles that grow with the position (Su et al. 2021, arXiv:2104.09864)."""

    def __init__(self, channels: int, context: int):
        super().__init__()
        frequencies = 10000.0 ** (-torch.arange(0, channels, 2) / channels)
        angles = torch.outer(torch.arange(context), torch.cat([frequencies, frequencies]))
        self.register_buffer("cosines", angles.cos())
        self.register_buffer("sines", angles.sin())

    def forward(self, x: Tensor) -> Tensor:
        """x: [N, heads, words, channels]"""
        cosines, sines = (table[: x.shape[-2]].to(x.dtype) for table in (self.cosines, self.sines))
        first, second = x.chunk(2, -1)
        return x * cosines + torch.cat([-second, first], -1) * sines


class GPTLayer(nn.Module):
    def __init__(self, sizes: Sizes):
        super().__init__()
        self.attention_norm = nn.LayerNorm(sizes.hidden)
        self.attention = Attention(sizes, bias=True, rotary=False)
        self.mlp_norm = nn.LayerNorm(sizes.hidden)
        self.up = nn.Linear(sizes.hidden, 4 * sizes.hidden)
        self.out = nn.Linear(4 * sizes.hidden, sizes.hidden)
        self.dropout = dropout(sizes)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.dropout(self.attention(self.attention_norm(x)))
        return x + self.dropout(self.out(F.gelu(self.up(self.mlp_norm(x)))))


class LlamaLayer(nn.Module):
    def __init__(self, sizes: Sizes):
        super().__init__()
        inner = 8 * sizes.hidden // 3
        self.attention_norm = nn.RMSNorm(sizes.hidden)
        self.attention = Attention(sizes, bias=False, rotary=True)
        self.mlp_norm = nn.RMSNorm(sizes.hidden)
        self.gate = nn.Linear(sizes.hidden, inner, bias=False)
        self.up = nn.Linear(sizes.hidden, inner, bias=False)
        self.out = nn.Linear(inner, sizes.hidden, bias=False)
        self.dropout = dropout(sizes)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.dropout(self.attention(self.attention_norm(x)))
        rows = self.mlp_norm(x)
        return x + self.dropout(self.out(F.silu(self.gate(rows)) * self.up(rows)))


class GPT(nn.Module):
    def __init__(self, sizes: Sizes):
        super().__init__()
        self.words = nn.Embedding(sizes.vocabulary, sizes.hidden)
        self.positions = nn.Parameter(torch.empty(sizes.context, sizes.hidden))
        self.dropout = dropout(sizes)
        self.layers = nn.ModuleList(GPTLayer(sizes) for _ in range(sizes.layers))
        self.norm = nn.LayerNorm(sizes.hidden)
        self.head = nn.Linear(sizes.hidden, sizes.vocabulary, bias=False)
        initialize(self, sizes.layers)

    def forward(self, words: Tensor) -> Tensor:
        """int64 [N, length] -> logits [N, length, vocabulary]"""
        x = self.dropout(self.words(words) + self.positions[: words.shape[1]])
        for layer in self.layers:
            x = layer(x)
        return self.head(self.norm(x))


class Llama(nn.Module):
    def __init__(self, sizes: Sizes):
        super().__init__()
        self.words = nn.Embedding(sizes.vocabulary, sizes.hidden)
        self.layers = nn.ModuleList(LlamaLayer(sizes) for _ in range(sizes.layers))
        self.norm = nn.RMSNorm(sizes.hidden)
        self.head = nn.Linear(sizes.hidden, sizes.vocabulary, bias=False)
        initialize(self, sizes.layers)

    def forward(self, words: Tensor) -> Tensor:
        """int64 [N, length] -> logits [N, length, vocabulary]"""
        x = self.words(words)
        for layer in self.layers:
            x = layer(x)
        return self.head(self.norm(x))


MODELS = {"gpt": GPT, "llama": Llama}
