"""The flags of `precompute` that say who does the work, and how far it has come."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

ENGINES_OF = {
    **dict.fromkeys(("tasks", "gpus_per_task", "cpus_per_task"), ("slurm", "ray")),
    **dict.fromkeys(("slurm_partition", "slurm_time", "slurm_option", "slurm_logs"), ("slurm",)),
}
"The flags of clusters, by the engines that heed them."
TIME = re.compile(r"(?:(?P<days>\d+)-)?(?P<clock>\d+(?::\d+){0,2})")
"Slurm's own: minutes, minutes:seconds, hours:minutes:seconds, days-hours[:minutes[:seconds]]."


def _minutes(_: click.Context, __: click.Parameter, value: str) -> int:
    """A time as Slurm takes it, in whole minutes, rounded up."""
    match = TIME.fullmatch(value)
    if match is None:
        raise click.BadParameter(f"found {value!r}, wanted minutes, hours:minutes:seconds or days-hours")
    numbers = [int(number) for number in match["clock"].split(":")]
    if match["days"] is None:
        hours, minutes, seconds = {1: [0, *numbers, 0], 2: [0, *numbers]}.get(len(numbers), numbers)
    else:
        hours, minutes, seconds = [*numbers, 0, 0][:3]
    total = ((int(match["days"] or 0) * 24 + hours) * 60 + minutes) + -(-seconds // 60)
    if not total:
        raise click.BadParameter(f"found {value!r}, wanted at least a minute")
    return total


def _pairs(_: click.Context, __: click.Parameter, values: tuple[str, ...]) -> dict[str, str | bool]:
    """`key=value`, or `key` alone → what `sbatch` gets."""
    pairs: dict[str, str | bool] = {}
    for value in values:
        key, has_value, content = value.removeprefix("--").partition("=")
        if not re.fullmatch(r"[a-z][a-z0-9-]*", key):
            raise click.BadParameter(f"found {value!r}, wanted the long name of an sbatch option, KEY=VALUE")
        pairs[key] = content if has_value else True
    return pairs


_OPTIONS = [
    click.option(
        "--engine",
        type=click.Choice(["local", "slurm", "ray"]),
        default="local",
        show_default=True,
        help="Who encodes: this process (also each of those that torchrun, accelerate launch or srun start), "
        "an array job of Slurm, or a pool of Ray actors.",
    ),
    click.option(
        "--tasks",
        type=click.IntRange(min=1),
        metavar="COUNT",
        help="Most tasks of the Slurm array, or actors of Ray, at once.  [default: 1, or what fits]",
    ),
    click.option(
        "--gpus-per-task",
        type=click.IntRange(min=0),
        default=1,
        show_default=True,
        metavar="COUNT",
        help="A task of Slurm runs one process for each; 0: one process on the CPU.",
    ),
    click.option(
        "--cpus-per-task",
        type=click.IntRange(min=1),
        metavar="COUNT",
        help="Cores of each process.  [default: what the cluster gives]",
    ),
    click.option(
        "--slurm-partition", metavar="NAME", help="Where the job is queued.  [default: the cluster's]"
    ),
    click.option(
        "--slurm-time",
        callback=_minutes,
        default="4:00:00",
        show_default=True,
        metavar="TIME",
        help="Limit of a task: minutes, hours:minutes:seconds or days-hours; one that reaches it is queued "
        "again and goes on.",
    ),
    click.option(
        "--slurm-option",
        multiple=True,
        callback=_pairs,
        metavar="KEY=VALUE",
        help="Any other option of sbatch, as in account=NAME; may be given several times.",
    ),
    click.option(
        "--slurm-logs",
        type=click.Path(path_type=Path, file_okay=False),
        metavar="DIR",
        help="What the tasks print, in a folder that all nodes see.  [default: beside the cache]",
    ),
    click.option(
        "--status",
        is_flag=True,
        help="Only print how far the cache is, and how fast it grows; needs no --data.",
    ),
    click.option("--as-task", is_flag=True, hidden=True),  # `precompute.engines.slurm` starts tasks with it
    click.option("--json", "as_json", is_flag=True, help="Print the last lines, or --status, as JSON."),
]


def engine_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Decorator: all flags."""
    for option in reversed(_OPTIONS):
        command = option(command)
    return command
