"""Rejects of earlier runs: they stay until their files change, and are tried again when asked for."""

from collections import Counter
from pathlib import Path

import pytest

from data_tools.cache.manifest import Cache
from data_tools.cache.rejects import rejected
from data_tools.cache.store import LocalStore
from precompute.encoders import TextEncoder
from tests.precompute.command import files, precompute
from tests.precompute.edits import FP32, assert_as_fresh, copy, data, encoded, recaption, remove, snapshot

__all__ = ["copy", "data", "encoded"]  # fixtures
STAY = "samples stay rejected until their files change; --retry-rejects tries them again"


@pytest.fixture
def choosy(data: Path, pocket: Path, tmp_path: Path) -> Path:
    """A cache with 6 pictures rejected as too small, a broken one and one without a caption."""
    root = tmp_path / "choosy"
    printed = precompute(data, root, pocket, *FP32, "--min-size", "70")
    assert printed.endswith("24 samples found = 16 cached + 8 rejected\n")
    assert STAY not in printed
    return root


def test_rejects_stay_and_the_last_lines_say_so(choosy: Path, data: Path, pocket: Path) -> None:
    before = files(choosy)
    nothing, stay, count = precompute(data, choosy, pocket, *FP32).splitlines()
    assert nothing.startswith("nothing to do")
    assert stay == f"8 {STAY}"
    assert count == "24 samples found = 16 cached + 8 rejected"
    assert files(choosy) == before


def test_retried_samples_are_encoded_where_they_were_rejected_and_nowhere_else(
    choosy: Path, data: Path, pocket: Path, encoded: Counter[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(TextEncoder, "load", lambda _: pytest.fail("weights were loaded"))
        printed = precompute(data, choosy, pocket, *FP32, "--retry-rejects").splitlines()
    assert printed[0] == "the source has changed: 17 kept, 0 new, 0 changed, 0 removed, 7 tried again"
    # the broken picture is tried as well, and rejected; the silent one has nothing to try
    assert encoded == {"ImageEncoder": 6, "LatentsEncoder": 6}
    assert printed[-2:] == [f"1 {STAY}", "24 samples found = 22 cached + 2 rejected"]
    assert_as_fresh(choosy, data, pocket)
    again = precompute(data, choosy, pocket, *FP32)
    assert again.splitlines()[-2:] == [f"2 {STAY}", "24 samples found = 22 cached + 2 rejected"]


def test_dry_run_says_what_would_be_tried_again(choosy: Path, data: Path, pocket: Path) -> None:
    before = snapshot(choosy)
    printed = precompute(data, choosy, pocket, *FP32, "--retry-rejects", "--dry-run").splitlines()
    assert snapshot(choosy) == before
    rows = {line.split()[0]: line.split()[1:6] for line in printed if line.split()[:1] and line[0] in "itl"}
    assert rows["image"] == ["17", "0", "7", "0", "7"]  # kept, new, changed, removed, to encode
    assert rows["latents@64"] == ["17", "0", "7", "0", "7"]
    assert rows["text"] == ["24", "0", "0", "0", "0"]


def test_only_columns_that_are_asked_for_try_again_and_others_follow(
    data: Path, pocket: Path, tmp_path: Path, encoded: Counter[str]
) -> None:
    """A column that had the picture all the time takes its row over when it is asked for next."""
    root, image, latents = tmp_path / "cache", ("--columns", "image,text"), ("--columns", "latents@64")
    precompute(data, root, pocket, *FP32, *image)
    precompute(data, root, pocket, *FP32, *latents, "--min-size", "70")
    encoded.clear()
    assert "kept" not in precompute(data, root, pocket, *FP32, *image)
    precompute(data, root, pocket, *FP32, *latents, "--retry-rejects")
    assert encoded == {"LatentsEncoder": 6}
    precompute(data, root, pocket, *FP32, *image)
    assert encoded == {"LatentsEncoder": 6}
    assert_as_fresh(root, data, pocket)


def test_a_changed_reject_is_a_change_as_ever(choosy: Path, data: Path, pocket: Path) -> None:
    recaption(data, n07="another caption of the broken one")
    printed = precompute(data, choosy, pocket, *FP32, "--retry-rejects").splitlines()
    assert printed[0] == "the source has changed: 17 kept, 0 new, 1 changed, 0 removed, 6 tried again"
    assert_as_fresh(choosy, data, pocket)


def test_rejected_again_they_can_be_tried_a_third_time_but_not_by_the_other_ranks(
    choosy: Path, data: Path, pocket: Path
) -> None:
    """Two ranks would otherwise retire each other's rejects for ever."""
    cache = Cache(LocalStore(choosy))
    columns = [cache.column(name) for name in ("image", "text")]
    assert len(rejected(cache, columns)) == len(rejected(cache, columns, untried=True)) == 8
    precompute(data, choosy, pocket, *FP32, "--min-size", "68", "--retry-rejects")
    found = rejected(cache, columns)
    live = {part.name: part for part in cache.plan()}
    newest = max(live)
    assert {key for part, key in found if part == newest} >= {"07.png"}
    assert not [part for part, _ in rejected(cache, columns, untried=True) if part == newest]
    precompute(data, choosy, pocket, *FP32, "--retry-rejects")
    assert_as_fresh(choosy, data, pocket)


def test_without_a_cache_or_rejects_the_flag_changes_nothing(
    data: Path, pocket: Path, tmp_path: Path
) -> None:
    (data / "07.png").unlink()
    root, two = tmp_path / "cache", ("--columns", "image,latents@64", "--retry-rejects")
    printed = precompute(data, root, pocket, *FP32, *two)
    assert printed.endswith("24 samples found = 23 cached + 1 rejected\n")
    before = files(root)
    printed = precompute(data, root, pocket, *FP32, *two)
    assert printed.startswith("nothing to do")
    assert files(root) == before


def test_rejects_of_a_part_that_is_gone_are_none(choosy: Path, data: Path, pocket: Path) -> None:
    remove(data, *range(7))
    precompute(data, choosy, pocket, *FP32)
    cache = Cache(LocalStore(choosy))
    for untried in (False, True):
        found = rejected(cache, [cache.column("image")], untried=untried)
        assert {part for part, _ in found} == {"part-00001", "part-00002", "part-00003"}
