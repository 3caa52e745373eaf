"""The programs that prove parity of blocks, at tiny sizes: many runs at once, replayed steps, quality of gradients."""

import contextlib
import dataclasses
import json
import sys

import pytest
import torch
from configurations import one_thread  # noqa: F401
from test_accuracy import BENCHMARKS, CPU, here

sys.path.insert(0, str(BENCHMARKS))

import gradient_quality
import images
import parity
import step_graph
import training
from gradient_quality import Quality
from options import SMOKE

pytestmark = pytest.mark.usefixtures("one_thread")

# --- parity.py --------------------------------------------------------------------------------------------------------


def run_parity(output, *arguments) -> int:
    return parity.main(["--smoke", "--device", "cpu", "--parallel", "2", "--output", str(output), *arguments])


def runs_of(output) -> list[tuple]:
    parts = json.loads(output.read_text())["parts"]
    return [(name, run["setting"], run["seed"]) for name, part in parts.items() for run in part["runs"]]


@pytest.fixture(scope="module")
def collected(tmp_path_factory):
    output = tmp_path_factory.mktemp("parity") / "parity.json"
    assert run_parity(output, "--parts", "hard", "--settings", "exact,blocks") == 0
    return output


def test_runs_are_collected_and_missing_ones_added(collected):
    assert runs_of(collected) == [("hard", "exact", 0), ("hard", "blocks", 0)]
    before = json.loads(collected.read_text())["parts"]["hard"]["runs"]
    assert run_parity(collected, "--parts", "hard", "--settings", "exact,blocks3", "--resume") == 0
    assert runs_of(collected) == [("hard", name, 0) for name in ("exact", "blocks", "blocks3")]
    record = json.loads(collected.read_text())
    assert record["parts"]["hard"]["runs"][:2] == before and not record["failures"]
    assert record["parts"]["hard"]["options"]["label_noise"] == 0.2
    assert len({run["order"] for run in record["parts"]["hard"]["runs"]}) == 1


def test_parity_tables_are_printed_from_the_results(collected, capsys):
    assert parity.main(["--table", str(collected)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == f"{parity.PARTS['hard'].text}:"
    assert lines[2].startswith("| setting | seeds | accuracy % (sd) | to exact (se) | train loss (sd) |")
    assert "| difference | seed 0 |" in lines


def test_nothing_starts_when_time_is_up(tmp_path, capsys):
    assert run_parity(tmp_path / "parity.json", "--until", "-1") == 0
    assert runs_of(tmp_path / "parity.json") == [] and "not started" in capsys.readouterr().out


def test_a_run_that_fails_is_told_and_the_others_go_on(monkeypatch, tmp_path):
    class Failing(parity.Runner):
        def __call__(self, job):
            raise RuntimeError("lost")

    monkeypatch.setattr(parity, "Runner", Failing)
    assert run_parity(tmp_path / "parity.json", "--parts", "hard") == 1
    failures = json.loads((tmp_path / "parity.json").read_text())["failures"]
    assert len(failures) == len(parity.PARTS["hard"].settings) and failures[0]["error"] == "lost"


def test_results_of_other_options_are_not_mixed():
    record = {"parts": {}}
    job = parity.Job("hard", "exact", 0)
    results = [{"options": {"steps": steps}, "images": {}, "runs": []} for steps in (1, 2)]
    parity.add_run(record, job, results[0])
    with pytest.raises(RuntimeError, match="other options"):
        parity.add_run(record, job, results[1])


def test_all_runs_of_a_seed_come_first():
    jobs = list(parity.jobs_of(list(parity.PARTS), None, range(5)))
    assert len(jobs) == 80 and [job.seed for job in jobs] == sorted(job.seed for job in jobs)


# --- replayed steps ---------------------------------------------------------------------------------------------------


@pytest.fixture
def pretended_graphs(monkeypatch):
    """Replays that call the function: what a CUDA graph would do, but for what it takes from the host."""

    def capture(function):
        result = torch.empty(())
        return lambda: result.copy_(function()), result

    monkeypatch.setattr(step_graph, "capture", capture)
    monkeypatch.setattr(step_graph, "side_stream", contextlib.nullcontext)


def course(setting: str, graph: bool) -> training.Run:
    options = dataclasses.replace(SMOKE, graph=graph, lr=0.02)  # so slow that a rounding does not grow with the steps
    run = training.Run(options, setting, 0, images.synthetic(512, 0, CPU), CPU)
    run.fit()
    return run


@pytest.mark.usefixtures("pretended_graphs")
@pytest.mark.parametrize("setting", ["exact", "L2", "blocks"])
def test_replayed_steps_train_as_others_do(setting):
    replayed, eager = course(setting, True), course(setting, False)
    assert replayed.replayed.calls == SMOKE.steps - 1 and len(replayed.trace) == 1
    assert replayed.order == eager.order and replayed.trace[0]["bytes"] == eager.trace[0]["bytes"]
    # The fused optimizer rounds otherwise.
    torch.testing.assert_close(torch.stack(replayed.losses), torch.stack(eager.losses), rtol=0, atol=0.005)
    assert replayed.optimizer.param_groups[0]["lr"].item() == pytest.approx(eager.optimizer.param_groups[0]["lr"])


@pytest.mark.usefixtures("pretended_graphs")
def test_settings_that_decide_on_the_host_are_not_replayed():
    assert course("L3", True).replayed is None
    capturable = {name for name, s in training.SETTINGS.items() if training.is_capturable(s.config and s.config())}
    assert capturable == {
        "exact",
        "L1",
        "L2",
        "fixed-2",
        "blocks",
        "blocks3",
        "blocks2.5",
        "blocks2",
        "results3",
        "stored",
    }


def test_a_step_that_batch_norms_did_not_count_is_an_error():
    run = course("exact", False)
    run.model[1].num_batches_tracked += 1
    with pytest.raises(RuntimeError, match=r"must have counted 12 steps, but counted .*1\.num_batches_tracked.: 13"):
        run.check_steps()


@pytest.mark.cuda
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("setting", ["exact", "L2", "blocks", "blocks2", "stored"])
def test_steps_are_replayed_on_a_gpu(setting, dtype):
    gpu = torch.device("cuda")
    options = dataclasses.replace(SMOKE, device="cuda", dtype=dtype, width=16, steps=60)
    losses = []
    for graph in (True, False):
        chosen = dataclasses.replace(options, graph=graph)
        run = training.Run(chosen, setting, 0, images.synthetic(512, 0, gpu), gpu)
        run.fit()
        losses.append(torch.stack(run.losses))
    torch.testing.assert_close(losses[0][:2], losses[1][:2], rtol=0.05, atol=0.05)
    assert all(loss[-10:].mean() < 1 < loss[0] for loss in losses)  # both have learned as much as there is


# --- gradient_quality.py ----------------------------------------------------------------------------------------------


def draws_of(exact, bias, spread, count):
    """With an error of a known norm, and a variance of a known size, relative to the exact gradient."""
    noise = torch.randn(count, exact.numel(), generator=torch.Generator().manual_seed(0))
    scale = exact.norm() / exact.numel() ** 0.5
    return exact * (1 + bias) + noise * scale * spread


def test_noise_and_bias_are_told_apart():
    exact = torch.randn(5000, generator=torch.Generator().manual_seed(1))
    fair, biased = (Quality.of(draws_of(exact, bias, 0.5, 200), exact) for bias in (0.0, 0.05))
    for quality in (fair, biased):
        assert quality.noise == pytest.approx(0.25, rel=0.02)
        assert quality.mean_error == pytest.approx(quality.bias + quality.noise / 200, rel=1e-6)
    assert abs(fair.projection - 1) < 4 * fair.projection_error and abs(fair.bias) < 4 * fair.bias_error
    assert biased.projection == pytest.approx(1.05, abs=4 * biased.projection_error)
    assert biased.bias == pytest.approx(0.05**2, rel=0.1) and biased.bias > 20 * fair.bias_error
    assert fair.cosine == pytest.approx(1 / 1.25**0.5, rel=0.01)


def test_the_error_of_the_bias_is_what_it_scatters_by():
    exact = torch.ones(300)
    draws = torch.randn(64, 20, 300, generator=torch.Generator().manual_seed(0)) + exact
    found = [Quality.of(part, exact) for part in draws]
    biases, errors = (torch.tensor([getattr(q, key) for q in found]) for key in ("bias", "bias_error"))
    assert errors.mean().item() == pytest.approx(biases.std().item(), rel=0.25)


@pytest.fixture(scope="module")
def quality(tmp_path_factory) -> tuple:
    output = tmp_path_factory.mktemp("quality") / "quality.json"
    plans = ("--bits", "2,4", "--output-bits", "3", "--draws", 24, "--noise-batches", 1, "--width", 8)
    here(gradient_quality, "--smoke", *plans, "--output", output)
    return output, json.loads(output.read_text())


def test_every_plan_has_a_row(quality):
    rows = quality[1]["rows"]
    assert [(row["dtype"], row["bits"], row["output_bits"], row["recompute"]) for row in rows] == [
        ("float32", None, None, None),
        ("bfloat16", None, None, None),
        *(("float32", bits, 3, recompute) for bits in (2, 4) for recompute in (True, False)),
    ]
    exact, rounded, two, _, four, stored = rows
    assert exact["cosine"] > 0.99999 and exact["noise"] < 1e-6 and exact["mean_error"] < 1e-6
    assert rounded["noise"] < 1e-6 < rounded["mean_error"]
    assert two["noise"] > 2 * four["noise"] > 0 and two["cosine"] < four["cosine"] < 1
    assert four["activation_bytes"] < stored["activation_bytes"] < exact["activation_bytes"]
    for row in rows[2:]:
        assert abs(row["projection"] - 1) < 5 * row["projection_error"]


def test_the_table_of_qualities_is_printed(quality, capsys):
    here(gradient_quality, "--table", quality[0])
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 2 + len(quality[1]["rows"]) and lines[0].startswith(
        "| dtype | bits | results | norms | recompute |"
    )
