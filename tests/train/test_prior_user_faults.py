"""What goes wrong around a run that was well begun: one line, nothing lost, and the same command goes on."""

import os
import shutil
import subprocess

import pytest

from tests.train import runs
from train.checkpoint import checkpoints
from train.loop import Run

SIZE = 24 << 20
"Bytes of the disk: two checkpoints of the pocket prior and its pipeline are 16 MB."
FLAGS = ("--train-batch-size", "4", "--checkpointing-steps", "2", "--cond-dropout", "0.2")


def mount(options, place):
    try:
        done = subprocess.run(["mount", *options, str(place)], capture_output=True, text=True)
    except FileNotFoundError:
        pytest.skip("no program `mount`: no disk of its own")
    if done.returncode:
        pytest.skip(f"mounting is not allowed here: {done.stderr.strip()}")


@pytest.fixture
def disk(tmp_path):
    """A small one."""
    place = tmp_path / "disk"
    place.mkdir()
    mount(["-t", "tmpfs", "-o", f"size={SIZE}", "tmpfs"], place)
    yield place
    subprocess.run(["umount", "--lazy", str(place)], check=True)


def ends(cache, output, steps, *flags):
    """A run up to so many steps: exit code and lines."""
    ended = runs.program("prior", *runs.arguments(cache, output, *FLAGS, "--max-train-steps", steps, *flags))
    return ended.code, ended.lines


@pytest.fixture(scope="module")
def whole(cache, tmp_path_factory):
    """The metrics of a run of four steps that nothing happened to."""
    output = tmp_path_factory.mktemp("whole") / "out"
    return runs.metrics(runs.train("prior", cache, output, *FLAGS, "--max-train-steps", "4"))


@pytest.mark.parametrize("left", [0, 1 << 20, 3 << 20])
def test_disk_that_fills_up_costs_no_checkpoint_and_the_run_goes_on_when_there_is_room(
    left, cache, disk, whole
):
    """So that the metrics, the weights or the optimizer do not fit."""
    output = disk / "out"
    assert ends(cache, output, 2)[0] == 0
    free = os.statvfs(disk).f_bavail * os.statvfs(disk).f_frsize
    (disk / "filler").write_bytes(bytes(free - left))
    code, lines = ends(cache, output, 4)
    assert code == 1
    named = "run.json" if left == 0 else "checkpoint-4"
    assert lines[-1].startswith(f"{output / named}: cannot be written: ")
    assert "No space left on device" in lines[-1]
    assert [path.name for path in checkpoints(output)] == ["checkpoint-2"]
    assert not list(output.glob(".tmp-checkpoint*"))
    (disk / "filler").unlink()
    code, lines = ends(cache, output, 4)
    assert code == 0
    assert any(line == f"resuming from {output / 'checkpoint-2'}" for line in lines)
    assert runs.metrics(output) == whole


def test_read_only_output_folder_is_one_line_before_anything_is_trained(cache, disk, monkeypatch):
    assert ends(cache, disk / "begun", 2)[0] == 0
    before = {path: path.read_bytes() for path in disk.rglob("*") if path.is_file()}
    mount(["-o", "remount,ro"], disk)
    monkeypatch.setattr(Run, "train", None)
    for output in (disk / "begun", disk / "new" / "deeper"):
        code, lines = ends(cache, output, 4)
        assert code in (1, 2)
        assert lines[-1].startswith(f"{output / 'run.json'}: cannot be written: Read-only file system")
    assert {path: path.read_bytes() for path in disk.rglob("*") if path.is_file()} == before


def test_output_folder_inside_a_file_is_one_line(cache, tmp_path):
    (tmp_path / "notes").write_text("mine")
    code, lines = ends(cache, tmp_path / "notes" / "out", 2)
    assert code in (1, 2)
    assert len(lines) == 1
    assert str(tmp_path / "notes") in lines[0]
    assert (tmp_path / "notes").read_text() == "mine"


# `precompute --repair`, which the line recommends, would not help; the place is named all the same
def test_cache_that_vanishes_during_training_is_one_line_and_the_run_goes_on_when_it_is_back(
    cache, pocket, tmp_path, monkeypatch, whole
):
    """The first record is read after it is gone; what has been opened before can still be read."""
    there, away, output = tmp_path / "cache", tmp_path / "away", tmp_path / "out"
    shutil.copytree(cache, there)
    model = ("--prior-model", pocket / "prior")
    assert ends(there, output, 2, *model)[0] == 0
    train = Run.train

    def unmounted(*arguments):
        there.rename(away)
        train(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(Run, "train", unmounted)
        code, lines = ends(there, output, 4, *model)
    assert code in (1, 2)
    assert lines[-1].startswith(f"--cache: {there}: ")
    assert [path.name for path in checkpoints(output)] == ["checkpoint-2"]
    away.rename(there)
    assert ends(there, output, 4, *model)[0] == 0
    assert runs.metrics(output) == whole


def test_cache_that_was_already_read_may_vanish(cache, pocket, tmp_path, monkeypatch, whole):
    """In memory, by --preload."""
    there, output = shutil.copytree(cache, tmp_path / "cache"), tmp_path / "out"
    train = Run.train

    def unmounted(*arguments):
        shutil.rmtree(there)
        train(*arguments)

    monkeypatch.setattr(Run, "train", unmounted)
    code, lines = ends(there, output, 4, "--prior-model", pocket / "prior", "--preload", "ram")
    assert code == 0, lines
    assert runs.metrics(output) == whole
