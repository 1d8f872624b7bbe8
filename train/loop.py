"""The only training loop. It knows neither the prior nor the decoder; a `Task` says what differs.

Housekeeping (metrics, validation, checkpoint) comes first in each turn, then the step, so the first and the
last state go through the same lines. All that is random is a function of (seed, step, position in the global
batch), so a resumed run, also one at another number of ranks, takes the steps it would have taken.
"""

from contextlib import closing, nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType
from torch import nn
from tqdm import tqdm

from data_tools.cache.mixture import Reader
from data_tools.errors import UserError
from train import checkpoint
from train.batches import TrainingBatches, null_conditions
from train.ema import Ema
from train.guard import Guard, require_finite
from train.meter import Meter
from train.metrics import MetricsFile
from train.optimizer import make_optimizer
from train.options import TrainOptions
from train.preview import Previews
from train.schedules import lr_factor
from train.sharding import prepare
from train.step import Step
from train.stop import StopRequest
from train.task import Task
from train.trackers import log_pictures
from train.validation import Validator, as_text
from train.zero import Engine


@dataclass(frozen=True)
class Lengths:
    """What a run counts in optimizer steps, and the numbers that these follow from."""

    total_steps: int
    validation_steps: int
    "Between two validations."
    global_batch_size: int
    train_samples: int
    validation_samples: int

    @classmethod
    def of(cls, options: TrainOptions, batches: TrainingBatches) -> "Lengths":
        samples, world = batches.sampling.samples_per_epoch, batches.share.world_size
        between = options.validation_steps
        if options.validation_epochs is not None:
            between = options.steps_in(options.validation_epochs, samples, world)
        return cls(
            options.total_steps(samples, world),
            between,
            batches.share.global_batch_size,
            samples,
            min(len(batches.held_out), options.validation_samples),
        )

    def record(self) -> dict[str, int]:
        """For run.json."""
        return {name: value for name, value in asdict(self).items() if name != "validation_steps"}


class Run:
    """What is alive during training."""

    def __init__(
        self,
        task: Task,
        reader: Reader,
        batches: TrainingBatches,
        options: TrainOptions,
        accelerator: Accelerator,
        lengths: Lengths,
        stop: StopRequest,
    ) -> None:
        self.task, self.reader, self.batches, self.options = task, reader, batches, options
        self.accelerator, self.lengths = accelerator, lengths
        # before the model is on the device: prompts may have to be encoded
        self.previews = Previews(task, task.preview, reader, options, accelerator) if task.preview else None
        if options.gradient_checkpointing:
            task.enable_gradient_checkpointing()
        if task.adapter:
            task.adapter.freeze_in(accelerator.mixed_precision)
        task.module.to(accelerator.device).train()
        if options.compile:
            task.compile(options.compile_mode)
        self.loss = task.make_loss(accelerator.device)
        optimizer, named = make_optimizer(task.module, options)
        self.module, self.optimizer, named = prepare(accelerator, task.module, optimizer, named)
        parameters = [parameter for _, parameter in named]
        ema = Ema(parameters, limit=options.ema_decay, power=options.ema_power) if options.use_ema else None
        saved = task.adapter or task.model
        engine = self.optimizer if isinstance(self.optimizer, Engine) else None
        self.training = checkpoint.Training(
            task.name, saved, optimizer, named, accelerator.scaler, ema, engine
        )
        self.null = null_conditions(reader, task.null_column, accelerator.device)
        held = batches.held_out[: options.validation_samples]
        self.validator = Validator(task, self.null, reader, held, options, accelerator)
        self.guard = Guard(accelerator, optimizer, batches.keys)
        self.stop = stop
        self.line_steps = (options.logging_steps, options.checkpointing_steps)
        "A line of metrics comes at the multiples of both."
        self.checkpoint: Path | None = None
        "The last one that was loaded or saved."
        self.step = Step(
            task,
            options,
            accelerator,
            module=self.module,
            optimizer=self.optimizer,
            parameters=parameters,
            loss=self.loss,
            null=self.null,
            share=batches.share,
            guard=self.guard,
            ema=ema,
        )

    def resume(self, folder: Path | None) -> int:
        """Continue from a checkpoint, or start at step 0. Raises `UserError` if that cannot be done."""
        step = checkpoint.load(folder, self.training) if folder else 0
        self.checkpoint = folder
        if step > self.lengths.total_steps:
            raise UserError(
                f"--max-train-steps: {folder} is at step {step}, past the last of {self.lengths.total_steps}"
            )
        steps = self.accelerator.gather(torch.tensor([step], device=self.accelerator.device)).tolist()
        if len(set(steps)) > 1:
            raise UserError(
                f"--output-dir: ranks see checkpoints of steps {steps}; wanted a folder all share"
            )
        return step

    def train(self, first_step: int) -> str:
        """Optimizer steps first_step … total_steps-1, with the housekeeping between them.

        Returns what ended it before the last step: a signal's name, after a checkpoint was written; else "".
        """
        options, lengths, main = self.options, self.lengths, self.accelerator.is_main_process
        metrics = MetricsFile(options.output_dir / "metrics.jsonl", first_step) if main else None
        meter = Meter(self.accelerator, self.batches)
        if self.checkpoint and (state := checkpoint.meter_state(self.checkpoint)):
            meter.load(state)
        last = lengths.total_steps
        with (
            closing(self.batches.iterate(first_step, last)) as stream,
            tqdm(total=last, initial=first_step, desc=self.task.name, disable=not main) as bar,
        ):
            for step in range(first_step, last + 1):
                done, moved = step == last, step > first_step
                stopped = self.stop.agreed() and not done
                saves = moved and (done or stopped or step % options.checkpointing_steps == 0)
                validates = (moved or step == 0) and (done or step % lengths.validation_steps == 0)
                logs = moved and (done or any(step % n == 0 for n in self.line_steps))
                if saves or logs:
                    self.guard.check()  # before a checkpoint: a diverged state is never saved
                if logs:
                    values = meter.read() | self.guard.counts()
                    self._log(step, values, metrics)
                    bar.set_postfix_str(meter.as_text(values), refresh=False)
                if validates and (values := self._validate(step)):
                    self._log(step, values, metrics)
                    bar.write(f"step {step}: {as_text(values)}")
                if saves:
                    self._save(step, meter)
                if validates or saves:
                    meter.restart_clock()
                if done or stopped:
                    break
                meter.lr = self._set_lr(step)
                self.step.take(step, stream, meter)
                bar.update()
            self.stop.finish()
        return (self.stop.name or "stopped by another process") if stopped else ""

    @property
    def result(self) -> checkpoint.Saved:
        """The finished weights: those of the last checkpoint, with --use-ema their averages."""
        assert self.checkpoint is not None, "a run ends with a checkpoint"
        average = self.checkpoint / f"{self.task.name}_ema"
        averaged = self.options.use_ema and average.is_dir()
        return checkpoint.Saved(average if averaged else self.checkpoint / self.task.name)

    def _validate(self, step: int) -> dict[str, float]:
        """What is measured on held-out samples, of the weights and of their averages; draws the pictures."""
        eager = torch.compiler.set_stance("force_eager") if self.options.compile else nullcontext()
        with eager:
            values, ema = self._measure(), self.training.ema
            with ema.in_place() if ema else nullcontext():
                if ema:
                    values |= {f"ema_{name}": value for name, value in self._measure().items()}
                if self.previews is not None:
                    log_pictures(self.accelerator, self.previews.draw(step, self._undistributed()), step)
        for name, value in values.items():
            require_finite(value, name.replace("_", " "), f"at step {step}")
        return values

    def _measure(self) -> dict[str, float]:
        return self.validator.measure(self.batches.source, self._undistributed())

    def _undistributed(self) -> nn.Module:
        """What a forward outside of training is asked of: not DDP's wrapper, but FSDP's shards."""
        sharded = self.accelerator.distributed_type == DistributedType.FSDP
        return self.module if sharded else self.task.module

    def _log(self, step: int, values: dict[str, float], metrics: MetricsFile | None) -> None:
        if metrics is not None:
            metrics.write(step, **values)
            self.accelerator.log(values, step=step)

    def _set_lr(self, step: int) -> float:
        """The learning rate of the update that follows `step` finished ones."""
        options = self.options
        lr = options.learning_rate * lr_factor(
            options.lr_scheduler,
            step,
            warmup_steps=options.lr_warmup_steps,
            total_steps=self.lengths.total_steps,
            num_cycles=options.lr_num_cycles,
            power=options.lr_power,
            end_factor=min(1.0, 1e-7 / options.learning_rate) if options.learning_rate else 0.0,
        )
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        return lr

    def _save(self, step: int, meter: Meter) -> None:
        # the last update may have gone wrong although every loss before it was finite
        require_finite(checkpoint.largest(self.training), "weights", f"after step {step}")
        keep = self.options.checkpoints_total_limit
        self.checkpoint = checkpoint.save(
            self.options.output_dir, step, self.training, keep=keep, meter=meter.state()
        )
