"""What `bench-train-prior-gpu` measures. Numbers only; `train_prior_gpu` prints them."""

import gc
import itertools
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import torch
from transformers import CLIPTokenizer

from tests.benchmarks import precompute_bare as bare
from tests.benchmarks import precompute_data as data
from tests.benchmarks import precompute_models as encoders
from tests.benchmarks import train_prior_data as inputs
from tests.benchmarks import train_prior_loop as loop
from tests.benchmarks import train_prior_models as models
from tests.benchmarks.precompute_alternative import Processor
from tests.benchmarks.train_prior_sides import Cached, Online, finish, seconds
from tests.train.runs import ROOT, environment

DTYPES = {"bf16": torch.bfloat16, "fp32": torch.float32}
SEVERAL = 4
"Noise draws."
PRELOADED = 32
"Updates whose batches lie on the device; then they come again."
ENCODED = 512
"Pictures, or eight times as many captions, in a measurement of an encoder."


@dataclass(frozen=True)
class Bench:
    folder: Path
    chosen: models.ModelSet
    device: torch.device
    precision: str
    captions: tuple[str, ...]
    seconds: float
    "Of a measurement, about."

    @property
    def repo(self) -> Path:
        return self.folder / "models" / "prior"

    @property
    def cache(self) -> Path:
        return self.folder / "cache"

    def write(self, side: int) -> None:
        """A prior with random weights, a tokenizer, a cache of random rows, and pictures."""
        models.write_tokenizer(self.folder / "models", self.captions)
        models.write_prior(self.folder / "models", self.chosen, str(self.device))
        models.write_index(self.repo, models.TRAINED)
        lengths = [len(ids) for ids in bare.tokenize(self.folder / "models", self.captions)]
        inputs.write_random_cache(self.cache, self.chosen.dim, lengths)
        distinct = min(64, len(self.captions))
        data.write_data(self.folder / "pictures", self.captions, distinct=distinct, side=side)

    def cached(self) -> Cached:
        return Cached.open(self.cache, self.repo, device=str(self.device), precision=self.precision)

    def online(self, num_preloaded: int) -> Online:
        """Encoders with random weights, drawn on the device."""
        tokenizer = CLIPTokenizer.from_pretrained(self.repo / "tokenizer")
        special = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id}
        special["pad_token_id"] = tokenizer.pad_token_id
        side, dtype = self.chosen.encoders.vision["image_size"], DTYPES[self.precision]
        square = {"height": side, "width": side}
        with torch.device(self.device):
            vision = encoders.vision_model(self.chosen.encoders).to(dtype)
            text = encoders.text_model(self.chosen.encoders, special).to(dtype)
            prior = self.chosen.prior()
        return Online.of(
            prior,
            vision,
            text,
            tokenizer,
            Processor(size={"shortest_edge": side}, crop_size=square),
            self.captions,
            sorted((self.folder / "pictures").glob("*.jpg")),
            num_preloaded=num_preloaded,
            precision=self.precision,
        )


@dataclass(frozen=True)
class Update:
    """One optimizer update of one side."""

    samples: int
    seconds: float
    flops: float
    "Per second."
    peak_bytes: int
    "Of memory on the device, weights and optimizer included."

    @property
    def rate(self) -> float:
        return self.samples / self.seconds


def cached_update(
    bench: Bench, side: Cached, batch_size: int, num_rounds: int, num_draws: int
) -> Update | None:
    """On batches that lie on the device; None if it does not fit there."""
    samples = batch_size * num_rounds
    side = side.with_batches(batch_size, num_rounds, num_draws)
    preloaded = side.preload(0, min(PRELOADED, max(1, side.updates_an_epoch)))
    work = [samples * side.work(bench.chosen, rounds) for rounds in preloaded]

    def update(step: int) -> None:
        side.update(step, preloaded[step % len(preloaded)])

    return _measured(bench, update, samples, work)


def online_update(
    bench: Bench, side: Online, batch_size: int, num_rounds: int, *, from_files: bool = False
) -> Update | None:
    """On pixels that lie on the device, or on picture files; None if it does not fit there."""

    def update(step: int) -> None:
        side.update(step, batch_size, num_rounds, from_files=from_files)

    samples = batch_size * num_rounds
    return _measured(bench, update, samples, [samples * models.online_flops(bench.chosen)])


def _measured(
    bench: Bench, update: Callable[[int], None], samples: int, work: Sequence[float]
) -> Update | None:
    """`work`: FLOPs of the updates, which come again in turn."""
    device = bench.device
    _reset_peak(device)
    try:
        seconds(device, update, range(2))  # a warm-up
        once = seconds(device, update, (2,))
        steps = range(3, 3 + min(200, max(3, round(bench.seconds / once))))
        each = seconds(device, update, steps) / len(steps)
    except torch.OutOfMemoryError:
        return None
    finally:
        release(device)
    done = sum(work[step % len(work)] for step in steps) / len(steps)
    peak = torch.cuda.max_memory_allocated(device) if device.type == "cuda" else 0
    return Update(samples, each, done / each, peak)


def encoder_rates(bench: Bench, side: Online, batch_size: int) -> dict[str, float]:
    """Samples/s of the frozen encoders alone, as `precompute` calls them: pictures, captions by length."""
    settings = bare.Settings(str(bench.device), DTYPES[bench.precision], batch_size)
    pixels = side.pixels[:batch_size]
    count = max(1, min(ENCODED, len(bench.captions)) // len(pixels))
    texts = bench.captions[: 8 * ENCODED]
    tokens = bare.by_length(bare.tokenize(bench.folder / "models", texts), settings)
    batches = [torch.tensor(ids, device=bench.device) for ids in tokens]
    vision, text = side.models.image_encoder, side.models.text_encoder
    made = {
        "image": bare.Bare(
            lambda x: vision(pixel_values=x).image_embeds, [pixels] * count, count * len(pixels)
        ),
        "text": bare.Bare(lambda ids: text(input_ids=ids).last_hidden_state, batches, len(texts)),
    }
    rates = {}
    for name, each in made.items():
        each.seconds()  # a warm-up
        rates[name] = each.samples / each.seconds()
    return rates


def decode_seconds(side: Online) -> float:
    """Of one picture, from its file to the device, in one thread."""
    count = min(32, len(side.captions))
    side.decoded([0])
    started = time.perf_counter()
    for number in range(count):
        side.decoded([number])
    finish(side.device)
    return (time.perf_counter() - started) / count


def command_rate(bench: Bench, flags: Sequence[str], updates: int, lines: int, ends: float) -> float | str:
    """samples/s of `train-prior` in a process of its own: the median of some lines after a first one.

    It is killed when it has written them, before it saves anything. What went wrong otherwise, in words.
    """
    output = bench.folder / f"run-{next(_NUMBERS)}"
    given = ["--cache", str(bench.cache), "--output-dir", str(output), *flags]
    given += ["--max-train-steps", "15000", "--logging-steps", str(updates)]
    given += ["--mixed-precision", {"bf16": "bf16", "fp32": "no"}[bench.precision]]
    given += ["--checkpointing-steps", "1000000", "--report-to", "none"]
    with (bench.folder / f"{output.name}.log").open("w+") as log:
        program = [sys.executable, "-m", "train.prior", *given]
        child = subprocess.Popen(program, cwd=ROOT, env=environment(), stdout=log, stderr=log)
        try:
            while child.poll() is None and time.perf_counter() < ends and len(loop.rates(output)) < lines:
                time.sleep(0.2)
        finally:
            child.kill()
            child.wait()
        found = loop.rates(output)
        if found:
            return median(found)
        log.seek(0)
        last = [line for line in log.read().replace("\r", "\n").splitlines() if line.strip()]
        return "no time left" if child.returncode == -9 else last[-1] if last else "it said nothing"


_NUMBERS = itertools.count()


def release(device: torch.device) -> None:
    """Give back what is no longer referred to."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()


def _reset_peak(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
