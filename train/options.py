"""Options that both trainers share; `train.flags` fills them."""

from dataclasses import dataclass
from functools import cached_property
from itertools import count
from pathlib import Path
from typing import Any, Literal

from data_tools.cache.places import CachePlace, parse_places
from data_tools.cache.store import local_folder
from data_tools.errors import UserError

Save = Literal["pipeline", "linked", "trained-only"]
LENGTH_WINDOW = 32
"Global batches whose captions are sorted by length together, not more than an epoch has."


@dataclass(frozen=True)
class TrainOptions:
    cache: tuple[str, ...]
    "Each a folder or a URL that `open_store` takes, with `=WEIGHT` or without."
    output_dir: Path
    prior_model: str | None
    decoder_model: str | None
    "Names as given; None: those that the cache remembers."
    resolution: int | None
    "Pixels a side: of the latents to train a decoder on, of a prior's validation pictures."
    seed: int

    num_train_epochs: int
    "Passes over the cache; ignored if `max_train_steps` is given."
    max_train_steps: int | None
    "Optimizer steps."
    train_batch_size: int
    "Samples per device and accumulation round."
    gradient_accumulation_steps: int
    "Rounds per optimizer step."
    learning_rate: float
    lr_scheduler: str
    lr_warmup_steps: int
    "Optimizer steps."
    lr_num_cycles: int
    lr_power: float
    snr_gamma: float | None
    cond_dropout: float
    "Probability that a sample's condition is replaced by the null condition."
    max_grad_norm: float
    lora_rank: int | None
    "None: all weights are trained."
    lora_alpha: int | None
    "The LoRA is scaled by alpha / rank; None: the rank."
    lora_dropout: float
    lora_targets: str | None
    "Ends of layers' names, separated by commas; None: the trainer's own."
    optimizer: Literal["adamw", "adamw-8bit", "adafactor"]
    adam_beta1: float
    adam_beta2: float
    adam_weight_decay: float
    adam_epsilon: float

    use_ema: bool
    ema_decay: float
    "Largest share of the average that one optimizer step keeps."
    ema_power: float | None
    "Warm-up 1 - (1 + step)^-power; None: (1 + step) / (10 + step)."

    mixed_precision: str | None
    gradient_checkpointing: bool
    allow_tf32: bool
    attention: Literal["sdpa", "xformers"]
    compile: bool
    compile_mode: str
    "torch.compile's own word."

    validation_fraction: float
    "Share of the samples held out, chosen by their keys."
    validation_steps: int
    "Optimizer steps between two validations."
    validation_epochs: int | None
    "Epochs between two validations, in place of `validation_steps`."
    validation_samples: int
    "At most so many of the held-out samples are evaluated."

    report_to: str
    "One of accelerate's trackers, `all` or `none`."
    logging_dir: Path
    "Of TensorBoard's files, inside the output folder unless it is absolute."
    tracker_project_name: str
    logging_steps: int
    "Optimizer steps between two lines of metrics."
    checkpointing_steps: int
    "Optimizer steps between two checkpoints."
    checkpoints_total_limit: int | None
    resume_from_checkpoint: str
    "`latest`, or a checkpoint's path or name."
    fresh: bool
    "Never resume: begin in a new folder beside one that holds a run."
    save: Save
    "Of what was not trained: copies, links, or nothing."
    push_to_hub: bool
    hub_token: str | None
    hub_model_id: str | None
    allow_partial: bool
    dry_run: bool

    order: str
    "`global`, `block`, or `auto`: block where a cache is on an object store."
    tail: Literal["wrap", "drop"]
    "What becomes of an epoch's last samples that fill no batch."
    preload: Literal["none", "ram", "device"]
    prefetch_mib: int
    "MiB of batches that wait for the training step."
    paranoid: bool
    "Check each record's crc32c whenever it is read, not only the first time."
    group_by_length: bool = False
    "Batches of captions of like length."
    timestep_sampling: Literal["uniform", "stratified", "logit-normal"] = "uniform"
    noise_draws: int = 1
    "Of (timestep, noise) for each sample and step."
    sampled_validation: int = 0
    "Held-out samples whose embedding is sampled at each validation, with guidance and without."
    validation_prompts: tuple[str, ...] = ()
    num_validation_images: int = 1
    "For each prompt."

    def __post_init__(self) -> None:
        if self.output_dir.exists() and not self.output_dir.is_dir():
            raise UserError(f"--output-dir: {self.output_dir} is a file, wanted a folder")
        for name in ("lora_alpha", "lora_dropout", "lora_targets"):
            if self.lora_rank is None and getattr(self, name):
                raise UserError(f"--{name.replace('_', '-')}: given without --lora-rank, which it belongs to")
        for given in self.places:
            folder = local_folder(given.place)
            if folder is not None and self.output_dir.resolve() == folder.resolve():
                raise UserError(f"--output-dir: {self.output_dir} is the cache, wanted a folder of its own")

    @classmethod
    def given(cls, **flags: Any) -> "TrainOptions":
        """Those of a command line; `--fresh` turns a folder in use into the next free one beside it."""
        output: Path = flags["output_dir"]
        if flags["fresh"] and output.is_dir() and any(output.iterdir()):
            output = output.absolute()
            numbered = (output.with_name(f"{output.name}-{number}") for number in count(2))
            flags["output_dir"] = next(folder for folder in numbered if not folder.exists())
        return cls(**flags)

    @cached_property
    def places(self) -> tuple[CachePlace, ...]:
        """The caches. Raises `UserError`."""
        return parse_places(self.cache)

    @property
    def order_kind(self) -> Literal["global", "block"]:
        """What `auto` stands for."""
        remote = self.order == "auto" and any(given.is_remote for given in self.places)
        return "block" if remote or self.order == "block" else "global"

    def length_window(self, world_size: int) -> int:
        """Global batches that are sorted by length together; 1: none."""
        return LENGTH_WINDOW if self.group_by_length and self.global_batch_size(world_size) > 1 else 1

    def global_batch_size(self, world_size: int) -> int:
        """Samples per optimizer step, over all ranks and accumulation rounds."""
        return self.train_batch_size * self.gradient_accumulation_steps * world_size

    def total_steps(self, num_samples: int, world_size: int) -> int:
        """Optimizer steps of the whole run."""
        return self.max_train_steps or self.steps_in(self.num_train_epochs, num_samples, world_size)

    def steps_in(self, epochs: int, num_samples: int, world_size: int) -> int:
        """Optimizer steps that so many passes over the samples take, the last one begun counted as whole."""
        return -(-num_samples * epochs // self.global_batch_size(world_size))
