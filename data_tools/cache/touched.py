"""How and where the source has samples now that are as they were: so that they need not be read again.

    touched/part-00000-000001.jsonl    of the part's samples that the source lists otherwise than their table
                                       says, a line each: key, num_bytes, mtime_ns, place, source

A plan never changes because a file was touched or moved. Its picture is read once, is found to be the same,
and what it looks like now is noted here, for the next comparison. Of each part the newest record counts, and
it has all there is to say; the first line has the xxh3-128 of the others. A record that is missing or damaged
costs the time to read those files again, and nothing else. Nobody but the comparison reads them.
"""

import json
import re
from collections.abc import Mapping

import xxhash

from data_tools.cache.changes import Seen
from data_tools.cache.manifest import SEAL
from data_tools.cache.store import Store

FOLDER = "touched"
NAME = re.compile(r"(part-\d+)-(\d{6,})\.jsonl")
"Of a record: its part and its number."


def newest(store: Store) -> dict[str, int]:
    """Part → number of its newest record, of parts that have any."""
    found: dict[str, int] = {}
    for match in filter(None, map(NAME.fullmatch, store.names(FOLDER))):
        found[match[1]] = max(found.get(match[1], 0), int(match[2]))
    return found


def name(part: str, number: int) -> str:
    return f"{FOLDER}/{part}-{number:06d}.jsonl"


def read(store: Store, part: str, number: int) -> dict[str, Seen]:
    """Key → how the source had the sample; empty if there is no such record or it has changed."""
    try:
        data = store.read(name(part, number)) if number else b""
    except FileNotFoundError:  # gc has removed it, as there is a newer one
        data = b""
    lines = data.splitlines(keepends=True)[1:]
    if _sealed(b"".join(lines)) != data:
        return {}
    rows = map(json.loads, lines)
    return {row.pop("key"): Seen(**row) for row in rows}


def write(store: Store, part: str, number: int, samples: Mapping[str, Seen]) -> None:
    """Of workers that write the same number one wins; what the others have to say is found again."""
    rows = ({"key": key, **seen._asdict()} for key, seen in samples.items())
    lines = "".join(f"{json.dumps(row, ensure_ascii=False, sort_keys=True)}\n" for row in rows)
    store.create(name(part, number), _sealed(lines.encode()))


def _sealed(lines: bytes) -> bytes:
    return json.dumps({SEAL: xxhash.xxh3_128_hexdigest(lines)}).encode() + b"\n" + lines
