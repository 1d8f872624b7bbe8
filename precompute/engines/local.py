"""`--engine local`: this process encodes, alone or as one of the ranks that a launcher has started."""

import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from tqdm import tqdm

from data_tools.cache.manifest import Part
from precompute.parts import Job
from precompute.ranks import Rank, Shares
from precompute.summary import Summary
from precompute.worker import Worker


def encode(worker: Worker, jobs: Sequence[Job], plan: list[Part], rank: Rank) -> None:
    """This rank's share of the jobs, then what the others have not done yet."""
    numbers = {part.name: number for number, part in enumerate(plan)}
    places = [numbers[job.part.name] for job in jobs]
    with progress_bar(sum(job.part.live for job in jobs), worker.summary, hidden=rank.number > 0) as bar:

        def left(others: list[Job]) -> list[Job]:
            """Those that nobody has done by now."""
            done = {each.column.name: worker.cache.committed(each.column) for each in worker.encoders}
            undone = [job for job in others if any(job.part.name not in done[name] for name in job.columns)]
            bar.update(sum(job.part.live for job in others) - sum(job.part.live for job in undone))
            return undone

        shares = Shares(jobs, rank, places=places, left=left)
        worker.encode(shares, advance=bar.update, raced=shares.scatter, plan=plan)


@contextmanager
def progress_bar(total: int, summary: Summary, *, hidden: bool = False) -> "Iterator[tqdm[None]]":
    """Samples, samples/s, time left, and what the encoders waited for."""

    class Bar(tqdm):  # type: ignore[type-arg]
        def update(self, n: float | None = 1) -> bool | None:
            self.set_postfix_str(summary.waits(time.perf_counter() - started), refresh=False)
            return super().update(n)

    started = time.perf_counter()
    with Bar(total=total, unit=" samples", desc="precompute", disable=hidden, file=sys.stderr) as bar:
        yield bar
