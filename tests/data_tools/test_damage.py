"""Reads never lie: whatever happens to the files of a cache, reading gives an error or the right rows."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from data_tools.cache import zarr_part
from data_tools.cache.manifest import Cache
from data_tools.cache.reader import CacheReader
from data_tools.cache.store import LocalStore
from data_tools.cache.verify import hash_faults, size_faults
from data_tools.cli import cli
from data_tools.errors import DataFault, UserError
from tests.data_tools.caches import BUCKETS, COLUMNS, Made, build, read, same

PAYLOADS = {"image": "image_embeds", "text": "text_encoder_hidden_states", "latents@24": "latents"}


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Made]:
    folder = tmp_path_factory.mktemp("damage") / "cache"
    return folder, build(folder)


@pytest.fixture
def root(built: tuple[Path, Made], tmp_path: Path) -> Path:
    """A copy that may be damaged."""
    return Path(shutil.copytree(built[0], tmp_path / "cache"))


def payload(root: Path, column: str, part: str = "part-00001") -> Path:
    """The shard with the rows of the column's largest field."""
    shards = root.glob(f"columns/{column}/*/parts/{part}-*.zarr/{PAYLOADS[column]}/c/**/*")
    (path,) = (path for path in shards if path.is_file())
    return path


def flip(path: Path, offset: int, mask: int = 0x40) -> None:
    data = bytearray(path.read_bytes())
    data[offset] ^= mask
    path.write_bytes(data)


def remove(path: Path) -> None:
    path.unlink()


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def lengthen(path: Path) -> None:
    path.write_bytes(path.read_bytes() + b"\0")


def empty(path: Path) -> None:
    path.write_bytes(b"")


@pytest.mark.parametrize("column", COLUMNS)
@pytest.mark.parametrize("damage", [remove, cut, lengthen, empty])
def test_a_part_of_another_size_is_refused_at_open(
    root: Path, column: str, damage: Callable[[Path], None]
) -> None:
    damage(payload(root, column))
    with pytest.raises(DataFault, match=f"column {column}, part-00001: .*precompute --repair"):
        CacheReader(root, [column])


@pytest.mark.parametrize("column", COLUMNS)
def test_a_flipped_bit_in_a_row_is_refused_when_the_row_is_read(root: Path, column: str) -> None:
    flip(payload(root, column), 17)
    reader = CacheReader(root, [column])
    first = reader.rows(column)[0]
    reader.gather(column, first[:5])  # the part before is whole
    with pytest.raises(DataFault, match=f"column {column}, part-00001: .*crc32c .*precompute --repair"):
        reader.gather(column, first[5:6])


def test_the_null_condition_is_checked_too(root: Path) -> None:
    flip(payload(root, "text", "null"), 3)
    with pytest.raises(DataFault, match="column text, null: "):
        CacheReader(root, ["text"]).null("text")
    (commit,) = root.glob("columns/image/*/commits/null.json")
    commit.unlink()
    with pytest.raises(DataFault, match="column image, null: the null condition is missing"):
        CacheReader(root, ["image"]).null("image")


def test_a_part_that_is_cut_short_after_opening_is_refused(root: Path) -> None:
    reader = CacheReader(root, ["image"])
    rows = reader.rows("image")[0]  # loads the indices
    empty(payload(root, "image"))
    with pytest.raises(DataFault, match=r"column image, part-00001: .*ends before"):
        reader.gather("image", rows[5:6])


def test_a_part_that_vanishes_after_opening_is_refused(root: Path) -> None:
    reader = CacheReader(root, ["image"])
    rows = reader.rows("image")[0]
    remove(payload(root, "image"))
    with pytest.raises(DataFault, match=r"column image, part-00001: .*is missing"):
        reader.gather("image", rows[5:6])


@pytest.mark.parametrize("offset", [0, 100, -30])
def test_a_flipped_bit_in_the_index_is_refused(root: Path, offset: int) -> None:
    (index,) = root.glob("columns/text/*/parts/part-00001-*.npz")
    flip(index, offset)
    with pytest.raises(DataFault, match=r"column text, part-00001: .*changed bytes"):
        CacheReader(root, ["text"])


@pytest.mark.parametrize("pattern", ["commits/part-00001.json", "commits/null.json"])
@pytest.mark.parametrize("damage", [empty, cut, lambda path: path.write_text("[]\n")])
def test_a_damaged_commit_record_is_a_fault_that_names_the_file(
    root: Path, pattern: str, damage: Callable[[Path], None]
) -> None:
    (commit,) = root.glob(f"columns/text/*/{pattern}")
    damage(commit)
    if damage is cut:  # of the last line break: that is no damage
        cut(commit)
    with pytest.raises(DataFault, match=pattern):
        CacheReader(root, ["text"])


def test_a_digit_changed_in_a_commit_record_is_noticed(root: Path) -> None:
    """`rows` decides where the next part begins: one more, and all later rows would be others."""
    (commit,) = root.glob("columns/text/*/commits/part-00000.json")
    text = commit.read_text()
    rows = json.loads(text)["rows"]
    commit.write_text(text.replace(f'"rows": {rows},', f'"rows": {rows ^ 1},'))
    with pytest.raises(DataFault, match=r"part-00000\.json: has changed bytes"):
        CacheReader(root, ["text"])


def test_a_part_twice_in_the_plan_is_noticed(root: Path) -> None:
    plan = root / "plans" / "000001.json"
    plan.write_text(plan.read_text().replace('"name": "part-00000"', '"name": "part-00001"'))
    with pytest.raises(DataFault, match=r"plans/000001\.json: has changed bytes"):
        CacheReader(root, ["image"])


def test_a_declaration_of_another_dtype_is_noticed(root: Path) -> None:
    path = root / "columns" / "image" / "column.json"
    path.write_text(path.read_text().replace('"float32"', '"float16"'))
    with pytest.raises(DataFault, match=r"columns/image/column\.json: has changed bytes"):
        CacheReader(root, ["image"])


def test_a_changed_sample_table_is_noticed(root: Path) -> None:
    cache = Cache.open(LocalStore(root))
    for damage in (lambda path: flip(path, 20), remove):
        damage(root / cache.plan()[1].table)
        with pytest.raises(DataFault, match=r"sample table of part-00001"):
            cache.table(cache.plan()[1])
    assert len(cache.table(cache.plan()[0])) == 5


@pytest.mark.parametrize(("header", "found"), [("{}", "None"), ('{"version": 7}', "7"), ("[]", "None")])
def test_another_format_version_is_refused_with_both_numbers(root: Path, header: str, found: str) -> None:
    (root / "cache.json").write_text(header)
    with pytest.raises(UserError, match=rf"^--cache: .* has format version {found}, this program reads 1$"):
        CacheReader(root, ["image"])


@pytest.mark.parametrize(
    ("command", "flag"),
    [
        ("inspect CACHE", "CACHE"),
        ("verify CACHE", "CACHE"),
        ("verify CACHE --full", "CACHE"),
        ("gc CACHE", "CACHE"),
        ("convert CACHE DEST", "SOURCE"),
        ("export CACHE DEST", "CACHE"),
        ("merge DEST CACHE", "SOURCE"),
    ],
)
def test_every_command_refuses_a_newer_format_with_both_numbers_and_touches_nothing(
    root: Path, command: str, flag: str
) -> None:
    header = json.loads((root / "cache.json").read_text())
    (root / "cache.json").write_text(json.dumps({**header, "version": 2}))
    before = {path: path.stat().st_mtime_ns for path in root.parent.rglob("*")}
    places = {"CACHE": str(root), "DEST": str(root.parent / "dest")}
    result = CliRunner().invoke(cli, [places.get(word, word) for word in command.split()])
    assert isinstance(result.exception, UserError)
    assert str(result.exception).startswith(f"{flag}: {root} ")
    assert "has format version 2, this program reads 1" in str(result.exception)
    assert {path: path.stat().st_mtime_ns for path in root.parent.rglob("*")} == before


def test_what_is_not_a_cache_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"^--cache: .* is not a cache \(it has no cache.json\)"):
        CacheReader(tmp_path, ["image"])
    (tmp_path / "cache.json").write_bytes(b"\xff\x00")
    with pytest.raises(UserError, match=r"^--cache: .*cache.json is not readable JSON"):
        CacheReader(tmp_path, ["image"])


def test_any_flipped_byte_anywhere_is_an_error_or_makes_no_difference(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two flips in every file, with chunks so small that there are gaps and straddling rows."""
    monkeypatch.setattr(zarr_part, "CHUNK_BYTES", 300)
    made = build(tmp_path, count=6, part_size=3, buckets=BUCKETS, views=2)
    rng = np.random.default_rng(0)
    harmless: set[str] = set()
    for path in sorted(p for p in tmp_path.rglob("*") if p.is_file() and p.stat().st_size):
        whole, inside = path.read_bytes(), path.relative_to(tmp_path).parts
        names = inside[1:2] if inside[0] == "columns" else COLUMNS
        for _ in range(2):
            flip(path, int(rng.integers(len(whole))), int(rng.integers(1, 256)))
            try:
                found = read(tmp_path, names)
            except (UserError, DataFault):
                continue
            finally:
                path.write_bytes(whole)
            assert same(found, {name: made[name] for name in names}), path
            harmless.add(path.relative_to(tmp_path).as_posix())
    unread = ("zarr.json", "samples/", "_offsets/", "_shape/", "sample_index", "cache.json")
    # elsewhere only a chunk's own crc, the shard's index or white space in JSON may change without harm
    others = [name for name in harmless if not any(word in name for word in unread)]
    assert all("/c/0" in name or name.endswith(".json") for name in others)
    assert not any(name.endswith(".npz") for name in harmless)


@pytest.mark.parametrize("column", COLUMNS)
def test_verify_finds_what_only_hashes_can_find(root: Path, column: str) -> None:
    cache = Cache.open(LocalStore(root))
    about = cache.column(column)
    assert about is not None
    commit = cache.commit(about, "part-00001")
    assert commit is not None
    assert hash_faults(cache.store, commit) == []
    for item in commit.objects:
        flip(root / item.name, item.size // 2)
        assert size_faults(cache.store, commit) == []
        assert hash_faults(cache.store, commit) == [f"{item.name} has changed bytes (xxh3-128 differs)"]
        flip(root / item.name, item.size // 2)
