"""A precompute run: source and models → plan → parts that are missing → commit. The same command resumes."""

import shlex
from collections import Counter
from contextlib import ExitStack, closing
from dataclasses import dataclass, field

import click

from data_tools import models
from data_tools.cache import redo, report
from data_tools.cache.fields import Column
from data_tools.cache.generation import is_outdated, publish
from data_tools.cache.identity import differences
from data_tools.cache.listing import Listing, compare
from data_tools.cache.manifest import Cache, Part, column_folder, sealed
from data_tools.cache.plan import mend_tables, refuse_shrinking, write_plan
from data_tools.cache.rows import Container
from data_tools.cache.store import Store, open_store
from data_tools.cache.tar_part import TarPart
from data_tools.cache.verify import hash_faults
from data_tools.cache.zarr_part import ZarrPart
from data_tools.errors import DataFault, UserError
from data_tools.sources import Source, open_source
from precompute import prompts
from precompute.encoders import Encoder, ImageEncoder, LatentsEncoder, TextEncoder
from precompute.options import RunOptions
from precompute.parts import Parts, Todo


@dataclass
class _Encoders:
    """Of a run."""

    all: list[Encoder]
    redone: list[Encoder]
    "Those whose column is made anew in the place of another."
    loaded: list[Encoder] = field(default_factory=list)
    "Those that have their weights."

    def load(self, needed: list[Encoder]) -> None:
        for encoder in needed:
            if encoder not in self.loaded:
                encoder.load()
                self.loaded.append(encoder)


def run(options: RunOptions, *, dry_run: bool = False) -> str:
    """Encode what the cache lacks; returns the run's closing lines.

    Raises `UserError` before anything is written, `DataFault` at the end for too many rejects. With `dry_run`
    nothing is written at all.
    """
    source = open_source(options.data, options.source, max_samples=options.max_samples, select=options.select)
    made = make_encoders(options)
    asked = prompts.read(options.prompts) if options.prompts else {}
    store = open_store(options.cache)
    cache = Cache(store)
    broken = _broken_declarations(cache, made) if options.repair else {}
    encoders = _Encoders(made, _check_identities(cache, made, options.redo, broken))
    mended = _mend(cache, source, made, broken) if options.repair and not dry_run else []
    with ExitStack() as stack:
        listing = _compare(stack, store, source, options)
        faults = damaged(cache, made) if options.repair else {}
        notes = [*mended, *faults.values()]
        sets = prompts.wanted(cache, made, asked, forgiving=options.repair)
        if dry_run:
            return "\n".join([*notes, *_dry_run(cache, listing, encoders, sets, options)])
        refuse_shrinking(store, listing, allowed=options.allow_shrink)
        encoders.load(_needed(cache, listing, made, sets))  # nothing is written if that cannot be done
        while (plan := write_plan(store, listing)) is None:  # another process has written another plan
            listing = _compare(stack, store, source, options)
            refuse_shrinking(store, listing, allowed=options.allow_shrink)
        if listing.plan is not None and listing.changes:
            notes.append(f"the source has changed: {listing.changes}")
        for record in faults:
            store.remove(record)  # withdrawn, so that the part is made again; its bytes stay
        notes += _encode(cache, plan, encoders, sets, listing, options)
    return _closing(cache, notes, options)


def _compare(stack: ExitStack, store: Store, source: Source, options: RunOptions) -> Listing:
    """The source as it is now. Raises `UserError` if it has no captions where they are wanted."""
    listing = stack.enter_context(closing(compare(store, source, options.part_size, rehash=options.rehash)))
    if "text" in options.columns and not listing.captioned:
        raise UserError(
            f"--data: {', '.join(options.data)}: none of {listing.samples} pictures has a caption; "
            "for a decoder alone give --columns image,latents@PX"
        )
    return listing


def _dry_run(
    cache: Cache, listing: Listing, encoders: _Encoders, sets: prompts.Sets, options: RunOptions
) -> list[str]:
    from precompute.estimate import describe

    todo = Todo.of(cache, listing.parts, encoders.all, sets)
    notes = [redo.describe(cache, encoder.column, listing.parts) for encoder in encoders.redone]
    try:
        refuse_shrinking(cache.store, listing, allowed=options.allow_shrink)
    except UserError as err:
        notes.append(str(err))
    return [*notes, describe(cache, listing, todo, encoders.all)]


def _encode(
    cache: Cache,
    plan: list[Part],
    encoders: _Encoders,
    sets: prompts.Sets,
    listing: Listing,
    options: RunOptions,
) -> list[str]:
    """Do what is left to do of a plan. Returns closing notes."""
    todo = Todo.of(cache, plan, encoders.all, sets)
    encoders.load([encoder for encoder in encoders.all if todo.needs(cache, encoder)])
    for encoder in encoders.all:
        if encoder in encoders.redone:
            redo.announce(cache, encoder.column)
        else:
            cache.declare(encoder.column)
            _refuse_other(cache, encoder.column, declared=True)
    container: Container = TarPart(options.tar_block) if options.format == "webdataset" else ZarrPart()
    rebuild = {e.column.name for e in encoders.all if options.repair or is_outdated(cache, e.column)}
    try:
        notes = Parts(cache, listing, options, container, encoders.loaded).encode(plan, todo)
    finally:  # also of an interrupted run: what it committed opens faster
        for encoder in encoders.all:
            publish(cache, encoder.column, plan, rebuild=encoder.column.name in rebuild)
    for encoder in encoders.all:
        if encoder not in encoders.redone:
            cache.forget(encoder.column.name)
            _refuse_other(cache, encoder.column, declared=True)
    newest = cache.plan() if encoders.redone else plan  # another worker may have followed the source further
    return notes + [redo.switch(cache, encoder.column, newest) for encoder in encoders.redone]


def _closing(cache: Cache, notes: list[str], options: RunOptions) -> str:
    """The closing lines. Raises `DataFault`, after printing them, if too many samples are rejected."""
    found = report.inspect(cache, options.columns)
    text = "\n".join([*notes, report.count_line(found)])
    rejects, samples = found["rejects"], found["samples"]
    if rejects <= options.max_rejects * samples:
        return text
    click.echo(text)
    reason, count = Counter(found["reject_reasons"]).most_common(1)[0]
    raise DataFault(
        f"--max-rejects: {rejects} of {samples} samples are rejected, wanted at most "
        f"{options.max_rejects:.4g} of them; {count} for: {reason}; all are listed by: "
        f"data-tools inspect {shlex.quote(options.cache)}"
    )


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


def _needed(cache: Cache, listing: Listing, encoders: list[Encoder], sets: prompts.Sets) -> list[Encoder]:
    """The encoders that something new, changed or missing so far is waiting for."""
    todo = Todo.of(cache, listing.parts, encoders, sets)
    found = [listing.changes.of_column(encoder.column.name) for encoder in encoders]
    is_new = [changed["new"][0] + changed["changed"][0] > 0 for changed in found]
    return [encoder for encoder, new in zip(encoders, is_new) if new or todo.needs(cache, encoder)]


def _broken_declarations(cache: Cache, encoders: list[Encoder]) -> dict[str, str]:
    """Columns whose declaration cannot be read → what is wrong with it. Raises `UserError` for a column of
    which only other identities hold anything: it was not made with these options."""
    broken = {}
    for column in [encoder.column for encoder in encoders]:
        try:
            cache.column(column.name)
        except DataFault as err:
            broken[column.name] = str(err)
            ours = column_folder(column)
            held = [
                name for name in cache.store.names(f"columns/{column.name}") if not name.endswith(".json")
            ]
            if held and ours.rpartition("/")[2] not in held:
                raise UserError(
                    f"--repair: {err}; what is there of it is {', '.join(held)}, and these options make "
                    f"{ours.rpartition('/')[2]}; give the options it was made with"
                ) from None
    return broken


def _mend(cache: Cache, source: Source, encoders: list[Encoder], broken: dict[str, str]) -> list[str]:
    """Write again what can be had again of the cache's own files: declarations and sample tables."""
    for column in [encoder.column for encoder in encoders]:
        if column.name in broken:
            cache.store.put(f"columns/{column.name}/column.json", [sealed(column.to_json())])
    return [*(f"written again: {fault}" for fault in broken.values()), *mend_tables(cache, source)]


def _check_identities(
    cache: Cache, encoders: list[Encoder], names: tuple[str, ...], broken: dict[str, str]
) -> list[Encoder]:
    """The encoders whose column is made anew in the place of another, of the columns named with --redo.

    Raises `UserError` naming the keys in which any other column differs from what would be made. `broken`
    have no declaration to compare.
    """
    columns = [encoder.column for encoder in encoders]  # hashes the models: one without weights ends here
    if cache.store.size("cache.json") is None:
        if names:
            raise UserError(f"--redo: there is no cache at {cache.store.url} yet; leave --redo out")
        return []
    Cache.open(cache.store)  # the format's version
    for column in columns:
        if column.name not in (*names, *broken):
            _refuse_other(cache, column)
    return [e for e in encoders if e.column.name in names and redo.wanted(cache, e.column)]


def _refuse_other(cache: Cache, column: Column, *, declared: bool = False) -> None:
    """Raises `UserError` if the cache holds something else under the column's name.

    `declared`: by this run; a declaration without any part is then another run's, begun at the same time.
    """
    found = cache.column(column.name)
    if found is None or found.identity == column.identity or (cache.is_empty(found) and not declared):
        return
    keys = "; ".join(differences(found.identity, column.identity))
    raise UserError(
        f"--cache: {cache.store.url}: column {column.name} was made otherwise ({keys}); give the "
        f"options it was made with, --redo {column.name} to make it anew, or a new --cache"
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
