"""Embedding: torch's result and gradient, from indices in a small integer type."""

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from layer_checks import DTYPES, ops, saved_bytes, saved_tensors

pytestmark = pytest.mark.usefixtures("device")

OPTIONS = [{}, {"padding_idx": 3}, {"scale_grad_by_freq": True}, {"sparse": True}, {"sparse": True, "padding_idx": 0}]


def torch_embedding(weight, indices, padding_idx=-1, scale_grad_by_freq=False, sparse=False):
    return torch.embedding(weight, indices, padding_idx, scale_grad_by_freq, sparse)


@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(7,), (3, 5), (), (0, 4), (2, 3, 4)])
@pytest.mark.parametrize("index_dtype", [torch.int64, torch.int32])
def test_equals_torch(options, dtype, shape, index_dtype):
    if shape == () and len(options) == 2:
        pytest.skip("torch's sparse gradient with padding_idx has no form for a single index")
    weight = torch.randn(11, 6).to(dtype).requires_grad_()
    indices = torch.randint(0, 11, shape, dtype=index_dtype)
    y, exact = ops.embedding(weight, indices, **options), torch_embedding(weight, indices, **options)
    assert torch.equal(y, exact)
    grad = torch.randn_like(exact)
    (actual,) = torch.autograd.grad(y, weight, grad)
    if indices.numel() == 0 and options.get("scale_grad_by_freq"):  # torch's own fails on CUDA
        assert torch.equal(actual, torch.zeros_like(weight))
        return
    (expected,) = torch.autograd.grad(exact, weight, grad)
    assert actual.is_sparse == expected.is_sparse
    if actual.is_sparse:  # what to_dense adds up in another order at every run on CUDA
        assert torch.equal(actual._indices(), expected._indices())
        actual, expected = actual._values(), expected._values()
    assert torch.equal(actual, expected)


@pytest.mark.parametrize(("rows", "dtype"), [(256, torch.uint8), (257, torch.int16), (32768, torch.int16),
                                             (32769, torch.int32)])  # fmt: skip
def test_indices_are_saved_in_the_smallest_type(rows, dtype):
    weight = torch.randn(rows, 2, requires_grad=True)
    indices = torch.cat([torch.tensor([0, rows - 1, rows - 1]), torch.randint(0, rows, (29,))])
    (saved,), y = saved_tensors(lambda: ops.embedding(weight, indices))
    assert saved.dtype == dtype and saved.numel() == 32
    (grad,) = torch.autograd.grad(y.sum(), weight)
    assert torch.equal(grad, torch.autograd.grad(torch_embedding(weight, indices).sum(), weight)[0])


def test_saves_nothing_where_no_gradient_is_wanted():
    weight, indices = torch.randn(11, 6), torch.randint(0, 11, (5,))
    assert saved_bytes(lambda: ops.embedding(weight, indices)) == 0
    weight.requires_grad_()
    with torch.no_grad():
        assert not ops.embedding(weight, indices).requires_grad
    with torch.inference_mode():
        assert torch.equal(ops.embedding(weight, indices), F.embedding(indices, weight))


def test_double_backward_is_right():
    weight, indices = torch.randn(11, 6, requires_grad=True), torch.randint(0, 11, (5,))
    v = torch.randn(5, 6, requires_grad=True)
    (grad,) = torch.autograd.grad(ops.embedding(weight, indices), weight, v, create_graph=True)
    (back,) = torch.autograd.grad((grad * weight.detach()).sum(), v)
    torch.testing.assert_close(back, weight.detach()[indices])


@pytest.mark.parametrize("dynamic", [False, True])
def test_compiles_whole(dynamic):
    torch._dynamo.reset()
    compiled = torch.compile(ops.embedding, backend="aot_eager", fullgraph=True, dynamic=dynamic)
    weight = torch.randn(300, 6, requires_grad=True)
    for count in (5, 8):
        indices = torch.randint(0, 300, (count,))
        results = [torch.autograd.grad(f(weight, indices).square().sum(), weight)[0]
                   for f in (compiled, ops.embedding)]  # fmt: skip
        torch.testing.assert_close(*results)


@pytest.mark.parametrize(("call", "message"), [
    (lambda: ops.embedding(torch.ones(3, 4, dtype=torch.float64), torch.tensor([0])), "weight must be float32"),
    (lambda: ops.embedding(torch.ones(3), torch.tensor([0])), r"weight must have shape \[num_embeddings, emb"),
    (lambda: ops.embedding(torch.ones(3, 4), torch.tensor([0.0])), "indices must be int32 or int64, got Float"),
    (lambda: ops.embedding(torch.ones(3, 4), torch.tensor([0], device="meta")), "indices must be on the weight's"),
    (lambda: ops.embedding(torch.ones(3, 4), torch.tensor([0]), 3), "padding_idx must be -1 or below .* = 3, got 3"),
])  # fmt: skip
def test_bad_arguments_get_a_sentence(call, message):
    with pytest.raises((ValueError, TypeError), match=message):
        call()


def test_indices_out_of_range_are_an_error(device):
    if device == "cuda":
        pytest.skip("torch aborts the process there")
    with pytest.raises(IndexError):
        ops.embedding(torch.ones(3, 4, requires_grad=True), torch.tensor([3]))
