"""What names a dataset, and one line for what cannot be had."""

from pathlib import Path
from typing import Any

import pytest

from data_tools.errors import UserError
from data_tools.sources.hub import load, parsed
from tests.data_tools.hubs import opened

datasets = pytest.importorskip("datasets")


@pytest.fixture(autouse=True)
def _home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_OFFLINE", True)
    datasets.disable_progress_bars()


@pytest.mark.parametrize(
    ("data", "name", "words"),
    [
        ("hf:squad", "squad", []),
        ("hf:me/my-set.v2", "me/my-set.v2", []),
        ("hf:me/it:train", "me/it", ["train"]),
        ("hf:me/it:conf:train[:10%]", None, None),
        ("hf:me/it:conf:train", "me/it", ["conf", "train"]),
        ("hf:me/it::train", "me/it", ["", "train"]),
        ("hf:", None, None),
        ("hf:../x", None, None),
        ("hf:a/b/c", None, None),
        ("hf:me/it:a:b:c", None, None),
    ],
)
def test_names_on_the_hub(data: str, name: str | None, words: list[str] | None) -> None:
    if name is None:
        with pytest.raises(UserError, match="wanted hf:NAME, hf:NAME:SPLIT"):
            parsed(data)
    else:
        assert parsed(data) == (name, words)


def test_a_dataset_that_cannot_be_had_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(UserError, match=r"^--data: hf:no/such: cannot be read: .*'no/such'") as failure:
        opened("hf:no/such")
    assert "\n" not in str(failure.value)


def test_code_of_a_dataset_is_refused_where_the_library_would_run_it() -> None:
    class Old:
        """A library that still asks."""

        @staticmethod
        def load_dataset(name: str, config: str | None, *, trust_remote_code: bool | None = None) -> Any:
            return trust_remote_code

    assert load(Old, "x", None) is False


@pytest.mark.parametrize("name", ["data-0.arrow", "state.json"])
def test_a_damaged_folder_is_one_line(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"damaged")
    with pytest.raises(UserError, match=r"^--data: .*: cannot be read: ") as failure:
        opened(tmp_path)
    assert "\n" not in str(failure.value)


def test_a_folder_of_both_kinds_or_of_none_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="found neither Arrow nor Parquet files nor what"):
        opened(tmp_path)
    (tmp_path / "a.arrow").touch()
    (tmp_path / "a.parquet").touch()
    with pytest.raises(UserError, match="found both Arrow and Parquet files, wanted one kind"):
        opened(tmp_path)
