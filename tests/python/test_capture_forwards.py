"""A converted model computes what the model computes, whatever its Python does."""

import argparse
import logging
from collections import OrderedDict, defaultdict, deque, namedtuple
from dataclasses import dataclass
from typing import ClassVar

import actnn
import pytest
import torch
from captured_models import Net, check_same, images, mlp, pair
from torch import nn
from torch.utils.checkpoint import checkpoint

Pair = namedtuple("Pair", "features logits")
GLOBAL_LIST = []
OPTIONS = {"scale": 1.0}


class Output(OrderedDict):
    def __getattr__(self, name):
        try:
            return self[name]
        except KeyError as error:
            raise AttributeError(name) from error


@dataclass
class Data:
    features: torch.Tensor
    logits: torch.Tensor


class Sized(list):
    pass


@pytest.mark.parametrize("wrap", [
    lambda h, y: (h, y), lambda h, y: Pair(h, y), lambda h, y: Data(h, y), lambda h, y: Sized([h, y]),
    lambda h, y: Output(features=h, logits=y), lambda h, y: {"a": Output(features=h, logits=y)},
])  # fmt: skip
def test_outputs_keep_their_classes(wrap):
    class Wrapping(Net):
        def forward(self, x):
            return wrap(self.features(x), super().forward(x))

    exact, converted, _ = pair(Wrapping)
    x = images()
    wanted, got = exact(x), converted(x)
    assert type(got) is type(wanted)
    if isinstance(got, dict):
        assert {type(value) for value in got.values()} == {type(value) for value in wanted.values()}


class HasAttribute(Net):
    def forward(self, x):
        if hasattr(x, "as_tensor") or callable(x) or type(x) is not torch.Tensor:
            x = x[0]
        return super().forward(x)


class Isinstance(Net):
    def forward(self, x, skip=None):
        x = x + skip if skip is not None and torch.jit.isinstance(skip, torch.Tensor) else x
        return super().forward(x)


class Try(Net):
    def forward(self, x):
        try:
            count = len(x)
        except TypeError:
            count = 0
        return super().forward(x) / max(count, 1)


@pytest.mark.parametrize(("kind", "inputs"), [(HasAttribute, 1), (Isinstance, 2), (Try, 1)])
def test_questions_about_values_are_answered_as_outside(kind, inputs):
    exact, converted, _ = pair(kind)
    check_same(exact, converted, *(images() for _ in range(inputs)))


class Scheduled(Net):
    def __init__(self):
        super().__init__()
        self.scale, self.args, self.cfg = 1.0, argparse.Namespace(scale=1.0), {"scale": 1.0}

    def forward(self, x):
        return super().forward(x) * self.scale * self.args.scale * self.cfg["scale"] * OPTIONS["scale"]


@pytest.mark.parametrize("change", [
    lambda m: setattr(m, "scale", 2.0), lambda m: setattr(m.args, "scale", 2.0),
    lambda m: m.cfg.update(scale=2.0), lambda m: OPTIONS.update(scale=2.0),
])  # fmt: skip
def test_options_may_change(change):
    OPTIONS["scale"] = 1.0
    exact, converted, _ = pair(Scheduled)
    x = images()
    check_same(exact, converted, x)
    change(exact), change(converted)
    check_same(exact, converted, x)


class Noting(Net):
    of_class: ClassVar = []

    def __init__(self, where):
        super().__init__()
        self.where, self.own, self.nested = where, [], {"a": []}
        self.last, self.counts = deque(maxlen=2), defaultdict(list)

    def forward(self, x):
        y = super().forward(x)
        value = y.detach().mean()
        if self.where == "class":
            Noting.of_class.append(value)
        elif self.where == "class through type":
            type(self).of_class.append(value)
        elif self.where == "global":
            GLOBAL_LIST.append(value)
        else:
            {"own": self.own, "nested": self.nested["a"], "deque": self.last, "dict": self.counts["a"]}[
                self.where
            ].append(value)
        return y

    def notes(self):
        of_class = Noting.of_class
        return {"class": of_class, "class through type": of_class, "global": GLOBAL_LIST, "own": self.own,
                "nested": self.nested["a"], "deque": self.last, "dict": self.counts["a"]}[self.where]  # fmt: skip


@pytest.mark.filterwarnings("ignore:actnn. Noting runs without blocks")  # on older versions of torch
@pytest.mark.parametrize("where", ["class", "class through type", "global", "own", "nested", "deque", "dict"])
def test_what_a_forward_notes_is_there(where):
    Noting.of_class.clear(), GLOBAL_LIST.clear()
    _, converted, _ = pair(lambda: Noting(where))
    assert not converted.notes()
    for _ in range(3):
        converted(images())
    notes = list(converted.notes())
    assert len(notes) == (2 if where == "deque" else 3) and all(type(note) is torch.Tensor for note in notes)


def test_a_list_of_the_object_may_hide_the_classs():
    """As in PEFT's layers, which undo merged adapters in forward."""

    class Merging(Net):
        merged: ClassVar = []

        def __init__(self):
            super().__init__()
            self.merged = []

        def forward(self, x):
            y = super().forward(x)
            while self.merged:
                y = y * self.merged.pop()
            return y

    exact, converted, report = pair(Merging)
    for numbers in ([], [3.0], [2.0, 5.0], []):
        exact.merged, converted.merged = list(numbers), list(numbers)
        check_same(exact, converted, images())
        assert not exact.merged and not converted.merged
    assert report.graphs and not report.record.fallback


@pytest.mark.filterwarnings("ignore:actnn. Counted runs without blocks")
def test_class_attributes_that_are_read_through_the_class_may_change():
    class Counted(Net):
        factor = 1.0

        def forward(self, x):
            return super().forward(x) * type(self).factor

    exact, converted, _ = pair(Counted)
    x = images()
    check_same(exact, converted, x)
    Counted.factor = 3.0
    check_same(exact, converted, x)


def test_what_libraries_have_in_forwards_breaks_no_graph(monkeypatch):
    def warning_once(logger, text):
        logger.warning(text)

    monkeypatch.setattr(logging.Logger, "warning_once", warning_once, raising=False)
    logger = logging.getLogger("actnn.tests")

    class Usual(Net):
        has_scale = True

        def forward(self, x):
            logger.warning_once("in training")
            if torch.jit.isinstance(x, torch.Tensor) and self.has_scale:
                x = x * 1.0
            return super().forward(x)

    exact, converted, report = pair(Usual)
    for _ in range(2):
        check_same(exact, converted, images())
    assert len(report.graphs) == 1 and not report.record.breaks and not report.record.fallback


def test_a_graph_break_does_not_make_the_rest_exact(capsys):
    class Printing(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second = nn.Linear(8, 8), nn.Linear(8, 8)

        def forward(self, x):
            x = self.first(x)
            print("here")
            return self.second(x).relu()

    exact, converted, report = pair(lambda: nn.Sequential(*(Printing() for _ in range(10))))
    x = torch.randn(4, 8)
    for _ in range(3):
        check_same(exact, converted, x)
    (cause,) = report.record.breaks.values()
    assert "print" in cause and "graph break" in str(report)
    assert len(report.graphs) == 20
    assert not any(graph.error or graph.reason for graph in report.graphs) and not report.record.troubles


def test_modules_that_cannot_be_captured_are_compressed_one_by_one():
    model = nn.Sequential(nn.Linear(8, 8), torch.jit.script(nn.Linear(8, 8)), nn.Sigmoid())
    report = actnn.convert(model)
    x = torch.randn(64, 8)
    for _ in range(2):
        model(x)
    kept = report.measure(model, lambda: model(x).sum())
    assert kept.modules["2"] < x.nbytes / 4 and report.record.breaks


def test_hooks_run():
    exact, converted, report = pair(mlp)
    seen = []
    converted[0].register_forward_hook(lambda module, args, output: seen.append(type(output)))
    converted.register_forward_pre_hook(lambda module, args: seen.append("before"))
    for _ in range(2):
        check_same(exact, converted, torch.randn(4, 8))
    assert seen == ["before", torch.Tensor] * 2 and report.graphs


def test_hooks_may_come_later():
    exact, converted, _ = pair(mlp)
    x = torch.randn(4, 8)
    check_same(exact, converted, x)
    for model in (exact, converted):
        model[0].register_forward_hook(lambda module, args, output: 2 * output)
    check_same(exact, converted, x)
    for model in (exact, converted):
        model.register_forward_hook(lambda module, args, output: output + 1)
    check_same(exact, converted, x)


def test_parameters_may_be_frozen_and_unfrozen():
    exact, converted, report = pair(mlp)
    x = torch.randn(64, 8)
    for frozen in ([0, 1, 2, 3, 4, 5], [], [0, 1], [4]):
        for model in (exact, converted):
            for i, layer in enumerate(model):
                layer.requires_grad_(i not in frozen)
        if len(frozen) < 6:
            check_same(exact, converted, x)
        else:
            assert not converted(x).requires_grad
    assert [bool(graph.reason) for graph in report.graphs] == [True, False, False, False]


def test_backward_hooks_run():
    exact, converted, report = pair(mlp)
    seen = []
    converted.register_full_backward_hook(lambda module, before, after: seen.append(len(before)))
    for _ in range(2):
        check_same(exact, converted, torch.randn(4, 8, requires_grad=True))
    assert seen == [1, 1] and report.record.breaks


def test_sizes_that_vary_are_captured_once_more():
    exact, converted, report = pair(Net)
    for count in (4, 5, 6, 3):
        check_same(exact, converted, images(count))
    assert len(report.graphs) == 2 and "size" in report.graphs[1].cause


def test_modes():
    exact, converted, report = pair(Net)
    x = images()
    check_same(exact, converted, x)
    exact.eval(), converted.eval()
    check_same(exact, converted, x)
    with torch.no_grad():
        assert torch.allclose(exact(x), converted(x), atol=1e-5)
    with torch.inference_mode():
        assert torch.allclose(exact(x), converted(x), atol=1e-5)
    with torch.autocast("cpu", torch.bfloat16):
        assert converted(x).dtype == exact(x).dtype == torch.bfloat16
    assert not report.record.troubles


def test_checkpoints_around_and_inside():
    class Inside(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = mlp(), mlp()

        def forward(self, x):
            return checkpoint(self.b, self.a(x), use_reentrant=False)

    exact, converted, _ = pair(Inside)
    x = torch.randn(4, 8)
    check_same(exact, converted, x)
    exact, converted, _ = pair(mlp)
    wanted, got = exact(x), checkpoint(converted, x, use_reentrant=False)
    wanted.sum().backward(), got.sum().backward()
    assert torch.allclose(wanted, got, atol=1e-5)


def test_lazy_modules_are_captured_when_they_are_complete():
    model = nn.Sequential(nn.LazyLinear(8), nn.GELU())
    report = actnn.convert(model)
    model(torch.randn(4, 8))
    assert type(model[0]) is nn.Linear and not report.graphs
    model(torch.randn(4, 8))
    assert len(report.graphs) == 1
