"""Functions that stay one node of a TorchDynamo graph, written as the functions that they consist of."""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, fx

from .modes import computed, nodes_in_their_modes
from .values import PATH, example


class Recorder:
    """Adds nodes in the place of one, with examples as TorchDynamo would have computed them, as calls of the module
    that calls it, or of another one's."""

    def __init__(self, node: fx.Node, caller: fx.Node | None = None) -> None:
        self.node, self.graph, self.caller = node, node.graph, caller or node
        self.made: list[fx.Node] = []

    def call(self, function: Callable, *args: Any, **kwargs: Any) -> fx.Node:
        return self._add("call_function", function, function, args, kwargs)

    def method(self, name: str, *args: Any, **kwargs: Any) -> fx.Node:
        return self._add("call_method", name, getattr(Tensor, name), args, kwargs)

    def _add(self, op: str, target: Any, function: Callable, args: tuple, kwargs: dict[str, Any]) -> fx.Node:
        with self.graph.inserting_before(self.node):
            made = self.graph.create_node(op, target, args, kwargs)
        self.made.append(made)
        made.meta["example_value"] = computed(function, args, kwargs)
        for key in ("nn_module_stack", "stack_trace", "source_fn_stack", PATH):
            if key in self.caller.meta:
                made.meta[key] = self.caller.meta[key]
        return made


def expand_composites(graph: fx.Graph) -> None:
    """Writes every composite out that has the arguments for it; all others stay what they are."""
    for node in nodes_in_their_modes(graph):
        expand = COMPOSITES.get(node.target) if node.op == "call_function" else None
        if expand is None:
            continue
        record = Recorder(node)
        result = expand(record, *node.args, **node.kwargs)
        if result is None or not _is_alike(example(result), node):
            for made in reversed(record.made):
                graph.erase_node(made)
            continue
        # Its example is the one whose memory those of its views are in.
        if isinstance(example(node), Tensor):
            result.meta["example_value"] = example(node)
            node.replace_all_uses_with(result)
        else:
            for user in list(node.users):
                result.meta["example_value"] = example(user)
                user.replace_all_uses_with(result)
                graph.erase_node(user)
        inputs = node.all_input_nodes
        graph.erase_node(node)
        for one in inputs:  # a view that was made for it alone
            if not one.users and _exchanged(one) is not None:
                graph.erase_node(one)


def _is_alike(result: Tensor, node: fx.Node) -> bool:
    wanted = example(node)
    wanted = wanted if isinstance(wanted, Tensor) else wanted[0]
    return result.dtype == wanted.dtype and result.shape == wanted.shape


def _multi_head_attention(
    record, query, key, value, embed_dim_to_check, num_heads, in_proj_weight, in_proj_bias, bias_k, bias_v,
    add_zero_attn, dropout_p, out_proj_weight, out_proj_bias, training=True, key_padding_mask=None, need_weights=True,
    attn_mask=None, use_separate_proj_weight=False, q_proj_weight=None, k_proj_weight=None, v_proj_weight=None,
    static_k=None, static_v=None, average_attn_weights=True, is_causal=False,
):  # fmt: skip
    """`F.multi_head_attention_forward` without attention weights, as it is written there."""
    others = (bias_k, bias_v, static_k, static_v)
    is_plain = not need_weights and not add_zero_attn and all(other is None for other in others)
    reads_first = all(user.target is operator.getitem and user.args[1] == 0 for user in record.node.users)
    if not is_plain or not reads_first or len(_shape(query)) != 3 or in_proj_weight is None:
        return None
    if use_separate_proj_weight or (is_causal and attn_mask is None):
        return None
    # Modules whose batch comes first exchange it with the length in front of the function and behind it.
    behind = [_exchanged(one) for one in (query, key, value)]
    is_exchanged_back = all(_exchanged(user) is not None for item in record.node.users for user in item.users)
    batch_first = is_exchanged_back and all(one is not None for one in behind)
    if batch_first:
        query, key, value = behind
    (length, batch, width), source = _sizes(record, query), _sizes(record, key)[0]
    if batch_first:
        length, batch, source = batch, length, _sizes(record, key)[1]
    if not isinstance(width, int) or width != embed_dim_to_check or width % num_heads:
        return None
    if is_causal and key_padding_mask is None:
        attn_mask = None
    elif key_padding_mask is not None:
        is_causal = False
    mask = _mask(record, attn_mask, key_padding_mask, query, batch, num_heads, source)
    projected = _projections(record, query, key, value, width, in_proj_weight, in_proj_bias)
    to_heads = (0, 2, 1, 3) if batch_first else (1, 2, 0, 3)

    def heads_of(part, size):
        outer = (batch, size) if batch_first else (size, batch)
        return record.method("permute", record.method("view", part, *outer, num_heads, width // num_heads), *to_heads)

    heads = [heads_of(part, size) for part, size in zip(projected, (length, source, source), strict=True)]
    attended = record.call(
        F.scaled_dot_product_attention, *heads, attn_mask=mask, dropout_p=dropout_p if training else 0.0,
        is_causal=is_causal,
    )  # fmt: skip
    if batch_first:
        joined = record.method("reshape", record.method("permute", attended, 0, 2, 1, 3), batch, length, width)
        return record.method("transpose", record.call(F.linear, joined, out_proj_weight, out_proj_bias), 0, 1)
    joined = record.method("reshape", record.method("permute", attended, 2, 0, 1, 3), length, batch, width)
    return record.call(F.linear, joined, out_proj_weight, out_proj_bias)


def _exchanged(value: fx.Node) -> fx.Node | None:
    """What a value shows with its first two dimensions exchanged, if it does."""
    is_transpose = (value.op, value.target) == ("call_method", "transpose") or value.target is torch.transpose
    if is_transpose and len(value.args) == 3 and set(value.args[1:]) == {0, 1}:
        return value.args[0]
    return None


def _projections(record, query, key, value, width, weight, bias) -> list[fx.Node]:
    if query is key and key is value:
        projected = record.call(F.linear, query, weight, bias)
        chunks = record.method("chunk", projected, 3, -1)
        return [record.call(operator.getitem, chunks, i) for i in range(3)]
    if key is value:
        sizes, inputs = [width, 2 * width], [query, key]
    else:
        sizes, inputs = [width] * 3, [query, key, value]
    weights, biases = record.method("split", weight, sizes), None
    if bias is not None:
        biases = record.method("split", bias, sizes)
    parts = [
        record.call(
            F.linear, input, record.call(operator.getitem, weights, i),
            None if biases is None else record.call(operator.getitem, biases, i),
        )
        for i, input in enumerate(inputs)
    ]  # fmt: skip
    if key is value:
        chunks = record.method("chunk", parts[1], 2, -1)
        parts[1:] = [record.call(operator.getitem, chunks, i) for i in range(2)]
    return parts


def _mask(record, attn_mask, key_padding_mask, query, batch, heads, source) -> fx.Node | None:
    """The sum of both masks, which broadcasts to [batch, heads, length, source]."""
    dtype = example(query).dtype
    masks = []
    if attn_mask is not None:
        additive = _additive(record, attn_mask, dtype)
        if len(_shape(attn_mask)) == 3:
            additive = record.method("unflatten", additive, 0, (batch, heads))
        masks.append(additive)
    if key_padding_mask is not None:
        masks.append(record.method("view", _additive(record, key_padding_mask, dtype), batch, 1, 1, source))
    return record.call(operator.add, *masks) if len(masks) == 2 else (masks[0] if masks else None)


def _additive(record, mask: fx.Node, dtype: torch.dtype) -> fx.Node:
    if example(mask).dtype != torch.bool:
        return mask
    zeros = record.call(torch.zeros_like, mask, dtype=dtype)
    return record.method("masked_fill", zeros, mask, float("-inf"))


def _shape(value: fx.Node) -> torch.Size:
    return example(value).shape


def _sizes(record: Recorder, value: fx.Node) -> list[int | fx.Node]:
    return [
        size if isinstance(size, int) else record.method("size", value, place)
        for place, size in enumerate(_shape(value))
    ]


def _addmm(record, input, mat1, mat2, *, beta=1, alpha=1, out=None):
    """A linear layer with a weight of [inputs, outputs], as GPT-2 has them."""
    is_linear = (beta, alpha, out) == (1, 1, None) and len(_shape(input)) == 1 and _shape(input) == _shape(mat2)[1:]
    return record.call(F.linear, mat1, record.method("t", mat2), input) if is_linear else None


COMPOSITES: dict[Callable, Callable] = {
    F.multi_head_attention_forward: _multi_head_attention,
    torch.addmm: _addmm,
}
