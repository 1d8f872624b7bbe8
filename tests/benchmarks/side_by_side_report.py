"""The Markdown table and the picture of `side_by_side`.

Legend: R rounds, U updates.
"""

from pathlib import Path
from statistics import median

import numpy as np

from tests.benchmarks.side_by_side_sides import Numbers, Ran, Sides

WINDOWS = 5
"Of the run, compared one by one; the last one is what counts."
WARM_UP = 0.1
"Share of the updates that the rates leave out."
SMOOTHED = 25
"Updates in the running mean of the picture."


def window_means(rans: list[Ran]) -> tuple[Numbers, Numbers]:
    """Mean loss of each window over all rounds, and its standard error: (WINDOWS,), (WINDOWS,).

    The scatter about a straight line through each round's window, so that a falling loss is no noise.
    """
    means, errors = [], []
    for pieces in zip(*(np.array_split(ran.losses, WINDOWS) for ran in rans)):
        count = sum(len(piece) for piece in pieces)
        means.append(np.concatenate(pieces).mean())
        squares = sum(float(np.square(piece - _line(piece)).sum()) for piece in pieces)
        errors.append(np.sqrt(squares / (count - 2 * len(pieces)) / count))
    return np.array(means), np.array(errors)


def _line(piece: Numbers) -> Numbers:
    places = np.arange(len(piece))
    fitted: Numbers = np.polyval(np.polyfit(places, piece, 1), places)
    return fitted


def deviations(sides: Sides) -> Numbers:
    """Difference of the two means of each window in its standard errors, trainer less script: (WINDOWS,)."""
    script, script_error = window_means(sides.script)
    trainer, trainer_error = window_means(sides.trainer)
    return (trainer - script) / np.hypot(script_error, trainer_error)


def rate(ran: Ran, batch_size: int) -> float:
    """Samples per second by the median update after the warm-up."""
    first = int(len(ran.losses) * WARM_UP)
    return batch_size / float(np.median(ran.step_seconds[first:]))


def table(sides: Sides) -> str:
    """Markdown: the losses window by window, then the rates."""
    objective, setting = sides.objective, sides.setting
    script, script_error = window_means(sides.script)
    trainer, trainer_error = window_means(sides.trainer)
    edges = np.cumsum([0, *(len(piece) for piece in np.array_split(np.arange(setting.updates), WINDOWS))])
    lines = [
        f"{objective.name}: {len(sides.script)} runs of {setting.updates} updates of {setting.batch_size}, "
        f"learning rate {setting.learning_rate:g}, float32",
        "",
        f"| mean loss of updates | diffusers' script | `{objective.command}` | difference / its error |",
        "|---|---:|---:|---:|",
    ]
    for i, z in enumerate(deviations(sides)):
        lines.append(
            f"| {edges[i] + 1}–{edges[i + 1]} | {script[i]:.4f} ± {script_error[i]:.4f} "
            f"| {trainer[i]:.4f} ± {trainer_error[i]:.4f} | {z:+.1f} |"
        )
    rates = [[rate(ran, setting.batch_size) for ran in rans] for rans in (sides.script, sides.trainer)]
    ratio = median(ours / theirs for theirs, ours in zip(*rates))
    whole, cpu = (
        [median(getattr(ran, kind) for ran in rans) for rans in (sides.script, sides.trainer)]
        for kind in ("seconds", "cpu_seconds")
    )
    lines += [
        "",
        f"| | diffusers' script | `{objective.command}` | ratio |",
        "|---|---:|---:|---:|",
        f"| samples/s, median update after {WARM_UP:.0%} | {_each(rates[0])} | {_each(rates[1])} "
        f"| **{ratio:.1f}x** |",
        f"| seconds, whole command, start to end | {whole[0]:.0f} | {whole[1]:.0f}{_filled(sides)} | |",
        f"| CPU seconds of that | {cpu[0]:.0f} | {cpu[1]:.0f} | |",
    ]
    return "\n".join(lines) + "\n"


def _each(rates: list[float]) -> str:
    return f"{median(rates):.0f}" if len(rates) == 1 else f"{min(rates):.0f}–{max(rates):.0f}"


def _filled(sides: Sides) -> str:
    return "" if sides.filled is None else f", and {sides.filled:.0f} once for `precompute`"


def draw(sides: Sides, picture: Path) -> None:
    """Each update's loss of all rounds as dots, and a running mean of each round."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 4.5), layout="constrained")
    axes = figure.add_subplot()
    named = {"diffusers' script": sides.script, sides.objective.command: sides.trainer}
    for (name, rans), colour in zip(named.items(), ("tab:orange", "tab:blue")):
        for number, ran in enumerate(rans):
            updates = np.arange(1, len(ran.losses) + 1)
            axes.plot(updates, ran.losses, ".", color=colour, alpha=0.15, markersize=3)
            width = min(SMOOTHED, len(ran.losses))
            mean = np.convolve(ran.losses, np.ones(width) / width, mode="valid")
            first = updates[width - 1 :] - (width - 1) / 2
            axes.plot(first, mean, color=colour, alpha=0.9, label=name if number == 0 else None)
    axes.set(
        xlabel="update", ylabel="loss", title=f"{sides.objective.name}: running mean of {SMOOTHED} updates"
    )
    axes.set_yscale("log")
    axes.grid(alpha=0.3, which="both")
    axes.legend()
    figure.savefig(picture, dpi=90)
