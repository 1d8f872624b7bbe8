"""`data-tools gc` on an object store does what it does in a folder, to the object."""

import shutil
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from click.testing import CliRunner

from data_tools.cache import check, gc
from data_tools.cache.generation import publish
from data_tools.cache.manifest import Cache
from data_tools.cache.store import Listed, Store, open_store
from data_tools.cli import cli
from data_tools.errors import DataFault
from tests.data_tools import test_gc as local
from tests.data_tools.caches import Made, build, column, read, same
from tests.data_tools.test_generation import commit_prompts
from tests.s3 import BUCKET, PAGE, S3Server, refused


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Made]:
    folder = tmp_path_factory.mktemp("gc") / "cache"
    return folder, build(folder, count=10)


@pytest.fixture
def root(built: tuple[Path, Made], tmp_path: Path) -> Path:
    """A copy in a folder."""
    return Path(shutil.copytree(built[0], tmp_path / "cache"))


@pytest.fixture
def store(s3: S3Server, root: Path) -> Iterator[Store]:
    """The copy on S3, with one of each kind of garbage, all of it two days old; `root` has it, too."""
    local.litter(root)
    store = uploaded(s3, root)
    age(store, 48)
    yield store
    s3.faults.clear()
    store.remove_many([*names(store)])  # other tests list the whole bucket


def uploaded(s3: S3Server, root: Path) -> Store:
    """As any tool would copy a folder."""
    store = open_store(s3.place())
    for name in local.files(root):
        store.put(name, [(root / name).read_bytes()])
    return store


def age(store: Store, hours: float, below: str = "") -> None:
    """Turn the server's clock back for what is there."""
    from moto.s3.models import s3_backends

    then = datetime.now(UTC).replace(tzinfo=None) - timedelta(hours=hours)
    for account in s3_backends.values():
        for key, found in account["aws"].buckets[BUCKET].keys.items():
            if f"s3://{BUCKET}/{key}".startswith(f"{store.url}/{below}"):
                found.last_modified = then


def names(store: Store) -> set[str]:
    return {item.name for item in store.listed()}


def collect(store: Store, **options: object) -> list[str]:
    removed, _ = gc.collect(Cache.open(store), **options)
    return [top for garbage in removed for top in garbage.tops]


def test_what_goes_from_a_folder_goes_from_s3_and_nothing_else(
    store: Store, root: Path, built: tuple[Path, Made]
) -> None:
    before = names(store)
    dry = collect(store, dry_run=True)
    assert names(store) == before
    assert collect(store) == dry == local.collect(root)
    assert len(dry) == 8
    assert names(store) == local.files(root) == local.files(built[0])
    assert same(read(store.url), built[1])
    assert check.verify(Cache.open(store), full=True).faults == []


def test_pages_are_asked_for_when_they_are_needed(
    s3: S3Server, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    from data_tools.cache import object_store

    monkeypatch.setattr(object_store, "PAGE", PAGE)
    start = len(s3.log)
    listed = store.listed()
    for number in range(4 * PAGE):
        next(listed)
        assert len(s3.log) - start == number // PAGE + 1


def test_all_goes_with_two_requests(s3: S3Server, store: Store) -> None:
    start = len(s3.log)
    collect(store)
    methods = [line.split()[0] for line in s3.log[start:]]
    assert methods.count("POST") == 2, "commit records of a replaced identity, then the rest"
    assert "DELETE" not in methods
    start = len(s3.log)
    assert collect(store) == []
    assert {line.split()[0] for line in s3.log[start:]} == {"GET", "HEAD"}


def test_one_young_object_keeps_all_of_its_group(store: Store) -> None:
    before = names(store)
    (identity,) = (top for top in collect(store, dry_run=True) if top.count("/") == 2 and "tmp" not in top)
    attempt = next(name for name in before if name.endswith("00aa00aa.zarr/image_embeds/zarr.json"))
    for name in (next(name for name in before if name.startswith(f"{identity}/commits/")), attempt):
        store.put(name, [store.read(name)])
    removed = collect(store)
    assert len(removed) == 5
    assert not [top for top in removed if "00aa00aa.zarr" in top or "00aa00aa.npz" in top or top == identity]
    gone = before - names(store)
    assert gone == set(removed)
    _, young = gc.collect(Cache.open(store))
    assert sorted(garbage.why for garbage in young) == [gc.REPLACED, gc.ORPHAN]


def test_an_identity_that_was_replaced_a_moment_ago_stays(store: Store) -> None:
    store.put("columns/text/column.json", [store.read("columns/text/column.json")])
    assert len(collect(store)) == 7
    age(store, 48, "columns/text/column.json")
    assert len(collect(store)) == 1


def test_strangers_stay(store: Store) -> None:
    collect(store)
    parts = next(name for name in names(store) if "/parts/" in name).partition("/parts/")[0] + "/parts"
    strangers = {"notes.txt", f"{parts}/README", "columns/new/0123456789ab/parts/part-00000-00aa00aa.npz"}
    strangers |= {"samples/x/part-00000-00aa00aa.jsonl", "other/.tmp-1234-x", "columns/text/0123456789ab"}
    for name in strangers:
        store.put(name, [b"mine"])
    age(store, 48)
    assert collect(store) == []
    assert strangers <= names(store)


def test_generations_that_newer_ones_cover_go(s3: S3Server, root: Path) -> None:
    cache, about = Cache.open(open_store(root)), column("text")
    for number in range(3):
        publish(cache, about, cache.plan())
        commit_prompts(root, f"prompts-{number:08d}", "a cat")
    store = uploaded(s3, root)
    assert collect(store) == []
    age(store, 48)
    assert [top.rpartition("/")[2] for top in collect(store)] == ["000001.npz"]
    store.remove_many([*names(store)])


@pytest.mark.parametrize("name", ["plans/000001.json", "columns/text/column.json", "commits/part-00001.json"])
def test_an_unreadable_record_stops_it_before_anything_goes(store: Store, name: str) -> None:
    identity = gc.column_folder(column("image"))
    store.put(f"{identity}/{name}" if name.startswith("commits") else name, [b"{}"])
    before = names(store)
    with pytest.raises(DataFault, match=name.rpartition("/")[2]):
        collect(store, older_than_hours=0)
    assert names(store) == before


def test_what_is_committed_meanwhile_stays(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    record = f"{gc.column_folder(column('image'))}/commits/part-00001.json"
    content = store.read(record)
    store.remove(record)
    before = names(store)

    def find_then_commit(cache: Cache, objects: Iterable[Listed], find=gc.find) -> list[gc.Garbage]:
        found = list(find(cache, objects))
        store.put(record, [content])
        return found

    monkeypatch.setattr(gc, "find", find_then_commit)
    collect(store)
    assert read(store.url, ("image",)).keys() == {"image"}
    commit = Cache.open(store).commit(column("image"), "part-00001")
    assert commit is not None
    assert {item.name for item in commit.objects} <= before & names(store)


def test_a_refused_removal_is_one_line_with_the_place(s3: S3Server, store: Store) -> None:
    s3.faults[:] = [refused("403 Forbidden", "AccessDenied")]
    with pytest.raises(PermissionError, match="AccessDenied, says the test") as caught:
        store.remove_many(["samples/x"])
    assert caught.value.filename == store.url


def test_the_command_names_what_it_removes_by_its_whole_place(store: Store) -> None:
    tops = collect(store, dry_run=True)
    done = CliRunner().invoke(cli, ["gc", store.url])
    assert done.exit_code == 0
    assert all(f"{store.url}/{top}" in done.stdout for top in tops)
    assert done.stdout.splitlines()[-1].endswith(" in 7 items removed")
    assert CliRunner().invoke(cli, ["gc", store.url]).stdout == f"{store.url}: 0 B in 0 items removed\n"
