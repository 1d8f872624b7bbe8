"""`precompute --audit`: random stored samples encoded again, and what comes out compared with what is stored.

Samples are drawn from all that are not retired, over all parts: a permutation of them that follows from
the plan, of which the first so many count that any of the columns holds. So the same cache gives the same
samples, and a larger number the same ones and more. They go through the run's own pipeline, in its batches;
null conditions and cached prompts too. Nothing is written. Memory: some batches of rows.
"""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing
from dataclasses import dataclass, replace
from itertools import groupby
from typing import Any

import numpy as np
import torch
import xxhash
from tqdm import tqdm

from data_tools.cache.fields import Column
from data_tools.cache.listing import chunks, compare, sample
from data_tools.cache.manifest import NULL_PART, Cache, Part, plan_hash
from data_tools.cache.permutation import keyed, permuted
from data_tools.cache.records import ColumnRecords
from data_tools.errors import UserError
from data_tools.sources import Sample, Source, Unusable
from precompute.checks import check_widths, load
from precompute.comparison import Comparison, as_json, as_table, default_tolerance, faults, shown
from precompute.encoders import LatentsEncoder, TextEncoder
from precompute.options import RunOptions
from precompute.pipeline import Pipeline, Task, Work, encode_captions
from precompute.run import Closing, check_identities
from precompute.summary import Summary
from precompute.worker import Worker

MOST_LOOKED_UP = 1024
"Samples that are looked up together."
BATCHES = 16
"Full batches that go through the pipeline as if they were a part."


@dataclass(frozen=True)
class Drawn:
    sample: Sample
    rows: dict[str, range]
    "Column → the sample's rows in it."


def audit(options: RunOptions, count: int, tolerance: float | None) -> Closing:
    """Compare `count` samples in the columns of a run.

    `tolerance`: the largest distance (`precompute.comparison`); None: by precision. A distance above it, and
    something stored that can no longer be encoded, are faults. Raises `UserError` for a column of another
    identity, as a run does, and if there is nothing to compare.
    """
    worker = Worker.open(options)
    cache = worker.cache
    check_widths(worker.encoders)
    check_identities(cache, worker.encoders, (), {})
    limit = default_tolerance(options.encoders) if tolerance is None else tolerance
    plan = cache.plan()
    with ExitStack() as stack:
        columns: dict[str, Comparison] = {}
        for encoder in worker.encoders:
            _refuse_missing(cache, encoder.column)
            records = ColumnRecords(cache, encoder.column, plan)
            stack.callback(records.close)
            columns[encoder.column.name] = Comparison(encoder, records)
        drawn = draw(cache, plan, columns, count)
        if not drawn:
            raise UserError(f"--audit: {cache.store.url} holds no sample of {', '.join(columns)} yet")
        here, gone = _as_cached(worker, drawn)
        if not here:
            raise UserError(
                f"--audit: none of the {len(drawn)} samples drawn is in --data as it was cached "
                f"({shown(gone)}); give the data that the cache was made from"
            )
        load(worker.encoders)
        _compare(here, columns, worker)
    about = f"on {options.encoders.device}, in {options.encoders.precision}"
    lines = [f"{len(here)} samples drawn at random, encoded again {about}", "", *as_table(columns, limit), ""]
    if gone:
        lines.append(f"left out, as their pictures have changed or are gone: {len(gone)} ({shown(gone)})")
    wrong = "; ".join(faults(columns, limit))
    lines.append("nothing was written (--audit)")
    return Closing(lines, f"--audit: {wrong}" if wrong else "", as_json(columns, gone, limit))


def _refuse_missing(cache: Cache, column: Column) -> None:
    if cache.is_empty(column):
        found = ", ".join(cache.column_names()) or "none"
        raise UserError(
            f"--audit: {cache.store.url} holds nothing of column {column.name} (it has: {found}); "
            "name those that it has with --columns"
        )


def draw(cache: Cache, plan: list[Part], columns: dict[str, Comparison], count: int) -> list[Drawn]:
    """In the plan's order. Reads the indices and sample tables of the parts that are touched."""
    starts = np.concatenate([[0], np.cumsum([part.live for part in plan])]).astype(np.int64)
    total, key = int(starts[-1]), keyed(0, plan_hash(plan), "audit")
    size = min(count, MOST_LOOKED_UP)
    found: dict[tuple[int, int], dict[str, range]] = {}
    for first in range(0, total, size):
        ids = permuted(np.arange(first, min(first + size, total)), total, key)
        numbers = np.searchsorted(starts, ids, side="right") - 1
        for each in columns.values():
            names = (plan[number].name for number in np.unique(numbers).tolist())
            each.records.load(each.records.number[name] for name in names if name in each.records.number)
        for part, place in zip(numbers.tolist(), (ids - starts[numbers]).tolist()):
            position = int(plan[part].positions()[place])
            spans = {name: _rows(each.records, plan[part], position) for name, each in columns.items()}
            if held := {name: rows for name, rows in spans.items() if rows}:
                found[part, position] = held
            if len(found) == count:
                break
        if len(found) == count:
            break
    drawn = []
    for part, group in groupby(sorted(found), key=lambda place: place[0]):
        lines = cache.table(plan[part])
        drawn += [Drawn(sample(lines[position]), found[part, position]) for _, position in group]
    return drawn


def _rows(records: ColumnRecords, part: Part, position: int) -> range:
    """The rows of a sample; none if the column lacks it."""
    number = records.number.get(part.name)
    if number is None:
        return range(0)
    index, start = records.index(number), int(records.starts[number])
    at = int(np.searchsorted(index.sample_index, position))
    if at == len(index.sample_index) or index.sample_index[at] != position:
        return range(0)
    first, end = index.row_offsets[at : at + 2].tolist()
    return range(start + first, start + end)


def _as_cached(worker: Worker, drawn: list[Drawn]) -> tuple[list[Drawn], list[str]]:
    """Those whose picture is as it was cached, or is not needed; and the keys of the others.

    Only if one is not where it was, the source is gone through, which finds those that have moved.
    """
    source, options = worker.source, worker.options
    with ThreadPoolExecutor(options.workers) as pool:
        is_here = list(pool.map(lambda each: _unchanged(source, each), drawn))
        if not all(is_here):
            with closing(compare(worker.cache.store, source, options.part_size)) as listing:
                moved = listing.moved(each.sample for each in drawn)
            drawn = [Drawn(_at(each.sample, moved), each.rows) for each in drawn]
            is_here = list(pool.map(lambda each: _unchanged(source, each), drawn))
    gone = [each.sample.key for each, here in zip(drawn, is_here) if not here]
    return [each for each, here in zip(drawn, is_here) if here], gone


def _at(planned: Sample, moved: dict[str, dict[str, Any]]) -> Sample:
    """The sample where the source has it now."""
    return replace(planned, **moved.get(planned.key, {}))


def _unchanged(source: Source, drawn: Drawn) -> bool:
    if drawn.rows.keys() <= {"text"}:
        return True
    try:
        data = source.read(drawn.sample)
    except (Unusable, IndexError):  # IndexError: there are fewer sources now
        return False
    return xxhash.xxh3_128_hexdigest(data) == drawn.sample.xxh3_128


@torch.inference_mode()
def _compare(drawn: list[Drawn], columns: dict[str, Comparison], worker: Worker) -> None:
    options = worker.options
    with (
        ThreadPoolExecutor(options.workers) as decoders,
        tqdm(total=len(drawn), unit=" samples", desc="audit") as bar,
    ):
        pipeline = Pipeline(worker.source, options, decoders, Summary(), bar.update)
        for _ in pipeline.encode(_works(drawn, columns, options.batch_size)):
            pass
        for each in columns.values():
            records, encoder = each.records, each.encoder
            if not isinstance(encoder, LatentsEncoder) and NULL_PART in records.number:
                null = pipeline.calls.sound(encoder, encoder.null(), encoder.null)
                each.compare("the null condition", [null], _one(records.null_row))
            if isinstance(encoder, TextEncoder):
                prompts = records.generation.prompts()
                rows = encode_captions([*prompts], encoder, each, options.batch_size, pipeline.calls)
                for prompt, (part, number) in prompts.items():
                    row = int(records.starts[records.number[part]]) + number
                    each.compare(f"prompt {prompt!r}", [rows[prompt]], _one(row))


def _one(row: int) -> range:
    return range(row, row + 1)


def _works(drawn: list[Drawn], columns: dict[str, Comparison], batch_size: int) -> Iterator[Work]:
    """Some batches at a time, as parts of a run are."""
    for some in chunks(enumerate(drawn), BATCHES * batch_size):
        tasks = []
        for name, each in columns.items():
            mine = {position: one for position, one in some if name in one.rows}
            each.rows |= {position: one.rows[name] for position, one in mine.items()}
            tasks.append(Task(each.encoder, each, {position: one.sample for position, one in mine.items()}))
        yield Work(tasks, len(some))
