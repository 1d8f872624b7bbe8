"""What `bench-cache` reads: the same rows as a zarr cache, a tar cache, one .npy per field, and classic tars.

Rows of the published widths with random contents; a decoder row is 73.7 KB, a prior row about 56 KB.
"""

import io
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from data_tools.cache.fields import Column, Field, Row
from data_tools.cache.generation import publish
from data_tools.cache.manifest import NULL_PART, Cache
from data_tools.cache.plan import plan_source
from data_tools.cache.rows import Container
from data_tools.cache.store import LocalStore
from data_tools.cache.writer import PartWriter
from data_tools.sources import Sample, Unusable

WIDTH = 1280
COLUMNS = {
    "image": (Field("image_embeds", "float16", (WIDTH,)),),
    "text": (
        Field("prompt_embeds", "float16", (WIDTH,)),
        Field("text_encoder_hidden_states", "float16", ("n_tokens", WIDTH)),
    ),
    "latents@768": (Field("latents", "float16", (4, 96, 96)),),
}
PART_SIZE = 4096


@dataclass(frozen=True)
class Numbered:
    """A source of `count` samples without pictures."""

    count: int

    def __iter__(self) -> Iterator[Sample]:
        return (Sample(f"{i:08d}", ("a caption",), f"{i:08d}.png", 1, 1) for i in range(self.count))

    def read(self, sample: Sample) -> bytes:
        raise Unusable("no such file")


def column(name: str) -> Column:
    return Column(name, COLUMNS[name], {"weights": "none"}, {"hub": "nobody/nothing"}, {})


def row(name: str, number: int, pool: NDArray[np.float16]) -> Row:
    """Row `number` of a column: cut from a pool of random values, captions of 8 to 32 tokens."""
    rng = np.random.default_rng([number, len(name)])
    made = {}
    for field in COLUMNS[name]:
        shape = [int(rng.integers(8, 33)) if isinstance(dim, str) else dim for dim in field.shape]
        size = int(np.prod(shape))
        start = int(rng.integers(0, len(pool) - size))
        made[field.name] = pool[start : start + size].reshape(shape)
    return made


def random_pool() -> NDArray[np.float16]:
    return np.random.default_rng(0).standard_normal(4_000_000).astype(np.float16)


def build_cache(root: Path, names: list[str], count: int, container: Container) -> None:
    """A published cache of these columns."""
    store, pool = LocalStore(root), random_pool()
    plan = plan_source(store, Numbered(count), PART_SIZE)
    cache = Cache.open(store)
    for name in names:
        about = column(name)
        cache.declare(about)
        for first, part in zip(range(0, count, PART_SIZE), plan):
            writer = PartWriter(store, about, part.name, container=container)
            for i in range(part.samples):
                writer.add(i, f"{first + i:08d}", [row(name, first + i, pool)])
            writer.commit()
        if about.has_null:
            null = PartWriter(store, about, NULL_PART, container=container)
            null.add(0, "", [row(name, 0, pool)])
            null.commit()
        publish(cache, about, plan)


def build_npy(folder: Path, name: str, count: int) -> None:
    """One .npy per field, ragged ones end to end with their offsets: what np.memmap gathers from."""
    folder.mkdir(parents=True, exist_ok=True)
    pool = random_pool()
    for field in COLUMNS[name]:
        values = [row(name, i, pool)[field.name] for i in range(count)]
        np.save(folder / f"{field.name}.npy", np.concatenate(values) if field.ragged else np.stack(values))
        if field.ragged:
            lengths = [len(value) for value in values]
            np.save(folder / f"{field.name}_offsets.npy", np.concatenate([[0], np.cumsum(lengths)]))


def build_classic_tar(path: Path, name: str, count: int) -> None:
    """One sample a key, one member a field: what plain webdataset users have."""
    pool = random_pool()
    with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as tar:
        for number in range(count):
            for key, value in row(name, number, pool).items():
                buffer = io.BytesIO()
                np.save(buffer, value)
                info = tarfile.TarInfo(f"{number:08d}.{key}.npy")
                info.size = buffer.getbuffer().nbytes
                tar.addfile(info, io.BytesIO(buffer.getvalue()))
