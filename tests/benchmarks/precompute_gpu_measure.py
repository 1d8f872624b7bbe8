"""What `bench-precompute-gpu` measures: encoders of the published sizes alone, and the command with them."""

import shutil
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from data_tools import crops, images
from tests.benchmarks import precompute_bare as bare
from tests.benchmarks import precompute_command as command
from tests.benchmarks import precompute_data as data
from tests.benchmarks import precompute_models as models
from tests.benchmarks.precompute_alternative import Processor
from tests.benchmarks.precompute_floor import matrix_rate
from tests.pocket.tokenizer import MAX_LENGTH

DTYPES = {"fp16": torch.float16, "bf16": torch.bfloat16, "fp32": torch.float32}
CAPTIONS = 8
"Captions of the text column's measurement, for each picture of the others."


@dataclass(frozen=True)
class Bench:
    folder: Path
    chosen: models.EncoderSet
    settings: bare.Settings
    precision: str
    flags: tuple[str, ...]
    "More of `precompute`."

    @property
    def latents(self) -> str:
        return f"latents@{self.chosen.resolution}"

    def alone(self, column: str, count: int, captions: list[str]) -> dict[str, float]:
        """One encoder on preloaded batches: samples/s, FLOP/s and bytes of GPU memory at the peak."""
        repos, settings = self.folder / "models", self.settings
        if column == "image":
            encoder = bare.vision(repos, count, settings)
        elif column == "text":
            encoder = bare.text(repos, captions, settings)
        else:
            encoder = bare.movq(repos, self.chosen.resolution, count, settings)
        _reset_peak(settings.device)
        encoder.seconds()  # a warm-up
        rate = encoder.samples / min(encoder.seconds() for _ in range(3))
        work = models.flops(self.chosen)[column]
        if column == "text":
            work = self.flops_of(captions) / len(captions)
        return {"samples_per_second": rate, "flops": rate * work, "peak_bytes": _peak(settings.device)}

    def flops_of(self, captions: list[str]) -> float:
        """FLOPs of captions, each at its own length: exactly quadratic in it."""
        lengths = [1, 39, MAX_LENGTH]
        curve = np.polyfit(lengths, [models.flops(self.chosen, each)["text"] for each in lengths], 2)
        found = [len(ids) for ids in bare.tokenize(self.folder / "models", captions)]
        return float(np.polyval(curve, found).sum())

    def command(self, columns: tuple[str, ...], count: int) -> dict[str, float]:
        """The command: samples/s of encoding and writing, its share of waiting, bytes at the peak."""
        cache, device = self.folder / "cache", self.settings.device
        sizes = (
            "--max-samples",
            count,
            "--batch-size",
            self.settings.batch_size,
            "--part-size",
            self.settings.part_size,
        )
        how = ("--device", device, "--precision", self.precision, *self.flags)
        repos, source = self.folder / "models", self.folder / "data"
        _reset_peak(device)
        said = command.run(command.arguments(source, repos, cache, columns, *sizes, *how))
        shutil.rmtree(cache)
        assert said["cached"] == count, said
        return {
            "samples_per_second": said["samples"] / said["seconds"],
            "waited_for_pictures": said["waited_for_pictures"],
            "waited_for_writer": said["waited_for_writer"],
            "redone_in_float32": said["redone_in_float32"],
            "seconds_before": said["wall"] - said["seconds"],
            "peak_bytes": _peak(device),
        }


def decoding(folder: Path, workers: int, resolution: int) -> float:
    """Pictures/s that threads make ready for both encoders, with nothing else to do."""
    files = [path.read_bytes() for path in sorted((folder / "data").glob("*.jpg"))[:64]]
    processor = Processor.from_pretrained(folder / "models" / "prior" / "image_processor")

    def prepare(file: bytes) -> None:
        image = images.decode(file)
        processor(images=image, return_tensors="np", do_rescale=False, do_normalize=False)
        crops.cover(image, (resolution, resolution))

    with ThreadPoolExecutor(workers) as pool:
        started = time.perf_counter()
        list(pool.map(prepare, files * 4))
        return 4 * len(files) / (time.perf_counter() - started)


def measure(bench: Bench, samples: int, workers: int) -> dict[str, Any]:
    """Everything, as plain numbers."""
    device, columns = bench.settings.device, ("image", "text", bench.latents)
    texts = data.captions(CAPTIONS * samples)
    with torch.inference_mode():
        peak = matrix_rate(device, bench.settings.dtype, 8192 if device.startswith("cuda") else 512)
    models.write_models(
        bench.folder / "models", bench.chosen, texts, device=device, dtype=bench.settings.dtype
    )
    side = 1024 if bench.chosen is not models.TINY else 128
    data.write_data(bench.folder / "data", texts, distinct=min(64, samples), side=side)
    found: dict[str, Any] = {
        "device": torch.cuda.get_device_name(device) if device.startswith("cuda") else device,
        "precision": bench.precision,
        "matrix_flops": peak,
        "decoding_per_second": decoding(bench.folder, workers, bench.chosen.resolution),
        "alone": {},
        "command": {},
    }
    for name in columns:
        found["alone"][name] = bench.alone(name, samples, texts)
    for name in columns:
        found["command"][name] = bench.command((name,), len(texts) if name == "text" else samples)
    found["command"]["whole"] = bench.command(columns, samples)
    alone = {name: each["samples_per_second"] for name, each in found["alone"].items()}
    alone["whole"] = 1 / sum(1 / rate for rate in alone.values())
    for name, each in found["command"].items():
        each["of_bare"] = each["samples_per_second"] / alone[name]
    return found


def _reset_peak(device: str) -> None:
    if device.startswith("cuda"):
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)


def _peak(device: str) -> int:
    return torch.cuda.max_memory_allocated(device) if device.startswith("cuda") else 0
