"""How far a cache is and how fast it grows: what `precompute --status` prints while runs are under way.

From the plan, the columns' latest generations and the listing of their commit records; of parts that no
generation covers yet the records are read. A commit record's time is when its part was done. Nothing else is
read, so a cache of any size answers in seconds, wherever it is and whoever fills it.
"""

import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from data_tools.cache import redo
from data_tools.cache.fields import Column
from data_tools.cache.generation import latest
from data_tools.cache.manifest import NULL_PART, Cache, Part, column_folder

WINDOW = 600.0
"Seconds before the last commit over which a rate is taken."
FEWEST = 8
"Commits that a rate is taken over, where there are less in the window."


@dataclass(frozen=True)
class _Commits:
    """The parts of the plan that a column has, in the order in which they were committed."""

    times: NDArray[np.float64]
    "Seconds since 1970, by the clock of the place."
    samples: NDArray[np.int64]
    names: list[str]
    others: set[str]
    "Parts that are not of the plan: the null condition, prompts, parts of which nothing is left."


def status(cache: Cache) -> dict[str, Any]:
    """As plain JSON values; see `as_text`.

    `samples` are those of the plan; of each column `samples` are those in its committed parts, rejects among
    them. `samples_per_second` is over the last `window_seconds` before `last_commit` (seconds since 1970);
    all are None where nothing can be said yet. `eta_seconds`: at this rate, None once nothing has been
    committed for longer than the window. Raises `UserError` while there is no plan, `DataFault` for a
    damaged record.
    """
    plan = cache.plan()
    columns = {}
    for name in cache.column_names():
        for label, column in ((name, cache.column(name)), (f"{name} (redo)", redo.pending(cache, name))):
            if column is not None:
                columns[label] = _of_column(cache, column, plan)
    etas = [found["eta_seconds"] for found in columns.values() if not found["complete"]]
    return {
        "cache": cache.store.url,
        "samples": sum(part.live for part in plan),
        "parts": len(plan),
        "complete": bool(columns) and all(found["complete"] for found in columns.values()),
        "eta_seconds": None if not etas or None in etas else max(etas),
        "columns": columns,
    }


def _of_column(cache: Cache, column: Column, plan: list[Part]) -> dict[str, Any]:
    commits = _commits(cache, column, plan)
    done, total = int(commits.samples.sum()), sum(part.live for part in plan)
    null = not column.has_null or NULL_PART in commits.others
    rate, window = _rate(commits)
    last = float(commits.times[-1]) if len(commits.times) else None
    is_running = last is not None and time.time() - last <= max(WINDOW, window or 0)
    return {
        "parts": len(commits.names),
        "samples": done,
        "rejects": _rejects(cache, column, plan, commits),
        "complete": null and len(commits.names) == len(plan),
        "samples_per_second": rate,
        "window_seconds": window,
        "last_commit": last,
        "eta_seconds": round((total - done) / rate, 1) if rate and is_running else None,
    }


def _commits(cache: Cache, column: Column, plan: list[Part]) -> _Commits:
    """By one listing, whose times are those of the records."""
    live = {part.name: part.live for part in plan}
    found = {
        record.name.rpartition("/")[2].removesuffix(".json"): record.modified
        for record in cache.store.listed(f"{column_folder(column)}/commits")
        if record.name.endswith(".json") and "/." not in record.name
    }
    names = sorted(live.keys() & found.keys(), key=lambda name: (found[name], name))
    return _Commits(
        times=np.array([found[name] for name in names]),
        samples=np.array([live[name] for name in names], np.int64),
        names=names,
        others=found.keys() - live.keys(),
    )


def _rate(commits: _Commits) -> tuple[float | None, float | None]:
    """Samples a second, and over how many seconds: after one commit, up to and with the last."""
    times = commits.times
    if len(times) < 2:
        return None, None
    first = min(int(np.searchsorted(times, times[-1] - WINDOW)), max(0, len(times) - 1 - FEWEST))
    window = float(times[-1] - times[first])
    if window <= 0:
        return None, None
    return round(float(commits.samples[first + 1 :].sum()) / window, 3), round(window, 1)


def _rejects(cache: Cache, column: Column, plan: list[Part], commits: _Commits) -> int:
    """Samples that a column cannot have; none that is retired."""
    known = latest(cache, column)
    parts = {part.name: part for part in plan}
    names = [name.decode() for name in known.part.tolist()]
    count = 0
    for number in np.unique(known.lacking_part).tolist():
        if names[number] in parts:
            live = parts[names[number]].is_live()
            count += int(live[known.lacking[known.lacking_part == number]].sum())
    later = sorted(set(commits.names).difference(names))
    with ThreadPoolExecutor(max(4, cache.store.concurrency)) as pool:
        records = pool.map(lambda name: cache.commit(column, name), later)
        return count + sum(len(record.rejects) for record in records if record is not None)


def as_text(found: dict[str, Any]) -> str:
    """For people: a line a column, and what is left."""
    lines = [f"{'column':<20}{'parts':>18}{'samples':>28}{'samples/s':>12}{'rejects':>10}{'left':>14}"]
    for name, column in found["columns"].items():
        parts = f"{column['parts']:,} of {found['parts']:,}"
        samples = f"{column['samples']:,} of {found['samples']:,}"
        rate, eta = column["samples_per_second"], column["eta_seconds"]
        left = "complete" if column["complete"] else "?" if eta is None else duration(eta)
        speed = "" if column["complete"] else "?" if rate is None else f"{rate:,.1f}"
        lines.append(f"{name:<20}{parts:>18}{samples:>28}{speed:>12}{column['rejects']:>10,}{left:>14}")
    return "\n".join([*lines, _conclusion(found)])


def _conclusion(found: dict[str, Any]) -> str:
    if found["complete"]:
        return f"complete: {found['samples']:,} samples in {found['parts']:,} parts"
    running = [column for column in found["columns"].values() if not column["complete"]]
    latest_first = sorted((c for c in running if c["last_commit"]), key=lambda c: -c["last_commit"])
    if not latest_first:
        return "nothing is committed yet"
    last = latest_first[0]
    ago, window = duration(max(0.0, time.time() - last["last_commit"])), last["window_seconds"]
    if window is None:
        return f"last commit {ago} ago; a rate needs two"
    if last["eta_seconds"] is None:
        return f"last commit {ago} ago: nothing seems to be at work; the same command goes on"
    left = "some time" if found["eta_seconds"] is None else duration(found["eta_seconds"])
    return f"{left} left at the rate of the {duration(window)} before the last commit, which was {ago} ago"


def duration(seconds: float) -> str:
    """As in 45 s, 12 min, 3 h 20 min, 5 d 4 h."""
    minutes, hours = round(seconds / 60), round(seconds / 3600)
    if seconds < 90:
        return f"{seconds:.0f} s"
    if minutes < 90:
        return f"{minutes} min"
    if hours < 48:
        return f"{minutes // 60} h {minutes % 60} min"
    return f"{hours // 24} d {hours % 24} h"
