"""Embeddings, which keep their indices."""

from torch import Tensor, nn

from .base import QuantizedLayer, compressed_form_of, ops


class _Embedding(QuantizedLayer):
    has_bits = False

    def forward(self, input: Tensor) -> Tensor:
        if not self._takes(self.weight) or self.max_norm is not None:
            return super().forward(input)
        padding = -1 if self.padding_idx is None else self.padding_idx
        return self._shown(ops.embedding(self.weight, input, padding, self.scale_grad_by_freq, self.sparse))


@compressed_form_of(nn.Embedding)
class QEmbedding(_Embedding, nn.Embedding):
    """`torch.nn.Embedding` that keeps its indices in the smallest integer type that holds them."""
