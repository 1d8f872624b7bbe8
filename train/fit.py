"""A run from its options to its finished folder: what comes before the training loop and after it."""

import json
import sys
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import click
from accelerate import Accelerator

from data_tools.cache.mixture import Reader
from train import checkpoint, hub
from train.accelerators import make_accelerator
from train.batches import Slice, TrainingBatches
from train.export import export_pipeline
from train.loop import Lengths, Run
from train.lora import export_lora
from train.metrics import losses_drawn
from train.model_card import model_card
from train.options import TrainOptions
from train.reading import open_source, ordering
from train.record import check_continuation, open_run, run_record, wanted_checkpoint
from train.stop import StopRequest
from train.task import Task
from train.trackers import open_trackers


def fit(task: Task, reader: Reader, options: TrainOptions) -> None:
    """Train, validate, checkpoint, export. Raises `UserError` before anything is written."""
    accelerator = make_accelerator(options)
    batches = _batches(reader, options, accelerator)
    lengths = Lengths.of(options, batches)
    resume = checkpoint.find(options.output_dir, wanted_checkpoint(options))
    resolved = {**lengths.record(), "mixed_precision": accelerator.mixed_precision}
    record = run_record(task, reader, options, resolved, resume)
    if resume is not None:
        check_continuation(record, resume, task.base.flag)
    if options.dry_run:
        accelerator.print(json.dumps(record, indent=1))
        accelerator.print("nothing was written (--dry-run)")
        return
    repository = hub.prepare(options, accelerator)
    if repository is not None:
        record["hub_repository"] = repository  # the model card reads it
    stop = StopRequest(accelerator)
    with stop.listening():
        run = Run(task, reader, batches, options, accelerator, lengths, stop)
        stopped = _train(run, record, resume)
        if stopped:
            outlook = checkpoint.outlook(options.output_dir, options.resume_from_checkpoint)
            accelerator.print(f"{stopped}: ended early; {outlook}", file=sys.stderr)
        elif accelerator.is_main_process:
            _finish(run)
        accelerator.wait_for_everyone()
    accelerator.end_training()
    if repository is not None and not stopped and accelerator.is_main_process:
        # the other ranks have gone: an upload may take longer than they would wait
        click.echo(f"pushed to {hub.push(options, repository, lengths.total_steps)}")


def _train(run: Run, record: dict[str, Any], resume: Path | None) -> str:
    """From the checkpoint to the last step; returns what `Run.train` does."""
    options, accelerator, batches = run.options, run.accelerator, run.batches
    first_step = run.resume(resume)
    batches.source = open_source(run.reader, options, accelerator)
    if accelerator.is_main_process:
        open_run(options.output_dir, record, resume)
        if options.validation_fraction and not len(batches.held_out):
            what = f"--validation-fraction: {options.validation_fraction} of {run.reader.num_samples} samples"
            click.echo(f"{what} holds out none; there is no validation loss", err=True)
    open_trackers(accelerator, options, record, first_step)
    drawn = losses_drawn(options.output_dir, run.task.name) if accelerator.is_main_process else nullcontext()
    try:
        with drawn:
            return run.train(first_step)
    except KeyboardInterrupt:
        if accelerator.is_main_process:
            click.echo(
                f"interrupted; {checkpoint.outlook(options.output_dir, options.resume_from_checkpoint)}",
                err=True,
            )
        sys.exit(130)


def _batches(reader: Reader, options: TrainOptions, accelerator: Accelerator) -> TrainingBatches:
    share = Slice(
        accelerator.process_index,
        accelerator.num_processes,
        options.train_batch_size,
        options.gradient_accumulation_steps,
    )
    return TrainingBatches(
        reader,
        reader.held_out(options.validation_fraction),
        share,
        options.seed,
        accelerator.device,
        ordering=ordering(options, share),
        prefetch_bytes=options.prefetch_mib << 20,
    )


def _finish(run: Run) -> None:
    """The finished pipeline."""
    task, output = run.task, run.options.output_dir
    card = partial(model_card, output, task.base, task.name, task.prior)
    export = export_lora if task.adapter else export_pipeline
    export(output, task.base, task.name, run.result, card)
    click.echo(f"{task.name}: {run.lengths.total_steps} steps done, the pipeline is in {output}")
