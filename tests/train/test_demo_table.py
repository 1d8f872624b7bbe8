"""The demo's last lines are read from the runs themselves."""

import json

import pytest

from data_tools.cache import report
from tests.demo.speedup import Speedup
from tests.demo.table import figures, training_line
from tests.train import runs


def test_figures_are_those_of_the_runs(cache, finished, monkeypatch):
    speedups = {kind: Speedup(7, 0.1, 0.2) for kind in runs.KINDS}
    inspect = report.inspect

    def too_quick(*args):
        found = inspect(*args)
        found["columns"]["text"]["encode_samples_per_second"] = None
        return found

    monkeypatch.setattr(report, "inspect", too_quick)
    lines = figures(cache, finished["prior"], finished["decoder"], speedups).splitlines()
    (text,) = (line for line in lines if line.startswith("text"))
    assert "encoded" not in text
    for kind in runs.KINDS:
        (line,) = (line for line in lines if line.startswith(f"train-{kind}"))
        losses = list(runs.series(finished[kind], "validation_loss").values())
        assert f"validation loss {losses[0]:.3f} → {losses[-1]:.3f}" in line
        size = json.loads((finished[kind] / "run.json").read_text())["global_batch_size"]
        assert f"steps/s of {size}," in line
        assert size != 7
    assert any("2.0x (batch 7)" in line for line in lines)


def test_run_without_validation_has_a_line(cache, finished, tmp_path):
    bare = runs.train("prior", cache, tmp_path / "out", "--max-train-steps", "1")
    assert "validation" not in training_line("train-prior", bare)
    (bare / "metrics.jsonl").write_text("")
    assert training_line("train-prior", bare).endswith("no metrics")


@pytest.mark.parametrize("kind", runs.KINDS)
def test_speed_is_that_of_the_runs_own_batch(kind, finished):
    rates = sorted(
        line["samples_per_second"]
        for line in map(json.loads, (finished[kind] / "metrics.jsonl").read_text().splitlines())
        if "samples_per_second" in line
    )
    steps = float(training_line("train", finished[kind]).split()[1])
    assert rates[0] / 4 - 0.1 <= steps <= rates[-1] / 4 + 0.1
