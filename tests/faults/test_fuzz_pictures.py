"""Pictures with bits flipped, cut short or spliced: each is decoded or refused with a reason, and soon."""

import faulthandler
import random
import resource
import sys
import time
from collections import Counter

import numpy as np
import pytest
from PIL import Image

from data_tools import images
from data_tools.sources import Unusable
from tests.data_tools.picture_files import cyan_profile, file_of, swapped_profile, webp

pytestmark = pytest.mark.filterwarnings("ignore")

MAX_PIXELS = 1 << 22
"So the largest picture that a changed header may ask for takes 16 MB."

MEMORY = 128 << 10
"KB that the process may grow by: the largest picture eight times."

SECONDS = 5.0
"CPU time for one picture; a hang in C is ended after ten times as much, with a traceback."


def originals() -> dict[str, bytes]:
    """A few of each format, with what its reader parses: profiles, EXIF, text, frames."""
    noise = np.random.default_rng(0).integers(0, 256, (24, 40, 4), dtype=np.uint8)
    rgba = Image.fromarray(noise)
    rgb, frames = rgba.convert("RGB"), [rgba.convert("RGB").rotate(turn) for turn in (90, 180)]
    exif = Image.Exif()
    exif[0x0112], exif[0x010E] = 6, "a description"
    return {
        "png": file_of(rgb, exif=exif, icc_profile=swapped_profile()),
        "png alpha": file_of(rgba),
        "png palette": file_of(rgb.convert("P"), transparency=bytes(range(200))),
        "png 16 bits": file_of(Image.fromarray(noise[..., 0].astype(np.uint16) * 200)),
        "png animated": file_of(rgb, save_all=True, append_images=frames),
        "jpeg": file_of(rgb, "jpeg", exif=exif, icc_profile=swapped_profile()),
        "jpeg progressive": file_of(rgb, "jpeg", progressive=True, quality=95),
        "jpeg cmyk": file_of(rgb.convert("CMYK"), "jpeg", icc_profile=cyan_profile()),
        "mpo": file_of(rgb, "mpo", save_all=True, append_images=frames),
        "webp": file_of(rgb, "webp", exif=exif, icc_profile=swapped_profile()),
        "webp lossless": file_of(rgba, "webp", lossless=True),
        "webp animated": file_of(rgb, "webp", save_all=True, append_images=frames),
        "webp small frame": webp((60, 60), rgb, (6, 8), alpha=True),
        "gif": file_of(rgb, "gif", comment="a comment"),
        "gif animated": file_of(rgb, "gif", save_all=True, append_images=frames, transparency=3),
        "tiff": file_of(rgb, "tiff", exif=exif),
        "tiff deflate": file_of(rgba, "tiff", compression="tiff_adobe_deflate"),
        "tiff lab": file_of(Image.new("LAB", (40, 24), (99, 120, 130)), "tiff"),
    }


def mutated(data: bytes, others: list[bytes], draw: random.Random) -> bytes:
    """One of three: bits flipped (most in the head, where the structure is), cut short, spliced."""
    kind = draw.choice(["flip", "flip", "cut", "splice"])
    if kind == "cut":
        return data[: draw.randrange(1, len(data))]
    if kind == "splice":
        other = draw.choice(others)
        start, length = draw.randrange(len(other)), draw.randrange(1, 200)
        at = draw.randrange(len(data))
        kept = at + (length if draw.random() < 0.5 else 0)  # overwritten, or pushed back
        return data[:at] + other[start : start + length] + data[kept:]
    spoiled = bytearray(data)
    for _ in range(draw.choice([1, 2, 8])):
        end = min(len(data), 200) if draw.random() < 0.5 else len(data)
        spoiled[draw.randrange(end)] ^= 1 << draw.randrange(8)
    return bytes(spoiled)


def outcome(data: bytes, *, icc: bool) -> str:
    """`decoded`, or the reason. Anything else that `decode` raises fails the test."""
    faulthandler.dump_traceback_later(10 * SECONDS, exit=True, file=sys.__stderr__)
    started = time.process_time()
    try:
        image = images.decode(data, max_pixels=MAX_PIXELS, icc=icc)
    except Unusable as refused:
        reason = str(refused)
        assert reason.isprintable()
        assert 0 < len(reason) < 300
        return reason
    finally:
        faulthandler.cancel_dump_traceback_later()
        assert time.process_time() - started < SECONDS
    assert image.mode == "RGB"
    assert 0 < image.width * image.height <= MAX_PIXELS
    assert np.asarray(image).shape == (image.height, image.width, 3)
    return "decoded"


def fuzz(count: int, seed: int) -> Counter[str]:
    """Format and whether decoded → how many of `count` mutations, alike for all originals."""
    pictures = originals()
    for name, data in pictures.items():
        assert outcome(data, icc=True) == "decoded", name
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    seen: Counter[str] = Counter()
    for number in range(count):
        draw = random.Random(f"{seed}/{number}")
        name = list(pictures)[number % len(pictures)]
        found = outcome(mutated(pictures[name], list(pictures.values()), draw), icc=draw.random() < 0.5)
        seen[f"{name.split()[0]} {'decoded' if found == 'decoded' else 'refused'}"] += 1
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < MEMORY
    return seen


def check(seen: Counter[str], count: int) -> None:
    assert seen.total() == count
    for kind in ("png", "jpeg", "webp", "gif", "tiff"):  # neither was everything refused nor nothing harmed
        assert seen[f"{kind} decoded"] > 0
        assert seen[f"{kind} refused"] > 0


def test_2000_mutations_are_decoded_or_refused() -> None:
    check(fuzz(2_000, seed=0), 2_000)


@pytest.mark.faults
def test_100000_mutations_are_decoded_or_refused() -> None:
    check(fuzz(100_000, seed=1), 100_000)
