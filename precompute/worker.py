"""Does jobs: opens the next part while one is encoded and the one before is written.

Any number of workers may do the same jobs: a part that another has committed is skipped, and of two that
finish one at once the first counts. Memory: the rows of three parts (`data_tools.cache.writer` says how much
that is) and the pictures ahead (`precompute.pipeline`).
"""

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from data_tools.cache.carry import carried
from data_tools.cache.generation import publish
from data_tools.cache.manifest import NULL_PART, Cache, Part
from data_tools.cache.rows import Container
from data_tools.cache.store import open_store
from data_tools.cache.tar_part import TarPart
from data_tools.cache.writer import PartWriter
from data_tools.cache.zarr_part import ZarrPart
from data_tools.errors import DataFault
from data_tools.sources import Source, open_source
from precompute import prompts
from precompute.calls import Calls, Sink
from precompute.encoders import Encoder, LatentsEncoder, TextEncoder, make_encoders
from precompute.options import RunOptions
from precompute.parts import Conditions, Job, live
from precompute.pipeline import Pipeline, Task, Work
from precompute.summary import Summary

PUBLISHED = 64
"Parts, or a sixteenth of all so far if that is more, after which a worker writes the next generations."


@dataclass
class Worker:
    """Encoders, a source and a cache. An encoder loads its weights when first needed, and keeps them."""

    options: RunOptions
    cache: Cache
    source: Source
    encoders: Sequence[Encoder]
    summary: Summary = field(default_factory=Summary)
    "Of what has been done so far, also while `encode` is at work."

    @classmethod
    def open(cls, options: RunOptions) -> "Worker":
        """In a process of its own. Raises `UserError` as a run does."""
        source = open_source(
            options.data, options.source, max_samples=options.max_samples, select=options.select
        )
        return cls(options, Cache(open_store(options.cache)), source, make_encoders(options))

    def encode(
        self,
        jobs: Iterable[Job],
        *,
        advance: Callable[[int], Any] = lambda _: None,
        raced: Callable[[], Any] = lambda: None,
        plan: list[Part] | None = None,
    ) -> None:
        """Do jobs and commit them; `summary` says what came of it.

        advance: called with numbers of finished samples. raced: called when another worker was first.
        plan: if given, the next generations are written from time to time.
        """
        started = time.perf_counter()
        with (
            ThreadPoolExecutor(self.options.workers) as decoders,
            ThreadPoolExecutor(1) as committer,
        ):
            pipeline = Pipeline(self.source, self.options, decoders, self.summary, advance)
            commits = _Commits(self, committer, raced, plan)
            for work in pipeline.encode(self._opened(jobs, advance, raced)):
                commits.add(work)
            commits.wait()
        self.summary.seconds += time.perf_counter() - started

    @torch.inference_mode()
    def encode_conditions(self, conditions: Conditions) -> None:
        """Encode and commit null conditions and sets of prompts. Raises `DataFault` if one is not finite."""
        by_name = {encoder.column.name: encoder for encoder in self.encoders}
        for name in conditions.null:
            encoder = by_name[name]
            assert not isinstance(encoder, LatentsEncoder)
            encoder.load()
            writer = PartWriter(self.cache.store, encoder.column, NULL_PART, container=self.container)
            row = Calls(self.summary).sound(encoder, encoder.null(), encoder.null)
            try:
                writer.add(0, "", [row])
            except ValueError as err:
                raise DataFault(f"column {name}: its null condition: {err}; are the weights whole?") from None
            writer.commit()
        if conditions.sets:
            text = by_name["text"]
            assert isinstance(text, TextEncoder)
            text.load()
            size = self.options.batch_size
            self.summary.notes += prompts.encode(self.cache, text, conditions.sets, size, self.container)

    @property
    def container(self) -> Container:
        options = self.options
        return TarPart(options.tar_block) if options.format == "webdataset" else ZarrPart()

    def _opened(
        self, jobs: Iterable[Job], advance: Callable[[int], Any], raced: Callable[[], Any]
    ) -> Iterator[Work]:
        """What each job still wants."""
        for job in jobs:
            work = self._open(job)
            if len(work.tasks) < len(job.columns):
                raced()
            if work.tasks:
                yield work
            else:
                advance(work.samples)

    def _open(self, job: Job) -> Work:
        """A writer for each column that still lacks the part, with the rows that older parts have for it."""
        lacking = [
            each
            for each in self.encoders
            if each.column.name in job.columns and self.cache.commit(each.column, job.part.name) is None
        ]
        if not lacking:
            return Work([], job.part.live)
        samples = live(self.cache, job.part)
        for position, each in samples.items():
            if place := job.moved.get(each.key):
                samples[position] = replace(each, **place)
        tasks = []
        for encoder in lacking:
            column = encoder.column
            writer = PartWriter(self.cache.store, column, job.part.name, container=self.container)
            rows = carried(self.cache, column, samples)
            for position, found in rows.items():
                writer.add(position, samples[position].key, found)
            if rows:
                self.summary.carried[column.name] += len(rows)
            left = {position: each for position, each in samples.items() if position not in rows}
            if left:
                encoder.load()
            tasks.append(Task(encoder, writer, left))
        return Work(tasks, len(samples))


class _Commits:
    """Commits one part's columns at a time, while the next part is encoded."""

    def __init__(
        self,
        worker: Worker,
        pool: ThreadPoolExecutor,
        raced: Callable[[], Any],
        plan: list[Part] | None,
    ) -> None:
        self.worker, self.pool, self.raced, self.plan = worker, pool, raced, plan
        self._open: list[Future[Any]] = []
        self._unpublished, self._count = 0, 0
        if plan is not None:  # a cache of many parts has large generations: they are written more rarely
            done = (worker.cache.committed(encoder.column) for encoder in worker.encoders)
            self._count = max(map(len, done), default=0)

    def add(self, work: Work) -> None:
        """Waits until the part before is committed."""
        self.wait()
        self._open = [self.pool.submit(self._commit, task.sink) for task in work.tasks]
        self._unpublished, self._count = self._unpublished + 1, self._count + 1
        if self.plan is not None and self._unpublished >= max(PUBLISHED, self._count // 16):
            cache, plan = self.worker.cache, self.plan
            columns = (encoder.column for encoder in self.worker.encoders)
            self._open += [self.pool.submit(publish, cache, column, plan) for column in columns]
            self._unpublished = 0

    def wait(self) -> None:
        started = time.perf_counter()
        for future in self._open:
            future.result()
        self.worker.summary.waited_for_writer += time.perf_counter() - started

    def _commit(self, writer: Sink) -> None:
        assert isinstance(writer, PartWriter)
        if not writer.commit():
            self.raced()
