"""Which samples make which part, and how a plan follows its source. Samples are known by content.

The first plan reads every picture file once, for its hash; a later one only those that were touched. What is
no longer in the source, or has changed, is retired where it was; what is new or has changed makes further
parts. Parts that are there are never touched. `data_tools.cache.listing` finds out what has changed.
"""

from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, suppress

import xxhash
from tqdm import tqdm

from data_tools.cache import touched
from data_tools.cache.changes import FRESH, LOST
from data_tools.cache.listing import Listing, chunks, compare, line, readers, with_hash
from data_tools.cache.manifest import HEADER, Cache, Part, dump, plan_name, sealed
from data_tools.cache.store import Store
from data_tools.errors import DataFault, UserError
from data_tools.sources import Sample, Source
from data_tools.sources.keys import Names

Table = list[Sample]


def plan_source(
    store: Store, source: Source, part_size: int | None, *, rehash: bool = False, allow_shrink: bool = False
) -> list[Part]:
    """The plan of a cache as the source is now; `part_size` None: as it is, or 2048.

    Any number of processes may call this at once: one of their plans, which are all the same, is kept.
    Raises `UserError` as `compare` and `refuse_shrinking` do.
    """
    while True:
        with closing(compare(store, source, part_size, rehash=rehash)) as listing:
            refuse_shrinking(store, listing, allowed=allow_shrink)
            plan = write_plan(store, listing)
        if plan is not None:
            return plan


def refuse_shrinking(store: Store, listing: Listing, *, allowed: bool) -> None:
    """Raises `UserError` if the pictures of more than half of the cache's samples are gone from the source.

    A sample whose captions alone have changed loses nothing but its text.
    """
    live = sum(part.live for part in listing.plan.parts) if listing.plan is not None else 0
    lost = listing.changes.lost()
    if allowed or 2 * lost <= live:
        return
    counts, examples = listing.changes.counts, listing.changes.examples
    removed = counts["removed"]
    example = next(keys[0] for kind, keys in examples.items() if kind in LOST)
    raise UserError(
        f"--data: lacks {lost} of the {live} pictures of {store.url} ({removed} removed, {lost - removed} "
        f"changed; for example {example}); give --allow-shrink to retire them, or a new --cache"
    )


def write_plan(store: Store, listing: Listing) -> list[Part] | None:
    """Write the plan that follows from a listing; the one that is there if nothing has changed.

    What was touched or moved and is the same is noted beside it (`data_tools.cache.touched`). None if another
    process has written another plan meanwhile: compare again.
    """
    for part, number, seen in listing.touched(Cache(store)):
        with suppress(OSError):  # of a cache that is only read, say: it is a matter of time only
            touched.write(store, part.name, number, seen)
    if listing.plan is not None and not listing.changes:
        return list(listing.plan.parts)
    parts, number = listing.parts, listing.next_part
    total = sum(listing.changes.counts[kind] for kind in FRESH)
    with tqdm(total=total, desc="plan", unit=" samples", leave=False, delay=1) as bar, readers() as pool:
        for samples in listing.fresh():
            table = encoded(_hashed(listing.source, samples, pool))
            digest = xxhash.xxh3_128_hexdigest(table)
            name = f"part-{number:05d}"
            parts.append(Part(name, len(samples), f"samples/{name}-{digest[:8]}.jsonl", digest))
            store.put(parts[-1].table, [table])
            number += 1
            bar.update(len(samples))
    store.create("cache.json", dump(HEADER))
    about = {
        "part_size": listing.part_size,
        "samples": sum(part.live for part in parts),
        "next_part": number,
        "parts": [part.to_json() for part in parts],
    }
    before = listing.plan.number if listing.plan is not None else 0
    if store.create(plan_name(before + 1), sealed(about)):
        return parts
    found = Cache.open(store).latest_plan()
    return parts if (found.number, found.parts) == (before + 1, tuple(parts)) else None


def encoded(samples: Table) -> bytes:
    """A sample table as it is stored: one line a sample."""
    return "".join(f"{line(listed)}\n" for listed in samples).encode()


def mend_tables(cache: Cache, source: Source) -> list[str]:
    """Write every missing or changed sample table again, if the source still gives what the plan names.

    What was done, a line each. Raises `DataFault` for a table that cannot be had again.
    """
    damaged: list[tuple[Part, str]] = []
    with closing(Names()) as sound, readers() as pool:
        for part in cache.plan():
            try:
                for row in cache.table(part):
                    sound.add(row["key"])
            except DataFault as err:
                damaged.append((part, str(err)))
        if not damaged:
            return []
        lost = (listed for listed in source if listed.key not in sound)  # in the order of the plan
        for part, fault in damaged:
            samples = next(chunks(lost, part.samples), [])
            table = encoded(_hashed(source, samples, pool))
            if xxhash.xxh3_128_hexdigest(table) != part.xxh3_128:
                raise DataFault(f"{fault}; the source has changed since, so it has to come from a copy")
            cache.store.put(part.table, [table])
    return [f"written again: {fault}" for _, fault in damaged]


def _hashed(source: Source, samples: Table, pool: ThreadPoolExecutor) -> Table:
    """With the hash of each picture's file, read in threads; those that have one are not read again."""

    def hashed(listed: Sample) -> Sample:
        return listed if listed.xxh3_128 else with_hash(source, listed)

    return list(pool.map(hashed, samples))
