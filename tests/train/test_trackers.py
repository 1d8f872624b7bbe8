"""--report-to: TensorBoard has what metrics.jsonl has; what is missing is said before training."""

import importlib.util

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from tests.train import runs

FLAGS = ("--report-to", "tensorboard", "--validation-fraction", "0.3", "--validation-steps", "2")


def scalars(folder):
    """Tag → step → value, over all event files of a run."""
    events = EventAccumulator(str(folder))
    events.Reload()
    return {tag: {e.step: e.value for e in events.Scalars(tag)} for tag in events.Tags()["scalars"]}


@pytest.mark.parametrize("kind", runs.KINDS)
def test_tensorboard_has_the_numbers_of_metrics_jsonl(kind, cache, tmp_path):
    output = runs.train(kind, cache, tmp_path / "out", *FLAGS, "--max-train-steps", "4")
    found = scalars(output / "logs" / "text2image-fine-tune")
    for key in ("loss", "lr", "grad_norm", "validation_loss"):
        assert found[key] == pytest.approx(runs.series(output, key), rel=1e-6)
    assert {"samples_per_second", "data_wait", "memory_gib"} <= found.keys()


def test_resumed_run_draws_one_line(cache, tmp_path):
    output = tmp_path / "out"
    for steps in ("2", "4"):
        runs.train("prior", cache, output, *FLAGS, "--max-train-steps", steps)
    found = scalars(output / "logs" / "text2image-fine-tune")
    assert found["loss"] == pytest.approx(runs.series(output, "loss"), rel=1e-6)


def test_log_folder_and_project_are_where_they_were_asked_for(cache, tmp_path):
    there = tmp_path / "elsewhere"
    flags = ("--report-to", "all", "--logging-dir", there, "--tracker-project-name", "ninjas")
    output = runs.train("prior", cache, tmp_path / "out", *flags, "--max-train-steps", "1")
    assert scalars(there / "ninjas")["loss"] == pytest.approx(runs.series(output, "loss"))
    assert not (output / "logs").exists()


def test_none_writes_none(cache, tmp_path):
    output = runs.train("prior", cache, tmp_path / "out", "--report-to", "none")
    assert not (output / "logs").exists()


@pytest.mark.skipif(bool(importlib.util.find_spec("comet_ml")), reason="comet_ml is installed")
def test_tracker_that_is_not_installed_is_said_before_anything_is_written(cache, tmp_path):
    ended = runs.program("prior", *runs.arguments(cache, tmp_path / "out", "--report-to", "comet_ml"))
    assert (ended.code, ended.lines) == (
        2,
        ["--report-to: comet_ml needs the library comet-ml: pip install comet-ml"],
    )
    assert not (tmp_path / "out").exists()


def test_dry_run_writes_no_logs(cache, tmp_path):
    ended = runs.program("prior", *runs.arguments(cache, tmp_path / "out", *FLAGS, "--dry-run"))
    assert ended.code == 0
    assert not (tmp_path / "out").exists()
