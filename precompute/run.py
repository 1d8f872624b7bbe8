"""A precompute run: source and models → plan → parts that are missing → commit. The same command resumes."""

import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from tqdm import tqdm

from data_tools import models
from data_tools.cache import redo, report
from data_tools.cache.generation import is_outdated, publish
from data_tools.cache.identity import differences
from data_tools.cache.manifest import NULL_PART, PLAN, Cache, Part, column_folder, sealed
from data_tools.cache.plan import mend_tables, plan_source, sample
from data_tools.cache.rows import Container
from data_tools.cache.store import Store, open_store
from data_tools.cache.tar_part import TarPart
from data_tools.cache.verify import hash_faults
from data_tools.cache.writer import PartWriter
from data_tools.cache.zarr_part import ZarrPart
from data_tools.errors import DataFault, UserError
from data_tools.sources import Source, open_source
from precompute import prompts
from precompute.encoders import Encoder, ImageEncoder, LatentsEncoder, TextEncoder
from precompute.options import RunOptions
from precompute.pipeline import Progress, encode_part

Work = list[tuple[Part, list[Encoder]]]
"Parts in order, each with the encoders whose column lacks it."
PUBLISHED = 64
"Parts, or a sixteenth of all so far if that is more, after which a run writes the next generations."


@dataclass(frozen=True)
class Todo:
    """What a run has to encode."""

    parts: Work
    null: list[Encoder]
    "Their null conditions."
    sets: prompts.Sets
    text: TextEncoder | None
    "Encodes the sets."

    @property
    def encoders(self) -> list[Encoder]:
        """Those that are needed."""
        texts = [self.text] if self.sets and self.text is not None else []
        return [*self.null, *texts, *(encoder for _, lacking in self.parts for encoder in lacking)]


def run(options: RunOptions, *, dry_run: bool = False) -> str:
    """Encode what the cache lacks; returns the run's closing lines.

    Raises `UserError` before anything is written. With `dry_run` nothing is written at all.
    """
    source = open_source(options.data, caption_column=options.caption_column)
    if "text" in options.columns and not any(listed.captions for listed in source):
        raise UserError(
            f"--data: {options.data}: none of {source.count} pictures has a caption in a metadata.jsonl; "
            "for a decoder alone give --columns image,latents@PX"
        )
    encoders = make_encoders(options)
    asked = prompts.read(options.prompts) if options.prompts else {}
    store = open_store(options.cache)
    cache = Cache(store)
    mended = _mend(cache, source, encoders) if options.repair and not dry_run else []
    redone = _check_identities(cache, encoders, options.redo)
    planned = store.size(PLAN) is not None
    faults = damaged(cache, encoders) if options.repair else {}
    notes = [*mended, *faults.values()]
    sets = prompts.wanted(cache, encoders, asked, forgiving=options.repair)
    if dry_run:
        from precompute.estimate import describe

        plan = plan_source(store, source, options.part_size, write=False)
        todo = _todo(cache, plan, encoders, sets)
        notes += [redo.describe(cache, encoder.column, plan) for encoder in redone]
        return "\n".join([*notes, describe(source, plan, todo.parts, encoders, todo.sets)])
    if not planned:
        _load(encoders, encoders)  # nothing is written for models that cannot be loaded
    plan = plan_source(store, source, options.part_size)
    for record in faults:
        store.remove(record)  # withdrawn, so that the part is made again; its bytes stay
    todo = _todo(cache, plan, encoders, sets)
    if planned:
        _load(encoders, todo.encoders)
    for encoder in encoders:
        (redo.announce if encoder in redone else Cache.declare)(cache, encoder.column)
    container: Container = TarPart(options.tar_block) if options.format == "webdataset" else ZarrPart()
    rebuild = {e.column.name for e in encoders if options.repair or is_outdated(cache, e.column)}
    try:
        notes += _encode(cache, source, plan, todo, options, container)
    finally:  # also of an interrupted run: what it committed opens faster
        for encoder in encoders:
            publish(cache, encoder.column, plan, rebuild=encoder.column.name in rebuild)
    notes += [redo.switch(cache, encoder.column, plan) for encoder in redone]
    return "\n".join([*notes, report.count_line(report.inspect(cache))])


def make_encoders(options: RunOptions) -> list[Encoder]:
    """The encoders of the columns asked for, described but not loaded. Raises `UserError`."""
    encoders: list[Encoder] = []
    for name in options.columns:
        if name == "image":
            folders = ("image_encoder", "image_processor")
            repo = models.local_folder(options.prior_model, folders, flag="--prior-model")
            encoders.append(ImageEncoder(repo, options.encoders))
        elif name == "text":
            folders = ("text_encoder", "tokenizer")
            repo = models.local_folder(options.prior_model, folders, flag="--prior-model")
            encoders.append(TextEncoder(repo, options.encoders))
        else:
            repo = models.local_folder(options.decoder_model, ("movq",), flag="--decoder-model")
            encoders.append(LatentsEncoder(repo, options.encoders, int(name.removeprefix("latents@"))))
    return encoders


def _todo(cache: Cache, plan: list[Part], encoders: list[Encoder], sets: prompts.Sets) -> Todo:
    """What is left to do. Lists the commit records and reads none."""
    done = {encoder.column.name: cache.committed(encoder.column) for encoder in encoders}
    work = [(part, [e for e in encoders if part.name not in done[e.column.name]]) for part in plan]
    return Todo(
        parts=[(part, lacking) for part, lacking in work if lacking],
        null=[e for e in encoders if e.column.has_null and NULL_PART not in done[e.column.name]],
        sets={part: texts for part, texts in sets.items() if part not in done["text"]},
        text=next((e for e in encoders if isinstance(e, TextEncoder)), None),
    )


def _load(encoders: list[Encoder], needed: list[Encoder]) -> None:
    for encoder in encoders:
        if encoder in needed:
            encoder.load()


def _mend(cache: Cache, source: Source, encoders: list[Encoder]) -> list[str]:
    """Write again what can be had again of the cache's own files: declarations and sample tables."""
    notes = []
    for encoder in encoders:
        try:
            cache.column(encoder.column.name)
        except DataFault as err:
            path = f"columns/{encoder.column.name}/column.json"
            cache.store.put(path, [sealed(encoder.column.to_json())])
            notes.append(f"written again: {err}")
    return notes + mend_tables(cache, source)


def _check_identities(cache: Cache, encoders: list[Encoder], names: tuple[str, ...]) -> list[Encoder]:
    """The encoders whose column is made anew in the place of another, of the columns named with --redo.

    Raises `UserError` naming the keys in which any other column differs from what would be made.
    """
    columns = [encoder.column for encoder in encoders]  # hashes the models: one without weights ends here
    if cache.store.size("cache.json") is None:
        if names:
            raise UserError(f"--redo: there is no cache at {cache.store.url} yet; leave --redo out")
        return []
    Cache.open(cache.store)  # the format's version
    for column in columns:
        found = cache.column(column.name)
        if found is None or found.identity == column.identity or column.name in names:
            continue
        if not cache.is_empty(found):
            keys = "; ".join(differences(found.identity, column.identity))
            raise UserError(
                f"--cache: {cache.store.url}: column {column.name} was made otherwise ({keys}); give the "
                f"options it was made with, --redo {column.name} to make it anew, or a new --cache"
            )
    return [e for e in encoders if e.column.name in names and redo.wanted(cache, e.column)]


def damaged(cache: Cache, encoders: list[Encoder]) -> dict[str, str]:
    """Commit records of parts whose bytes are not those committed → what is wrong. Reads every byte."""
    found: dict[str, str] = {}
    for encoder in encoders:
        folder = f"{column_folder(encoder.column)}/commits"
        for name in cache.store.names(folder):
            part = name.removesuffix(".json")
            try:
                commit = cache.commit(encoder.column, part)
                faults = hash_faults(cache.store, commit) if commit is not None else []
            except DataFault as err:  # the record itself
                faults = [str(err)]
            if faults:
                found[f"{folder}/{name}"] = f"{encoder.column.name}, {part} is damaged: {faults[0]}"
    return found


@torch.inference_mode()
def _write_null(store: Store, encoder: Encoder, container: Container) -> None:
    assert not isinstance(encoder, LatentsEncoder)
    writer = PartWriter(store, encoder.column, NULL_PART, container=container)
    writer.add(0, "", [encoder.null()])
    writer.commit()


def _encode(
    cache: Cache, source: Source, plan: list[Part], todo: Todo, options: RunOptions, container: Container
) -> list[str]:
    """Null conditions, prompts, then part by part. Returns closing notes."""
    for encoder in todo.null:
        _write_null(cache.store, encoder, container)
    notes = []
    if todo.sets:
        assert todo.text is not None
        notes += prompts.encode(cache, todo.text, todo.sets, options.batch_size, container)
    total = sum(part.samples for part, _ in todo.parts)
    if not total:
        return notes or ["nothing to do: every part is committed"]
    started = time.perf_counter()
    with _progress_bar(total) as progress:
        _encode_parts(cache, source, plan, todo.parts, options, container, progress)
    seconds = time.perf_counter() - started
    notes.append(
        f"encoded {total} samples in {seconds:.1f} s ({total / seconds:.1f} samples/s); "
        f"the encoders waited {progress.wait_seconds / seconds:.0%} of the time for pictures"
    )
    if progress.truncated:
        notes.append(f"{progress.truncated} captions were longer than the tokenizer takes and were truncated")
    return notes


def _encode_parts(
    cache: Cache,
    source: Source,
    plan: list[Part],
    work: Work,
    options: RunOptions,
    container: Container,
    progress: Progress,
) -> None:
    """A part is written while the next one is encoded."""
    unpublished = 0
    with ThreadPoolExecutor(options.workers) as pool, ThreadPoolExecutor(1) as committer:
        committing: list[Future[Any]] = []
        for number, (part, lacking) in enumerate(work):
            samples = [sample(row) for row in cache.table(part)]
            todo = [encoder for encoder in lacking if cache.commit(encoder.column, part.name) is None]
            pairs = [
                (encoder, PartWriter(cache.store, encoder.column, part.name, container=container))
                for encoder in todo
            ]
            encode_part(samples, source, pairs, options, pool, progress)
            for future in committing:
                future.result()
            committing = [committer.submit(writer.commit) for _, writer in pairs]
            unpublished += bool(pairs)
            if unpublished >= max(PUBLISHED, (len(plan) - len(work) + number) // 16):
                columns = {encoder.column.name: encoder.column for _, each in work for encoder in each}
                committing += [committer.submit(publish, cache, c, plan) for c in columns.values()]
                unpublished = 0
        for future in committing:
            future.result()


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
