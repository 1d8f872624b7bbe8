"""Small caches of known random rows, made with the real writer and without any model."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import xxhash

from data_tools.cache.fields import DTYPES, Column, Field, Row
from data_tools.cache.manifest import NULL_PART, Cache
from data_tools.cache.plan import plan_source
from data_tools.cache.reader import CacheReader
from data_tools.cache.rows import Container
from data_tools.cache.store import open_store
from data_tools.cache.writer import PartWriter
from data_tools.sources import Sample, Unusable

D, SIDE = 12, 3
BUCKETS = ((3, 3), (2, 5), (4, 2))
"Sides (h, w) of latents."
COLUMNS = ("image", "text", "latents@24")
Made = dict[str, dict[str, list[Row]]]
"Column → key → rows; the null condition stands under the key ''."


@dataclass(frozen=True)
class Listed:
    """A source that is a list."""

    samples: tuple[Sample, ...]

    @property
    def count(self) -> int:
        return len(self.samples)

    def __iter__(self) -> Iterator[Sample]:
        return iter(self.samples)

    def read(self, sample: Sample) -> bytes:
        raise Unusable("no such file")


def listed(count: int) -> Listed:
    """`count` samples of one, two or three captions."""
    captions = [tuple(f"caption {j} of {i}" for j in range(1 + i % 3)) for i in range(count)]
    return Listed(tuple(Sample(f"k{i}", captions[i], f"k{i}.png", 100 + i, 1) for i in range(count)))


def column(name: str, dtype: str = "float32", *, buckets: bool = False, **identity: Any) -> Column:
    """The column as `build` declares it; with `buckets` the latents' sides differ from row to row."""
    sides: tuple[int | str, int | str] = ("h", "w") if buckets else (SIDE, SIDE)
    fields = {
        "image": (Field("image_embeds", dtype, (D,)),),
        "text": (
            Field("prompt_embeds", dtype, (D,)),
            Field("text_encoder_hidden_states", dtype, ("n_tokens", D)),
        ),
        "latents@24": (Field("latents", dtype, (4, *sides)),),
    }
    identity = {"weights": {"model.safetensors": "00"}, "dtype": dtype, **identity}
    return Column(name, fields[name], identity, {"hub": "someone/something"}, {"numpy": np.__version__})


def random_row(about: Column, rng: np.random.Generator, bucket: tuple[int, int] = (SIDE, SIDE)) -> Row:
    """One row; ragged fields are 1 to 20 long, bucketed latents have the sides (h, w)."""
    row, sides = {}, dict(zip("hw", bucket))
    for field in about.fields:
        shape = [
            (sides.get(dim) or int(rng.integers(1, 21))) if isinstance(dim, str) else dim
            for dim in field.shape
        ]
        value = rng.standard_normal(shape).astype(np.float32)
        bits = value.view(np.uint32) >> 16 if field.dtype == "bfloat16" else value
        row[field.name] = bits.astype(DTYPES[field.dtype])
    return row


def build(
    root: Path | str,
    *,
    dtype: str = "float32",
    count: int = 14,
    part_size: int = 5,
    lacking: frozenset[tuple[str, str]] = frozenset(),
    unfinished: frozenset[tuple[str, str]] = frozenset(),
    buckets: Sequence[tuple[int, int]] = (),
    views: int = 1,
    container: Container | None = None,
) -> Made:
    """A cache of all columns. `lacking`: (column, key) rejected; `unfinished`: (column, part) not written.

    With `buckets` the sample in place i has latents of the sides `buckets[i % len(buckets)]`, in all views.
    """
    store, rng = open_store(root), np.random.default_rng(0)
    plan = plan_source(store, listed(count), part_size)
    cache, made = Cache.open(store), Made()
    for name in COLUMNS:
        about = column(name, dtype, buckets=bool(buckets))
        cache.declare(about)
        made[name] = {}
        for part in plan:
            if (name, part.name) in unfinished:
                continue
            writer = PartWriter(store, about, part.name, container=container)
            for index, entry in enumerate(cache.table(part)):
                sample = Sample(**entry)
                if (name, sample.key) in lacking:
                    writer.reject(sample, "not wanted")
                    continue
                number = len(sample.captions) if name == "text" else views
                bucket = buckets[index % len(buckets)] if buckets else (SIDE, SIDE)
                made[name][sample.key] = [random_row(about, rng, bucket) for _ in range(number)]
                writer.add(index, sample.key, made[name][sample.key])
            assert writer.commit()
        if about.has_null:
            made[name][""] = [random_row(about, rng)]
            null = PartWriter(store, about, NULL_PART, container=container)
            null.add(0, "", made[name][""])
            assert null.commit()
    return made


def read(root: Path | str, names: tuple[str, ...] = COLUMNS, *, allow_partial: bool = False) -> Made:
    """Everything in a cache that all these columns hold, keyed as `build` keys it."""
    reader = CacheReader(root, names, allow_partial=allow_partial)
    keys = {xxhash.xxh3_64_intdigest(f"k{i}".encode()): f"k{i}" for i in range(100)}
    found: Made = {}
    for name in names:
        found[name] = {}
        for number, key in enumerate(reader.key_hashes().tolist()):
            rows = reader.rows(name)[0][number] + np.arange(reader.rows(name)[1][number])
            found[name][keys[key]] = unstack(reader.columns[name], reader.gather(name, rows))
        if reader.columns[name].has_null:
            null = {field: value[None] for field, value in reader.null(name).items()}
            found[name][""] = unstack(reader.columns[name], null)
    reader.close()
    return found


def unstack(about: Column, batch: dict[str, Any]) -> list[Row]:
    """A gathered batch as rows, without padding; what was padding must be zero."""
    fields = {field.name: field for field in about.fields}
    rows: list[Row] = []
    for number in range(len(batch[about.fields[0].name])):
        row = {}
        for name, field in fields.items():
            value = batch[name][number]
            if field.ragged:
                assert not value[batch[field.ragged][number] :].any()
                value = value[: batch[field.ragged][number]]
            row[name] = value
        rows.append(row)
    return rows


def same(first: Made, second: Made) -> bool:
    """Bit-equal, dtypes included."""
    if {c: v.keys() for c, v in first.items()} != {c: v.keys() for c, v in second.items()}:
        return False
    pairs = [(a, second[c][k]) for c, keys in first.items() for k, a in keys.items()]
    return all(len(a) == len(b) and all(map(_same_row, a, b)) for a, b in pairs)


def _same_row(first: Row, second: Row) -> bool:
    return first.keys() == second.keys() and all(
        value.dtype == second[name].dtype
        and value.shape == second[name].shape
        and value.tobytes() == second[name].tobytes()
        for name, value in first.items()
    )
