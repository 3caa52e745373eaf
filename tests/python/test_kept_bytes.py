"""What is kept for backward, by module and by block: measured, and in the report."""

import actnn
import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from actnn import Config, convert, measure_kept_bytes
from actnn.capture.backend import watch
from block_models import BasicBlock, InvertedResidual, conv
from configurations import one_thread  # noqa: F401
from saved_memory import packed_bytes
from torch import nn

pytestmark = pytest.mark.usefixtures("one_thread")


def network():
    """A stem, two blocks behind it and one that is its own, a linear layer."""
    stem = nn.Sequential(conv(3, 8), nn.BatchNorm2d(8), nn.ReLU(), nn.MaxPool2d(2))
    return nn.Sequential(stem, BasicBlock(8, 16, 2), InvertedResidual(16, 16), nn.Flatten(), nn.Linear(16 * 16, 10))


def memory_events(events):
    """(time, address, bytes, negative if freed) of what was allocated and freed in a tree of the profiler's events."""
    for event in events:
        if event.tag == torch._C._profiler._EventType.Allocation:
            yield event.start_time_ns, event.extra_fields.ptr, event.extra_fields.alloc_size
        yield from memory_events(event.children)


def held_bytes(run):
    """The memory that `run()` allocated and that is still in use, less that of its result: what the graph holds.

    What was there before does not count when it is freed: of an address that an earlier profile saw, and that has had
    another owner since, the profiler reports the size of then.
    """
    with torch.profiler.profile(profile_memory=True) as profile:
        result = run()
    held = {}
    for _, address, size in sorted(memory_events(profile.profiler.kineto_results.experimental_event_tree())):
        if size > 0:
            held[address] = size
        else:
            held.pop(address, None)
    return sum(held.values()) - result.untyped_storage().nbytes()


def test_a_layer_keeps_its_packed_input():
    model = nn.Sequential(conv(3, 8), nn.ReLU(), conv(8, 8), nn.Flatten(), nn.Linear(8 * 64, 4))
    convert(model, Config("L2"), blocks=False)
    x = torch.randn(4, 3, 8, 8)
    found = measure_kept_bytes(model, lambda: model(x))
    mask = -(-4 * 8 * 64 // 8)
    assert found.modules == {
        "0": packed_bytes(x.numel(), 4), "1": mask, "2": packed_bytes(4 * 8 * 64, 4), "4": packed_bytes(4 * 8 * 64, 4)
    }  # fmt: skip
    assert found.total == sum(found.modules.values()) and not found.blocks and not found.elsewhere


def test_an_exact_model():
    model = nn.Sequential(conv(3, 8), nn.ReLU(), conv(8, 8))
    x = torch.randn(4, 3, 8, 8)
    found = measure_kept_bytes(model, lambda: model(x))
    assert found.modules == {"0": x.nbytes, "1": 4 * 8 * 64 * 4}  # the result of ReLU, which the convolution needs too


@pytest.mark.parametrize("blocks", [True, False])
@pytest.mark.parametrize("level", ["L0", "L2", "L3"])
def test_the_total_is_what_is_held(level, blocks):
    model = network()
    report = convert(model, Config(level), blocks=blocks)
    x = torch.randn(8, 3, 16, 16)
    model(x)
    before = x.nbytes if level == "L0" else 0  # autograd keeps the input itself
    total = measure_kept_bytes(model, lambda: model(x)).total - before
    held = held_bytes(lambda: model(x))
    # Besides what autograd saves, schemes hold ranges and bits of samples.
    assert total <= held <= total + (1024 if level == "L3" else 0)
    assert bool(report.blocks) == (blocks and level == "L2")


def test_functions_and_the_loss():
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.body = nn.Sequential(nn.Linear(8, 8), nn.ReLU())

        def forward(self, x):
            return F.gelu(self.body(x)) * 2

    model = Model()
    x = torch.randn(4, 8)
    found = measure_kept_bytes(model, lambda: model(x).square().sum())
    assert found.modules == {"body.0": x.nbytes, "body.1": x.nbytes} and found.elsewhere == x.nbytes
    with_loss = nn.Sequential(model, nn.Identity())
    assert measure_kept_bytes(with_loss, lambda: with_loss(x)).modules == {"0.body.0": x.nbytes, "0.body.1": x.nbytes}


def test_nothing_is_kept_without_gradients():
    model = network()
    report = convert(model, Config("L2"))
    x = torch.randn(4, 3, 16, 16)
    model(x).sum().backward()

    @torch.no_grad()
    def run():
        model(x)

    assert report.measure(model, run).total == 0
    model.requires_grad_(False)
    assert measure_kept_bytes(model, lambda: model(x)).total == 0


def test_calls_add_up():
    model = network()
    convert(model, Config("L2"))
    x = torch.randn(4, 3, 16, 16)
    once = measure_kept_bytes(model, lambda: model(x)).total
    assert measure_kept_bytes(model, lambda: (model(x), model(x))).total == 2 * once
    assert measure_kept_bytes(model, lambda: [model(x).sum().backward() for _ in range(2)]).total == 2 * once


@pytest.mark.parametrize("level", ["L2", "L3"])
def test_everything_is_as_before(level):
    model = network()
    config = Config(level)
    report = convert(model, config)
    x = torch.randn(4, 3, 16, 16)
    for _ in range(2):
        model(x).square().sum().backward()
    state = {name: value.clone() for name, value in model.state_dict().items()}
    gradients = [(p.grad, p.grad.clone()) for p in model.parameters()]
    bits = [entry.bits for entry in report.entries if entry.type == "Linear"]
    attributes = [set(vars(module)) for module in model.modules()]
    chance = torch.random.get_rng_state()

    measure_kept_bytes(model, lambda: model(x).square().sum().backward())
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    assert all(p.grad is grad and torch.equal(grad, value)
               for p, (grad, value) in zip(model.parameters(), gradients, strict=True))  # fmt: skip
    assert torch.equal(chance, torch.random.get_rng_state())
    assert [set(vars(module)) for module in model.modules()] == attributes
    assert [entry.bits for entry in report.entries if entry.type == "Linear"] == bits
    with pytest.raises(ZeroDivisionError):
        measure_kept_bytes(model, lambda: (model(x), 1 / 0))
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    assert watch.run is None


def test_an_allocation_is_as_before():
    model = network()
    convert(model, Config("L3"))
    x = torch.randn(4, 3, 16, 16)
    for _ in range(2):
        model(x).square().sum().backward()

    def schemes():
        return [(m.scheme.bits, m.scheme.scales.clone()) for m in model.modules() if getattr(m, "scheme", None)]

    before = schemes()
    measure_kept_bytes(model, lambda: (5 * model(x)).square().sum().backward())
    assert before and all(a == b and torch.equal(c, d) for (a, c), (b, d) in zip(before, schemes(), strict=True))


def test_wrong_arguments():
    with pytest.raises(TypeError, match=r"measure_kept_bytes: model must be a torch.nn.Module, got str 'net'"):
        measure_kept_bytes("net", lambda: None)
    with pytest.raises(TypeError, match=r"measure_kept_bytes: run must be a function, got"):
        measure_kept_bytes(nn.Linear(2, 2), torch.ones(2))


# The report.


def test_the_bits_of_layers():
    model = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.LayerNorm(8), nn.Dropout(), nn.Linear(8, 8))
    report = convert(model, Config("L2"), skip=["4"], blocks=False)
    assert [entry.bits for entry in report.entries] == [None, 4, None, 4, None, None]
    adaptive = network()
    config = Config("L3", activation_compression_bits=[3])
    report = convert(adaptive, config)
    assert report["4"].bits == adaptive[4].scheme.bits
    adaptive[4].scheme.bits = 5.5
    x = torch.randn(4, 3, 16, 16)
    report.measure(adaptive, lambda: adaptive(x))
    assert report["4"].bits == adaptive[4].scheme.bits
    exact = nn.Sequential(nn.Linear(8, 8))
    assert convert(exact, Config("swap"))["0"].bits is None


def test_the_bits_of_blocks():
    model = network()
    report = convert(model, Config("L2"), blocks=actnn.BlockOptions(output_bits=3))
    assert not report.blocks and "not been captured yet" in str(report) and "" in report.without_blocks
    x = torch.randn(4, 3, 16, 16)
    report.measure(model, lambda: model(x))
    assert report.blocks and {bits for block in report.blocks for bits in block.bits} >= {3, 4}
    assert report["1.conv1"].block.startswith("1#") and report["1.conv1"] != report.entries[0]
    assert not report["1"].block


def test_the_report_shows_bytes_after_a_measurement():
    model = network()
    report = convert(model, Config("L2"), skip=["0.3"])
    assert report.kept is None and "kept for backward" not in str(report)
    assert all(part.kept_bytes is None for part in (*report.entries, *report.blocks))

    x = torch.randn(4, 3, 16, 16)
    found = report.measure(model, lambda: model(x))
    assert report.kept is found and found.modules["0.3"] == report["0.3"].kept_bytes > 0
    assert sum(block.kept_bytes for block in report.blocks) == sum(found.blocks.values()) > 0
    assert report["1.conv1"].kept_bytes == 0  # its block keeps everything
    text = str(report)
    lines = {line.split()[0]: line.split() for line in reversed(text.splitlines()) if line}
    assert lines["0.3"] == ["0.3", "MaxPool2d", "left", "alone", "-", "-", f"{found.modules['0.3']:,}", "skipped"]
    assert text.splitlines()[-1].startswith(f"{found.total:,} bytes kept for backward: ")


def test_the_report_of_a_wrapper_and_of_another_model():
    wrapped = actnn.QModule(network(), Config("L2"))
    x = torch.randn(4, 3, 16, 16)
    found = wrapped.report.measure(wrapped.model, lambda: wrapped(x))
    assert found.total == sum(part.kept_bytes for part in (*wrapped.report.entries, *wrapped.report.blocks))
    for other in (wrapped, nn.Linear(2, 2)):
        with pytest.raises(ValueError, match="measure: model must be the one of the report, but it has no module '0'"):
            wrapped.report.measure(other, lambda: None)


def test_a_module_with_two_names():
    linear = nn.Linear(8, 8)
    model = nn.Sequential(linear, nn.Sequential(linear))
    report = convert(model, Config("L2"), blocks=False)
    x = torch.randn(4, 8)
    found = report.measure(model, lambda: model(x))
    assert [entry.kept_bytes for entry in report.entries] == [0, found.modules["0"], 0, 0]
