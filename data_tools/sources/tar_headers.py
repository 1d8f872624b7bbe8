"""The members of a tar in one pass over its headers, which seeks over the payloads: V7, USTAR, PAX, GNU.

`tarfile` parses the header blocks. Its own walk does not fit what must be said here: it ends without a word
at a damaged header, reads as much as a header claims, and keeps every member in memory.
"""

import re
import tarfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from data_tools.sources.sample import Unusable

BLOCK = 512
Read = Callable[[int, int], bytes]
"The bytes of the tar from an offset on: at most so many. Raises `Unusable`."
SCAN_BYTES = 1 << 20
"Read at once where the next header has to be searched for."
MAX_EXTENSION_BYTES = 1 << 16
"Size of one extension header (a long name, PAX records); a header may claim anything."
MAX_EXTENSIONS = 8
"Extension headers before one member."
END_BYTES = 2 * BLOCK
"Zeros that end a tar; more may follow, up to the end of a record."
RECORDS = (*(BLOCK << power for power in range(8)), 20 * BLOCK)
"Sizes of records: 10 KiB as almost every program has it, powers of two up to 64 KiB, no records at all."
MAX_SPARSE_MAPS = 64
"Blocks with which a sparse file's map goes on."
PACKED = {
    b"\x1f\x8b": "gzip",
    b"BZh": "bzip2",
    b"\xfd7zXZ": "xz",
    b"\x28\xb5\x2f\xfd": "zstd",
    b"PK\3\4": "zip",
}
FOLDER = "a folder"
KINDS = {
    tarfile.LNKTYPE: "a hard link",
    tarfile.SYMTYPE: "a symbolic link",
    tarfile.CHRTYPE: "a device",
    tarfile.BLKTYPE: "a device",
    tarfile.FIFOTYPE: "a pipe",
    tarfile.DIRTYPE: FOLDER,
    tarfile.GNUTYPE_SPARSE: "a sparse file",
}
EXTENSIONS = {
    tarfile.GNUTYPE_LONGNAME,
    tarfile.GNUTYPE_LONGLINK,
    tarfile.XHDTYPE,
    tarfile.SOLARIS_XHDTYPE,
    tarfile.XGLTYPE,
}
PAX_RECORD = re.compile(rb"(\d{1,8}) ([^=\n]{1,256})=")


@dataclass(frozen=True)
class Member:
    """One member; nothing of its payload has been read."""

    name: str
    "As it stands in the header; a name, never a path to open. Bytes that are not UTF-8 are backslashed."
    offset: int
    "Where its payload begins in the tar."
    size: int
    problem: str = ""
    "Why its payload cannot be used; empty for a regular file that is all there."


@dataclass(frozen=True)
class Damage:
    """A place of the tar that is not what it should be; members that follow it are found again."""

    offset: int
    what: str
    unread: bool = False
    "The file could not be read on."


def members(read: Read, size: int) -> Iterator[Member | Damage]:
    """All members of a tar of `size` bytes in their order, and what is wrong with it where that shows."""
    last = ""
    try:
        for found in _walk(read, size):
            last = f" after {_shown(found.name)}" if isinstance(found, Member) else last
            yield found
    except Unusable as err:
        yield Damage(size, f"{err}{last}", unread=True)


def _walk(read: Read, size: int) -> Iterator[Member | Damage]:
    if size == 0:
        yield Damage(0, "empty (0 bytes)")
    offset, searched, ended = 0, 1, size == 0
    first: int | None = 0  # where its records are counted from; several tars may follow each other
    while offset < size:
        block = read(offset, BLOCK)
        if len(block) < min(BLOCK, size - offset):
            yield Damage(offset, f"cut short while it was read, at byte {offset + len(block)}")
            return
        if not block.strip(b"\0"):
            following = _after_zeros(read, offset, size)
            if wrong := _wrong_zeros(offset, following, size, first):
                yield Damage(offset, wrong)
            else:
                first = following
            offset, ended = following, True
            continue
        ended = False
        try:
            member, following = _member(read, offset, size, block)
        except tarfile.HeaderError as err:
            packed = next(
                (name for magic, name in PACKED.items() if not offset and block.startswith(magic)), ""
            )
            if packed:
                yield Damage(0, f"no plain tar but packed with {packed}; unpack it")
                return
            following = _next_header(read, searched, size)  # the member before may be short of bytes
            yield Damage(offset, _damaged(offset, following, size, str(err)))
            searched, ended, first = following + 1, following == size, None
        else:
            searched = member.offset
            if member.problem != FOLDER:
                yield member
            if following > size:
                following = _next_header(read, member.offset, size)
                place = "inside" if member.offset + member.size > size else "after"
                yield Damage(member.offset, f"cut short {place} {_shown(member.name)}")
                ended, first = following == size, None
        offset = following
    if not ended:
        yield Damage(size, "cut short: there is no end mark")


def _wrong_zeros(start: int, end: int, size: int, first: int | None) -> str:
    """Why zeros are not the end of a tar whose records begin at `first`; empty if they are.

    Members may have been where there are zeros now: nothing else tells of a file with a hole.
    """
    length = end - start
    records = [record for record in RECORDS if first is None or (end - first) % record == 0]
    if END_BYTES <= length < END_BYTES + max(records, default=0):
        return ""
    if end == size and length < END_BYTES:
        return f"cut short inside its end mark, at byte {size}"
    return f"{length} bytes of zeros at byte {start}{' up to its end' if end == size else ''}"


def _damaged(offset: int, following: int, size: int, error: str) -> str:
    if following < size:
        return f"damaged at byte {offset} ({error})"
    if offset == 0:
        return "no tar: no member found in it"
    if size - offset < BLOCK:
        return f"cut short inside a header, at byte {size}"
    return f"damaged from byte {offset} to its end ({error})"


def _member(read: Read, offset: int, size: int, block: bytes) -> tuple[Member, int]:
    """The member whose header (or first extension header) is `block`, and where the next header is due."""
    name, records = None, dict[bytes, bytes]()
    for _ in range(MAX_EXTENSIONS):
        info = _parsed(block)
        offset += BLOCK
        if info.type not in EXTENSIONS:
            break
        if info.size > min(MAX_EXTENSION_BYTES, size - offset):
            raise tarfile.HeaderError(f"a header of {info.size} bytes")
        payload = read(offset, info.size)
        if info.type == tarfile.GNUTYPE_LONGNAME:
            name = payload.split(b"\0", 1)[0]
        elif info.type in (tarfile.XHDTYPE, tarfile.SOLARIS_XHDTYPE):
            records = _pax_records(payload)
        offset += _padded(info.size)
        block = read(offset, BLOCK)
    else:
        raise tarfile.HeaderError("too many extension headers")
    problem = _kind(info)
    if any(key.startswith(b"GNU.sparse.") for key in records):
        problem = KINDS[tarfile.GNUTYPE_SPARSE]
    if info.type == tarfile.GNUTYPE_SPARSE:
        offset = _after_sparse_maps(read, offset, block)
    name = records.get(b"GNU.sparse.name") or records.get(b"path") or name
    length = _pax_size(records) if b"size" in records else info.size
    following = offset + (_padded(length) if info.isreg() or info.type not in tarfile.SUPPORTED_TYPES else 0)
    if offset + length > size:
        problem = problem or "the tar ends before it does"
    shown = name if name is not None else info.name.encode("utf-8", "surrogateescape")
    return Member(shown.decode("utf-8", "backslashreplace"), offset, length, problem), following


def _parsed(block: bytes) -> tarfile.TarInfo:
    info = tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")
    if info.size < 0:
        raise tarfile.HeaderError("a negative size")
    return info


def _kind(info: tarfile.TarInfo) -> str:
    if info.type in (tarfile.REGTYPE, tarfile.AREGTYPE, tarfile.CONTTYPE):
        return ""
    return KINDS.get(info.type, f"a member of type {info.type!r}")


def _pax_records(payload: bytes) -> dict[bytes, bytes]:
    """`length key=value` lines; the last of a key counts."""
    records, position = {}, 0
    while payload[position : position + 1] not in (b"", b"\0"):
        match = PAX_RECORD.match(payload, position)
        end = position + int(match[1]) if match else 0
        if match is None or not match.end() < end <= len(payload):
            raise tarfile.HeaderError("a bad PAX record")
        records[match[2]] = payload[match.end() : end - 1]
        position = end
    return records


def _pax_size(records: dict[bytes, bytes]) -> int:
    if not re.fullmatch(rb"\d{1,18}", records[b"size"]):
        raise tarfile.HeaderError("a bad PAX size")
    return int(records[b"size"])


def _after_sparse_maps(read: Read, offset: int, header: bytes) -> int:
    """Where the payload of an old GNU sparse file begins: behind the blocks that go on with its map."""
    more = header[482]
    for _ in range(MAX_SPARSE_MAPS):
        if not more:
            return offset
        block = read(offset, BLOCK)
        if len(block) < BLOCK:
            break
        more, offset = block[504], offset + BLOCK
    raise tarfile.HeaderError("a sparse map without an end")


def _after_zeros(read: Read, offset: int, size: int) -> int:
    """Start of the first block from `offset` on that is not zero, or `size`."""
    while offset < size:
        chunk = read(offset, min(SCAN_BYTES, size - offset))
        if rest := chunk.lstrip(b"\0"):
            return offset + (len(chunk) - len(rest)) // BLOCK * BLOCK
        if not chunk:
            break
        offset += len(chunk)
    return size


def _next_header(read: Read, start: int, size: int) -> int:
    """Where the next header with the mark of USTAR and a right checksum is from `start` on, or `size`.

    Headers are searched for at every byte: what is lost or doubled need not be whole blocks.
    """
    scan = SCAN_BYTES >> 6
    while start + BLOCK <= size:
        chunk = read(start, scan)
        found = chunk.find(b"ustar", 257)
        while 0 <= found <= len(chunk) - (BLOCK - 257):
            try:
                _parsed(chunk[found - 257 : found - 257 + BLOCK])
            except tarfile.HeaderError:
                found = chunk.find(b"ustar", found + 1)
            else:
                return start + found - 257
        if len(chunk) < scan:
            break
        start, scan = start + len(chunk) - BLOCK, min(2 * scan, SCAN_BYTES)
    return size


def _padded(size: int) -> int:
    return -(-size // BLOCK) * BLOCK


def _shown(name: str) -> str:
    return repr(name)[1:-1]  # a name may hold line feeds
