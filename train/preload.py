"""`--preload ram|device`: all rows of the columns that training needs, read once and kept.

Each field is one tensor: rows of a fixed shape stacked (one tensor for each bucket), ragged rows end to end.
Batches are made of them by index, on the device where they lie, and are bit-equal to those that are read.

Memory: the payload of the columns as it is stored, on the device; 40 bytes a row beside it in RAM; one slice
of `SLICE_BYTES` while reading. Each process keeps its own.
"""

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from data_tools.cache.fields import Field
from data_tools.cache.mixture import Reader
from data_tools.cache.reads import Ids
from data_tools.errors import UserError
from train.batches import Batch, tensors

SLICE_BYTES = 64 << 20
"Read at once; padding of ragged rows included."


class Preloaded:
    """The rows of a reader's columns on a device; see `check_memory`."""

    def __init__(self, reader: Reader, device: torch.device, *, quiet: bool = False) -> None:
        self.device = device
        needed = reader.payload_bytes(list(reader.columns))
        bar: tqdm[Any]
        with tqdm(total=needed, desc="preload", unit="B", unit_scale=True, disable=quiet) as bar:
            self._columns = {name: _load(reader, name, device, bar) for name in reader.columns}

    def collate(self, rows: dict[str, Ids], *, pinned: bool = False) -> Batch:
        """The fields of some rows of each column, on the device, in their stored dtypes; no host sync."""
        batch: Batch = {}
        for column, numbers in rows.items():
            batch.update(self._columns[column].take(numbers, self.device, pinned))
        return batch


@dataclass(frozen=True)
class _Loaded:
    """One column. What is not a field's values stays on the CPU, so that no batch waits for the device."""

    numbers: Ids
    "The reader's numbers of the rows, ascending: (R,)."
    stack: Ids
    "Which of a field's tensors holds each row: (R,)."
    place: Ids
    "Where in it: (R,)."
    lengths: Ids
    "Of the ragged fields' rows, 1 without any: (R,)."
    starts: Ids
    "Where they begin: (R,)."
    fields: tuple[Field, ...]
    values: dict[str, list[Tensor]]
    "Ragged rows end to end, and a row of zeros for the padding; others stacked, one tensor a bucket."

    def take(self, numbers: Ids, device: torch.device, pinned: bool) -> Batch:
        at = np.searchsorted(self.numbers, numbers)  # (B,)
        assert (self.numbers[at] == numbers).all(), "rows that are not the reader's"
        batch: Batch = {}
        for field in self.fields:
            if field.ragged:
                lengths = self.lengths[at]  # (B,)
                token = np.arange(lengths.max(initial=0))  # (N,)
                values = self.values[field.name][0]  # (T + 1, …)
                index = np.where(token < lengths[:, None], self.starts[at, None] + token, len(values) - 1)
                batch[field.ragged] = _moved(lengths, device, pinned)
                batch[field.name] = _select(values, index, device, pinned)  # (B, N, …)
            else:
                (stack,) = set(self.stack[at].tolist()) or {0}
                values = self.values[field.name][stack]
                batch[field.name] = _select(values, self.place[at], device, pinned)  # (B, …)
        return batch


def _select(values: Tensor, index: Ids, device: torch.device, pinned: bool) -> Tensor:
    """`values` at an index of any shape."""
    shape = (*index.shape, *values.shape[1:])
    out = None
    if pinned and device.type == "cpu":
        out = torch.empty((index.size, *values.shape[1:]), dtype=values.dtype, pin_memory=True)
    chosen = torch.index_select(values, 0, _moved(index.reshape(-1), device, pinned=False), out=out)
    return chosen.view(shape)


def _moved(array: Ids, device: torch.device, pinned: bool) -> Tensor:
    tensor = torch.from_numpy(array)
    if device.type == "cuda":  # a copy from pinned memory does not wait for what the device does
        return tensor.pin_memory().to(device, non_blocking=True)
    return tensor.pin_memory() if pinned else tensor


def _load(reader: Reader, column: str, device: torch.device, bar: "tqdm[Any]") -> _Loaded:
    fields = reader.columns[column].fields
    first, count = reader.rows(column)
    sample = np.repeat(np.arange(len(first)), count)  # (R,), of each row
    within = np.arange(len(sample)) - np.repeat(np.cumsum(count) - count, count)
    numbers = first[sample] + within
    order = np.argsort(numbers, kind="stable")
    numbers, sample = numbers[order], sample[order]
    shapes = reader.buckets(column)
    stack = np.zeros_like(numbers)
    if shapes:
        stack = reader.bucket_of(column, sample)[0]
    place = np.empty_like(numbers)
    for bucket in range(max(1, len(shapes))):
        here = np.flatnonzero(stack == bucket)
        place[here] = np.arange(len(here))
    lengths = np.ones_like(numbers)
    if any(field.ragged for field in fields):
        lengths = reader.lengths(column, numbers)
    starts = np.cumsum(lengths) - lengths
    values = {field.name: _room(field, stack, shapes, int(lengths.sum()), device) for field in fields}
    loaded = _Loaded(numbers, stack, place, lengths, starts, fields, values)
    for chosen in _slices(loaded, shapes):
        _fill(loaded, chosen, tensors(reader, column, reader.gather(column, numbers[chosen])), bar)
    return loaded


def _room(
    field: Field, stack: Ids, shapes: Sequence[tuple[int, ...]], tokens: int, device: torch.device
) -> list[Tensor]:
    """Empty tensors for a field's rows."""
    dtype = getattr(torch, field.dtype)
    if field.ragged:
        values = torch.empty((tokens + 1, *field.item_shape), dtype=dtype, device=device)
        values[-1] = 0
        return [values]
    counts = np.bincount(stack, minlength=max(1, len(shapes))).tolist()
    row_shapes = shapes if field.bucketed else [field.item_shape] * len(counts)
    return [torch.empty((n, *shape), dtype=dtype, device=device) for n, shape in zip(counts, row_shapes)]


def _slices(loaded: _Loaded, shapes: Sequence[tuple[int, ...]]) -> Iterator[Ids]:
    """Runs of rows of one bucket, in the order in which they are stored, at most `SLICE_BYTES` each."""
    for bucket in range(max(1, len(shapes))):
        rows = np.flatnonzero(loaded.stack == bucket)
        largest = int(loaded.lengths.max(initial=1))
        size = 0
        for field in loaded.fields:
            values = loaded.values[field.name][bucket]
            size += values[:1].nbytes * (largest if field.ragged else 1)
        at_once = max(1, SLICE_BYTES // max(1, size))
        for start in range(0, len(rows), at_once):
            yield rows[start : start + at_once]


def _fill(loaded: _Loaded, chosen: Ids, batch: Batch, bar: "tqdm[Any]") -> None:
    """Put the rows of one slice into their places, which follow each other."""
    for field in loaded.fields:
        read = batch[field.name]
        if field.ragged:
            lengths = torch.from_numpy(loaded.lengths[chosen])
            read = read[torch.arange(read.shape[1]) < lengths[:, None]]  # (sum of lengths, …)
            target, start = loaded.values[field.name][0], int(loaded.starts[chosen[0]])
        else:
            target = loaded.values[field.name][int(loaded.stack[chosen[0]])]
            start = int(loaded.place[chosen[0]])
        target[start : start + len(read)].copy_(read)
        bar.update(read.nbytes)


def check_memory(reader: Reader, device: torch.device) -> None:
    """Raises `UserError` unless the device has room for the columns, RAM for each process of the node."""
    needed = reader.payload_bytes(list(reader.columns))
    where, free, others = "in RAM", _free_ram(), int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    if device.type == "cuda":
        where, free, others = f"on {device}", torch.cuda.mem_get_info(device)[0], 1
    if free is not None and needed * others > free:
        each = f" for each of {others} processes" if others > 1 else ""
        instead = "--preload ram or none" if device.type == "cuda" else "--preload none"
        raise UserError(
            f"--preload: {', '.join(reader.columns)} of {reader.url} take {needed:,} bytes{each}, "
            f"but {free:,} are free {where}; use {instead}"
        )


def _free_ram() -> int | None:
    """Bytes that can be had without swapping, None where the system does not say."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        (kib,) = [line.split()[1] for line in lines if line.startswith("MemAvailable:")]
        return int(kib) << 10
    except (OSError, ValueError):
        pass
    try:
        return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (ValueError, OSError):
        return None
