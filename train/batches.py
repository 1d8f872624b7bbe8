"""Cache → tensors of this rank.

One thread reads ahead: it gathers the records of coming micro-batches, in pinned memory when a GPU is there,
as far as `prefetch_bytes` go; the training thread only moves them to the device. What has been preloaded
on the device needs no thread: its batches are made there. What is in a batch depends on (seed, step) alone.
"""

import time
from collections.abc import Callable, Generator, Iterator
from contextlib import closing
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from data_tools.cache.mixture import Reader
from data_tools.cache.reads import Ids
from train.prefetch import Batch as Batch
from train.prefetch import Prefetch
from train.sampling import Ordering, Sampling

PREFETCH_MIB = 256
"Of batches that wait, read and pinned, for the training step; a single one may be larger."


@dataclass(frozen=True)
class Slice:
    """Which part of each global batch this rank works on."""

    rank: int
    world_size: int
    micro_batch_size: int
    num_rounds: int
    "Accumulation rounds."

    @property
    def global_batch_size(self) -> int:
        return self.world_size * self.micro_batch_size * self.num_rounds

    def positions(self, accumulation_round: int) -> range:
        """Positions in the global batch of this rank's samples in one accumulation round."""
        start = (accumulation_round * self.world_size + self.rank) * self.micro_batch_size
        return range(start, start + self.micro_batch_size)


class Source(Protocol):
    """Where the rows' values come from."""

    device: torch.device
    "Where its batches are made."

    def collate(self, rows: dict[str, Ids], *, pinned: bool = False) -> Batch:
        """The fields of some rows of each column, as tensors in their stored dtypes."""


@dataclass(frozen=True)
class Disk:
    """Rows are read when they are asked for."""

    reader: Reader
    device = torch.device("cpu")

    def collate(self, rows: dict[str, Ids], *, pinned: bool = False) -> Batch:
        return collate(self.reader, rows, pinned=pinned)


class TrainingBatches:
    """Micro-batches of this rank, in order, from a given optimizer step on.

    Each is (batch on the device, positions (B,) in the global batch). `wait_seconds` is how long the
    training step has waited for them. `held_out` are the samples that are never drawn, in any order.
    Raises `UserError` where there is nothing to draw.
    """

    def __init__(
        self,
        reader: Reader,
        held_out: Ids,
        share: Slice,
        seed: int,
        device: torch.device,
        *,
        ordering: Ordering | None = None,
        source: Source | None = None,
        prefetch_bytes: int = PREFETCH_MIB << 20,
    ) -> None:
        self.share, self.device, self.held_out = share, device, held_out
        self.sampling = Sampling(reader, held_out, share.global_batch_size, seed, ordering or Ordering())
        self.source = source or Disk(reader)
        self._prefetch = Prefetch(prefetch_bytes)
        self._made_in_step = 0.0

    @property
    def wait_seconds(self) -> float:
        return self._prefetch.wait_seconds + self._made_in_step

    def read(self, step: int, accumulation_round: int) -> Batch:
        """One micro-batch, where the source makes it."""
        rows = self.sampling.rows(step, self.share.positions(accumulation_round))
        return self.source.collate(rows, pinned=self.device.type == "cuda")

    def keys(self, step: int) -> list[str]:
        """The keys of this rank's samples of a step, round after round; for messages."""
        rounds = map(self.share.positions, range(self.share.num_rounds))
        return [key for positions in rounds for key in self.sampling.keys(step, positions)]

    def iterate(self, first_step: int, last_step: int) -> Generator[tuple[Batch, Tensor], None, None]:
        """All micro-batches of the steps first_step … last_step-1."""
        num_rounds = self.share.num_rounds
        made = (self.read(step, n) for step in range(first_step, last_step) for n in range(num_rounds))
        on_device = self.source.device == self.device and self.device.type != "cpu"
        ready = self._timed(made) if on_device else self._prefetch.iterate(made)
        with closing(ready):
            for number, batch in enumerate(ready):
                positions = self.share.positions(number % num_rounds)
                numbers = torch.arange(positions.start, positions.stop, device=self.device)
                yield to_device(batch, self.device), numbers

    def _timed(self, made: Iterator[Batch]) -> Generator[Batch, None, None]:
        started = time.perf_counter()
        for batch in made:
            self._made_in_step += time.perf_counter() - started
            yield batch
            started = time.perf_counter()


def to_device(batch: Batch, device: torch.device) -> Batch:
    return {name: value.to(device, non_blocking=True) for name, value in batch.items()}


def collate(reader: Reader, rows: dict[str, Ids], *, pinned: bool = False) -> Batch:
    """The fields of some rows of each column, as tensors on the CPU in their stored dtypes."""
    batch: Batch = {}
    for column, numbers in rows.items():
        if pinned:
            room = _PinnedRoom()
            batch.update(tensors(reader, column, reader.gather(column, numbers, empty=room.empty), room.of))
        else:
            batch.update(tensors(reader, column, reader.gather(column, numbers)))
    return batch


def null_conditions(reader: Reader, column: str, device: torch.device) -> Batch:
    """The null condition of a column on the device, without a batch dimension."""
    return to_device(tensors(reader, column, reader.null(column)), device)


def tensors(
    reader: Reader,
    column: str,
    arrays: dict[str, Any],
    as_tensor: Callable[[Any], Tensor] = torch.as_tensor,
) -> Batch:
    """A column's arrays as tensors on the same memory; bfloat16 is stored as uint16."""
    stored = {field.name: field.dtype for field in reader.columns[column].fields}
    return {
        name: as_tensor(array).view(torch.bfloat16) if stored.get(name) == "bfloat16" else as_tensor(array)
        for name, array in arrays.items()
    }


class _PinnedRoom:
    """Hands out arrays of pinned memory, and knows their tensors."""

    def __init__(self) -> None:
        self._made: dict[int, Tensor] = {}

    def empty(self, shape: tuple[int, ...], dtype: np.dtype[Any]) -> NDArray[Any]:
        like = torch.as_tensor(np.empty(0, dtype=dtype)).dtype
        tensor = torch.empty(shape, dtype=like, pin_memory=True)
        array: NDArray[Any] = tensor.numpy()
        self._made[id(array)] = tensor
        return array

    def of(self, array: NDArray[Any]) -> Tensor:
        """Its tensor; what was made elsewhere (lengths) is copied into pinned memory."""
        made = self._made.get(id(array))
        return torch.as_tensor(array).pin_memory() if made is None else made
