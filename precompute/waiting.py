"""Only rank 0 writes plans, as a new plan reads every new picture; the others wait until theirs is there.

A rank looks at what is in the cache and nothing else: a plan, and sample tables, which whoever plans writes
one after another. So it does not matter who that is, and if nobody does it, each rank does it itself.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass, field

import click

from data_tools.cache.listing import Listing
from data_tools.cache.manifest import latest_plan_number
from data_tools.cache.store import Store
from precompute.ranks import Rank

PLAN_PATIENCE = 600.0
"Seconds without a new plan or sample table after which a rank plans itself."
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
        return max((found.modified for found in self.store.listed("samples")), default=0.0)
