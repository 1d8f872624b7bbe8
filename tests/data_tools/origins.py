"""Caches to copy from: made by `caches.build`, of chosen samples."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import xxhash

from data_tools.cache.fields import Row
from data_tools.cache.manifest import PROMPTS, Cache
from data_tools.cache.payload import PartPayload
from data_tools.cache.store import open_store
from data_tools.cache.writer import PartWriter
from tests.data_tools import caches
from tests.data_tools.caches import Listed, Made, build, listed, random_row


def build_of(
    root: Path, numbers: Sequence[int], *, changes: dict[str, Any] | None = None, **options: Any
) -> Made:
    """A cache of the samples `k<number>`; `changes` are made to each of them."""
    every = listed(100).samples
    chosen = Listed(tuple(replace(every[number], **(changes or {})) for number in numbers))
    with patch.object(caches, "listed", lambda _: chosen):
        return build(root, **options)


def add_prompts(root: Path, prompts: Sequence[str], *, seed: int = 0) -> dict[str, list[Row]]:
    """Random rows for a set of cached prompts, as `precompute --prompts` would commit them."""
    cache, rng = opened(root), np.random.default_rng(seed)
    column = cache.column("text")
    assert column is not None
    rows = {prompt: [random_row(column, rng)] for prompt in prompts}
    name = PROMPTS + xxhash.xxh3_64_hexdigest("\n".join(prompts).encode())[:8]
    writer = PartWriter(cache.store, column, name)
    writer.prompts = tuple(prompts)
    for number, prompt in enumerate(prompts):
        writer.add(number, prompt, rows[prompt])
    assert writer.commit()
    return rows


def opened(root: Path) -> Cache:
    return Cache.open(open_store(root))


def sums(root: Path) -> dict[tuple[str, str], dict[str, list[int]]]:
    """(column, key) → field → crc32c of its rows, out of the extent indices."""
    cache, found = opened(root), {}
    for name in cache.column_names():
        column = cache.column(name)
        assert column is not None
        keys = {part.name: [row["key"] for row in cache.table(part)] for part in cache.plan()}
        for part, commit in cache.commits(column).items():
            payload = PartPayload.open(cache, column, commit)
            listed = keys.get(part, commit.prompts or ("",))
            for number, position in enumerate(payload.index.sample_index.tolist()):
                found[name, listed[position]] = payload.crc32c(number)
    return found


def stored(root: Path) -> Made:
    """Everything committed in a cache, cut out of whole parts; keyed as `build` keys it, prompts by text."""
    cache, found = opened(root), Made()
    for name in cache.column_names():
        column = cache.column(name)
        assert column is not None
        keys = {part.name: [row["key"] for row in cache.table(part)] for part in cache.plan()}
        found[name] = {}
        for part, commit in cache.commits(column).items():
            payload = PartPayload.open(cache, column, commit)
            listed = keys.get(part, commit.prompts or ("",))
            for number, position in enumerate(payload.index.sample_index.tolist()):
                found[name][listed[position]] = payload.rows(number)
    return found


def float32(value: np.ndarray, dtype: str) -> np.ndarray:
    """The numbers that stored bits stand for, by the definition of bfloat16."""
    return (value.astype("<u4") * 65536).view("<f4") if dtype == "bfloat16" else value.astype(np.float32)
