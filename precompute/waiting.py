"""Only rank 0 writes plans, as a new plan reads every new picture; the others wait until theirs is there.

A rank looks at what is in the cache and nothing else: a plan, sample tables, which whoever plans writes one
after another, and the sign of life that rank 0 gives until then. So it does not matter who plans, and if
nobody does, because rank 0 is dead or has ended with an error, the others do it after a minute or two.
"""

import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from threading import Event, Thread

import click

from data_tools.cache.listing import Listing
from data_tools.cache.manifest import latest_plan_number
from data_tools.cache.store import Store
from precompute.ranks import Rank

PLAN_PATIENCE = 60.0
"Seconds without a plan, a new sample table or a sign of life after which a rank plans itself."
SIGN, BEAT = "samples/planning", 10.0
"Object that rank 0 writes again and again, and after how many seconds."
LONGEST_PAUSE = 5.0
"Seconds between two looks at the cache, at most."


def settled(
    rank: Rank, store: Store, compare: Callable[[], Listing], patience: float | None = None
) -> Listing:
    """The comparison of source and plan from which a rank goes on; `compare` makes one.

    Rank 0 goes on with the first. Another one waits for a plan, compares, and if the source has changes that
    the plan lacks waits for the next one. `patience`: seconds, None: `PLAN_PATIENCE`.
    """
    if rank.number == 0:
        return compare()
    watch = _Watch(rank, store, PLAN_PATIENCE if patience is None else patience)
    watch.wait(newer_than=0)
    while True:
        listing = compare()
        number = listing.plan.number if listing.plan is not None else 0
        if number and not listing.changes:
            return listing
        if not watch.wait(newer_than=number):
            return listing


@dataclass
class Planner:
    """A context in which rank 0 of several gives its sign of life, until `done`."""

    rank: Rank
    store: Store

    def __enter__(self) -> "Planner":
        self._stop = Event()
        self._thread = Thread(target=self._live, daemon=True)
        if self.rank.number == 0 and self.rank.world > 1:
            self._thread.start()
        return self

    def done(self) -> None:
        """The plan is written; may be called again."""
        self._stop.set()
        if self._thread.ident is not None:
            self._thread.join()

    def __exit__(self, *_: object) -> None:
        self.done()

    def _live(self) -> None:
        with suppress(OSError):  # a place that cannot be written to is said by the run
            while True:
                self.store.put(SIGN, [b"rank 0 plans\n"])
                if self._stop.wait(BEAT):
                    self.store.remove(SIGN)
                    return


@dataclass
class _Watch:
    """Looks for plans until nothing has happened for too long."""

    rank: Rank
    store: Store
    patience: float
    _table: float | None = None
    "When the last sample table was written, by the clock of the place; None before anything was waited for."
    _since: float = field(default_factory=time.monotonic)

    def wait(self, *, newer_than: int) -> bool:
        """True when there is a newer plan, False if this rank should make it."""
        pause = 0.05
        while latest_plan_number(self.store) <= newer_than:
            if self._table is None:
                click.echo(f"{self.rank} waits for the plan of rank 0", err=True)
                self._table = self._newest_table()
            elif time.monotonic() - self._since > self._limit() and not self._is_planned(self._table):
                return False
            time.sleep(pause)
            pause = min(2 * pause, LONGEST_PAUSE)
        self._since = time.monotonic()
        return True

    def _limit(self) -> float:
        """Seconds; ranks lose patience one after another, so that mostly one begins to plan."""
        return self.patience * (1 + self.rank.number / self.rank.world)

    def _is_planned(self, known: float) -> bool:
        """True if a sample table was written since the last look: somebody is at it."""
        self._table = self._newest_table()
        if self._table > known:
            self._since = time.monotonic()
        return self._table > known

    def _newest_table(self) -> float:
        """The sign of life counts as one."""
        return max((found.modified for found in self.store.listed("samples")), default=0.0)
