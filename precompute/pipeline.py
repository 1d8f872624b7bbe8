"""One part: decode → encode → rows in the writers.

Threads decode and preprocess pictures ahead of the encoder, at most two batches of them; the calling
thread feeds the encoders. A picture is decoded once for all columns that need it.
"""

import time
from collections import Counter, deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

import numpy as np
import torch
import xxhash
from numpy.typing import NDArray
from PIL import Image

from data_tools import images
from data_tools.cache.fields import Row
from data_tools.cache.writer import PartWriter
from data_tools.sources import Sample, Source, Unusable
from precompute.encoders import Encoder, TextEncoder
from precompute.options import RunOptions

Prepared = dict[str, NDArray[np.float32]]
"One picture, preprocessed for each column that needs it."


@dataclass
class Progress:
    """Where the time of a run goes."""

    advance: Callable[[int], Any]
    "Called with a number of finished samples."
    wait_seconds: float = 0.0
    "The encoders waited for decoded pictures."
    truncated: int = 0
    "Captions longer than the tokenizer's limit."
    carried: Counter[str] = field(default_factory=Counter)
    "Column → samples whose rows were taken over from an older part."


@dataclass(frozen=True)
class Task:
    """What one encoder has to do of a part."""

    encoder: Encoder
    writer: PartWriter
    samples: Mapping[int, Sample]
    "By their position in the part's sample table, ascending."


@torch.inference_mode()
def encode_part(
    tasks: Sequence[Task],
    source: Source,
    options: RunOptions,
    pool: ThreadPoolExecutor,
    progress: Progress,
) -> int:
    """Fill each writer with the rows, or the reject reasons, of its samples; how many pictures were decoded.

    Each of these has been counted as finished.
    """
    for task in tasks:
        if isinstance(task.encoder, TextEncoder):
            _encode_texts(task, task.encoder, options.batch_size, progress)
    pictures = [task for task in tasks if not isinstance(task.encoder, TextEncoder)]
    samples = {position: sample for task in pictures for position, sample in task.samples.items()}
    todo = sorted(samples.items())

    def prepare(item: tuple[int, Sample]) -> Prepared | Unusable:
        position, sample = item
        try:
            image = _decoded(sample, source, options)
        except Unusable as reason:
            return reason
        wanted = [task.encoder for task in pictures if position in task.samples]
        return {e.column.name: e.prepare(image) for e in wanted if not isinstance(e, TextEncoder)}

    batch: dict[int, Prepared] = {}
    ahead = _ahead(pool, prepare, todo, 2 * options.batch_size, progress)
    for (position, sample), prepared in zip(todo, ahead):
        if isinstance(prepared, Unusable):
            for task in pictures:
                if position in task.samples:
                    task.writer.reject(sample, str(prepared))
            progress.advance(1)
        else:
            batch[position] = prepared
        if len(batch) == options.batch_size:
            _encode_pictures(batch, pictures, progress)
            batch = {}
    if batch:
        _encode_pictures(batch, pictures, progress)
    return len(todo)


def _decoded(sample: Sample, source: Source, options: RunOptions) -> Image.Image:
    """The picture of a sample, as it was when the plan was made. Raises `Unusable`."""
    if sample.problem:
        raise Unusable(sample.problem)
    data = source.read(sample)
    if xxhash.xxh3_128_hexdigest(data) != sample.xxh3_128:
        raise Unusable("changed while the cache was being made; run precompute again")
    return images.decode(
        data,
        alpha=options.encoders.alpha,
        max_pixels=options.max_pixels,
        min_size=options.min_size,
        icc=options.encoders.icc,
    )


def _encode_pictures(batch: dict[int, Prepared], tasks: Sequence[Task], progress: Progress) -> None:
    for task in tasks:
        encoder, name = task.encoder, task.encoder.column.name
        assert not isinstance(encoder, TextEncoder)
        mine = {position: prepared[name] for position, prepared in batch.items() if name in prepared}
        if not mine:
            continue
        started = time.perf_counter()
        rows = encoder.encode(np.stack([*mine.values()]))
        task.writer.encode_seconds += time.perf_counter() - started
        for position, row in zip(mine, rows):
            _add(task, position, [row])
    progress.advance(len(batch))


def _encode_texts(task: Task, encoder: TextEncoder, batch_size: int, progress: Progress) -> None:
    """Encode every caption of a part."""
    started = time.perf_counter()
    captions = [caption for sample in task.samples.values() for caption in sample.captions]
    rows = encode_captions(captions, encoder, batch_size, progress)
    task.writer.encode_seconds += time.perf_counter() - started
    for position, sample in task.samples.items():
        if sample.captions:
            _add(task, position, [rows[caption] for caption in sample.captions])
        else:
            task.writer.reject(sample, sample.caption_problem or "no caption")


@torch.inference_mode()
def encode_captions(
    captions: Sequence[str], encoder: TextEncoder, batch_size: int, progress: Progress
) -> dict[str, Row]:
    """The row of each caption, encoded at its own length, equal ones once."""
    captions = list(dict.fromkeys(captions))
    by_length: dict[int, list[tuple[str, list[int]]]] = {}
    for caption, ids in zip(captions, encoder.tokenize(captions)):
        by_length.setdefault(len(ids), []).append((caption, ids))
    progress.truncated += sum(encoder.truncates(c) for c, _ in by_length.get(encoder.max_length, []))
    rows: dict[str, Row] = {}
    for _, group in sorted(by_length.items()):
        for start in range(0, len(group), batch_size):
            texts, ids_of_batch = zip(*group[start : start + batch_size])
            rows.update(zip(texts, encoder.encode(list(ids_of_batch))))
    return rows


def _add(task: Task, position: int, rows: list[Row]) -> None:
    sample = task.samples[position]
    try:
        task.writer.add(position, sample.key, rows)
    except ValueError as err:  # an encoder made NaN or infinity: never stored, never zeroed
        task.writer.reject(sample, str(err))


def _ahead(
    pool: ThreadPoolExecutor,
    function: Callable[[tuple[int, Sample]], Any],
    samples: Sequence[tuple[int, Sample]],
    window: int,
    progress: Progress,
) -> Iterator[Any]:
    """`map` in order, at most `window` results ahead of the consumer; measures how long it waits."""
    remaining = iter(samples)
    futures: deque[Future[Any]] = deque(pool.submit(function, sample) for sample in islice(remaining, window))
    while futures:
        started = time.perf_counter()
        result = futures.popleft().result()
        progress.wait_seconds += time.perf_counter() - started
        futures.extend(pool.submit(function, sample) for sample in islice(remaining, 1))
        yield result
