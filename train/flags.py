"""The click flags that fill `TrainOptions`.

They keep the words of diffusers' Kandinsky 2.2 scripts, dashes or underscores.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from train import schedules

_POSITIVE = click.IntRange(min=1)
_NOT_NEGATIVE = click.FloatRange(min=0)
_SHARE = click.FloatRange(min=0, max=1, max_open=True)

_CACHE = click.option(
    "--cache",
    required=True,
    multiple=True,
    metavar="PLACE[=WEIGHT]",
    help="Made by precompute: a folder or s3://bucket/prefix. Given several times, all are read: each sample "
    "once an epoch, or each cache in proportion to its weight.",
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


def _lora_targets(default: str) -> Callable[..., Any]:
    return click.option(
        "--lora-targets",
        metavar="NAMES",
        help=f"Layers with a LoRA: ends of their names, separated by commas.  [default: {default}]",
    )


_LORA = [
    click.option(
        "--lora-rank",
        "--rank",
        type=_POSITIVE,
        metavar="RANK",
        help="Train a LoRA of this rank, needs the extra 'lora'.  [default: train all weights]",
    ),
    click.option(
        "--lora-alpha",
        type=_POSITIVE,
        metavar="ALPHA",
        help="The LoRA is scaled by ALPHA / RANK.  [default: the rank]",
    ),
    click.option("--lora-dropout", type=_SHARE, default=0.0, show_default=True, metavar="P"),
]
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
        "--timestep-sampling",
        type=click.Choice(["uniform", "stratified", "logit-normal"]),
        default="uniform",
        show_default=True,
        help="stratified: evenly over the schedule in each step, each still uniform; logit-normal: the "
        "middle of the schedule more often, which is another objective; uniform is the reference.",
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
    # Reading.
    click.option(
        "--order",
        type=click.Choice(["auto", "global", "block"]),
        default="auto",
        show_default=True,
        help="Of samples: all at random, or whole blocks of neighbours; auto: block on object stores.",
    ),
    click.option(
        "--tail",
        type=click.Choice(["wrap", "drop"]),
        default="wrap",
        show_default=True,
        help="Samples that fill no batch at the end of an epoch: into the next epoch's first, or left out.",
    ),
    click.option(
        "--preload",
        type=click.Choice(["none", "ram", "device"]),
        default="none",
        show_default=True,
        help="Read the cache once, into memory or onto the GPU, before training.",
    ),
    click.option(
        "--prefetch-mib",
        type=_POSITIVE,
        default=256,
        show_default=True,
        metavar="MIB",
        help="Of batches read ahead, for each process.",
    ),
    click.option(
        "--paranoid", is_flag=True, help="Check a record's crc32c each time, not only when first read."
    ),
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


def shared_options(
    *, output_dir: str, lora_targets: str
) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Decorator: the flags of `TrainOptions`, in the order above; the arguments are those flags' defaults."""

    def decorate(command: Callable[..., Any]) -> Callable[..., Any]:
        lora = [*_LORA, _lora_targets(lora_targets)]
        for option in reversed([_CACHE, _output_dir(output_dir), *lora, *_OPTIONS]):
            command = option(command)
        return command

    return decorate
