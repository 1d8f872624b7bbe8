"""Which samples make which part. Written once, before anything is encoded; samples are known by content.

Making a plan reads every picture file once, for its hash. Comparing a source with a plan reads only those
whose size or time of change differ.
"""

import json
import os
import secrets
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, replace
from itertools import islice
from typing import Any

import xxhash
from tqdm import tqdm

from data_tools.cache.manifest import HEADER, PLAN, Cache, Part, dump, sealed
from data_tools.cache.store import Store
from data_tools.errors import DataFault, UserError
from data_tools.sources import Sample, Source, Unusable

Table = list[Sample]


def plan_source(store: Store, source: Source, part_size: int | None, *, write: bool = True) -> list[Part]:
    """The plan of a cache, made from the source if there is none yet; `part_size` None: as it is, or 2048.

    An existing plan must hold what the source holds now. Any number of processes may call this at once; one
    of their plans, which are all the same, is kept. With `write=False` nothing is written.
    """
    if store.size("cache.json") is not None and store.size(PLAN) is not None:
        return _unchanged(Cache.open(store), source, part_size)
    parts, attempt = [], secrets.token_hex(4)
    for name, samples in tables(source, part_size or 2048):
        data = encoded(_hashed(source, samples) if write else samples)
        part = Part(name, len(samples), f"samples/{name}-{attempt}.jsonl", xxhash.xxh3_128_hexdigest(data))
        if write:
            store.put(part.table, [data])
        parts.append(part)
    if not write:
        return parts
    store.create("cache.json", dump(HEADER))
    plan = {"part_size": part_size or 2048, "samples": sum(part.samples for part in parts)}
    store.create(PLAN, sealed({**plan, "parts": [asdict(part) for part in parts]}))
    return Cache.open(store).plan()


def tables(source: Source, part_size: int) -> Iterator[tuple[str, Table]]:
    """(part, its samples) for each run of `part_size` samples; one in memory."""
    samples = iter(tqdm(source, total=source.count, desc="plan", unit=" samples", leave=False, delay=1))
    number = 0
    while chunk := list(islice(samples, part_size)):
        yield f"part-{number:05d}", chunk
        number += 1


def encoded(samples: Table) -> bytes:
    """A sample table as it is stored: one line a sample."""
    lines = (json.dumps(asdict(sample), ensure_ascii=False, sort_keys=True) for sample in samples)
    return ("\n".join(lines) + "\n").encode()


def sample(row: dict[str, Any]) -> Sample:
    """A line of a sample table."""
    return Sample(**{**row, "captions": tuple(row["captions"])})


def mend_tables(cache: Cache, source: Source) -> list[str]:
    """Write every missing or changed sample table again, if the source still gives what the plan names.

    What was done, a line each. Raises `DataFault` for a table that cannot be had again.
    """
    damaged = {}
    for part in cache.plan():
        try:
            cache.table(part)
        except DataFault as err:
            damaged[part.name] = (part, str(err))
    if not damaged:
        return []
    for name, samples in tables(source, cache.part_size()):
        if name in damaged:
            part, fault = damaged[name]
            data = encoded(_hashed(source, samples))
            if xxhash.xxh3_128_hexdigest(data) != part.xxh3_128:
                raise DataFault(f"{fault}; the source has changed since, so it has to come from a copy")
            cache.store.put(part.table, [data])
    return [f"written again: {fault}" for _, fault in damaged.values()]


def _hash(source: Source, listed: Sample) -> Sample:
    try:
        return replace(listed, xxh3_128=xxhash.xxh3_128_hexdigest(source.read(listed)))
    except Unusable:
        return listed


def _hashed(source: Source, samples: Table) -> Table:
    """With the hash of each picture's file, read in threads."""
    with ThreadPoolExecutor(min(16, 4 * (os.cpu_count() or 1))) as pool:
        return list(pool.map(lambda listed: _hash(source, listed), samples))


def _unchanged(cache: Cache, source: Source, part_size: int | None) -> list[Part]:
    """The cache's plan. Raises `UserError` if it is not what the source and the options say."""
    planned = cache.plan()
    if part_size not in (None, cache.part_size()):
        raise UserError(f"--part-size: found {part_size}, but {cache.store.url} has {cache.part_size()}")
    parts = iter(planned)
    for _, now in tables(source, cache.part_size()):
        part = next(parts, None)
        old = list(map(sample, cache.table(part))) if part is not None else []
        if len(old) != len(now) or not all(_same(source, *pair) for pair in zip(old, now)):
            raise UserError(_changes(cache, planned, source))
    if next(parts, None) is not None:
        raise UserError(_changes(cache, planned, source))
    return planned


def _changes(cache: Cache, planned: list[Part], source: Source) -> str:
    """One line: how many samples differ, and one of them."""
    old = {row["key"]: sample(row) for part in planned for row in cache.table(part)}
    now = {listed.key: listed for listed in source}
    new, removed = sorted(now.keys() - old.keys()), sorted(old.keys() - now.keys())
    changed = sorted(key for key in old.keys() & now.keys() if not _same(source, old[key], now[key]))
    counts = f"{len(new)} new, {len(changed)} changed, {len(removed)} removed"
    example = next(iter([*changed, *new, *removed]), "the order of the samples")
    where = f"--data: not what {cache.store.url} was planned from"
    return f"{where} ({counts}; for example {example}); give a new --cache"


def _same(source: Source, old: Sample, now: Sample) -> bool:
    """True if a listed sample is the planned one; the file is read only if its time of change differs."""
    if old == replace(now, xxh3_128=old.xxh3_128):
        return True
    alike = old == replace(now, mtime_ns=old.mtime_ns, xxh3_128=old.xxh3_128)
    return alike and _hash(source, now).xxh3_128 == old.xxh3_128
