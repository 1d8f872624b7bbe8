"""A precompute run: source and models → plan → parts that are missing → commit. The same command resumes."""

import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import torch
from tqdm import tqdm

from data_tools import models
from data_tools.cache import report
from data_tools.cache.identity import differences
from data_tools.cache.manifest import NULL_PART, Cache, Part, column_folder
from data_tools.cache.plan import plan_source
from data_tools.cache.rows import Container
from data_tools.cache.store import LocalStore
from data_tools.cache.tar_part import TarPart
from data_tools.cache.verify import hash_faults
from data_tools.cache.writer import PartWriter
from data_tools.cache.zarr_part import ZarrPart
from data_tools.errors import DataFault, UserError
from data_tools.sources import Sample, Source, open_source
from precompute.encoders import Encoder, ImageEncoder, LatentsEncoder, TextEncoder
from precompute.options import RunOptions
from precompute.pipeline import Progress, encode_part

Work = list[tuple[Part, list[Encoder]]]
"Parts in order, each with the encoders whose column lacks it."


def run(options: RunOptions, *, dry_run: bool = False) -> str:
    """Encode what the cache lacks; returns the run's closing lines.

    Raises `UserError` before anything is written. With `dry_run` nothing is written at all.
    """
    source = open_source(options.data, caption_column=options.caption_column)
    encoders = make_encoders(options)
    store = LocalStore(options.cache)
    _check_identities(store, encoders)
    plan = plan_source(store, source, options.part_size, write=not dry_run)
    cache = Cache(store)
    faults = damaged(cache, encoders) if options.repair else {}
    notes = list(faults.values())
    if dry_run:
        from precompute.estimate import describe

        return "\n".join([*notes, describe(source, plan, missing(cache, plan, encoders), encoders)])
    for encoder in encoders:
        cache.declare(encoder.column)
    for record in faults:
        store.remove(record)  # withdrawn, so that the part is made again; its bytes stay
    work = missing(cache, plan, encoders)
    without_null = [e for e in encoders if e.column.has_null and cache.commit(e.column, NULL_PART) is None]
    for encoder in encoders:
        if encoder in without_null or any(encoder in lacking for _, lacking in work):
            encoder.load()
    for encoder in without_null:
        _write_null(store, encoder)
    notes += _encode(cache, source, work, options)
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


def missing(cache: Cache, plan: list[Part], encoders: list[Encoder]) -> Work:
    """What is left to do."""
    done = {encoder.column.name: cache.commits(encoder.column).keys() for encoder in encoders}
    work = [(part, [e for e in encoders if part.name not in done[e.column.name]]) for part in plan]
    return [(part, lacking) for part, lacking in work if lacking]


def _check_identities(store: LocalStore, encoders: list[Encoder]) -> None:
    """Raises `UserError` naming the keys in which a column of the cache differs from what would be made."""
    columns = [encoder.column for encoder in encoders]  # hashes the models: one without weights ends here
    if store.size("cache.json") is None:
        return
    cache = Cache.open(store)
    for column in columns:
        found = cache.column(column.name)
        if found is not None and found.identity != column.identity:
            keys = "; ".join(differences(found.identity, column.identity))
            raise UserError(
                f"--cache: {store.root}: column {column.name} was made otherwise ({keys}); "
                "give the options it was made with, or a new --cache"
            )


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
def _write_null(store: LocalStore, encoder: Encoder) -> None:
    assert not isinstance(encoder, LatentsEncoder)
    writer = PartWriter(store, encoder.column, NULL_PART)
    writer.add(0, "", [encoder.null()])
    writer.commit()


def _encode(cache: Cache, source: Source, work: Work, options: RunOptions) -> list[str]:
    """Do the work part by part; a part is written while the next one is encoded. Returns closing notes."""
    total = sum(part.samples for part, _ in work)
    if not total:
        return ["nothing to do: every part is committed"]
    started = time.perf_counter()
    with (
        _progress_bar(total) as progress,
        ThreadPoolExecutor(options.workers) as pool,
        ThreadPoolExecutor(1) as committer,
    ):
        committing: list[Future[bool]] = []
        container: Container = TarPart(options.tar_block) if options.format == "webdataset" else ZarrPart()
        for part, lacking in work:
            samples = [_sample(row) for row in cache.table(part)]
            todo = [encoder for encoder in lacking if cache.commit(encoder.column, part.name) is None]
            pairs = [
                (encoder, PartWriter(cache.store, encoder.column, part.name, container=container))
                for encoder in todo
            ]
            encode_part(samples, source, pairs, options, pool, progress)
            for future in committing:
                future.result()
            committing = [committer.submit(writer.commit) for _, writer in pairs]
        for future in committing:
            future.result()
    seconds = time.perf_counter() - started
    notes = [
        f"encoded {total} samples in {seconds:.1f} s ({total / seconds:.1f} samples/s); "
        f"the encoders waited {progress.wait_seconds / seconds:.0%} of the time for pictures"
    ]
    if progress.truncated:
        notes.append(f"{progress.truncated} captions were longer than the tokenizer takes and were truncated")
    return notes


def _sample(row: dict[str, Any]) -> Sample:
    return Sample(**{**row, "captions": tuple(row["captions"])})


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
