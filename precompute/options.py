"""Resolved options of a precompute run."""

from dataclasses import dataclass
from pathlib import Path

from data_tools.sources.sample import SourceOptions
from precompute.ranks import Rank


@dataclass(frozen=True)
class EncoderOptions:
    """How encoders run and what they store; identities hold what they store, and the precision."""

    device: str
    precision: str
    "Arithmetic of the encoders: float32, float16 or bfloat16."
    dtype: str
    "Stored: float16, bfloat16 or float32."
    alpha: str
    "`white`: transparent pictures are laid on white; `drop`: alpha is ignored."
    icc: bool
    "Convert pictures with a colour profile to sRGB."
    prior_record: dict[str, str]
    "How the cache remembers the prior repository (`data_tools.models.record`)."
    decoder_record: dict[str, str]
    flip: bool = False
    "A second view of each picture, mirrored left to right."
    buckets: bool = False
    "Latents of aspect-ratio buckets and not of the centre square."
    attention: str = "sdpa"
    "Of MoVQ: `sdpa` or `xformers`."
    compile: bool = False
    "By torch.compile."


@dataclass(frozen=True)
class RunOptions:
    data: tuple[str, ...]
    source: SourceOptions
    max_samples: int | None
    "The first so many of the source."
    select: Path | None
    "A file of keys, one a line: only these."
    cache: str
    "A folder, or a URL that `open_store` takes."
    columns: tuple[str, ...]
    prior_model: str
    decoder_model: str
    part_size: int | None
    "Samples in each part; None: as the cache has it, or 2048."
    batch_size: int
    "Pictures, or captions of one length, in each call of an encoder."
    workers: int
    "Threads that decode pictures."
    max_pixels: int
    "Larger pictures are rejected."
    min_size: int
    "Pixels; pictures with a shorter side are rejected."
    max_rejects: float
    "Share of the samples; more rejects make the run fail."
    allow_shrink: bool
    "Retire more than half of the cache's samples if the source lacks them now."
    rehash: bool
    "Read every file to see if it has changed, not only those of another size or time."
    retry_rejects: bool
    "Try again what the columns have rejected."
    format: str
    "Container of the parts: `zarr` or `webdataset`."
    tar_block: int
    "Rows in each member of a tar; 0: as fits."
    repair: bool
    "Check the bytes of every committed part and redo the damaged ones."
    redo: tuple[str, ...]
    "Columns to make anew in the place of one of another identity."
    prompts: str
    "A text file of prompts to encode into the text column, one a line; empty: none."
    tflops: float | None
    "TFLOP a second that a GPU achieves, for an estimate."
    engine: str
    "Who encodes: `local`, `slurm` or `ray`."
    tasks: int | None
    "Most tasks, or actors, of an engine that has several at once."
    gpus_per_task: int
    cpus_per_task: int | None
    rank: Rank
    "Of this process, among those that share the work."
    encoders: EncoderOptions
