"""A run end to end: complete, resumable, and bit-equal however it came about."""

import shutil
from collections.abc import Callable
from pathlib import Path

import click
import numpy as np
import pytest
import torch

from data_tools.cache import check
from data_tools.cache.manifest import Cache
from data_tools.cache.reader import CacheReader
from data_tools.cache.store import open_store
from data_tools.sources import ImageFolder
from precompute import encoders, worker
from precompute.encoders import ImageEncoder, LatentsEncoder, Rows
from tests.precompute.command import (
    COLUMNS,
    assert_same_records,
    files,
    inspect,
    precompute,
    records,
)
from tests.precompute.pictures import BROKEN, COUNT, SILENT, write_pictures

KILLED = "killed here"


@pytest.fixture
def copy(cache: Path, tmp_path: Path, pocket: Path) -> Path:
    """The session's cache, to be changed."""
    return Path(shutil.copytree(cache, tmp_path / "cache"))


def counted(function: Callable, limit: int) -> Callable:
    """`function`, interrupted at call number `limit`."""
    calls = iter(range(limit - 1))

    def wrapped(*args):
        if next(calls, None) is None:
            raise KeyboardInterrupt(KILLED)
        return function(*args)

    return wrapped


def test_cached_and_rejected_are_all_that_was_found(cache: Path) -> None:
    found = inspect(cache)
    assert (found["samples"], found["cached"], found["rejects"]) == (COUNT, COUNT - 2, 2)
    assert found["complete"] is True
    reasons = {reject["key"]: reject["reason"] for reject in found["rejected"]}
    assert reasons[SILENT] == "no caption"
    assert reasons[BROKEN].startswith("broken picture")
    assert CacheReader(cache, list(COLUMNS)).num_samples == COUNT - 2


def test_the_last_line_counts_and_truncated_captions_are_counted(
    pictures: Path, pocket: Path, tmp_path: Path
) -> None:
    lines = precompute(pictures, tmp_path / "cache", pocket).splitlines()
    assert lines[-1] == "24 samples found = 22 cached + 2 rejected"
    assert "1 captions were longer than the tokenizer takes and were truncated" in lines


def test_half_precision_stores_the_rounded_rows(cache: Path, cache16: Path) -> None:
    wide, narrow = records(cache), records(cache16)
    for name, value in wide.items():
        expected = value.astype(np.float16) if value.dtype == np.float32 else value
        assert np.array_equal(expected, narrow[name]), name


def test_no_file_says_where_it_was_made(cache: Path, pocket: Path, pictures: Path) -> None:
    for name, data in files(cache).items():
        for place in (cache, pocket, pictures):
            assert str(place).encode() not in data, name
        assert str(cache.parents[1]).encode() not in data, name
        assert cache.parents[1].name.encode() not in data, name


def test_running_again_does_nothing_and_loads_no_weights(
    copy: Path, pictures: Path, pocket: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(encoders, "load", lambda *_: pytest.fail("weights were loaded"))
    before = files(copy)
    printed = precompute(pictures, copy, pocket, "--dtype", "fp32")
    assert printed.splitlines()[0] == "nothing to do: every part is committed"
    assert files(copy) == before


@pytest.mark.parametrize("pictures_read", [5, 25, 32, 44])  # the first 24 reads are the plan's
def test_a_run_interrupted_at_a_picture_is_finished_by_the_same_command(
    pictures_read: int,
    cache: Path,
    pictures: Path,
    pocket: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(ImageFolder, "read", counted(ImageFolder.read, pictures_read))
        with pytest.raises(click.Abort):
            precompute(pictures, tmp_path / "cache", pocket, "--dtype", "fp32")
    if pictures_read > 24:
        assert inspect(tmp_path / "cache")["complete"] is False
    precompute(pictures, tmp_path / "cache", pocket, "--dtype", "fp32")
    assert_same_records(records(tmp_path / "cache"), records(cache))


@pytest.mark.parametrize("encoder", [ImageEncoder, LatentsEncoder])
def test_a_run_interrupted_in_an_encoder_is_finished_by_the_same_command(
    encoder: type, cache: Path, pictures: Path, pocket: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(encoder, "start", counted(encoder.start, 4))
        with pytest.raises(click.Abort):
            precompute(pictures, tmp_path / "cache", pocket, "--dtype", "fp32")
    precompute(pictures, tmp_path / "cache", pocket, "--dtype", "fp32")
    assert_same_records(records(tmp_path / "cache"), records(cache))


def test_a_run_publishes_what_it_has_committed_while_it_goes_on(
    cache: Path, pictures: Path, pocket: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(worker, "PUBLISHED", 1)
    precompute(pictures, tmp_path / "cache", pocket, "--dtype", "fp32")
    for name in COLUMNS:
        assert len(list(tmp_path.glob(f"cache/columns/{name}/*/generations/*.npz"))) >= 3
    assert_same_records(records(tmp_path / "cache"), records(cache))
    found, wanted = inspect(tmp_path / "cache"), inspect(cache)
    for name in COLUMNS:
        for key in ("encode_samples_per_second", "stored_bytes"):
            del found["columns"][name][key], wanted["columns"][name][key]
    assert found == wanted


def test_a_column_added_later_leaves_the_others_as_they_are(
    cache: Path, pictures: Path, pocket: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "cache"
    precompute(pictures, folder, pocket, "--dtype", "fp32", "--columns", "image,text")
    before = files(folder)
    precompute(pictures, folder, pocket, "--dtype", "fp32", "--columns", "latents@64")
    after = files(folder)
    assert {name: after[name] for name in before} == before
    assert all(name.startswith("columns/latents@64/") for name in after.keys() - before.keys())
    assert_same_records(records(folder), records(cache))


def test_a_captions_change_needs_no_picture(pictures: Path, pocket: Path, tmp_path: Path) -> None:
    """The text column alone: no picture is read, so a broken one is no reject of it."""
    precompute(pictures, tmp_path / "cache", pocket, "--columns", "text")
    found = inspect(tmp_path / "cache")
    assert (found["cached"], found["reject_reasons"]) == (COUNT - 1, {"no caption": 1})


def test_nan_from_an_encoder_is_rejected_and_never_stored(
    pictures: Path, pocket: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A real NaN in a real weight; null conditions are taken before it gets there."""
    start, calls = ImageEncoder.start, []

    def spoiled(self: ImageEncoder, pixels: list[np.ndarray]) -> Rows:
        calls.append(1)
        if len(calls) == 2:
            with torch.inference_mode():
                self.model.visual_projection.weight[0, 0] = float("nan")
        return start(self, pixels)

    monkeypatch.setattr(ImageEncoder, "start", spoiled)
    printed = precompute(pictures, tmp_path / "cache", pocket, "--dtype", "fp32")
    found = inspect(tmp_path / "cache")
    assert found["reject_reasons"]["image_embeds: NaN or infinity"] > 5
    assert 0 < found["cached"] < COUNT - 2
    assert found["cached"] + found["rejects"] == found["samples"] == COUNT
    assert printed.endswith(f"= {found['cached']} cached + {found['rejects']} rejected\n")
    stored = records(tmp_path / "cache")
    assert np.isfinite(stored["image: image_embeds"]).all()


@pytest.mark.parametrize("column", COLUMNS)
def test_repair_redoes_exactly_the_damaged_part(
    column: str, copy: Path, cache: Path, pictures: Path, pocket: Path
) -> None:
    (index,) = copy.glob(f"columns/{column}/*/parts/part-00002-*.npz")
    shards = index.with_suffix(".zarr").glob("[!rs]*/c/**/0")
    shard = min(path for path in shards if path.is_file())
    data = bytearray(shard.read_bytes())
    data[9] ^= 4
    shard.write_bytes(data)
    before = files(copy)
    printed = precompute(pictures, copy, pocket, "--dtype", "fp32", "--repair")
    assert f"{column}, part-00002 is damaged" in printed
    after = files(copy)
    changed = {name for name in before if after.get(name) != before[name]}
    (commit,) = changed
    assert commit.startswith(f"columns/{column}/")
    assert commit.endswith("commits/part-00002.json")
    assert_same_records(records(copy), records(cache))


@pytest.mark.parametrize("part", ["part-00001", "null"])
def test_repair_redoes_a_part_whose_commit_record_is_damaged(
    part: str, copy: Path, cache: Path, pictures: Path, pocket: Path
) -> None:
    (commit,) = copy.glob(f"columns/text/*/commits/{part}.json")
    commit.write_bytes(b"")
    printed = precompute(pictures, copy, pocket, "--dtype", "fp32", "--repair")
    assert f"text, {part} is damaged" in printed
    assert_same_records(records(copy), records(cache))


def latest_generation(root: Path, column: str) -> Path:
    return max(root.glob(f"columns/{column}/*/generations/*.npz"))


def test_a_part_whose_record_was_deleted_is_made_again_and_the_next_generation_says_so(
    copy: Path, cache: Path, pictures: Path, pocket: Path
) -> None:
    next(copy.glob("columns/text/*/commits/part-00001.json")).unlink()
    precompute(pictures, copy, pocket, "--dtype", "fp32")
    assert check.verify(Cache.open(open_store(copy))).faults == []
    assert_same_records(records(copy), records(cache))


def test_repair_mends_a_generation(copy: Path, cache: Path, pictures: Path, pocket: Path) -> None:
    """One that is damaged, and one that a repair which was killed has left behind."""
    (path,) = copy.glob("columns/text/*/commits/part-00001.json")
    old = latest_generation(copy, "text").read_bytes()
    path.unlink()
    precompute(pictures, copy, pocket, "--dtype", "fp32")
    latest_generation(copy, "text").write_bytes(old)
    latest_generation(copy, "image").write_bytes(b"x" * 100)
    assert len(check.verify(Cache.open(open_store(copy))).faults) == 2
    precompute(pictures, copy, pocket, "--dtype", "fp32", "--repair")
    assert check.verify(Cache.open(open_store(copy))).faults == []
    assert_same_records(records(copy), records(cache))


def test_repair_of_a_whole_cache_changes_nothing(copy: Path, pictures: Path, pocket: Path) -> None:
    before = files(copy)
    precompute(pictures, copy, pocket, "--dtype", "fp32", "--repair")
    assert files(copy) == before


def test_dry_run_writes_nothing_and_says_what_it_would_do(
    copy: Path, pictures: Path, pocket: Path, tmp_path: Path
) -> None:
    printed = precompute(pictures, tmp_path / "other", pocket, "--dry-run")
    assert not (tmp_path / "other").exists()
    assert printed.startswith("24 samples and 35 captions in 4 parts\n")
    assert printed.endswith("nothing was written (--dry-run)\n")
    rows = {line.split()[0]: line.split() for line in printed.splitlines() if "image" in line or "@" in line}
    assert rows["image"][1:8] == ["0", "24", "0", "0", "24", "3.1", "KB"]  # kept new changed removed
    assert float(rows["image"][-1]) == pytest.approx(24 * 0.399e-3, rel=0.02)  # tests/pocket/models.py
    assert float(rows["latents@64"][-1]) == pytest.approx(24 * 1.077e-3 / 4, rel=0.05)
    before = files(copy)
    printed = precompute(pictures, copy, pocket, "--dtype", "fp32", "-n")
    assert "latents@64" in printed
    assert files(copy) == before


def test_all_pictures_of_a_part_may_be_unusable(pocket: Path, tmp_path: Path) -> None:
    write_pictures(tmp_path / "data", 6)
    for name in ("03.jpg", "04.png", "05.jpg"):
        (tmp_path / "data" / name).write_bytes(b"")
    printed = precompute(tmp_path / "data", tmp_path / "cache", pocket, "--part-size", "3")
    assert printed.endswith("6 samples found = 3 cached + 3 rejected\n")
    assert CacheReader(tmp_path / "cache", list(COLUMNS)).num_samples == 3
