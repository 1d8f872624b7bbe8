"""A reader in a process of its own: python -m tests.faults.reader CACHE

Opens what is committed, then for each line on stdin prints number of samples and a hash of all that it reads.
"""

import json
import sys

import numpy as np
import xxhash

from data_tools.cache.reader import CacheReader
from tests.data_tools.caches import COLUMNS


def summary(reader: CacheReader) -> str:
    """A line of JSON: [samples, xxh3-128 of keys, rows, lengths and null conditions of all columns]."""
    hasher = xxhash.xxh3_128(reader.key_hashes().tobytes())
    for name in COLUMNS:
        firsts, counts = reader.rows(name)
        every = [np.arange(first, first + count) for first, count in zip(firsts, counts)]
        batches = [reader.gather(name, np.concatenate(every))]
        if reader.columns[name].has_null:
            batches.append(reader.null(name))
        for batch in batches:
            for value in batch.values():
                hasher.update(np.ascontiguousarray(value).tobytes())
    return json.dumps([reader.num_samples, hasher.hexdigest()])


if __name__ == "__main__":
    opened = CacheReader(sys.argv[1], COLUMNS, allow_partial=True, paranoid=True)
    print("open", flush=True)
    for _ in sys.stdin:
        print(summary(opened), flush=True)
