"""The parts of a run: what each column still lacks, and how that is encoded, committed and published."""

import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from tqdm import tqdm

from data_tools.cache.carry import carried, was
from data_tools.cache.generation import publish
from data_tools.cache.listing import Listing, sample
from data_tools.cache.manifest import NULL_PART, Cache, Part
from data_tools.cache.rows import Container
from data_tools.cache.store import Store
from data_tools.cache.writer import PartWriter
from data_tools.sources import Sample
from precompute import prompts
from precompute.encoders import Encoder, LatentsEncoder, TextEncoder
from precompute.options import RunOptions
from precompute.pipeline import Progress, Task, encode_part

PUBLISHED = 64
"Parts, or a sixteenth of all so far if that is more, after which a run writes the next generations."


@dataclass(frozen=True)
class Todo:
    """What a run has to encode."""

    parts: list[tuple[Part, list[Encoder]]]
    "In order, each with the encoders whose column lacks it."
    null: list[Encoder]
    "Their null conditions."
    sets: prompts.Sets
    text: TextEncoder | None
    "Encodes the sets."
    done: dict[str, set[str]]
    "Column → parts that it has."

    @classmethod
    def of(cls, cache: Cache, plan: list[Part], encoders: list[Encoder], sets: prompts.Sets) -> "Todo":
        """Lists the commit records and reads none."""
        done = {encoder.column.name: cache.committed(encoder.column) for encoder in encoders}
        work = [(part, [e for e in encoders if part.name not in done[e.column.name]]) for part in plan]
        return cls(
            parts=[(part, lacking) for part, lacking in work if lacking],
            null=[e for e in encoders if e.column.has_null and NULL_PART not in done[e.column.name]],
            sets={part: texts for part, texts in sets.items() if part not in done["text"]},
            text=next((e for e in encoders if isinstance(e, TextEncoder)), None),
            done=done,
        )

    def encodes(self, encoder: Encoder, listed: Sample) -> bool:
        """True if the rows of a sample are not those of an older part that is there."""
        part, _, _ = was(encoder.column, listed).rpartition(":")
        return part not in self.done[encoder.column.name]

    def needs(self, cache: Cache, encoder: Encoder) -> bool:
        """True if the encoder has anything to encode. Reads sample tables up to the first that says so."""
        if encoder in self.null or (self.sets and encoder is self.text):
            return True
        parts = (part for part, lacking in self.parts if encoder in lacking)
        return any(self.encodes(encoder, each) for part in parts for each in live(cache, part).values())


def live(cache: Cache, part: Part) -> dict[int, Sample]:
    """The samples of a part that are not retired, by their position in its table."""
    table = cache.table(part)
    return {position: sample(table[position]) for position in part.positions().tolist()}


@dataclass
class Parts:
    """Encodes what is to be done."""

    cache: Cache
    listing: Listing
    options: RunOptions
    container: Container
    loaded: list[Encoder]
    "Those that have their weights; another one loads them when it turns out to be needed."

    def encode(self, plan: list[Part], todo: Todo) -> list[str]:
        """Null conditions, prompts, then part by part. Returns closing notes."""
        for encoder in todo.null:
            write_null(self.cache.store, encoder, self.container)
        notes = []
        if todo.sets:
            assert todo.text is not None
            batch_size = self.options.batch_size
            notes += prompts.encode(self.cache, todo.text, todo.sets, batch_size, self.container)
        total = sum(part.live for part, _ in todo.parts)
        if not total:
            return notes or ["nothing to do: every part is committed"]
        started = time.perf_counter()
        with _progress_bar(total) as progress:
            self._all(plan, todo, progress)
        seconds = time.perf_counter() - started
        notes.append(
            f"encoded {total} samples in {seconds:.1f} s ({total / seconds:.1f} samples/s); "
            f"the encoders waited {progress.wait_seconds / seconds:.0%} of the time for pictures"
        )
        if progress.carried:
            counts = ", ".join(f"{column} of {count}" for column, count in progress.carried.items())
            notes.append(f"taken over from older parts, as nothing of it has changed: {counts} samples")
        if progress.truncated:
            notes.append(
                f"{progress.truncated} captions were longer than the tokenizer takes and were truncated"
            )
        return notes

    def _all(self, plan: list[Part], todo: Todo, progress: Progress) -> None:
        """A part is written while the next one is encoded."""
        unpublished, count = 0, len(plan) - len(todo.parts)
        with ThreadPoolExecutor(self.options.workers) as pool, ThreadPoolExecutor(1) as committer:
            committing: list[Future[Any]] = []
            for number, (part, lacking) in enumerate(todo.parts):
                writers = self._one(part, lacking, pool, progress)
                for future in committing:
                    future.result()
                committing = [committer.submit(writer.commit) for writer in writers]
                unpublished += bool(writers)
                if unpublished >= max(PUBLISHED, (count + number) // 16):
                    columns = {e.column.name: e.column for _, each in todo.parts for e in each}
                    committing += [committer.submit(publish, self.cache, c, plan) for c in columns.values()]
                    unpublished = 0
            for future in committing:
                future.result()

    def _one(
        self, part: Part, lacking: list[Encoder], pool: ThreadPoolExecutor, progress: Progress
    ) -> list[PartWriter]:
        """A writer for each column that still lacks the part, with all it is to hold."""
        samples = {position: self.listing.here(each) for position, each in live(self.cache, part).items()}
        tasks = []
        for encoder in lacking:
            if self.cache.commit(encoder.column, part.name) is not None:  # another worker was first
                continue
            writer = PartWriter(self.cache.store, encoder.column, part.name, container=self.container)
            rows = carried(self.cache, encoder.column, samples)
            for position, found in rows.items():
                writer.add(position, samples[position].key, found)
            if rows:
                progress.carried[encoder.column.name] += len(rows)
            left = {position: each for position, each in samples.items() if position not in rows}
            tasks.append(Task(encoder, writer, left))
            if left and encoder not in self.loaded:
                encoder.load()
                self.loaded.append(encoder)
        decoded = encode_part(tasks, self.listing.source, self.options, pool, progress)
        progress.advance(len(samples) - decoded)
        return [task.writer for task in tasks]


@torch.inference_mode()
def write_null(store: Store, encoder: Encoder, container: Container) -> None:
    """Encode and commit a column's null condition."""
    assert not isinstance(encoder, LatentsEncoder)
    writer = PartWriter(store, encoder.column, NULL_PART, container=container)
    writer.add(0, "", [encoder.null()])
    writer.commit()


@contextmanager
def _progress_bar(total: int) -> Iterator[Progress]:
    started = time.perf_counter()
    with tqdm(total=total, unit=" samples", desc="precompute") as bar:

        def advance(count: int) -> None:
            share = progress.wait_seconds / (time.perf_counter() - started)
            bar.set_postfix_str(f"waited for pictures {share:.0%}", refresh=False)
            bar.update(count)

        progress = Progress(advance)
        yield progress
