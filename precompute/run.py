"""A precompute run: source and models → plan → parts that are missing → commit. The same command resumes."""

import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager

import torch
from tqdm import tqdm

from data_tools import models
from data_tools.cache import report
from data_tools.cache.generation import publish
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
    if "text" in options.columns and not any(listed.captions for listed in source):
        raise UserError(
            f"--data: {options.data}: none of {source.count} pictures has a caption in a metadata.jsonl; "
            "for a decoder alone give --columns image,latents@PX"
        )
    encoders = make_encoders(options)
    store = open_store(options.cache)
    cache = Cache(store)
    mended = _mend(cache, source, encoders) if options.repair and not dry_run else []
    _check_identities(cache, encoders)
    planned = store.size(PLAN) is not None
    faults = damaged(cache, encoders) if options.repair else {}
    notes = [*mended, *faults.values()]
    if dry_run:
        from precompute.estimate import describe

        plan = plan_source(store, source, options.part_size, write=False)
        return "\n".join([*notes, describe(source, plan, missing(cache, plan, encoders), encoders)])
    if not planned:
        _load(encoders, encoders)  # nothing is written for models that cannot be loaded
    plan = plan_source(store, source, options.part_size)
    for record in faults:
        store.remove(record)  # withdrawn, so that the part is made again; its bytes stay
    work = missing(cache, plan, encoders)
    without_null = [e for e in encoders if e.column.has_null and cache.commit(e.column, NULL_PART) is None]
    if planned:
        _load(encoders, [*without_null, *(e for _, lacking in work for e in lacking)])
    for encoder in encoders:
        cache.declare(encoder.column)
    container: Container = TarPart(options.tar_block) if options.format == "webdataset" else ZarrPart()
    for encoder in without_null:
        _write_null(store, encoder, container)
    try:
        notes += _encode(cache, source, work, options, container)
    finally:  # also of an interrupted run: what it committed opens faster
        for encoder in encoders:
            publish(cache, encoder.column, plan, rebuild=bool(faults))
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


def _check_identities(cache: Cache, encoders: list[Encoder]) -> None:
    """Raises `UserError` naming the keys in which a column of the cache differs from what would be made."""
    columns = [encoder.column for encoder in encoders]  # hashes the models: one without weights ends here
    if cache.store.size("cache.json") is None:
        return
    Cache.open(cache.store)  # the format's version
    for column in columns:
        found = cache.column(column.name)
        if found is not None and found.identity != column.identity and not cache.is_empty(found):
            keys = "; ".join(differences(found.identity, column.identity))
            raise UserError(
                f"--cache: {cache.store.url}: column {column.name} was made otherwise ({keys}); "
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
def _write_null(store: Store, encoder: Encoder, container: Container) -> None:
    assert not isinstance(encoder, LatentsEncoder)
    writer = PartWriter(store, encoder.column, NULL_PART, container=container)
    writer.add(0, "", [encoder.null()])
    writer.commit()


def _encode(cache: Cache, source: Source, work: Work, options: RunOptions, container: Container) -> list[str]:
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
        for part, lacking in work:
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
