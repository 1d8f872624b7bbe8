"""Cache → tensors of this rank.

One thread reads ahead: it gathers the records of coming micro-batches and pins them when a GPU is there;
the training thread only moves them to the device. What is in a batch depends on (seed, step) alone.
"""

import queue
import threading
import time
from collections.abc import Generator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from data_tools.cache.order import Order
from data_tools.cache.reader import CacheReader

READ_AHEAD = 4
"Micro-batches that wait, read and pinned, for the training step."

Batch = dict[str, Tensor]


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


class TrainingBatches:
    """Micro-batches of this rank, in order, from a given optimizer step on.

    Each is (batch on the device, positions (B,) in the global batch). `wait_seconds` is how long the
    training step has waited for them.
    """

    def __init__(
        self,
        reader: CacheReader,
        held_out: NDArray[np.int64],
        share: Slice,
        seed: int,
        device: torch.device,
    ) -> None:
        self.reader, self.share, self.device = reader, share, device
        self.order = Order(reader.num_samples, np.sort(held_out), share.global_batch_size, seed)
        self.wait_seconds = 0.0

    def read(self, step: int, accumulation_round: int) -> Batch:
        """One micro-batch on the CPU."""
        chosen, epoch = self.order.share(step, self.share.positions(accumulation_round))

        def rows(column: str) -> NDArray[np.int64]:
            first, count = self.reader.rows(column, chosen)
            return first + self.order.choice(chosen, epoch, count)

        return collate(self.reader, {column: rows(column) for column in self.reader.columns})

    def iterate(self, first_step: int, last_step: int) -> Generator[tuple[Batch, Tensor], None, None]:
        """All micro-batches of the steps first_step … last_step-1."""
        ready: queue.Queue[Any] = queue.Queue(maxsize=READ_AHEAD)
        stop = threading.Event()
        thread = threading.Thread(target=self._fill, args=(ready, stop, first_step, last_step), daemon=True)
        thread.start()
        try:
            for _ in range(first_step, last_step):
                for accumulation_round in range(self.share.num_rounds):
                    started = time.perf_counter()
                    batch = ready.get()
                    self.wait_seconds += time.perf_counter() - started
                    if isinstance(batch, BaseException):
                        raise batch
                    positions = self.share.positions(accumulation_round)
                    on_device = torch.arange(positions.start, positions.stop, device=self.device)
                    yield self._to_device(batch), on_device
        finally:
            stop.set()
            while thread.is_alive():  # it may be waiting for room in the queue
                _drain(ready)
                thread.join(timeout=0.01)

    def _fill(self, ready: "queue.Queue[Any]", stop: threading.Event, first: int, last: int) -> None:
        try:
            for step in range(first, last):
                for accumulation_round in range(self.share.num_rounds):
                    batch = self.read(step, accumulation_round)
                    if self.device.type == "cuda":
                        batch = {name: value.pin_memory() for name, value in batch.items()}
                    ready.put(batch)
                    if stop.is_set():
                        return
        except BaseException as err:  # raised again in the training thread
            ready.put(err)

    def _to_device(self, batch: Batch) -> Batch:
        return {name: value.to(self.device, non_blocking=True) for name, value in batch.items()}


def _drain(ready: "queue.Queue[Any]") -> None:
    while not ready.empty():
        ready.get_nowait()


def collate(reader: CacheReader, rows: dict[str, NDArray[np.int64]]) -> Batch:
    """The fields of some rows of each column, as tensors on the CPU in their stored dtypes."""
    batch: Batch = {}
    for column, numbers in rows.items():
        batch.update(_tensors(reader, column, reader.gather(column, numbers)))
    return batch


def null_conditions(reader: CacheReader, column: str, device: torch.device) -> Batch:
    """The null condition of a column on the device, without a batch dimension."""
    null = _tensors(reader, column, reader.null(column))
    return {name: value.to(device) for name, value in null.items()}


def _tensors(reader: CacheReader, column: str, arrays: dict[str, Any]) -> Batch:
    stored = {field.name: field.dtype for field in reader.columns[column].fields}
    tensors = {name: torch.as_tensor(array) for name, array in arrays.items()}
    return {
        name: tensor.view(torch.bfloat16) if stored.get(name) == "bfloat16" else tensor
        for name, tensor in tensors.items()
    }
