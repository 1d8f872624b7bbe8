"""Samples that columns have rejected, for a run that tries them again."""

from collections.abc import Iterable

from data_tools.cache.fields import Column
from data_tools.cache.generation import current
from data_tools.cache.manifest import Cache, latest_plan_number

Rejects = dict[tuple[str, str], list[str]]
"(part, key) → columns that have rejected the sample."


def rejected(cache: Cache, columns: Iterable[Column], *, untried: bool = False) -> Rejects:
    """Of parts of the plan; retired samples may be among them.

    untried: without those that have been tried again and were rejected again. Raises `DataFault` for a
    damaged record. Memory: the rejects.
    """
    if not latest_plan_number(cache.store):
        return {}
    parts, found = {part.name: part for part in cache.plan()}, Rejects()
    for column in columns:
        for reject in current(cache, column, list(parts.values())).rejects():
            if reject["part"] in parts:
                found.setdefault((reject["part"], reject["key"]), []).append(column.name)
    for name in {part for part, _ in found} if untried else ():
        for row in cache.table(parts[name]):
            if row.get("picture_was") and row.get("captions_was"):
                found.pop((name, row["key"]), None)
    return found
