"""Datasets in folders that were changed, damaged, or lead out; and one out of the library's own cache."""

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import xxhash

from data_tools.errors import UserError
from data_tools.sources.hub import HubSource
from data_tools.sources.saved import Loaded
from tests.data_tools.hubs import arrows, made, opened, picture, saved

datasets = pytest.importorskip("datasets")
COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture(autouse=True)
def _home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_OFFLINE", True)
    datasets.disable_progress_bars()


def loaded(path: Path) -> Loaded:
    source = opened(path)
    assert isinstance(source, HubSource)
    return source.loaded


@pytest.mark.parametrize("kind", ["saved", "arrow"])
def test_a_shard_of_another_age_or_size_is_a_change(tmp_path: Path, kind: str) -> None:
    path = saved(tmp_path, made(4)) if kind == "saved" else arrows(tmp_path, 2, 3)
    first = loaded(path).marker
    shard = sorted(path.glob("*.arrow"))[0]
    times = shard.stat().st_mtime_ns
    os.utime(shard, ns=(times, times - 10**12))  # older than it was
    older = loaded(path).marker
    os.utime(shard, ns=(times, times))
    assert loaded(path).marker == first
    with shard.open("ab") as file:
        file.write(bytes(8))
    os.utime(shard, ns=(times, times))
    larger = loaded(path).marker
    assert len({first, older, larger}) == 3
    assert all(0 < marker < 2**63 for marker in (first, older, larger))


def cached(tmp_path: Path, folder: str) -> None:
    """As `datasets` keeps what it has loaded from the Hub."""
    into = tmp_path / "cache" / "me___it" / "default" / "0.0.0" / folder
    into.mkdir(parents=True)
    dataset = made(3)
    (file,) = saved(tmp_path, dataset).glob("*.arrow")
    shutil.copy(file, into / "it-train.arrow")
    splits = datasets.SplitDict({"train": datasets.SplitInfo("train", num_examples=3, dataset_name="it")})
    datasets.DatasetInfo(
        features=dataset.features,
        builder_name="parquet",
        dataset_name="it",
        config_name="default",
        version="0.0.0",
        splits=splits,
    ).write_to_directory(str(into))


@pytest.mark.parametrize(
    ("folder", "marker"), [(COMMIT, xxhash.xxh3_64_intdigest(COMMIT.encode()) >> 1), ("abc", 0)]
)
def test_offline_the_commit_in_the_cache_tells_of_changes_and_without_one_nothing_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, folder: str, marker: int
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    cached(tmp_path, folder)
    source = opened("hf:me/it")
    assert [sample.mtime_ns for sample in source] == [marker] * 3


def test_arrow_files_that_leave_the_folder_or_are_damaged_are_named_and_the_others_read(
    tmp_path: Path,
) -> None:
    path = arrows(tmp_path, 2, 3)
    shutil.move(path / "0.arrow", tmp_path / "out.arrow")
    (path / "0.arrow").symlink_to("../out.arrow")
    (path / "sub").mkdir()
    (path / "sub" / "x.arrow").write_bytes(b"damaged")
    source = opened(path)
    samples = list(source)
    assert source.count == len(samples) == 5
    assert source.read(samples[2]) == picture(2)
    assert {sample.key: sample.problem[:30] for sample in samples if sample.problem} == {
        "0.arrow": "symbolic link that leaves the ",
        "sub/x.arrow": "not an Arrow file that can be ",
    }


def test_a_saved_dataset_names_and_links_to_no_file_outside(tmp_path: Path) -> None:
    path = saved(tmp_path, made(3))
    (file,) = path.glob("*.arrow")
    shutil.move(file, tmp_path / "out.arrow")
    file.symlink_to("../out.arrow")
    with pytest.raises(UserError, match=r"arrow: symbolic link that leaves the folder; put the file itself"):
        opened(path)
    file.unlink()
    state = json.loads((path / "state.json").read_text())
    state["_data_files"] = [{"filename": "../out.arrow"}]
    (path / "state.json").write_text(json.dumps(state))
    with pytest.raises(UserError, match=r"names the file '\.\./out\.arrow', which leads out of the folder$"):
        opened(path)


def test_datasets_saved_side_by_side_ask_which(tmp_path: Path) -> None:
    saved(tmp_path / "a", made(2))
    with pytest.raises(UserError, match=rf"wanted --data {tmp_path}/a/data$"):
        opened(tmp_path)


@pytest.mark.parametrize(
    ("cells", "keys"), [([7, 5], ["7", "5"]), ([7, 7], ["row-00000000", "row-00000001"])]
)
def test_whole_numbers_that_differ_are_keys(tmp_path: Path, cells: list[int], keys: list[str]) -> None:
    assert [sample.key for sample in opened(saved(tmp_path, made(2, image_id=cells)))] == keys


def test_a_column_that_cannot_hold_captions_is_one_line(tmp_path: Path) -> None:
    cells: list[Any] = [{"en": "x"}, {"en": "y"}]
    with pytest.raises(UserError, match=r"^--caption-column: .*: alt is of type struct<en: string>, wanted"):
        opened(saved(tmp_path, made(2, alt=cells)), caption_columns=("alt",))
