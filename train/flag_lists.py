"""Lists of flags that both trainers have, by what they are about; `train.flags` puts them together."""

from pathlib import Path

import click

from train import schedules

_POSITIVE = click.IntRange(min=1)
_NOT_NEGATIVE = click.FloatRange(min=0)
_SHARE = click.FloatRange(min=0, max=1, max_open=True)

OPTIMIZATION = [
    click.option("--seed", type=click.IntRange(min=0, max=2**63 - 1), default=0, show_default=True),
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
    click.option(
        "--optimizer",
        type=click.Choice(["adamw", "adamw-8bit", "adafactor"]),
        default="adamw",
        show_default=True,
        help="adamw-8bit needs the extra '8bit'. adafactor takes the learning rate as it is given, at most "
        "1 / sqrt(step), and of the --adam flags only the weight decay.",
    ),
    click.option("--adam-beta1", type=_SHARE, default=0.9, show_default=True),
    click.option("--adam-beta2", type=_SHARE, default=0.999, show_default=True),
    click.option(
        "--adam-weight-decay", type=_NOT_NEGATIVE, default=0.0, show_default=True, help="Of matrices only."
    ),
    click.option("--adam-epsilon", type=_NOT_NEGATIVE, default=1e-8, show_default=True),
    click.option(
        "--use-ema",
        is_flag=True,
        help="Keep a moving average of the trained weights, in float32; it is what is validated beside them "
        "and saved in the end.",
    ),
    click.option("--ema-decay", type=_SHARE, default=0.9999, show_default=True),
    click.option(
        "--ema-power",
        type=click.FloatRange(min=0, min_open=True),
        metavar="P",
        help="Decay grows as 1 - (1 + step)^-P, up to --ema-decay.  [default: as (1 + step) / (10 + step)]",
    ),
]
PERFORMANCE = [
    click.option(
        "--mixed-precision", type=click.Choice(["no", "fp16", "bf16"]), help="[default: accelerate's config]"
    ),
    click.option("--gradient-checkpointing", is_flag=True, help="Less memory, more compute."),
    click.option("--allow-tf32", is_flag=True),
    click.option(
        "--attention",
        type=click.Choice(["sdpa", "xformers"]),
        default="sdpa",
        show_default=True,
        help="Of torch, or of the extra 'xformers' (on a GPU).",
    ),
    click.option("--compile", is_flag=True, help="torch.compile the model, for a few fixed shapes."),
    click.option(
        "--compile-mode",
        type=click.Choice(["default", "reduce-overhead", "max-autotune"]),
        default="default",
        show_default=True,
        help="torch's own: reduce-overhead takes CUDA graphs, which pays for small batches.",
    ),
]
READING = [
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
]
# the loss on held-out samples, with the same noise each time
VALIDATION = [
    click.option(
        "--validation-fraction", type=_SHARE, default=0.02, show_default=True, help="Held out of training."
    ),
    click.option("--validation-steps", type=_POSITIVE, default=500, show_default=True, metavar="STEPS"),
    click.option(
        "--validation-epochs",
        type=_POSITIVE,
        metavar="EPOCHS",
        help="Validate after so many epochs, in place of --validation-steps.",
    ),
    click.option("--validation-samples", type=_POSITIVE, default=256, show_default=True, metavar="SAMPLES"),
]
OUTPUT = [
    click.option(
        "--report-to",
        type=click.Choice(["tensorboard", "wandb", "comet_ml", "all", "none"]),
        default="tensorboard",
        show_default=True,
        help="Besides metrics.jsonl. all: of these whatever is installed.",
    ),
    click.option(
        "--logging-dir",
        type=click.Path(path_type=Path),
        default=Path("logs"),
        show_default=True,
        metavar="DIR",
        help="Of TensorBoard, inside --output-dir unless it is absolute.",
    ),
    click.option("--tracker-project-name", default="text2image-fine-tune", show_default=True, metavar="NAME"),
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
    click.option(
        "--fresh", is_flag=True, help="Begin again, in DIR-2, DIR-3, … if --output-dir holds a run already."
    ),
    click.option(
        "--push-to-hub", is_flag=True, help="Upload the finished pipeline; needs a login or --hub-token."
    ),
    click.option("--hub-token", metavar="TOKEN"),
    click.option(
        "--hub-model-id", metavar="[USER/]NAME", help="Repository to push to.  [default: --output-dir's name]"
    ),
    click.option("--allow-partial", is_flag=True, help="Train on the finished parts of an unfinished cache."),
    click.option("-n", "--dry-run", is_flag=True, help="Check everything, print the plan, train nothing."),
]
