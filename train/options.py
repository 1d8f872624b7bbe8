"""Options that both trainers share: a frozen dataclass, and the click flags that fill it.

The flags keep the words of diffusers' Kandinsky 2.2 scripts, dashes or underscores.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

from data_tools.cache.store import local_folder
from data_tools.errors import UserError
from train import schedules


@dataclass(frozen=True)
class TrainOptions:
    cache: str
    "A folder, or a URL that `open_store` takes."
    output_dir: Path
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
    adam_beta1: float
    adam_beta2: float
    adam_weight_decay: float
    adam_epsilon: float

    mixed_precision: str | None
    gradient_checkpointing: bool
    allow_tf32: bool

    validation_fraction: float
    "Share of the samples held out, chosen by their keys."
    validation_steps: int
    "Optimizer steps between two validations."
    validation_samples: int
    "At most so many of the held-out samples are evaluated."

    logging_steps: int
    "Optimizer steps between two lines of metrics."
    checkpointing_steps: int
    "Optimizer steps between two checkpoints."
    checkpoints_total_limit: int | None
    resume_from_checkpoint: str
    "`latest`, or a checkpoint's path or name."
    allow_partial: bool
    dry_run: bool

    def __post_init__(self) -> None:
        if self.output_dir.exists() and not self.output_dir.is_dir():
            raise UserError(f"--output-dir: {self.output_dir} is a file, wanted a folder")
        folder = local_folder(self.cache)
        if folder is not None and self.output_dir.resolve() == folder.resolve():
            raise UserError(f"--output-dir: {self.output_dir} is the cache, wanted a folder of its own")

    def global_batch_size(self, world_size: int) -> int:
        """Samples per optimizer step, over all ranks and accumulation rounds."""
        return self.train_batch_size * self.gradient_accumulation_steps * world_size

    def total_steps(self, num_samples: int, world_size: int) -> int:
        """Optimizer steps of the whole run."""
        if self.max_train_steps is not None:
            return self.max_train_steps
        return -(-num_samples * self.num_train_epochs // self.global_batch_size(world_size))


_POSITIVE = click.IntRange(min=1)
_NOT_NEGATIVE = click.FloatRange(min=0)
_SHARE = click.FloatRange(min=0, max=1, max_open=True)

_CACHE = click.option(
    "--cache", required=True, metavar="DIR|URL", help="Made by precompute; also s3://bucket/prefix."
)


def _output_dir(default: str) -> Callable[..., Any]:
    return click.option(
        "--output-dir",
        type=click.Path(path_type=Path),
        default=Path(default),
        show_default=True,
        metavar="DIR",
        help="Gets the finished pipeline, checkpoints, metrics.jsonl and loss.png.",
    )


_OPTIONS = [
    click.option("--seed", type=click.IntRange(min=0, max=2**63 - 1), default=0, show_default=True),
    # Optimization.
    click.option("--num-train-epochs", type=_POSITIVE, default=100, show_default=True, metavar="EPOCHS"),
    click.option("--max-train-steps", type=_POSITIVE, metavar="STEPS", help="Overrides --num-train-epochs."),
    click.option(
        "--train-batch-size",
        type=_POSITIVE,
        default=16,
        show_default=True,
        metavar="SAMPLES",
        help="Per device and accumulation round.",
    ),
    click.option(
        "--gradient-accumulation-steps", type=_POSITIVE, default=1, show_default=True, metavar="ROUNDS"
    ),
    click.option("--learning-rate", type=_NOT_NEGATIVE, default=1e-4, show_default=True),
    click.option("--lr-scheduler", type=click.Choice(schedules.NAMES), default="constant", show_default=True),
    click.option(
        "--lr-warmup-steps", type=click.IntRange(min=0), default=500, show_default=True, metavar="STEPS"
    ),
    click.option(
        "--lr-num-cycles", type=_POSITIVE, default=1, show_default=True, help="Of cosine_with_restarts."
    ),
    click.option("--lr-power", type=_NOT_NEGATIVE, default=1.0, show_default=True, help="Of polynomial."),
    click.option(
        "--snr-gamma",
        type=click.FloatRange(min=0, min_open=True),
        metavar="GAMMA",
        help="Min-SNR loss weights (Hang et al. 2023); 5.0 is the paper's.",
    ),
    click.option(
        "--cond-dropout",
        type=_SHARE,
        default=0.1,
        show_default=True,
        metavar="P",
        help="Replace the condition by the null condition, for classifier-free guidance; 0 is the reference.",
    ),
    click.option(
        "--max-grad-norm", type=_NOT_NEGATIVE, default=1.0, show_default=True, help="0: no clipping."
    ),
    click.option("--adam-beta1", type=_SHARE, default=0.9, show_default=True),
    click.option("--adam-beta2", type=_SHARE, default=0.999, show_default=True),
    click.option(
        "--adam-weight-decay", type=_NOT_NEGATIVE, default=0.0, show_default=True, help="Of matrices only."
    ),
    click.option("--adam-epsilon", type=_NOT_NEGATIVE, default=1e-8, show_default=True),
    # Performance.
    click.option(
        "--mixed-precision", type=click.Choice(["no", "fp16", "bf16"]), help="[default: accelerate's config]"
    ),
    click.option("--gradient-checkpointing", is_flag=True, help="Less memory, more compute."),
    click.option("--allow-tf32", is_flag=True),
    # Validation: the loss on held-out samples, with the same noise each time.
    click.option(
        "--validation-fraction", type=_SHARE, default=0.02, show_default=True, help="Held out of training."
    ),
    click.option("--validation-steps", type=_POSITIVE, default=500, show_default=True, metavar="STEPS"),
    click.option("--validation-samples", type=_POSITIVE, default=256, show_default=True, metavar="SAMPLES"),
    # Output and resuming.
    click.option("--logging-steps", type=_POSITIVE, default=10, show_default=True, metavar="STEPS"),
    click.option("--checkpointing-steps", type=_POSITIVE, default=500, show_default=True, metavar="STEPS"),
    click.option(
        "--checkpoints-total-limit", type=_POSITIVE, metavar="COUNT", help="Older ones are deleted."
    ),
    click.option(
        "--resume-from-checkpoint",
        default="latest",
        show_default=True,
        metavar="latest|DIR",
        help="The same command again resumes from the last checkpoint in --output-dir.",
    ),
    click.option("--allow-partial", is_flag=True, help="Train on the finished parts of an unfinished cache."),
    click.option("-n", "--dry-run", is_flag=True, help="Check everything, print the plan, train nothing."),
]


def shared_options(*, output_dir: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Decorator: the flags of `TrainOptions`, in the order above; `output_dir` is that flag's default."""

    def decorate(command: Callable[..., Any]) -> Callable[..., Any]:
        for option in reversed([_CACHE, _output_dir(output_dir), *_OPTIONS]):
            command = option(command)
        return command

    return decorate
