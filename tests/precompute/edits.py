"""Changes of a source of pictures, and a cache compared with a fresh one of the changed source."""

import json
import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from data_tools.cache import check
from data_tools.cache.manifest import Cache
from data_tools.cache.reader import CacheReader
from data_tools.cache.store import LocalStore
from precompute.encoders import ImageEncoder, LatentsEncoder, TextEncoder
from tests.precompute.command import COLUMNS, inspect, precompute
from tests.precompute.pictures import noise

FP32 = ("--dtype", "fp32")
ENCODERS = (ImageEncoder, LatentsEncoder, TextEncoder)


@pytest.fixture
def data(pictures: Path, tmp_path: Path) -> Path:
    """The session's pictures, to be changed."""
    return Path(shutil.copytree(pictures, tmp_path / "data"))


@pytest.fixture
def copy(cache: Path, tmp_path: Path) -> Path:
    """The session's cache of them."""
    return Path(shutil.copytree(cache, tmp_path / "cache"))


@pytest.fixture
def encoded(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """Encoder → pictures or captions that it was given, null conditions aside."""
    found: Counter[str] = Counter()

    def counting(encoder: type) -> None:
        start = encoder.start

        def wrapped(self, batch):
            found[encoder.__name__] += len(batch)
            return start(self, batch)

        monkeypatch.setattr(encoder, "start", wrapped)

    for encoder in ENCODERS:
        counting(encoder)
    return found


def captions(data: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    """Rewrite metadata.jsonl; `change` gets file name → row."""
    path = data / "metadata.jsonl"
    rows = {row["file_name"]: row for row in map(json.loads, path.read_text("utf-8").splitlines())}
    change(rows)
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows.values()), "utf-8")


def recaption(data: Path, **texts: str) -> None:
    """Picture number → its caption from now on."""

    def change(rows: dict[str, Any]) -> None:
        for name in rows:
            if (text := texts.get(f"n{name[:2]}")) is not None:
                rows[name]["text"] = text

    captions(data, change)


def repaint(data: Path, *numbers: int) -> None:
    for number in numbers:
        (path,) = data.glob(f"{number:02}.*")
        noise(100 + number, (80, 90)).save(path)


def remove(data: Path, *numbers: int) -> None:
    for number in numbers:
        (path,) = data.glob(f"{number:02}.*")
        path.unlink()
        captions(data, lambda rows, name=path.name: rows.pop(name))


def add(data: Path, name: str, text: str | None, seed: int = 7) -> None:
    noise(seed, (100, 90)).save(data / name)
    if text is not None:
        captions(data, lambda rows: rows.update({name: {"file_name": name, "text": text}}))


def by_key(root: Path) -> dict[tuple[str, int], list[dict[str, np.ndarray]]]:
    """(column, hash of the key) → rows, of every sample that the column has."""
    found = {}
    for name in COLUMNS:
        reader = CacheReader(root, [name])
        firsts, counts = reader.rows(name)
        for value, first, count in zip(reader.key_hashes().tolist(), firsts, counts):
            rows = [reader.gather(name, np.array([first + i])) for i in range(count)]
            found[name, value] = [{field: value[0] for field, value in row.items()} for row in rows]
        reader.close()
    return found


def assert_as_fresh(root: Path, data: Path, pocket: Path, *flags: str) -> None:
    """The records are those of a cache that is made of the same source from nothing."""
    fresh = root.with_name(f"{root.name}-fresh")
    precompute(data, fresh, pocket, *FP32, *flags)
    found, wanted = by_key(root), by_key(fresh)
    assert found.keys() == wanted.keys()
    for place, rows in wanted.items():
        assert len(found[place]) == len(rows), place
        for mine, row in zip(found[place], rows):
            for field, value in row.items():  # other batches: a product may be summed in another order
                np.testing.assert_allclose(mine[field], value, rtol=1e-4, atol=1e-5, err_msg=str(place))
    old, new = inspect(root), inspect(fresh)
    for name in ("samples", "cached", "rejects", "pending", "complete", "reject_reasons"):
        assert old[name] == new[name], name
    for name in ("key", "reason"):
        assert [r[name] for r in old["rejected"]] == [r[name] for r in new["rejected"]]
    assert check.verify(Cache.open(LocalStore(root)), full=True).faults == []


def snapshot(root: Path) -> dict[Path, tuple[int, bytes]]:
    return {p: (p.stat().st_mtime_ns, p.read_bytes()) for p in root.rglob("*") if p.is_file()}
