"""`precompute --status`: of caches that are whole, half done, not begun, and while runs are under way."""

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
from click.testing import CliRunner

from data_tools import console
from data_tools.cache.manifest import Cache
from data_tools.cache.status import duration, status
from data_tools.cache.store import open_store
from precompute import cli
from tests.precompute.command import precompute
from tests.s3 import S3Server

ROOT = Path(__file__).parents[2]
HOUR = 3600


def ask(cache: Path | str, *flags: str) -> str:
    command = ["--status", "--cache", str(cache), *flags]
    return CliRunner().invoke(cli.precompute, command, standalone_mode=False, catch_exceptions=False).stdout


def set_times(cache: Path, column: str, seconds_ago: list[float]) -> None:
    """When the parts of a column were committed; later ones, and the generations, are withdrawn."""
    records = sorted(cache.glob(f"columns/{column}/*/commits/part-*.json"))
    now = time.time()
    for record, ago in zip(records, seconds_ago):
        os.utime(record, (now - ago, now - ago))
    for record in records[len(seconds_ago) :]:
        record.unlink()
    for folder in cache.glob(f"columns/{column}/*/generations"):
        shutil.rmtree(folder)


@pytest.fixture
def half(cache: Path, tmp_path: Path) -> Path:
    """image whole, text at 7, 14 and 21 of 24 samples, latents not begun."""
    copy = Path(shutil.copytree(cache, tmp_path / "half"))
    set_times(copy, "image", [50, 40, 30, 20])
    set_times(copy, "text", [24, 14, 4])
    shutil.rmtree(copy / "columns" / "latents@64")
    return copy


def test_of_a_whole_cache(cache: Path) -> None:
    lines = ask(cache).splitlines()
    assert [line.split()[0] for line in lines[1:-1]] == ["image", "latents@64", "text"]
    assert lines[1].split()[1:] == ["4", "of", "4", "24", "of", "24", "1", "complete"]
    assert lines[-1] == "complete: 24 samples in 4 parts"
    found = json.loads(ask(cache, "--json"))
    assert (found["complete"], found["eta_seconds"]) == (True, None)
    assert [found["columns"][name]["rejects"] for name in ("image", "latents@64", "text")] == [1, 1, 1]


def test_rate_and_time_left_come_from_the_times_of_the_commits(half: Path) -> None:
    found = json.loads(ask(half, "--json"))
    assert (found["complete"], found["samples"], found["parts"]) == (False, 24, 4)
    text = found["columns"]["text"]
    assert (text["parts"], text["samples"], text["complete"]) == (3, 21, False)
    assert text["samples_per_second"] == pytest.approx(14 / 20, rel=0.01)  # of two parts, after the first
    assert text["window_seconds"] == pytest.approx(20, abs=0.1)
    assert text["eta_seconds"] == pytest.approx(3 / 0.7, rel=0.02)
    assert found["eta_seconds"] == text["eta_seconds"]
    assert found["columns"]["image"]["complete"] is True
    line = ask(half).splitlines()[-1]
    assert line.startswith("4 s left at the rate of the 20 s before the last commit, which was ")


def test_rejects_are_counted_in_parts_that_no_generation_covers(half: Path) -> None:
    assert not list(half.glob("columns/*/*/generations"))
    found = status(Cache.open(open_store(half)))
    assert [found["columns"][name]["rejects"] for name in ("image", "text")] == [1, 1]


def test_a_run_that_has_stopped_is_not_given_a_time_left(half: Path) -> None:
    set_times(half, "text", [5 * HOUR + 20, 5 * HOUR + 10, 5 * HOUR])
    line = ask(half).splitlines()[-1]
    assert line == "last commit 5 h 0 min ago: nothing seems to be at work; the same command goes on"
    assert json.loads(ask(half, "--json"))["eta_seconds"] is None


def test_a_rate_is_of_the_last_minutes_where_there_are_enough_commits(
    cache: Path, pictures: Path, pocket: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "cache"
    precompute(pictures, folder, pocket, "--columns", "image", "--part-size", "1")
    slow, fast = [9 * HOUR - 600 * n for n in range(8)], [15 - n for n in range(15)]
    set_times(folder, "image", [*slow, *fast])
    found = status(Cache.open(open_store(folder)))["columns"]["image"]
    assert found["samples_per_second"] == pytest.approx(1)
    assert found["window_seconds"] == pytest.approx(14, abs=0.1)
    set_times(folder, "image", [*slow, *fast[:3]])
    found = status(Cache.open(open_store(folder)))["columns"]["image"]
    assert found["window_seconds"] == pytest.approx(8 * HOUR + 587, abs=7 * HOUR)
    assert found["samples_per_second"] == pytest.approx(8 / found["window_seconds"], abs=1e-3)


def test_of_a_cache_that_is_only_planned(cache: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(cache, tmp_path / "planned"))
    shutil.rmtree(copy / "columns")
    assert ask(copy).splitlines()[-1] == "nothing is committed yet"
    assert json.loads(ask(copy, "--json"))["complete"] is False


def test_a_column_made_anew_is_shown_beside_the_old_one(
    cache: Path, pictures: Path, pocket: Path, tmp_path: Path
) -> None:
    copy = Path(shutil.copytree(cache, tmp_path / "copy"))
    precompute(pictures, copy, pocket, "--columns", "image", "--dtype", "bf16", "--redo", "image")
    assert status(Cache.open(open_store(copy)))["columns"].keys() == {"image", "latents@64", "text"}
    before = (cache / "columns/image/column.json").read_bytes()
    (copy / "columns/image/column.json").write_bytes(before)  # as it is up to the last step
    found = status(Cache.open(open_store(copy)))["columns"]
    assert [found[name]["parts"] for name in ("image", "image (redo)")] == [4, 4]
    assert found["image"]["last_commit"] < found["image (redo)"]["last_commit"]


def test_retired_samples_are_not_among_the_rejects(
    cache: Path, pictures: Path, pocket: Path, tmp_path: Path
) -> None:
    copy = Path(shutil.copytree(cache, tmp_path / "copy"))
    data = Path(shutil.copytree(pictures, tmp_path / "data"))
    (data / "07.png").unlink()  # the broken one
    lines = (data / "metadata.jsonl").read_text("utf-8").splitlines(keepends=True)
    (data / "metadata.jsonl").write_text("".join(line for line in lines if "07.png" not in line), "utf-8")
    precompute(data, copy, pocket, "--dtype", "fp32")
    found = status(Cache.open(open_store(copy)))
    assert found["samples"] == 23
    assert {name: column["rejects"] for name, column in found["columns"].items()} == {
        "image": 0,
        "latents@64": 0,
        "text": 1,
    }


def test_on_an_object_store(cache: Path, s3: S3Server) -> None:
    place = s3.place()
    store, local = open_store(place), open_store(cache)
    for listed in local.listed():
        if not listed.name.endswith("/"):
            store.put(listed.name, [local.read(listed.name)])
    found = json.loads(ask(place, "--json"))
    assert found["complete"] is True
    assert [found["columns"][name]["rejects"] for name in ("image", "latents@64", "text")] == [1, 1, 1]


@pytest.mark.parametrize(
    ("flags", "line"),
    [
        (["--status"], "--cache: {place} is not a cache (it has no cache.json)"),
        ([], "--data: missing"),
    ],
)
def test_what_is_missing_is_named(
    flags: list[str],
    line: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(sys, "argv", ["precompute", *flags, "--cache", str(tmp_path)])
    with pytest.raises(SystemExit) as stopped:
        console.run(cli.precompute)
    out, err = capsys.readouterr()
    assert (stopped.value.code, out, err.count("\n")) == (2, "", 1)
    assert err.startswith(line.format(place=tmp_path))


def test_it_needs_no_torch_and_no_models(cache: Path) -> None:
    code = (
        "import sys; from precompute import cli\n"
        "try: cli.main()\n"
        "except SystemExit as end: assert not end.code\n"
        "print(sorted({'torch', 'transformers', 'diffusers'} & sys.modules.keys()))"
    )
    words = [sys.executable, "-c", code, "--status", "--cache", str(cache)]
    done = subprocess.run(words, cwd=ROOT, text=True, capture_output=True, timeout=60)
    assert done.stdout.splitlines()[-1] == "[]", done.stderr
    assert "complete: 24 samples" in done.stdout


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(45, "45 s"), (600, "10 min"), (3 * HOUR + 1200, "3 h 20 min"), (124 * HOUR, "5 d 4 h")],
)
def test_durations_are_readable(seconds: float, text: str) -> None:
    assert duration(seconds) == text
