"""The click flags that fill `TrainOptions`.

They keep the words of diffusers' Kandinsky 2.2 scripts, dashes or underscores.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from train.flag_lists import OPTIMIZATION, OUTPUT, PERFORMANCE, READING, VALIDATION

_POSITIVE = click.IntRange(min=1)
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


def _save(trained: str) -> Callable[..., Any]:
    def chosen(_: click.Context, __: click.Parameter, value: str) -> str:
        return "trained-only" if value == f"{trained}-only" else value

    return click.option(
        "--save",
        type=click.Choice(["pipeline", "linked", f"{trained}-only"]),
        default="pipeline",
        show_default=True,
        callback=chosen,
        help="Besides what was trained the finished folder holds the base's other components, as copies or "
        "links, or nothing.",
    )


def shared_options(
    *, output_dir: str, lora_targets: str, trained: str
) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Decorator: the flags of `TrainOptions`; the arguments are the defaults of two, and what is trained."""
    own = [_CACHE, _output_dir(output_dir), *_LORA, _lora_targets(lora_targets)]
    options = [*own, *OPTIMIZATION, *PERFORMANCE, *READING, *VALIDATION, *OUTPUT, _save(trained)]

    def decorate(command: Callable[..., Any]) -> Callable[..., Any]:
        for option in reversed(options):
            command = option(command)
        return command

    return decorate
