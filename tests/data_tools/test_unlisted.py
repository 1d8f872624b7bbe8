"""What could not be looked at stays in the plan; what is gone does not."""

import os
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from data_tools.cache.listing import compare
from data_tools.cache.manifest import Cache
from data_tools.cache.plan import plan_source
from data_tools.cache.store import LocalStore
from data_tools.sources import Source, SourceOptions, open_source
from tests.data_tools.shelf import P, Picture, Shelf, edited, live, pictures, retired, without

SHUT = Picture(None, (), problem="unreadable folder: Permission denied", place="sub/", unlisted="sub/")


def shelf(*folders: str) -> dict[str, Picture]:
    """Two pictures in each folder."""
    names = (f"{folder}{number}.png" for folder in folders for number in range(2))
    return {name: Picture(name.encode(), (f"a {name}",), place=name) for name in names}


def follow(store: LocalStore, source: Source) -> tuple[str, list[str]]:
    """What has changed, and the notes, of a run."""
    with closing(compare(store, source, 3)) as listing:
        found = str(listing.changes), listing.unlisted.notes()
    plan_source(store, source, 3)
    return found


@pytest.fixture
def store(tmp_path: Path) -> LocalStore:
    return LocalStore(tmp_path / "cache")


def test_samples_of_a_folder_that_cannot_be_listed_stay(store: LocalStore) -> None:
    now = shelf("", "sub/", "sub/deep/", "subway/")
    follow(store, Shelf(now))
    left = {key: picture for key, picture in now.items() if not key.startswith("sub/")}
    changes, notes = follow(store, Shelf({**left, "sub/": SHUT}))
    assert changes == "8 kept, 1 new, 0 changed, 0 removed"
    assert notes == ["could not be looked at: sub/ (4); samples kept as they were: 4"]
    assert live(store).keys() == {*now, "sub/"}
    assert "unlisted" not in live(store)["sub/"][1]
    assert follow(store, Shelf({**left, "sub/": SHUT}))[0] == "9 kept, 0 new, 0 changed, 0 removed"
    assert follow(store, Shelf(now)) == ("8 kept, 0 new, 0 changed, 1 removed", [])
    assert [part.name for part in Cache.open(store).plan()] == ["part-00000", "part-00001", "part-00002"]


def test_samples_elsewhere_and_of_a_folder_that_is_gone_are_retired(store: LocalStore) -> None:
    now = shelf("", "sub/", "subway/", "gone/")
    follow(store, Shelf(now))
    left = {key: picture for key, picture in now.items() if not key.startswith(("sub/", "gone/"))}
    left.pop("subway/1.png")
    assert follow(store, Shelf({**left, "sub/": SHUT}))[0] == "5 kept, 1 new, 0 changed, 3 removed"
    assert retired(Cache.open(store).plan()) == {"part-00001": ((2, 3),)}  # gone/* had a part of their own


def test_members_of_a_tar_and_rows_of_a_table_stay_too(store: LocalStore) -> None:
    now = {
        key: replace(picture, place=place)
        for (key, picture), place in zip(
            pictures(5).items(), ("0.tar#512", "0.tar#4096", "00.tar#512", "t/a.parquet:0", "t/a.parquet:1")
        )
    }
    follow(store, Shelf(now))
    tar = Picture(None, (), problem="tar: unreadable", place="0.tar", unlisted="0.tar#")
    table = Picture(None, (), problem="unreadable", place="t/a.parquet", unlisted="t/a.parquet:")
    faults = {"0.tar": tar, "t/a.parquet": table}
    changes, notes = follow(store, Shelf({"k2": now["k2"], **faults}))
    assert changes == "5 kept, 2 new, 0 changed, 0 removed"
    assert notes == ["could not be looked at: 0.tar (2), t/a.parquet (2); samples kept as they were: 4"]


def test_where_a_moved_sample_was_last_is_what_counts(store: LocalStore) -> None:
    now = edited(pictures(3), "k1", place="sub/k1.png")
    follow(store, Shelf(pictures(3)))
    follow(store, Shelf(now))
    assert follow(store, Shelf({**without(now, "k1"), "sub/": SHUT}))[0].startswith("3 kept, 1 new")
    now = without(edited(now, "k1", place="k1.png"), "k1")
    assert follow(store, Shelf({**now, "sub/": SHUT}))[0] == "4 kept, 0 new, 0 changed, 0 removed"


def test_a_sample_that_is_listed_but_cannot_be_looked_at_stays(store: LocalStore) -> None:
    """As a row of metadata whose picture is in a folder that is shut. Its captions are still read."""
    now = shelf("", "sub/", "more/")
    follow(store, Shelf(now))
    for name in ("sub/0.png", "sub/1.png"):
        now = edited(now, name, data=None, mtime_ns=0, unlisted=name)
    changes, notes = follow(store, Shelf(now))
    assert changes == "6 kept, 0 new, 0 changed, 0 removed"
    assert notes == ["could not be looked at: sub/ (2); samples kept as they were: 2"]
    assert store.names("touched") == []
    now = edited(now, "sub/0.png", captions=("edited",))
    assert follow(store, Shelf(now))[0] == "5 kept, 0 new, 1 changed, 0 removed"
    part, row = live(store)["sub/0.png"]
    assert (part, row["picture_was"], row["captions"]) == ("part-00002", "part-00000:2", ["edited"])
    assert (row["num_bytes"], row["mtime_ns"], "unlisted" in row) == (9, 1, False)
    now = {
        **shelf("", "sub/", "more/"),
        "sub/0.png": replace(now["sub/0.png"], data=b"sub/0.png", mtime_ns=1),
    }
    now["sub/0.png"] = replace(now["sub/0.png"], unlisted="")
    assert follow(store, Shelf(now))[0] == "6 kept, 0 new, 0 changed, 0 removed"


def test_a_file_that_looks_as_before_but_cannot_be_read_has_not_changed(store: LocalStore) -> None:
    """A server that gives no times does not answer for a moment: every file is read, some in vain."""
    now = {key: replace(picture, mtime_ns=0) for key, picture in pictures(4).items()}
    follow(store, Shelf(now))
    changes, notes = follow(store, Shelf(edited(now, "k1", fails=True)))
    assert changes == "4 kept, 0 new, 0 changed, 0 removed"
    assert notes == ["could not be looked at: --data (1); samples kept as they were: 1"]
    gone = edited(now, "k1", data=None)
    assert follow(store, Shelf(gone)) == ("3 kept, 0 new, 1 changed, 0 removed", [])


def test_a_new_sample_that_cannot_be_looked_at_is_planned_and_tried_again(store: LocalStore) -> None:
    now = edited(pictures(3), "k1", data=None, mtime_ns=0, unlisted="k1.png")
    follow(store, Shelf(now))
    assert "xxh3_128" not in live(store)["k1"][1]
    assert follow(store, Shelf(now))[0] == "3 kept, 0 new, 0 changed, 0 removed"
    assert follow(store, Shelf(pictures(3)))[0] == "2 kept, 0 new, 1 changed, 0 removed"
    assert live(store)["k1"][1]["xxh3_128"]


def test_a_note_names_the_places_with_most_samples(store: LocalStore) -> None:
    now = {**shelf("a/", "b/", "c/", "d/", "e/"), "d/2.png": Picture(P, ("a d",), place="d/2.png")}
    follow(store, Shelf(now))
    faults = {f"{name}/": replace(SHUT, place=f"{name}/", unlisted=f"{name}/") for name in "abcde"}
    (note,) = follow(store, Shelf(faults))[1]
    assert note.startswith("could not be looked at: d/ (3), ")
    assert note.endswith(" (2) and 2 more places; samples kept as they were: 11")


def folder(root: Path, *names: str) -> Path:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 8), (len(name), 0, 0)).save(root / name)
        (root / name).with_suffix(".txt").write_text(f"a {name}")
    return root


def opened(data: Path) -> Source:
    return open_source([str(data)], SourceOptions())


def test_a_real_folder_that_is_shut_and_opened_again(
    store: LocalStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = folder(tmp_path / "data", "a.png", "shut/b.png", "shut/deep/c.png", "open/d.png")
    follow(store, opened(data))
    with monkeypatch.context() as patch:
        shut(patch, data / "shut")
        changes, notes = follow(store, opened(data))
    assert changes == "4 kept, 1 new, 0 changed, 0 removed"
    assert notes == ["could not be looked at: shut/ (2); samples kept as they were: 2"]
    assert live(store)["shut/"][1]["problem"] == "unreadable folder: Permission denied"
    assert follow(store, opened(data))[0] == "4 kept, 0 new, 0 changed, 1 removed"
    assert store.names("touched") == []


def test_rows_of_metadata_whose_folder_is_shut(
    store: LocalStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = folder(tmp_path / "data", "a.png", "shut/b.png", "open/c.png", "open/d.png")
    for text in data.rglob("*.txt"):
        text.unlink()
    names = ("a.png", "shut/b.png", "open/c.png", "open/d.png")
    lines = "".join(f'{{"file_name": "{name}", "text": "a {name}"}}\n' for name in names)
    (data / "metadata.jsonl").write_text(lines)
    table = data / "table.csv"
    table.write_text("image,text\n" + "".join(f"{name},a {name}\n" for name in names))
    for number, source in enumerate((data, table)):
        store = LocalStore(tmp_path / f"cache-{number}")
        follow(store, opened(source))
        with monkeypatch.context() as patch:
            shut(patch, data / "shut")
            changes, notes = follow(store, opened(source))
        assert changes.startswith("4 kept, ")
        assert changes.endswith(" 0 changed, 0 removed")
        assert notes == ["could not be looked at: shut/ (1); samples kept as they were: 1"]
    (data / "shut/b.png").unlink()
    assert follow(store, opened(table))[0] == "3 kept, 0 new, 1 changed, 0 removed"


def shut(patch: pytest.MonkeyPatch, folder: Path) -> None:
    """As a folder without permissions is to anybody but root."""

    def refusing(function: Any) -> Any:
        def wrapped(path: Any, *more: Any, **options: Any) -> Any:
            if Path(path).is_relative_to(folder):
                raise PermissionError(13, "Permission denied", str(path))
            return function(path, *more, **options)

        return wrapped

    patch.setattr(os, "scandir", refusing(os.scandir))
    real = Path.stat

    def stat(self: Path, **options: Any) -> os.stat_result:
        if self.is_relative_to(folder) and self != folder:
            raise PermissionError(13, "Permission denied", str(self))
        return real(self, **options)

    patch.setattr(Path, "stat", stat)
