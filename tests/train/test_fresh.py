"""--fresh begins again beside what is there; --validation-epochs counts in epochs."""

import pytest

from tests.train import runs


def test_fresh_run_leaves_the_old_one_alone(cache, tmp_path):
    output = tmp_path / "out"
    flags = ("--fresh", "--max-train-steps", "2")
    runs.train("prior", cache, output, *flags)
    before = {path: path.read_bytes() for path in output.rglob("*") if path.is_file()}
    runs.train("prior", cache, output, *flags, "--seed", "1")
    runs.train("prior", cache, output, *flags)
    assert {path.name for path in tmp_path.iterdir()} == {"out", "out-2", "out-3"}
    assert {path: path.read_bytes() for path in output.rglob("*") if path.is_file()} == before
    losses = [runs.series(tmp_path / name, "loss") for name in ("out", "out-2", "out-3")]
    assert losses[0] == losses[2] != losses[1]


def test_same_command_without_it_resumes(cache, tmp_path):
    output = tmp_path / "out"
    runs.train("prior", cache, output, "--fresh", "--max-train-steps", "2")
    runs.train("prior", cache, output, "--max-train-steps", "4")
    assert list(runs.series(output, "loss")) == [1, 2, 3, 4]
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


@pytest.mark.parametrize(("epochs", "steps"), [(1, {0, 4, 8, 10}), (2, {0, 8, 10})])
def test_validation_epochs_are_passes_over_the_samples(epochs, steps, cache, tmp_path):
    flags = ("--validation-fraction", "0.3", "--validation-epochs", epochs, "--max-train-steps", "10")
    output = runs.train("prior", cache, tmp_path / "out", *flags)
    assert runs.series(output, "validation_loss").keys() == steps


def test_fresh_in_the_folder_itself_goes_beside_it(cache, tmp_path, monkeypatch):
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    for _ in range(2):
        runs.train("prior", cache, ".", "--fresh", "--max-train-steps", "1")
    assert {path.name for path in tmp_path.iterdir()} == {"here", "here-2"}
