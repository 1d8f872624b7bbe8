"""A column made anew: under another identity, beside the old one, until all of it is there.

    columns/<column>/redo.json     the declaration that is to take the place of column.json

While it names another identity than column.json does, a redo is under way: its parts are committed under
their own identity, readers go on with the declared one, and `gc` leaves both alone. When nothing is missing,
column.json is replaced in one step; the old parts are `gc`'s then. Any number of processes may make the
same redo at once and each of them may do that step.
"""

from data_tools.cache.fields import Column
from data_tools.cache.identity import differences, digest
from data_tools.cache.manifest import NULL_PART, PROMPTS, Cache, Part, sealed
from data_tools.errors import UserError


def pending(cache: Cache, name: str) -> Column | None:
    """What a redo that is under way makes of a column, or None."""
    if cache.store.size(_path(name)) is None:
        return None
    found = Column.from_json(cache.read_json(_path(name)))
    cache.forget(name)  # another process may have ended it
    declared = cache.column(name)
    return None if declared is not None and declared.identity == found.identity else found


def wanted(cache: Cache, column: Column) -> bool:
    """True if `column` is to be made in the place of another identity, False if that has been done.

    Raises `UserError` for a column that is not there, was never made otherwise, or is being redone otherwise.
    """
    name, where = column.name, f"{cache.store.url}: column {column.name}"
    found = cache.column(name)
    if found is None:
        raise UserError(f"--redo: column {name} is not in the cache {cache.store.url}; leave --redo out")
    if found.identity == column.identity:
        if cache.store.size(_path(name)) is not None and pending(cache, name) is None:
            return False  # the same command again
        raise UserError(
            f"--redo: {where} was made with these very options; --repair redoes what of it is damaged"
        )
    other = pending(cache, name)
    if other is not None and other.identity != column.identity:
        keys = "; ".join(differences(other.identity, column.identity))
        raise UserError(
            f"--redo: {where} is being redone otherwise ({keys}); end that first with its options, "
            f"or delete {_path(name)} to give it up"
        )
    return not cache.is_empty(found)  # one that holds nothing is simply declared again


def describe(cache: Cache, column: Column, plan: list[Part]) -> str:
    """What a redo would do, for a dry run."""
    declared = cache.column(column.name)
    assert declared is not None, column.name
    old, new = digest(declared.identity)[:12], digest(column.identity)[:12]
    needed = parts(cache, declared, plan)
    done = len(cache.committed(column).intersection(needed))
    return (
        f"{column.name}: made anew as {new}, {done} of {len(needed)} parts are there; {old} stays in use "
        "until all are"
    )


def announce(cache: Cache, column: Column) -> None:
    """Begin or join a redo. Raises `UserError` if another one has begun at this moment."""
    if pending(cache, column.name) is None:
        if cache.store.size(_path(column.name)) is None:
            cache.store.create(_path(column.name), sealed(column.to_json()))
        else:  # of a redo that has ended
            cache.store.put(_path(column.name), [sealed(column.to_json())])
    _refuse_another(cache, column)


def parts(cache: Cache, declared: Column, plan: list[Part]) -> list[str]:
    """The parts that a column needs to take the place of the declared one."""
    prompts = sorted(part for part in cache.committed(declared) if part.startswith(PROMPTS))
    return [part.name for part in plan] + [NULL_PART] * declared.has_null + prompts


def switch(cache: Cache, column: Column, plan: list[Part]) -> str:
    """Declare what a redo has made if nothing of it is missing; a line that says so.

    Raises `UserError` for one that was given up or replaced meanwhile.
    """
    _refuse_another(cache, column)
    made, declared = pending(cache, column.name), cache.column(column.name)
    assert declared is not None, column.name
    if made is not None:
        needed = parts(cache, declared, plan)
        done = cache.committed(column).intersection(needed)
        if len(done) < len(needed):
            return f"redo of {column.name}: {len(done)} of {len(needed)} parts; the same command continues"
        cache.store.put(f"columns/{column.name}/column.json", [sealed(made.to_json())])
        cache.forget(column.name)
    return f"{column.name} was made anew; data-tools gc removes what it was before"


def _refuse_another(cache: Cache, column: Column) -> None:
    found = pending(cache, column.name) or cache.column(column.name)
    if found is None or found.identity != column.identity:
        where = f"{cache.store.url}: column {column.name}"
        raise UserError(
            f"--redo: {where}: this redo was given up or replaced by another; {_path(column.name)}"
        )


def _path(name: str) -> str:
    return f"columns/{name}/redo.json"
