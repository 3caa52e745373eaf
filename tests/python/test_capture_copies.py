"""Copies, files, replicas and parts of converted models; what conversion leaves, and what restore takes away."""

import copy
import gc
import io
import pickle
import weakref

import actnn
import pytest
import torch
from actnn.capture.call import COMPILED, PLACE, call_of
from captured_models import Net, check_same, images, mlp, pair
from configurations import eight_bits
from saved_memory import saved_bytes
from torch import nn
from torch.optim.swa_utils import AveragedModel


def through_a_file(model):
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


@pytest.mark.parametrize("is_captured", [False, True])
@pytest.mark.parametrize("copied", [
    copy.deepcopy, through_a_file, lambda m: pickle.loads(pickle.dumps(m)), lambda m: AveragedModel(m).module,
])  # fmt: skip
def test_copies_are_converted(copied, is_captured):
    exact, converted, report = pair(Net)
    x = images()
    if is_captured:
        check_same(exact, converted, x)
    again = copied(converted)
    assert call_of(again) is not None and call_of(again) is not call_of(converted)
    with torch.no_grad():
        exact.conv.weight.mul_(2), again.conv.weight.mul_(2)
    exact.load_state_dict(again.state_dict())
    check_same(exact, again, x)
    assert len(call_of(again).record.graphs) == 1 and len(report.graphs) == is_captured


def test_shallow_copies_compute_with_what_they_have():
    exact, converted, _ = pair(Net)
    x = images()
    check_same(exact, converted, x)
    shallow = copy.copy(converted)
    shallow._modules = dict(converted._modules, fc=nn.Linear(8, 3))
    assert shallow(x).shape == (4, 3) and converted(x).shape == (4, 2)
    del converted
    assert shallow(x).shape == (4, 3)


def test_replicas_compute_with_their_own_weights():
    exact, converted, _ = pair(mlp)
    replicas = []
    for model in (exact, converted):
        replica = model._replicate_for_data_parallel()
        for name, child in model.named_children():
            part = child._replicate_for_data_parallel()
            replica._modules[name] = part
            for key, parameter in child._parameters.items():
                setattr(part, key, parameter * 2)
        replicas.append(replica)
    x = torch.randn(4, 8)
    wanted, got = (replica(x) for replica in replicas)
    assert torch.allclose(wanted, got, atol=1e-5) and not torch.allclose(got, converted(x), atol=1e-3)
    wanted.sum().backward(), got.sum().backward()
    assert all(p.grad is not None for p in converted.parameters())


def test_nothing_of_the_model_changes():
    model = Net()
    modules, keys = list(model.modules()), list(model.state_dict())
    attributes = [set(vars(module)) for module in modules]
    types = [type(module) for module in modules]
    actnn.convert(model)
    model(images()).sum().backward()
    assert list(model.modules()) == modules and list(model.state_dict()) == keys
    assert [type(module) for module in modules] == types
    added = [set(vars(module)) - before for module, before in zip(modules, attributes, strict=True)]
    assert added == [{PLACE}, {COMPILED}, {COMPILED}, {COMPILED}]  # where torch has what a call leads to
    actnn.restore(model)
    assert [set(vars(module)) for module in modules] == attributes


def test_memory_of_a_model_is_free_when_it_is_gone():
    gc.collect()
    gc.disable()
    try:
        model = mlp()
        report = actnn.convert(model)
        model(torch.randn(4, 8)).sum().backward()
        weight = weakref.ref(model[0].weight)
        del model
        assert weight() is None and len(report.graphs) == 1
    finally:
        gc.enable()


def test_attributes_of_the_users_are_no_obstacle():
    model = Net()
    for path, module in model.named_modules():
        module.name = module.group = module.config = module.scheme = path
    report = actnn.convert(model)
    model(images())
    assert len(report.converted) == 3 and len(report.graphs) == 1 and model.conv.name == "conv"


def test_a_conversion_replaces_another():
    model = nn.Sequential(mlp(), mlp())
    inner = actnn.convert(model[0])
    outer = actnn.convert(model)
    model(torch.randn(4, 8))
    assert call_of(model[0]) is None and len(outer.graphs) == 1 and not inner.graphs
    again = actnn.convert(model, blocks=False)
    assert call_of(model) is None and type(model[0][0]) is actnn.QLinear and len(again.converted) == 12
    actnn.restore(model)
    assert type(model[0][0]) is nn.Linear


def test_a_part_of_a_converted_model_may_be_converted():
    model = nn.Sequential(mlp(), mlp())
    outer = actnn.convert(model, skip=["0.0"])
    inner = actnn.convert(model[0])
    x = torch.randn(4, 8)
    assert torch.allclose(model(x), model[1](model[0](x)), atol=1e-5)
    assert [graph.programs[0].name for graph in outer.graphs] == ["(root)#0", "1#0 of graph 1"]
    assert len(inner.graphs) == 1
    steps = {step for program in outer.graphs[0].programs for step in program.steps}
    assert "0.3" in steps and "0.0" not in steps and outer.graphs[0].outside[0].place == "0.0: linear"


COPIES = {
    "itself": lambda model: model,
    "deepcopy": copy.deepcopy,
    "pickle": lambda model: pickle.loads(pickle.dumps(model)),
}


@pytest.mark.parametrize("name", COPIES)
def test_parts_that_are_called_by_themselves_have_blocks(name):
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.encoder, self.head, self.frozen = mlp(), nn.Linear(8, 8), mlp()

        def features(self, x):
            return self.frozen(self.encoder(x))

        def forward(self, x):
            return self.head(self.features(x))

    globals()["Model"] = Model
    Model.__qualname__ = "Model"
    exact = Model()
    model = copy.deepcopy(exact)
    actnn.convert(model, eight_bits(), skip=["frozen"])
    model = COPIES[name](model)
    record, x = call_of(model).record, torch.randn(64, 8)
    check_same(exact.encoder, model.encoder, x)
    assert [program.name for graph in record.graphs for program in graph.programs] == ["encoder#0"]
    with torch.no_grad():
        assert torch.allclose(model.features(x), exact.features(x), atol=1e-4)
    assert saved_bytes(lambda: model.features(x))[0] < saved_bytes(lambda: exact.features(x))[0] / 1.5
    kept = saved_bytes(lambda: model.head(x * 1))[0]
    assert kept < x.nbytes / 2 and not record.fallback
    check_same(exact, model, x)
    actnn.restore(model)
    assert not any({PLACE, COMPILED} & set(vars(module)) for module in model.modules())
    assert saved_bytes(lambda: model.head(x * 1))[0] >= x.nbytes


def test_skipped_modules_stay_exact():
    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Sequential(nn.Linear(64, 64), nn.Sigmoid()), nn.Sequential(nn.Linear(64, 64), nn.Tanh())

        def forward(self, x):
            return self.b(self.a(x))

    model = Two()
    x = torch.randn(64, 64)
    report = actnn.convert(model, eight_bits(), skip=["a"])
    kept = report.measure(model, lambda: model(x).sum())
    exact = 2 * x.nbytes  # the input of a's linear layer, and the result of its sigmoid
    assert exact < kept.total < exact + x.nbytes
    assert [entry.path for entry in report.left_alone] == ["a", "a.0", "a.1"]


def test_the_models_that_torch_compile_made_may_be_converted():
    model = mlp()
    compiled = torch.compile(model, backend="eager")
    actnn.convert(compiled)
    assert call_of(model) is not None
    compiled(torch.randn(4, 8)).sum().backward()
    model = mlp()
    model.compile(backend="eager")
    with pytest.warns(UserWarning, match="compiled with module.compile"):
        report = actnn.convert(model)
    model(torch.randn(4, 8))
    assert len(report.graphs) == 1
