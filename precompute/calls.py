"""Calls of encoders: one ahead of the rows that are fetched, smaller where memory is full, and made again
where rows are not finite.
"""

import sys
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

import torch
from tqdm import tqdm

from data_tools.cache.fields import Row, finite
from data_tools.errors import UserError
from data_tools.sources import Sample
from precompute.device import in_float32, is_out_of_memory
from precompute.encoders import Encoder, Rows
from precompute.summary import Summary

Take = Callable[[Any, Row], None]
"Called with what an input belongs to, and its row."


class Sink(Protocol):
    """What takes the rows of a part's samples: a `PartWriter`, or who compares them."""

    encode_seconds: float

    def add(self, sample_index: int, key: str, rows: list[Row]) -> None:
        """Raises `ValueError` for rows that it cannot have."""

    def reject(self, sample: Sample, reason: str) -> None: ...


@dataclass
class _Call:
    encoder: Encoder
    sink: Sink
    inputs: Sequence[tuple[Any, Any]]
    take: Take
    rows: Rows
    started: float


class Calls:
    """The calls of one worker, in order.

    On CUDA a call returns before it is done, and the host makes the next one ready; `drain` at the end.
    """

    def __init__(self, summary: Summary) -> None:
        self.summary = summary
        self._open: deque[_Call] = deque()
        self._fetched = 0.0

    def call(self, encoder: Encoder, sink: Sink, inputs: Sequence[tuple[Any, Any]], take: Take) -> None:
        """Encode `inputs`, each with what it belongs to; the seconds it took count for `sink`.

        Raises `UserError` if the GPU's memory does not suffice for a single one.
        """
        rest, name = list(inputs), encoder.column.name
        while rest:
            batch = rest[: self.summary.batch_sizes.get(name, len(rest))]
            started = time.perf_counter()
            try:
                rows = encoder.start([each for _, each in batch])
            except RuntimeError as err:
                if not is_out_of_memory(err):
                    raise
                full = str(err).splitlines()[0]
            else:
                rest = rest[len(batch) :]
                self._open.append(_Call(encoder, sink, batch, take, rows, started))
                while len(self._open) > (encoder.model.device.type == "cuda"):
                    self._fetch()
                continue
            self._halve(name, len(batch), full)

    def drain(self) -> None:
        """Fetch all rows that are still under way."""
        while self._open:
            self._fetch()

    def _halve(self, name: str, size: int, full: str) -> None:
        if size == 1:
            raise UserError(f"--device: not enough memory for one row of {name}: {full}")
        self.drain()
        torch.cuda.empty_cache()
        self.summary.batch_sizes[name] = size // 2
        tqdm.write(
            f"{name}: the GPU's memory is full with a batch of {size}; going on with {size // 2}",
            file=sys.stderr,
        )

    def _fetch(self) -> None:
        call = self._open.popleft()
        rows = call.rows()
        now = time.perf_counter()
        seconds = now - max(call.started, self._fetched)  # calls follow each other on the device
        self._fetched = now
        call.sink.encode_seconds += seconds
        spent, name = self.summary.encode_seconds, call.encoder.column.name
        spent[name] = spent.get(name, 0.0) + seconds
        for (tag, given), row in zip(call.inputs, rows):
            call.take(tag, self.sound(call.encoder, row, partial(_alone, call.encoder, given)))

    def sound(self, encoder: Encoder, row: Row, again: Callable[[], Row]) -> Row:
        """The row; if it is not finite, the one that `again` makes in float32, which may be no better."""
        if all(finite(row[about.name], about.dtype) for about in encoder.column.fields):
            return row
        if encoder.options.precision == "float32":
            return row
        try:
            with in_float32(encoder.model):
                row = again()
            self.summary.redone += 1
        except RuntimeError as err:
            if not is_out_of_memory(err):  # there is no room for it: the row stays as it is and is rejected
                raise
        return row


def _alone(encoder: Encoder, given: Any) -> Row:
    return encoder.start([given])()[0]
