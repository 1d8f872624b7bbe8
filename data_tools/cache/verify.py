"""Is a committed part still what was committed?"""

import xxhash

from data_tools.cache.extents import PartIndex
from data_tools.cache.manifest import Commit
from data_tools.cache.store import Store


def size_faults(store: Store, commit: Commit) -> list[str]:
    """Objects of a part that are missing or have another size: one line each, none if all is well."""
    faults = []
    for item in commit.objects:
        size = store.size(item.name)
        if size != item.size:
            found = "is missing" if size is None else f"has {size} bytes"
            faults.append(f"{item.name} {found}, wanted {item.size} bytes")
    return faults


def hash_faults(store: Store, commit: Commit) -> list[str]:
    """As `size_faults`, and every byte of every object is read and hashed."""
    faults = size_faults(store, commit)
    for item in commit.objects:
        if any(fault.startswith(f"{item.name} ") for fault in faults):
            continue
        if xxhash.xxh3_128_hexdigest(store.read(item.name)) != item.xxh3_128:
            faults.append(f"{item.name} has changed bytes (xxh3-128 differs)")
    return faults


def load_index(store: Store, commit: Commit) -> PartIndex:
    """The extent index of a part, hash-checked. Raises `ValueError`."""
    data = store.read(commit.index)
    wanted = next(item.xxh3_128 for item in commit.objects if item.name == commit.index)
    if xxhash.xxh3_128_hexdigest(data) != wanted:
        raise ValueError(f"{commit.index} has changed bytes (xxh3-128 differs)")
    return PartIndex.load(data)
