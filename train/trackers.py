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
        "comet_ml": {"experiment_key": record["run_id"]},
        "wandb": {"dir": str(options.output_dir), "id": record["run_id"], "resume": "allow"},
    }
    accelerator.init_trackers(options.tracker_project_name, init_kwargs=settings)
    for tracker in accelerator.trackers:
        if tracker.name != "tensorboard":  # which would make a run of its own of them; run.json has them
            tracker.store_init_configuration(record)


def log_pictures(accelerator: Accelerator, pictures: dict[str, list[Image.Image]], step: int) -> None:
    """Show the pictures of each prompt in every tracker."""
    for tracker in accelerator.trackers:
        for prompt, images in pictures.items():
            if tracker.name == "tensorboard":
                stacked = np.stack([np.asarray(image.convert("RGB")) for image in images])  # (I, h, w, 3)
                tracker.writer.add_images(prompt, stacked, step, dataformats="NHWC")
            elif tracker.name == "wandb":
                tracker.log_images({prompt: images}, step=step)
            else:
                for image in images:
                    tracker.writer.log_image(image, name=prompt, step=step)
