"""The only training loop. It knows neither the prior nor the decoder; a `Task` says what differs.

Housekeeping (metrics, validation, checkpoint) comes first in each turn, then the step, so the first and the
last state go through the same lines. All that is random is a function of (seed, step, position in the global
batch), so a resumed run, also one at another number of ranks, takes the steps it would have taken.
"""

import json
import os
import sys
from collections.abc import Generator
from contextlib import closing
from pathlib import Path

import click
import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType, GradientAccumulationPlugin
from torch import Tensor
from tqdm import tqdm

from data_tools.cache.mixture import Reader
from data_tools.errors import UserError
from train import checkpoint
from train.batches import Batch, Slice, TrainingBatches, null_conditions
from train.draws import draw
from train.lora import seed_dropout
from train.meter import Meter, require_finite
from train.metrics import MetricsFile, draw_losses
from train.optimizer import make_optimizer
from train.options import TrainOptions
from train.reading import open_source, ordering
from train.record import check_continuation, open_run, run_record
from train.schedules import lr_factor
from train.sharding import clip_grad_norm, fsdp_plugin, prepare, set_up_fsdp
from train.task import Task
from train.validation import Samples, held_out_loss

KINDS = (DistributedType.NO, DistributedType.MULTI_GPU, DistributedType.MULTI_CPU, DistributedType.FSDP)


def fit(task: Task, reader: Reader, options: TrainOptions) -> None:
    """Train, validate, checkpoint, export. Raises `UserError` before anything is written."""
    accelerator = make_accelerator(options)
    share = Slice(
        accelerator.process_index,
        accelerator.num_processes,
        options.train_batch_size,
        options.gradient_accumulation_steps,
    )
    held = reader.held_out(options.validation_fraction)
    batches = TrainingBatches(
        reader,
        held,
        share,
        options.seed,
        accelerator.device,
        ordering=ordering(options, share),
        prefetch_bytes=options.prefetch_mib << 20,
    )
    num_samples = batches.sampling.samples_per_epoch
    total_steps = options.total_steps(num_samples, share.world_size)
    resume = checkpoint.find(options.output_dir, options.resume_from_checkpoint)
    resolved = {
        "total_steps": total_steps,
        "global_batch_size": share.global_batch_size,
        "train_samples": num_samples,
        "validation_samples": min(len(held), options.validation_samples),
    }
    record = run_record(task, reader, options, resolved)
    if resume is not None:
        check_continuation(record, resume, task.base.flag)
    if options.dry_run:
        accelerator.print(json.dumps(record, indent=1))
        accelerator.print("nothing was written (--dry-run)")
        return
    run = Run(task, reader, held[: options.validation_samples], options, accelerator, total_steps)
    first_step = run.resume(resume)
    batches.source = open_source(reader, options, accelerator)
    if accelerator.is_main_process:
        open_run(options.output_dir, record, resume)
        if options.validation_fraction and not len(held):
            what = f"--validation-fraction: {options.validation_fraction} of {reader.num_samples} samples"
            click.echo(f"{what} holds out none; there is no validation loss", err=True)
    try:
        run.train(batches, first_step)
    except KeyboardInterrupt:
        outlook = checkpoint.outlook(options.output_dir, options.resume_from_checkpoint)
        if accelerator.is_main_process:
            click.echo(f"interrupted; {outlook}", err=True)
        sys.exit(130)
    if accelerator.is_main_process:
        last = checkpoint.checkpoints(options.output_dir)[-1]
        task.export(checkpoint.Saved(last / task.name))
        draw_losses(options.output_dir / "metrics.jsonl", options.output_dir / "loss.png", task.name)
        accelerator.print(f"{task.name}: {total_steps} steps done, the pipeline is in {options.output_dir}")
    accelerator.wait_for_everyone()
    accelerator.end_training()


def make_accelerator(options: TrainOptions) -> Accelerator:
    """Device, precision and ranks. Raises `UserError` for what cannot be kept."""
    torch.backends.cuda.matmul.allow_tf32 = options.allow_tf32
    plugin = fsdp_plugin(os.environ)
    accelerator = Accelerator(
        mixed_precision=options.mixed_precision,
        fsdp_plugin=plugin,
        # as a plugin: the environment variable of `accelerate launch` would win over a plain number
        gradient_accumulation_plugin=GradientAccumulationPlugin(
            num_steps=options.gradient_accumulation_steps, sync_with_dataloader=False
        ),
    )
    if plugin is not None:
        set_up_fsdp(accelerator, plugin, options.optimizer)
    if accelerator.distributed_type not in KINDS:
        kind = accelerator.distributed_type.value
        raise UserError(f"accelerate: {kind} is not supported, wanted one process, DDP or FSDP")
    world = int(os.environ.get("WORLD_SIZE", "1"))
    if world != accelerator.num_processes:  # accelerate starts that many runs of one process each
        raise UserError(
            f"WORLD_SIZE: {world} processes were started, but accelerate sees {accelerator.num_processes}; "
            "without a GPU set ACCELERATE_USE_CPU=true"
        )
    if accelerator.mixed_precision == "fp16" and accelerator.device.type == "cpu":
        raise UserError("--mixed-precision: fp16 needs a GPU, wanted bf16 or no on the CPU")
    return accelerator


class Run:
    """What is alive during training."""

    def __init__(
        self,
        task: Task,
        reader: Reader,
        held: Samples,
        options: TrainOptions,
        accelerator: Accelerator,
        total_steps: int,
    ) -> None:
        self.task, self.reader, self.held, self.options = task, reader, held, options
        self.accelerator, self.total_steps = accelerator, total_steps
        if options.gradient_checkpointing:
            task.enable_gradient_checkpointing()
        if task.adapter:
            task.adapter.freeze_in(accelerator.mixed_precision)
        task.module.to(accelerator.device).train()
        optimizer, parameters = make_optimizer(task.module, options)
        self.loss = task.make_loss(accelerator.device)  # before weights are sharded: it reads some of them
        self.module, self.optimizer, parameters = prepare(accelerator, task.module, optimizer, parameters)
        saved = task.adapter or task.model
        self.training = checkpoint.Training(task.name, saved, optimizer, parameters, accelerator.scaler)
        self.null = null_conditions(reader, task.null_column, accelerator.device)

    def resume(self, folder: Path | None) -> int:
        """Continue from a checkpoint, or start at step 0. Raises `UserError` if that cannot be done."""
        step = checkpoint.load(folder, self.training) if folder else 0
        if step > self.total_steps:
            raise UserError(
                f"--max-train-steps: {folder} is at step {step}, past the last of {self.total_steps}"
            )
        steps = self.accelerator.gather(torch.tensor([step], device=self.accelerator.device)).tolist()
        if len(set(steps)) > 1:
            raise UserError(
                f"--output-dir: ranks see checkpoints of steps {steps}; wanted a folder all share"
            )
        return step

    def train(self, batches: TrainingBatches, first_step: int) -> None:
        """Optimizer steps first_step … total_steps-1, with the housekeeping between them."""
        options, main = self.options, self.accelerator.is_main_process
        metrics = MetricsFile(options.output_dir / "metrics.jsonl", first_step) if main else None
        meter = Meter(self.accelerator, batches)
        with (
            closing(batches.iterate(first_step, self.total_steps)) as stream,
            tqdm(total=self.total_steps, initial=first_step, desc=self.task.name, disable=not main) as bar,
        ):
            for step in range(first_step, self.total_steps + 1):
                done, moved = step == self.total_steps, step > first_step
                saves = moved and (done or step % options.checkpointing_steps == 0)
                validates = (moved or step == 0) and (done or step % options.validation_steps == 0)
                if saves or (moved and step % options.logging_steps == 0):
                    values = meter.read(step)  # before a checkpoint: a diverged state is never saved
                    if metrics:
                        metrics.write(step, **values)
                        bar.set_postfix_str(meter.as_text(values), refresh=False)
                if validates and len(self.held):
                    value = held_out_loss(
                        self.task,
                        self.loss,
                        self.null,
                        self.reader,
                        batches.source,
                        self.held,
                        options,
                        self.accelerator,
                    )
                    require_finite(value, "validation loss", f"at step {step}")
                    if metrics:
                        metrics.write(step, validation_loss=value)
                        bar.write(f"step {step}: validation loss {value:.4f}")
                if saves:
                    self._save(step)
                if validates or saves:
                    meter.restart_clock()
                if done:
                    break
                meter.lr = self._set_lr(step)
                self._step(step, stream, meter)
                bar.update()

    def _step(self, step: int, stream: Generator[tuple[Batch, Tensor], None, None], meter: Meter) -> None:
        """One optimizer step; nothing in it waits for the device."""
        options, task, accelerator = self.options, self.task, self.accelerator
        if options.lora_dropout:
            seed_dropout(options.seed, step, accelerator.process_index)
        for _ in range(options.gradient_accumulation_steps):
            batch, positions = next(stream)
            draws = draw(
                options.seed,
                step,
                positions,
                shape=tuple(batch[task.noised].shape[1:]),
                num_train_timesteps=task.num_train_timesteps,
                cond_dropout=options.cond_dropout,
                num_draws=options.noise_draws,
                timestep_sampling=options.timestep_sampling,
                global_batch_size=options.global_batch_size(accelerator.num_processes),
            )
            with accelerator.accumulate(self.module):
                losses = self.loss(self.module, batch, self.null, draws)  # (B,)
                accelerator.backward(losses.mean())
                if accelerator.sync_gradients and options.max_grad_norm > 0:
                    parameters = [parameter for _, parameter in self.training.parameters]
                    meter.grad_norm = clip_grad_norm(accelerator, parameters, options.max_grad_norm)
                self.optimizer.step()
                self.optimizer.zero_grad(set_to_none=True)
            meter.add(losses)

    def _set_lr(self, step: int) -> float:
        """The learning rate of the update that follows `step` finished ones."""
        options = self.options
        lr = options.learning_rate * lr_factor(
            options.lr_scheduler,
            step,
            warmup_steps=options.lr_warmup_steps,
            total_steps=self.total_steps,
            num_cycles=options.lr_num_cycles,
            power=options.lr_power,
            end_factor=min(1.0, 1e-7 / options.learning_rate) if options.learning_rate else 0.0,
        )
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        return lr

    def _save(self, step: int) -> None:
        # the last update may have gone wrong although every loss before it was finite
        require_finite(checkpoint.largest(self.training), "weights", f"after step {step}")
        keep = self.options.checkpoints_total_limit
        checkpoint.save(self.options.output_dir, step, self.training, keep=keep)
