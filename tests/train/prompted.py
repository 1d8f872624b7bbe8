"""A cache with prompts in it, and the stock pipelines' answer to them."""

import shutil
from pathlib import Path

from tests.precompute.command import precompute

PROMPTS = ("a red apple", "рисунок кошки, которая спит на диване", "a house by the sea " * 3)
OTHER = "two dogs in the snow"
"Not in the cache."


def with_prompts(cache: Path, pictures: Path, pocket: Path, name: str) -> Path:
    """A copy of the session's cache, beside it so that its models are found, with `PROMPTS`."""
    copy = Path(shutil.copytree(cache, cache.parent / name))
    file = copy.with_suffix(".txt")
    file.write_text("\n".join(PROMPTS), encoding="utf-8")
    precompute(pictures, copy, pocket, "--dtype", "fp32", "--prompts", str(file))
    return copy
