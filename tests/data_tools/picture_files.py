"""Picture files and ICC profiles byte by byte, for what Pillow cannot write."""

import io
import struct
import zlib
from typing import Any

from PIL import Image


def file_of(image: Image.Image, kind: str = "png", **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format=kind, **options)
    return buffer.getvalue()


def png(width: int, height: int, depth: int, colour: int, rows: bytes, *chunks: tuple[bytes, bytes]) -> bytes:
    """`rows` begin with their filter byte; `chunks` (name, body) come before the pixels."""
    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    every = ((b"IHDR", header), *chunks, (b"IDAT", zlib.compress(rows)), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))
        for name, body in every
    )


def tiff(
    pixels: bytes,
    width: int,
    height: int,
    bits: int,
    *,
    order: str = "<",
    photometric: int = 1,
    sample_format: int = 1,
    extra: tuple[tuple[int, int], ...] = (),
) -> bytes:
    """One channel, one uncompressed strip; `extra` tags as (number, 32-bit value)."""
    tags = {256: width, 257: height, 258: bits, 259: 1, 262: photometric, 273: 0, 277: 1, 278: height}
    tags |= {279: len(pixels), 339: sample_format, **dict(extra)}
    tags[273] = 8 + 2 + 12 * len(tags) + 4
    entries = b""
    for number, value in sorted(tags.items()):
        short = number in (258, 259, 262, 274, 277, 339)
        body = struct.pack(order + "HH", value, 0) if short else struct.pack(order + "I", value)
        entries += struct.pack(order + "HHI", number, 3 if short else 4, 1) + body
    magic = b"II*\0" if order == "<" else b"MM\0*"
    return magic + struct.pack(order + "IH", 8, len(tags)) + entries + struct.pack(order + "I", 0) + pixels


def webp(canvas: tuple[int, int], frame: Image.Image, corner: tuple[int, int], *, alpha: bool) -> bytes:
    """An animation of one frame that lies with its left top at `corner` (even numbers)."""

    def u24(number: int) -> bytes:
        return number.to_bytes(3, "little")

    picture = file_of(frame, "webp", lossless=True)[12:]
    place = u24(corner[0] // 2) + u24(corner[1] // 2) + u24(frame.width - 1) + u24(frame.height - 1)
    body = b"WEBP"
    for name, chunk in (
        (b"VP8X", bytes([0x12 if alpha else 0x02, 0, 0, 0]) + u24(canvas[0] - 1) + u24(canvas[1] - 1)),
        (b"ANIM", bytes(6)),
        (b"ANMF", place + u24(100) + b"\0" + picture),
    ):
        body += name + struct.pack("<I", len(chunk)) + chunk + bytes(len(chunk) % 2)
    return b"RIFF" + struct.pack("<I", len(body)) + body


def icc_profile(space: bytes, connection: bytes, tags: dict[bytes, bytes]) -> bytes:
    """A version 2 profile of a colour space (`RGB `, `GRAY`, `CMYK`) to `XYZ ` or `Lab `."""
    table, bodies = struct.pack(">I", len(tags)), b""
    for name, body in tags.items():
        body += bytes(-len(body) % 4)
        table += name + struct.pack(">II", 132 + 12 * len(tags) + len(bodies), len(body))
        bodies += body
    header = struct.pack(
        ">I4sI4s4s4s", 132 + len(table) - 4 + len(bodies), b"", 0x02100000, b"prtr", space, connection
    )
    header += bytes(12) + b"acsp" + bytes(28) + struct.pack(">III", 0xF6D6, 0x10000, 0xD32D)
    return header.ljust(128, b"\0") + table + bodies


def xyz(x: float, y: float, z: float) -> bytes:
    return b"XYZ \0\0\0\0" + struct.pack(">iii", *(round(value * 65536) for value in (x, y, z)))


LINEAR = b"curv" + bytes(8)
WHITE = xyz(0.9642, 1.0, 0.8249)
RED, GREEN, BLUE = xyz(0.4361, 0.2225, 0.0139), xyz(0.3851, 0.7169, 0.0971), xyz(0.1431, 0.0606, 0.7141)


def swapped_profile() -> bytes:
    """RGB without gamma, whose red is sRGB's blue and whose blue is sRGB's red."""
    tags = {b"wtpt": WHITE, b"rXYZ": BLUE, b"gXYZ": GREEN, b"bXYZ": RED}
    return icc_profile(b"RGB ", b"XYZ ", tags | dict.fromkeys((b"rTRC", b"gTRC", b"bTRC"), LINEAR))


def grey_profile() -> bytes:
    """Grey without gamma."""
    return icc_profile(b"GRAY", b"XYZ ", {b"wtpt": WHITE, b"kTRC": LINEAR})


def cyan_profile() -> bytes:
    """CMYK in which cyan alone darkens: full cyan is black, anything without cyan is white."""
    ramp = bytes(range(256))
    nodes = b"".join(bytes([255 * (node < 8), 128, 128]) for node in range(16))  # Lab; cyan varies slowest
    matrix = struct.pack(">9i", *(65536 * (i % 4 == 0) for i in range(9)))
    table = b"mft1" + bytes(4) + bytes([4, 3, 2, 0]) + matrix + ramp * 4 + nodes + ramp * 3
    return icc_profile(b"CMYK", b"Lab ", {b"wtpt": WHITE, b"A2B0": table})
