"""`metrics.jsonl`, one JSON object a line, and the picture of it."""

import json
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from data_tools.errors import DataFault
from train.writing import writing


class MetricsFile:
    """Lines appended as they come; a resumed run first drops what was written after its checkpoint."""

    def __init__(self, path: Path, first_step: int) -> None:
        self.path = path
        kept = [line for line in read_metrics(path) if line["step"] <= first_step] if first_step else []
        temporary = path.with_name(f".tmp-{path.name}")
        with writing(path):
            temporary.write_text("".join(json.dumps(line) + "\n" for line in kept))
            temporary.replace(path)

    def write(self, step: int, **values: float) -> None:
        """Non-finite values are for the caller to refuse; JSON has no word for them."""
        with writing(self.path), self.path.open("a") as file:
            file.write(json.dumps({"step": step, **values}, allow_nan=False) + "\n")


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """All lines; a last one that a kill cut short is left out."""
    if not path.exists():
        return []
    lines = []
    for line in path.read_text().splitlines():
        try:
            lines.append(json.loads(line))
        except ValueError:
            break
    return lines


@contextmanager
def losses_drawn(output: Path, title: str) -> Iterator[None]:
    """Afterwards the folder's loss.png shows its metrics.jsonl, whatever ended what is done inside."""
    metrics, picture = output / "metrics.jsonl", output / "loss.png"
    try:
        yield
    except BaseException:
        with suppress(DataFault):  # what is under way says more
            draw_losses(metrics, picture, title)
        raise
    draw_losses(metrics, picture, title)


def draw_losses(metrics: Path, picture: Path, title: str) -> None:
    """Training and validation loss over steps, as a PNG."""
    from matplotlib.figure import Figure

    lines = read_metrics(metrics)
    figure = Figure(figsize=(8, 4.5), layout="constrained")
    axes = figure.add_subplot()
    for key in ("loss", "validation_loss", "ema_validation_loss"):
        points = [(line["step"], line[key]) for line in lines if key in line]
        marker = "" if key == "loss" and len(points) > 1 else "o"  # one point makes no line
        if points:
            axes.plot(*zip(*points), label=key.replace("_", " "), marker=marker, alpha=0.8)
    axes.set(xlabel="optimizer step", ylabel="loss", title=title)
    axes.grid(alpha=0.3)
    if axes.get_legend_handles_labels()[0]:
        axes.legend()
    with writing(picture):
        figure.savefig(picture, dpi=120)
