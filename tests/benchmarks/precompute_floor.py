"""What `bench-precompute` measures against: FLOPs, the matrix rate of one thread, and what pictures cost."""

import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import torch
from PIL import Image

from tests.benchmarks import precompute_models as models
from tests.benchmarks.precompute_alternative import Alternative

H200_FLOPS = 790e12
"Dense bfloat16 matrix products, measured on one."
SHARE = 0.5
"Of the rate of matrix products, that encoders are assumed to reach."
H200_CORES = 15
"Of 16, that decode."


def floor(folder: Path, chosen: models.EncoderSet, columns: tuple[str, ...]) -> list[str]:
    """Lines; `folder` has the models and the pictures."""
    published, these = models.flops(models.PUBLISHED), models.flops(chosen)
    lines = [_proportions("published", published), _proportions("these", these)]
    peak, work = matrix_rate("cpu", torch.float32, 1024), sum(these.values())
    most = f"{peak / work:.1f} samples/s of all three encoders at most"
    lines.append(f"matrix products in one thread: {peak / 1e9:.0f} GFLOP/s, so {most}")
    loop = Alternative(folder / "models", columns, 1)
    paths = sorted((folder / "pictures").glob("*.jpg"))[:20]
    pictures = [Image.open(path).convert("RGB") for path in paths]
    decode = _milliseconds(lambda path: Image.open(path).convert("RGB"), paths)
    processor = _milliseconds(lambda picture: loop.processor(images=picture, return_tensors="pt"), pictures)
    squares = {}
    for loop.resolution in (models.PUBLISHED.resolution, chosen.resolution):
        squares[loop.resolution] = _milliseconds(loop._square, pictures)
    real, here = (decode + processor + squares[each] for each in squares)
    size = median(path.stat().st_size for path in paths)
    pixels = median(picture.width * picture.height for picture in pictures)
    work_h200 = sum(published.values())
    busy = here / 1e3 * peak * SHARE / work
    busy_h200 = real / 1e3 / H200_CORES * H200_FLOPS * SHARE / work_h200
    cells = "".join(f", to {side} px {ms:.1f}" for side, ms in squares.items())
    return [
        *lines,
        f"a picture ({pixels / 1e6:.1f} Mpixel, {size / 1e3:.0f} KB) in one thread: decode {decode:.1f} ms, "
        f"CLIP's processor {processor:.1f}{cells}",
        f"FLOP a decoded pixel: published {work_h200 / pixels:,.0f}, these {work / pixels:,.0f}",
        f"decoding beside encoders at {SHARE:.0%} of the matrix rate takes {busy:.0%} of one core here, "
        f"{busy_h200:.0%} of {H200_CORES} cores with a H200 of {H200_FLOPS / 1e12:.0f} TFLOP/s",
    ]


def matrix_rate(device: str, dtype: torch.dtype, side: int) -> float:
    """FLOP/s of square matrix products, the best of some."""
    left, right = (torch.randn(side, side, device=device, dtype=dtype) for _ in range(2))
    times = []
    for _ in range(8):
        started = time.perf_counter()
        for _ in range(4):
            product = left @ right
        product[0, 0].item()  # waits for the device
        times.append((time.perf_counter() - started) / 4)
    return 2 * side**3 / min(times)


def _proportions(title: str, counted: dict[str, int]) -> str:
    cells = ", ".join(
        f"{name} {value / 1e9:,.3f} ({value / counted['image']:.2f})" for name, value in counted.items()
    )
    return f"GFLOP a sample, {title}: {cells}; text at 77 tokens"


def _milliseconds(function: Callable[[Any], Any], inputs: list[Any]) -> float:
    times = []
    for each in inputs:
        started = time.perf_counter()
        function(each)
        times.append(time.perf_counter() - started)
    return min(times) * 1e3  # other work on the machine only ever adds
