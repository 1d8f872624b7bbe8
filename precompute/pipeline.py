"""Parts through the encoders: decode → encode → rows in the writers.

Threads decode pictures ahead of the encoders, beyond the end of a part into the next, at most two batches;
one more opens the next part; the calling thread feeds the encoders. A picture is decoded once for all columns
that need it. Pictures of one shape make a batch, never across parts, so a part is the same whatever was done
before it.

Memory: `2 * batch_size` prepared pictures (3 bytes a pixel: at 768 px and 32, 0.1 GB), the batches of the
shapes that are not full yet, and the rows of the part.
"""

import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
import xxhash
from PIL import Image

from data_tools import images
from data_tools.cache.fields import Row
from data_tools.sources import Sample, Source, Unusable
from precompute.ahead import Ahead
from precompute.calls import Calls, Sink
from precompute.encoders import Encoder, Pixels, TextEncoder
from precompute.options import RunOptions
from precompute.summary import Summary

Prepared = dict[str, Pixels]
"One picture, prepared for each column that needs it."

BEGIN, END = -2, -1
"In the place of a position: a part begins, a part ends."


@dataclass
class Task:
    """What one encoder has to do of a part."""

    encoder: Encoder
    sink: Sink
    samples: Mapping[int, Sample]
    "By their position in the part's sample table, ascending."
    views: dict[int, list[Row]] = field(default_factory=dict)
    "Of samples of which some are still to come."
    batches: dict[tuple[int, ...], list[tuple[int, Pixels]]] = field(default_factory=dict)
    "Pictures that wait for more of their shape."


@dataclass
class Work:
    """A part and what is to be done of it."""

    tasks: list[Task]
    samples: int
    "Of the part, those that need nothing too."

    @property
    def pictures(self) -> dict[int, Sample]:
        """Those that have to be decoded, by position."""
        wanted = (task.samples for task in self.tasks if not isinstance(task.encoder, TextEncoder))
        return dict(sorted(item for samples in wanted for item in samples.items()))


Item = tuple[Work, int, Sample | None]
"A picture of a part: its position and its sample; none for `BEGIN` and `END`."


@dataclass
class Pipeline:
    """Of one worker."""

    source: Source
    options: RunOptions
    decoders: ThreadPoolExecutor
    summary: Summary
    advance: Callable[[int], Any]
    "Called with numbers of finished samples."

    def __post_init__(self) -> None:
        self.calls = Calls(self.summary)
        "Of all encoders, in one order."

    @torch.inference_mode()
    def encode(self, works: Iterable[Work]) -> Iterator[Work]:
        """Each part, in order, when its writers have all rows and rejects of its samples."""
        with Ahead(iter(works)) as ahead:
            for (work, position, _), prepared in self._ahead(ahead):
                if position == BEGIN:
                    self._begin(work)
                elif position == END:
                    self._end(work)
                    yield work
                else:
                    self._picture(work, position, prepared)

    def _begin(self, work: Work) -> None:
        for task in work.tasks:
            if isinstance(task.encoder, TextEncoder):
                self._texts(task, task.encoder)
        self.advance(work.samples - len(work.pictures))
        self.summary.samples += work.samples

    def _texts(self, task: Task, encoder: TextEncoder) -> None:
        captions = [caption for sample in task.samples.values() for caption in sample.captions]
        rows = encode_captions(captions, encoder, task.sink, self.options.batch_size, self.calls)
        for position, sample in task.samples.items():
            if sample.captions:
                _add(task, position, [rows[caption] for caption in sample.captions])
            else:
                task.sink.reject(sample, sample.caption_problem or "no caption")

    def _picture(self, work: Work, position: int, prepared: Prepared | Unusable) -> None:
        for task in work.tasks:
            if isinstance(task.encoder, TextEncoder) or position not in task.samples:
                continue
            if isinstance(prepared, Unusable):
                task.sink.reject(task.samples[position], str(prepared))
                continue
            pixels = prepared[task.encoder.column.name]
            batch = task.batches.setdefault(pixels.shape, [])
            batch.append((position, pixels))
            if len(batch) == self.options.batch_size:
                self._encode(task, task.batches.pop(pixels.shape))
        self.advance(1)

    def _end(self, work: Work) -> None:
        for task in work.tasks:
            for _, batch in sorted(task.batches.items()):
                self._encode(task, batch)
            task.batches.clear()
        self.calls.drain()

    def _encode(self, task: Task, batch: Sequence[tuple[int, Pixels]]) -> None:
        """Every view of a batch of pictures."""
        views = 1 + self.options.encoders.flip

        def take(position: int, row: Row) -> None:
            rows = task.views.setdefault(position, [])
            rows.append(row)
            if len(rows) == views:
                _add(task, position, task.views.pop(position))

        self.calls.call(task.encoder, task.sink, batch, take)
        if self.options.encoders.flip:
            mirrored = [(position, pixels[:, ::-1]) for position, pixels in batch]
            self.calls.call(task.encoder, task.sink, mirrored, take)

    def _ahead(self, works: Ahead[Work]) -> Iterator[tuple[Item, Prepared | Unusable]]:
        """Each item with its prepared picture, in order, some ahead; measures how long there is none.

        Of the part after the one that is encoded too; no third one is opened before the first has ended.
        """
        window, open_parts = 2 * self.options.batch_size, 0
        items: Iterator[Item] = iter(())
        queue: deque[tuple[Item, Future[Prepared | Unusable]]] = deque()
        while True:
            while len(queue) < window:
                if (item := next(items, None)) is not None:
                    queue.append((item, self.decoders.submit(self._prepare, *item)))
                elif open_parts < 2 and (not queue or works.is_ready()):
                    with self._waiting(works.is_ready()):
                        work = works.take()
                    if work is None:
                        break
                    items, open_parts = _items(work), open_parts + 1
                else:
                    break
            if not queue:
                return
            if open_parts < 2:
                works.ask()
            item, future = queue.popleft()
            with self._waiting(future.done()):
                prepared = future.result()
            yield item, prepared
            open_parts -= item[1] == END

    @contextmanager
    def _waiting(self, is_ready: bool) -> Iterator[None]:
        """Around what the encoders have to wait for unless it is ready."""
        if not is_ready:
            self.calls.drain()  # then there is nothing else to do
        started = time.perf_counter()
        yield
        self.summary.waited_for_pictures += time.perf_counter() - started

    def _prepare(self, work: Work, position: int, sample: Sample | None) -> Prepared | Unusable:
        """In a thread: a picture for each column that needs it."""
        if sample is None:
            return {}
        encoders = (task.encoder for task in work.tasks if position in task.samples)
        try:
            image = _decoded(sample, self.source, self.options)
            return {e.column.name: e.prepare(image) for e in encoders if not isinstance(e, TextEncoder)}
        except Unusable as reason:
            return reason
        except MemoryError:
            return Unusable("more memory needed to prepare it than there is")


def _items(work: Work) -> Iterator[Item]:
    yield work, BEGIN, None
    for position, sample in work.pictures.items():
        yield work, position, sample
    yield work, END, None


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


@torch.inference_mode()
def encode_captions(
    captions: Sequence[str], encoder: TextEncoder, sink: Sink, batch_size: int, calls: Calls
) -> dict[str, Row]:
    """The row of each caption, encoded at its own length; those that many samples share once.

    Once in each part, so that a part is the same whatever was done before it. A batch has as many tokens as
    `batch_size` captions of the greatest length.
    """
    captions = list(dict.fromkeys(captions))
    by_length: dict[int, list[tuple[str, list[int]]]] = {}
    for caption, ids in zip(captions, encoder.tokenize(captions)):
        by_length.setdefault(len(ids), []).append((caption, ids))
    longest = by_length.get(encoder.max_length, [])
    calls.summary.truncated += sum(encoder.truncates(caption) for caption, _ in longest)
    rows: dict[str, Row] = {}
    for length, group in sorted(by_length.items()):
        size = batch_size * encoder.max_length // length
        for start in range(0, len(group), size):
            calls.call(encoder, sink, group[start : start + size], rows.__setitem__)
    calls.drain()
    return rows


def _add(task: Task, position: int, rows: list[Row]) -> None:
    sample = task.samples[position]
    try:
        task.sink.add(position, sample.key, rows)
    except ValueError as err:  # an encoder made NaN or infinity: never stored, never zeroed
        task.sink.reject(sample, str(err))
