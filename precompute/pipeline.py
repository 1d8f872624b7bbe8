"""One part: decode → encode → rows in the writers.

Threads decode and preprocess pictures ahead of the encoder, at most two batches of them; the calling
thread feeds the encoders. A picture is decoded once for all columns that need it.
"""

import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np
import torch
import xxhash
from numpy.typing import NDArray

from data_tools import images
from data_tools.cache.fields import Row
from data_tools.cache.writer import PartWriter
from data_tools.errors import UserError
from data_tools.sources import Sample, Source, Unusable
from precompute.encoders import Encoder, PictureEncoder, TextEncoder
from precompute.options import RunOptions

Prepared = list[NDArray[np.float32]]
"One picture, preprocessed for each of the picture encoders."


@dataclass
class Progress:
    """Where the time of a run goes."""

    advance: Callable[[int], Any]
    "Called with a number of finished samples."
    wait_seconds: float = 0.0
    "The encoders waited for decoded pictures."
    truncated: int = 0
    "Captions longer than the tokenizer's limit."


@torch.inference_mode()
def encode_part(
    samples: Sequence[Sample],
    source: Source,
    work: Sequence[tuple[Encoder, PartWriter]],
    options: RunOptions,
    pool: ThreadPoolExecutor,
    progress: Progress,
) -> None:
    """Fill each encoder's writer with the rows, or the reject reasons, of every sample of a part."""
    pictures: list[tuple[PictureEncoder, PartWriter]] = []
    for encoder, writer in work:
        if isinstance(encoder, TextEncoder):
            _encode_texts(samples, encoder, writer, options.batch_size, progress)
        else:
            pictures.append((encoder, writer))
    if not pictures:
        progress.advance(len(samples))
        return

    def prepare(sample: Sample) -> Prepared | Unusable:
        try:
            data = source.read(sample)
            if xxhash.xxh3_128_hexdigest(data) != sample.xxh3_128:
                raise UserError(
                    f"--data: {sample.place} has changed since the cache was planned; give a new --cache"
                )
            image = images.decode(data, alpha=options.encoders.alpha, max_pixels=options.max_pixels)
            return [encoder.prepare(image) for encoder, _ in pictures]
        except Unusable as reason:
            return reason

    batch: list[tuple[int, Prepared]] = []
    for index, prepared in enumerate(_ahead(pool, prepare, samples, 2 * options.batch_size, progress)):
        if isinstance(prepared, Unusable):
            for _, writer in pictures:
                writer.reject(samples[index], str(prepared))
            progress.advance(1)
        else:
            batch.append((index, prepared))
        if len(batch) == options.batch_size:
            _encode_pictures(batch, samples, pictures, progress)
            batch = []
    if batch:
        _encode_pictures(batch, samples, pictures, progress)


def _encode_pictures(
    batch: list[tuple[int, Prepared]],
    samples: Sequence[Sample],
    pictures: list[tuple[PictureEncoder, PartWriter]],
    progress: Progress,
) -> None:
    for number, (encoder, writer) in enumerate(pictures):
        started = time.perf_counter()
        rows = encoder.encode(np.stack([prepared[number] for _, prepared in batch]))
        writer.encode_seconds += time.perf_counter() - started
        for (index, _), row in zip(batch, rows):
            _add(writer, index, samples[index], [row])
    progress.advance(len(batch))


def _encode_texts(
    samples: Sequence[Sample], encoder: TextEncoder, writer: PartWriter, batch_size: int, progress: Progress
) -> None:
    """Encode every caption of a part."""
    started = time.perf_counter()
    captions = [caption for sample in samples for caption in sample.captions]
    rows = encode_captions(captions, encoder, batch_size, progress)
    writer.encode_seconds += time.perf_counter() - started
    for index, sample in enumerate(samples):
        if sample.captions:
            _add(writer, index, sample, [rows[caption] for caption in sample.captions])
        else:
            writer.reject(sample, "no caption")


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


def _add(writer: PartWriter, index: int, sample: Sample, rows: list[Row]) -> None:
    try:
        writer.add(index, sample.key, rows)
    except ValueError as err:  # an encoder made NaN or infinity: never stored, never zeroed
        writer.reject(sample, str(err))


def _ahead(
    pool: ThreadPoolExecutor,
    function: Callable[[Sample], Any],
    samples: Sequence[Sample],
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
