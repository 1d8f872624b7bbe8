"""`--report-to`: metrics and pictures in TensorBoard, Weights & Biases or Comet, by accelerate's trackers.

`metrics.jsonl` in the output folder holds the numbers whatever is chosen here.
"""

import importlib.util
from pathlib import Path
from typing import Any

import numpy as np
from accelerate import Accelerator
from PIL import Image

from data_tools.errors import UserError
from train.options import TrainOptions

PACKAGES = {"tensorboard": "tensorboard", "wandb": "wandb", "comet_ml": "comet-ml"}
"accelerate's name of a tracker, which is the module's → what pip calls it."


def chosen(report_to: str) -> list[str]:
    """The trackers by accelerate's names. Raises `UserError` for one whose package is not installed."""
    there = [name for name in PACKAGES if importlib.util.find_spec(name)]
    if report_to == "none":
        return []
    if report_to == "all":
        return there
    if report_to not in there:
        package = PACKAGES[report_to]
        raise UserError(f"--report-to: {report_to} needs the library {package}: pip install {package}")
    return [report_to]


def logging_dir(options: TrainOptions) -> Path:
    return options.output_dir / options.logging_dir  # an absolute one stays what it is


def open_trackers(
    accelerator: Accelerator, options: TrainOptions, record: dict[str, Any], first_step: int
) -> None:
    """Start what `chosen` names. A resumed run goes on in the same run; TensorBoard drops what it redoes."""
    if not accelerator.log_with:
        return
    settings = {
        "tensorboard": {"purge_step": first_step + 1},
        "wandb": {"dir": str(options.output_dir), "id": record["run_id"], "resume": "allow"},
    }
    accelerator.init_trackers(options.tracker_project_name, init_kwargs=settings)
    for tracker in accelerator.trackers:
        if tracker.name != "tensorboard":  # which would make a run of its own of them; run.json has them
            tracker.store_init_configuration(record)


def log_picture(accelerator: Accelerator, name: str, picture: Image.Image, step: int) -> None:
    """Show a picture in every tracker; on the main process."""
    for tracker in accelerator.trackers:
        if tracker.name == "tensorboard":
            tracker.writer.add_image(name, np.asarray(picture.convert("RGB")), step, dataformats="HWC")
        elif tracker.name == "wandb":
            tracker.log_images({name: [picture]}, step=step)
        else:
            tracker.writer.log_image(picture, name=name, step=step)
