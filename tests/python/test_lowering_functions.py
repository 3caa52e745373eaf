"""Single calls outside of programs that the library's functions compute, and lowered graphs under AOTAutograd."""

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from actnn.capture.lowering import lower
from block_models import FEATURES, BasicBlock
from configurations import one_thread  # noqa: F401
from lowering_checks import OPTIONS, captured, outcome
from torch import nn

pytestmark = pytest.mark.usefixtures("one_thread")


class Functions(nn.Module):
    def __init__(self):
        super().__init__()
        self.embedding, self.linear, self.norm = nn.Embedding(5, 8), nn.Linear(8, 8), nn.LayerNorm(8)
        self.prelu = nn.PReLU()

    def forward(self, x):
        x = torch.softmax(self.embedding(x), -1)
        x = self.linear(x) / 2
        x = F.gelu(x) / 2
        x = self.prelu(x) / 2
        x = self.norm(x) / 2
        x = x.sigmoid() / 2
        return F.log_softmax(F.elu(x), -1)


def test_functions_outside_of_programs():
    model = Functions()
    call, lowered = captured(model, replaces_functions=True)
    x = torch.randint(0, 5, (2, 4))
    torch.testing.assert_close(call(x), model(x))
    replaced = {call.target for call in lowered[0].outside if call.replaced}
    assert replaced == {"embedding", "softmax", "linear", "gelu", "prelu", "layer_norm", "sigmoid", "log_softmax"}
    assert {call.target for call in lowered[0].outside if not call.replaced} == {"truediv", "elu"}
    assert "actnn_redirected" in lowered[0].module.code


def test_functions_stay_torchs_without_a_gradient_in_double_precision_and_where_skipped():
    model = Functions()
    model.embedding.requires_grad_(False)
    call, lowered = captured(model, replaces_functions=True, skipped=lambda path: path == "linear")
    call(torch.randint(0, 5, (2, 4)))
    assert {call.target for call in lowered[0].outside if call.replaced} == {
        "gelu", "prelu", "layer_norm", "sigmoid", "log_softmax"
    }  # fmt: skip
    call, lowered = captured(Functions().double(), replaces_functions=True)
    call(torch.randint(0, 5, (2, 4)))
    assert not any(call.replaced for call in lowered[0].outside)


def test_a_lowered_graph_under_aot_autograd():
    model, exact = BasicBlock(8, 16, 2), BasicBlock(8, 16, 2)
    exact.load_state_dict(model.state_dict())
    compile = torch._dynamo.backends.registry.lookup_backend("aot_eager")

    def backend(graph, inputs):
        return compile(lower(graph, OPTIONS).module, inputs)

    call = torch._dynamo.optimize(backend)(lambda x: model(x))
    x = torch.randn(FEATURES)
    for a, b in zip(outcome(call, model, [x]), outcome(exact, exact, [x]), strict=True):
        torch.testing.assert_close(a, b)
