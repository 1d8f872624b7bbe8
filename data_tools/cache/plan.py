"""Which samples make which part, and what is left to do. Written once, before anything is encoded."""

import json
import secrets
from collections.abc import Iterator
from dataclasses import asdict
from itertools import islice
from typing import Any

import xxhash

from data_tools.cache.manifest import PLAN, VERSION, Cache, Part, dump, sealed
from data_tools.cache.store import LocalStore
from data_tools.errors import UserError
from data_tools.sources import Source


def sample_tables(source: Source, part_size: int) -> Iterator[tuple[str, int, bytes]]:
    """(part, number of samples, sample table) of each run of `part_size` samples; one in memory."""
    samples = iter(source)
    number = 0
    while chunk := list(islice(samples, part_size)):
        lines = (json.dumps(asdict(sample), ensure_ascii=False, sort_keys=True) for sample in chunk)
        yield f"part-{number:05d}", len(chunk), ("\n".join(lines) + "\n").encode()
        number += 1


def plan_source(store: LocalStore, source: Source, part_size: int, *, write: bool = True) -> list[Part]:
    """The plan of a cache, made from the source if there is none yet.

    An existing plan must list what the source lists now. Any number of processes may call this at once;
    one of their plans, which are all the same, is kept. With `write=False` nothing is written.
    """
    if store.size("cache.json") is not None:
        cache = Cache.open(store)
        if store.size(PLAN) is not None:
            return _check_unchanged(cache, source)
    parts, attempt = [], secrets.token_hex(4)
    for name, count, table in sample_tables(source, part_size):
        part = Part(name, count, f"samples/{name}-{attempt}.jsonl", xxhash.xxh3_128_hexdigest(table))
        if write:
            store.put(part.table, [table])
        parts.append(part)
    if not write:
        return parts
    store.create("cache.json", dump({"format": "kandinsky-cache", "version": VERSION}))
    plan = {"part_size": part_size, "samples": sum(part.samples for part in parts)}
    store.create(PLAN, sealed({**plan, "parts": [asdict(part) for part in parts]}))
    return Cache.open(store).plan()


def _check_unchanged(cache: Cache, source: Source) -> list[Part]:
    """The cache's plan. Raises `UserError` if the source no longer lists the samples it was made from."""
    planned = cache.plan()
    part_size = json.loads(cache.store.read(PLAN))["part_size"]
    found: dict[str, str] = {}
    for name, _, table in sample_tables(source, part_size):
        found[name] = xxhash.xxh3_128_hexdigest(table)
    if found != {part.name: part.xxh3_128 for part in planned}:
        raise UserError(f"--data: {_changes(cache, planned, source)}; give a new --cache")
    return planned


def _changes(cache: Cache, planned: list[Part], source: Source) -> str:
    old = {row["key"]: row for part in planned for row in cache.table(part)}
    new: dict[str, dict[str, Any]] = {
        sample.key: {**asdict(sample), "captions": list(sample.captions)} for sample in source
    }
    added, removed = new.keys() - old.keys(), old.keys() - new.keys()
    changed = {key for key in old.keys() & new.keys() if old[key] != new[key]}
    counts = f"{len(added)} new, {len(changed)} changed, {len(removed)} removed"
    example = min(added | removed | changed, default="the order of the samples")
    return f"the source is not the one this cache was planned from ({counts}; for example {example})"
