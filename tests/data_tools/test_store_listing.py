"""A place lists all its objects with their times, and removes many at once; and a link that NFS denies."""

import os
import time
from pathlib import Path

import pytest

from data_tools.cache.store import LocalStore, Store
from data_tools.errors import DataFault
from tests.data_tools.test_store import buffers
from tests.data_tools.test_store import store as store  # a fixture


def test_every_object_is_listed_with_its_size_and_time(store: Store) -> None:
    start = time.time()
    sizes = {"cache.json": 1, "columns/latents@64/parts/a.zarr/c/0": 2, "columns-2/x": 3, "columns/y": 0}
    for name, size in sizes.items():
        store.put(name, [bytes(size)])
    found = {item.name: item for item in store.listed() if not item.name.endswith("/")}
    assert {name: item.size for name, item in found.items()} == sizes
    assert all(start - 2 < item.modified < time.time() + 2 for item in found.values())
    below = {item.name for item in store.listed("columns") if not item.name.endswith("/")}
    assert below == {"columns/latents@64/parts/a.zarr/c/0", "columns/y"}
    assert list(store.listed("no/such")) == []


def test_many_objects_are_removed_at_once(store: Store) -> None:
    names = [f"parts/a/{number}/0" for number in range(5)]
    for name in (*names, "parts/b", "parts/ab"):
        store.put(name, [b"1"])
    store.read_into(names[0], 0, buffers(1))
    store.remove_many([*names, "no/such"])
    assert {item.name for item in store.listed() if item.size} == {"parts/b", "parts/ab"}
    with pytest.raises(FileNotFoundError):
        store.read_into(names[0], 0, buffers(1))
    store.remove_many([])
    with pytest.raises(DataFault, match="which is not inside it"):
        store.remove_many(["parts/b", "../x"])


def test_all_that_is_listed_below_a_folder_can_be_removed_folders_too(tmp_path: Path) -> None:
    store = LocalStore(tmp_path / "cache")
    for name in ("a/b/c/d", "a/b-c", "a/.tmp-1-e", "a-b/f"):
        store.put(name, [b"1"])
    (tmp_path / "cache" / "a" / "empty").mkdir()
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "precious").touch()
    (tmp_path / "cache" / "a" / "link").symlink_to(tmp_path / "elsewhere")
    names = {item.name for item in store.listed("a")}
    assert names == {"a/b/", "a/b/c/", "a/b/c/d", "a/b-c", "a/.tmp-1-e", "a/empty/", "a/link"}
    store.remove_many(["a/b/", "a/b/c/"])  # not empty
    assert store.read("a/b/c/d") == b"1"
    store.remove_many(sorted(names))
    assert [item.name for item in store.listed()] == ["a-b/f", "a-b/", "a/"]
    assert (tmp_path / "elsewhere" / "precious").exists()


def test_a_link_that_nfs_has_made_and_denies_is_a_win(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its answer got lost, so the client asked again, and the second answer was EEXIST."""
    store, link = LocalStore(tmp_path), os.link

    def denied(source: Path, target: Path) -> None:
        link(source, target)
        raise FileExistsError(17, "File exists", str(source), None, str(target))

    with monkeypatch.context() as patch:
        patch.setattr(os, "link", denied)
        assert store.create("a", b"mine") is True
    assert store.create("a", b"theirs") is False
    assert [path.name for path in tmp_path.iterdir()] == ["a"]
