"""What `bench-precompute` reads: JPEGs of about one megapixel, and captions of 20 tokens on average.

The lengths of captions are log-normal as those of web data are: many short ones and a few of three lines.
Every caption is another one. Pictures beyond the first `distinct` are further names of the same files.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from statistics import mean

import numpy as np

from tests.benchmarks.sources import file_of, photograph
from tests.pocket.captions import CAPTIONS

MEAN_TOKENS = 20
"Of a caption, the first and the last token included."
SIZES = ((1024, 1024), (1152, 896), (896, 1152), (1216, 832), (832, 1216))
WORDS = sorted(
    {word for caption in CAPTIONS for word in caption.split() if word.isascii() and word.isalpha()}
)


def captions(count: int, seed: int = 0) -> list[str]:
    """Distinct ones, of common words."""
    draws = np.random.default_rng(seed)
    found: dict[str, None] = {}
    while len(found) < count:
        words = int(np.clip(np.exp(draws.normal(2.6, 0.6)), 3, 60))
        found[" ".join(WORDS[each] for each in draws.integers(0, len(WORDS), words))] = None
    return list(found)


def lengths_of(token_ids: Sequence[Sequence[int]]) -> str:
    """The distribution, in words."""
    lengths = sorted(len(ids) for ids in token_ids)
    at = [lengths[int(len(lengths) * share)] for share in (0.1, 0.5, 0.9)]
    shares = f"10% {at[0]}, median {at[1]}, 90% {at[2]}, most {lengths[-1]}"
    return f"{mean(lengths):.1f} tokens on average ({shares})"


def write_data(folder: Path, texts: Sequence[str], *, distinct: int, side: int = 1024) -> None:
    """A picture for each caption, with metadata.jsonl.

    `side`: of the square of as many pixels as a picture has.
    """
    folder.mkdir(parents=True)
    scale = side / 1024
    whole = photograph(round(1280 * scale))
    draws, rows = np.random.default_rng(0), []
    for number, text in enumerate(texts):
        path = folder / f"{number:06d}.jpg"
        if number < distinct:
            width, height = (round(each * scale) for each in SIZES[number % len(SIZES)])
            left, top = (int(draws.integers(0, whole.width - each + 1)) for each in (width, height))
            data = file_of(whole.crop((left, top, left + width, top + height)), "jpeg", quality=90)
            path.write_bytes(data)
        else:
            path.hardlink_to(folder / f"{number % distinct:06d}.jpg")
        rows.append(json.dumps({"file_name": path.name, "text": text}) + "\n")
    (folder / "metadata.jsonl").write_text("".join(rows), encoding="utf-8")
