"""A part as one webdataset tar: members of `block` rows each, named `<first row>.<field>.npy`.

USTAR, names sorted, no times or owners, two zero blocks at the end, so equal rows give equal bytes. Rows of
one block (all fields, one webdataset sample):

    00000032.json                                   column, part, identity; dtype of each field, since `.npy`
                                                    has no bfloat16; keys: the sample of each row
    00000032.latents.npy                            (block, *shape)
    00000032.text_encoder_hidden_states.npy         (items of all rows end to end, D)
    00000032.text_encoder_hidden_states_offsets.npy (block + 1)

Latents of several bucket shapes stand end to end too:

    00000032.latents.npy                            (values of all rows)
    00000032.latents_offsets.npy                    (block + 1)
    00000032.latents_shape.npy                      (block, 3): C, h, w of each row

With `block` 1 there is one row in each webdataset sample, of its own shape: without the leading axis, without
offsets and shapes.
"""

import io
import json
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from data_tools.cache.fields import Field, Row
from data_tools.cache.rows import PartRows, Placement, Put, row_shapes, row_starts

SUFFIX = ".tar"
BLOCK_BYTES = 2_500_000
"Aim for the size of a block of rows when no number of rows is given."


Member = tuple[bytes, list[bytes]]
"What stands before the payload, and the payload of each row."


@dataclass(frozen=True)
class TarPart:
    """The container; `block` rows in each member, 0: as many as make members of 1 to 2.5 MB."""

    block: int = 0

    def write(self, put: Put, name: str, rows: PartRows) -> dict[str, Placement]:
        """Store `name`.tar; where each field's rows lie in it."""
        offsets: dict[str, list[int]] = {field.name: [] for field in rows.fields}
        put(name + SUFFIX, _tar(rows, self.block or _fitting_block(rows), offsets))
        return {
            field: Placement(name + SUFFIX, 0, 0, np.array(places, dtype=np.int64))
            for field, places in offsets.items()
        }


def _fitting_block(rows: PartRows) -> int:
    """A power of two of rows of which the largest field stays under `BLOCK_BYTES`."""
    sizes = [sum(row[field.name].nbytes for row in rows.rows) for field in rows.fields]
    mean = max(sizes) / max(1, len(rows.rows))
    return 1 << max(0, int(np.log2(max(1.0, BLOCK_BYTES / max(1.0, mean)))))


def _tar(rows: PartRows, block: int, offsets: dict[str, list[int]]) -> Iterator[bytes]:
    """The tar's bytes; fills `offsets` with the byte at which each row starts."""
    row_keys = np.repeat(np.array(rows.keys, dtype=object), np.diff(rows.row_offsets)).tolist()
    dtypes = {field.name: field.dtype for field in rows.fields}
    position = 0
    for start in range(0, len(rows.rows), block):
        chosen = slice(start, start + block)
        about = {**rows.about, "dtype": dtypes, "keys": row_keys[chosen]}
        members: dict[str, Member] = {"json": (json.dumps(about, ensure_ascii=False).encode(), [])}
        for field in rows.fields:
            members |= _members(field, rows.rows[chosen], single=block == 1)
        for extension, (head, payloads) in sorted(members.items()):
            size = len(head) + sum(map(len, payloads))
            yield _header(f"{start:08d}.{extension}", size)
            yield head
            place = position + tarfile.BLOCKSIZE + len(head)
            for payload in payloads:
                if (field_name := extension.removesuffix(".npy")) in offsets:
                    offsets[field_name].append(place)
                place += len(payload)
                yield payload
            padding = -size % tarfile.BLOCKSIZE
            yield bytes(padding)
            position += tarfile.BLOCKSIZE + size + padding
    yield bytes(2 * tarfile.BLOCKSIZE)


def _members(field: Field, rows: list[Row], *, single: bool) -> dict[str, Member]:
    """Extension → member, for one field of the rows of one block."""
    starts = row_starts(field, rows)
    payloads = [row[field.name].tobytes() for row in rows]
    shape = rows[0][field.name].shape if single else (int(starts[-1]), *field.item_shape)
    members: dict[str, Member] = {f"{field.name}.npy": (_npy_header(shape, field.storage), payloads)}
    if field.varies and not single:
        members[f"{field.name}_offsets.npy"] = _member(starts)
    if field.bucketed and not single:
        members[f"{field.name}_shape.npy"] = _member(row_shapes(field, rows))
    return members


def _member(value: NDArray[Any]) -> Member:
    return _npy_header(value.shape, value.dtype), [value.tobytes()]


def _npy_header(shape: tuple[int, ...], dtype: np.dtype[Any]) -> bytes:
    buffer = io.BytesIO()
    description = {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(buffer, description)
    return buffer.getvalue()


def _header(name: str, size: int) -> bytes:
    info = tarfile.TarInfo(name)
    info.size = size
    return info.tobuf(format=tarfile.USTAR_FORMAT)
