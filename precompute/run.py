"""A precompute run: source and models → plan → parts that are missing → commit. The same command resumes."""

import shlex
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass, field
from typing import Any

from data_tools.cache import redo, report
from data_tools.cache.fields import Column
from data_tools.cache.generation import is_outdated, publish
from data_tools.cache.identity import differences
from data_tools.cache.listing import Listing, compare
from data_tools.cache.manifest import Cache, Part, column_folder, sealed
from data_tools.cache.plan import mend_tables, refuse_shrinking, write_plan
from data_tools.cache.rejects import rejected
from data_tools.cache.verify import hash_faults
from data_tools.errors import DataFault, UserError
from data_tools.sources import Source
from precompute import prompts
from precompute.checks import check_widths, check_writable, load, lone_squares
from precompute.encoders import Encoder
from precompute.engines import local
from precompute.options import RunOptions
from precompute.parts import Job, Todo
from precompute.ranks import Rank
from precompute.waiting import Planner, settled
from precompute.worker import Worker


@dataclass(frozen=True)
class Closing:
    """What a run has to say at its end."""

    lines: list[str]
    fault: str = ""
    "If it is not to end well: why."
    counts: dict[str, Any] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        return {**self.counts, "notes": self.lines}


Submit = Callable[[int], tuple[str, dict[str, Any]]]


def run(options: RunOptions, *, dry_run: bool = False, submit: Submit | None = None) -> Closing:
    """Encode what the cache lacks.

    submit: if given, called with the number of parts to do once the plan is written, and has them done by
    others; returns a line about it, and the same as JSON values.

    Raises `UserError` before anything is written. With `dry_run` nothing is written at all.
    """
    worker = Worker.open(options)
    cache, store, made = worker.cache, worker.cache.store, worker.encoders
    rank = Rank() if dry_run else options.rank
    with ExitStack() as stack:
        planner = stack.enter_context(Planner(rank, store))
        check_widths(made)
        asked = prompts.read(options.prompts) if options.prompts else {}
        broken = _broken_declarations(cache, made) if options.repair else {}
        redone = check_identities(cache, made, options.redo, broken)
        mended = _mend(cache, worker.source, made, broken) if options.repair and not dry_run else []
        listing = settled(rank, store, lambda: _compare(stack, worker, dry_run=dry_run))
        faults = damaged(cache, made) if options.repair else {}
        notes = [*mended, *faults.values(), *listing.unlisted.notes(), *lone_squares(made)]
        sets = prompts.wanted(cache, made, asked, forgiving=options.repair)
        if dry_run:
            return Closing([*notes, *_dry_run(worker, listing, redone, sets)])
        if needed := _needed(cache, listing, made, sets):
            check_writable(store)
        if options.engine == "local":  # nothing is written if they cannot be loaded
            load(needed)
        while (plan := write_plan(store, listing)) is None:  # another process has written another plan
            listing = _compare(stack, worker)
        planner.done()
        if listing.plan is not None and listing.changes:
            notes.append(f"the source has changed: {listing.changes}")
        for record in faults:
            store.remove(record)  # withdrawn, so that the part is made again; its bytes stay
        todo = Todo.of(cache, plan, made, sets, listing.retry)
        if submit is not None and (todo.parts or todo.conditions):
            line, counts = submit(len(todo.parts))
            return Closing([*notes, line], counts=counts)
        notes += _encode(worker, plan, todo, redone, todo.jobs(cache, listing))
    return _closing(worker, notes, todo.done)


def _compare(stack: ExitStack, worker: Worker, *, dry_run: bool = False) -> Listing:
    """The source as it is now. Raises `UserError` if it has no captions where they are wanted, and, but for a
    dry run, if too many samples are gone."""
    options, cache, retry = worker.options, worker.cache, {}
    if options.retry_rejects:  # of several ranks the others follow rank 0, and do not try again for ever
        columns = (encoder.column for encoder in worker.encoders)
        retry = rejected(cache, columns, untried=options.rank.number > 0)
    found = compare(cache.store, worker.source, options.part_size, rehash=options.rehash, retry=retry)
    listing = stack.enter_context(closing(found))
    if "text" in options.columns and not listing.captioned:
        raise UserError(
            f"--data: {', '.join(options.data)}: none of {listing.samples} pictures has a caption"
            f"{listing.caption_problem and f' ({listing.caption_problem})'}; "
            "for a decoder alone give --columns image,latents@PX"
        )
    if not dry_run:
        refuse_shrinking(cache.store, listing, allowed=options.allow_shrink)
    return listing


def _dry_run(worker: Worker, listing: Listing, redone: list[Encoder], sets: prompts.Sets) -> list[str]:
    from precompute.estimate import describe

    cache, options = worker.cache, worker.options
    todo = Todo.of(cache, listing.parts, worker.encoders, sets, listing.retry)
    notes = [redo.describe(cache, encoder.column, listing.parts) for encoder in redone]
    try:
        refuse_shrinking(cache.store, listing, allowed=options.allow_shrink)
    except UserError as err:
        notes.append(str(err))
    return [*notes, describe(cache, listing, todo, worker.encoders, options.tflops)]


def _encode(
    worker: Worker, plan: list[Part], todo: Todo, redone: list[Encoder], jobs: list[Job]
) -> list[str]:
    """Do what is left to do of a plan. Returns closing notes."""
    cache, encoders, repair = worker.cache, worker.encoders, worker.options.repair
    for encoder in encoders:
        if encoder in redone:
            redo.announce(cache, encoder.column)
        else:
            cache.declare(encoder.column)
            _refuse_other(cache, encoder.column, declared=True)
    rebuild = {e.column.name for e in encoders if repair or is_outdated(cache, e.column)}
    try:
        _engine(worker, plan, todo, jobs)
    finally:  # also of an interrupted run: what it committed opens faster
        for encoder in encoders:
            publish(cache, encoder.column, plan, rebuild=encoder.column.name in rebuild)
    for encoder in encoders:
        if encoder not in redone:
            cache.forget(encoder.column.name)
            _refuse_other(cache, encoder.column, declared=True)
    newest = cache.plan() if redone else plan  # another worker may have followed the source further
    notes = worker.summary.lines() or ["nothing to do: every part is committed"]
    return notes + [redo.switch(cache, encoder.column, newest) for encoder in redone]


def _engine(worker: Worker, plan: list[Part], todo: Todo, jobs: list[Job]) -> None:
    """Let the jobs be done; `worker.summary` says how."""
    if worker.options.engine == "ray":
        from precompute.engines import ray

        ray.encode(worker, jobs, todo.conditions)
        return
    worker.encode_conditions(todo.conditions)
    if jobs:
        local.encode(worker, jobs, plan, worker.options.rank)


def _closing(worker: Worker, notes: list[str], done: dict[str, set[str]]) -> Closing:
    """The closing lines; too many rejects are a fault. `done`: column → parts that it had before this run."""
    cache, options = worker.cache, worker.options
    found = report.inspect(cache, options.columns)
    rejects, samples = found["rejects"], found["samples"]
    counts = {
        **worker.summary.to_json(),
        "found": samples,
        "cached": samples - rejects,
        "rejected": rejects,
        "complete": found["complete"],
    }
    stay = sum(reject["part"] in done[reject["column"]] for reject in found["rejected"])
    if stay:
        notes = [
            *notes,
            f"{stay} samples stay rejected until their files change; --retry-rejects tries them again",
        ]
    lines = [*notes, report.count_line(found)]
    if rejects <= options.max_rejects * samples:
        return Closing(lines, counts=counts)
    reason, count = Counter(found["reject_reasons"]).most_common(1)[0]
    fault = (
        f"--max-rejects: {rejects} of {samples} samples are rejected, wanted at most "
        f"{options.max_rejects:.4g} of them; {count} for: {reason}; all are listed by: "
        f"data-tools inspect {shlex.quote(options.cache)}"
    )
    return Closing(lines, fault, counts)


def _needed(cache: Cache, listing: Listing, encoders: Sequence[Encoder], sets: prompts.Sets) -> list[Encoder]:
    """The encoders that something new, changed or missing so far is waiting for."""
    todo = Todo.of(cache, listing.parts, encoders, sets, listing.retry)
    found = [listing.changes.of_column(encoder.column.name) for encoder in encoders]
    is_new = [changed["new"][0] + changed["changed"][0] > 0 for changed in found]
    return [encoder for encoder, new in zip(encoders, is_new) if new or todo.needs(cache, encoder)]


def _broken_declarations(cache: Cache, encoders: Sequence[Encoder]) -> dict[str, str]:
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


def _mend(cache: Cache, source: Source, encoders: Sequence[Encoder], broken: dict[str, str]) -> list[str]:
    """Write again what can be had again of the cache's own files: declarations and sample tables."""
    for column in [encoder.column for encoder in encoders]:
        if column.name in broken:
            cache.store.put(f"columns/{column.name}/column.json", [sealed(column.to_json())])
    return [*(f"written again: {fault}" for fault in broken.values()), *mend_tables(cache, source)]


def check_identities(
    cache: Cache, encoders: Sequence[Encoder], names: tuple[str, ...], broken: dict[str, str]
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


def damaged(cache: Cache, encoders: Sequence[Encoder]) -> dict[str, str]:
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
