"""`--engine slurm`: the same command, as the tasks of a Slurm array job that submitit submits.

The submitter writes the plan and leaves. Each process of each task is a rank (`precompute.ranks`) that finds
in the cache what is left to do, so a task that is requeued after a fault or at its time limit, or a second
job of the same command, goes on where the first one was.
"""

import os
import shlex
import shutil
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stderr
from dataclasses import dataclass, field
from io import StringIO
from pathlib import Path
from types import ModuleType
from typing import Any

from data_tools.cache.store import local_folder
from data_tools.errors import UserError
from precompute.flags import PRECISION
from precompute.ranks import Rank

REQUEUES = 100
"Times that a task which reaches its time limit is queued again."
AGAIN = [
    "status=$?",
    'case "$status:${SLURM_RESTART_COUNT:-0}" in 13[4579]:[0-9]) scontrol requeue "$SLURM_JOB_ID";; esac',
    "exit $status",
]
"""Ends the script of a task: one whose process was killed or has crashed (128 + SIGABRT, SIGBUS, SIGKILL or
SIGSEGV), as for want of memory, is queued again, up to ten times. Slurm does that only if a node fails."""
OF_TORCHRUN = ("RANK", "WORLD_SIZE", "LOCAL_RANK")
"Variables that the submitter may have from its own launcher; a task is a rank of its own job."


@dataclass(frozen=True)
class SlurmOptions:
    tasks: int = 1
    "Of the array; fewer where fewer parts are left."
    gpus_per_task: int = 1
    "And processes; 0: one process on the CPU."
    cpus_per_task: int | None = None
    "Cores of each process; None: what the cluster gives."
    partition: str | None = None
    minutes: int = 240
    "Time limit of a task."
    more: Mapping[str, str | bool] = field(default_factory=dict)
    "Other options of `sbatch` by their long name; True: one without a value."
    logs: Path | None = None
    "Where the tasks' output goes; None: beside the cache."


@dataclass(frozen=True)
class Command:
    """What a task runs. submitit keeps it in a file and runs it again after a requeue."""

    arguments: tuple[str, ...]

    def __call__(self) -> None:
        from precompute.cli import main

        for name in OF_TORCHRUN:
            os.environ.pop(name, None)
        sys.argv = ["precompute", *self.arguments]
        try:
            main()
        except SystemExit as end:
            if end.code:
                raise

    def checkpoint(self) -> Any:
        """Called when the time limit is near: the same again. All that is committed stays."""
        return _submitit().helpers.DelayedSubmission(self)


def check(*, repair: bool) -> None:
    """Raises `UserError` for what cannot be submitted; to be called before any work."""
    rank = Rank.of_environment()
    if rank.world > 1:
        raise UserError(
            f"--engine slurm: submits the job once, and this is {rank}; give it without a launcher"
        )
    if repair:
        raise UserError("--repair: reads every byte, once, so it is not for many tasks; use --engine local")
    _submitit()
    for program in ("sbatch", "srun"):
        if shutil.which(program) is None:
            raise UserError(f"--engine slurm: there is no {program} on this machine; submit where Slurm is")


def submit(
    arguments: Sequence[str], options: SlurmOptions, *, cache: str, parts: int
) -> tuple[str, dict[str, Any]]:
    """Queue a command as an array job of as many tasks as are useful for so many parts.

    `arguments`: of the tasks' `precompute`. Returns what there is to say, and the same as plain JSON values.
    Raises `UserError` with what Slurm says when it refuses.
    """
    submitit = _submitit()
    tasks, processes = max(1, min(options.tasks, parts)), max(1, options.gpus_per_task)
    logs = options.logs or log_folder(cache)
    are_new = not logs.exists()
    executor = submitit.SlurmExecutor(folder=logs.absolute(), max_num_timeout=REQUEUES)
    executor.update_parameters(
        job_name="precompute",
        time=options.minutes,
        nodes=1,
        ntasks_per_node=processes,
        teardown=AGAIN,
        array_parallelism=tasks,
        additional_parameters={"requeue": True, **options.more},
        **({"partition": options.partition} if options.partition else {}),
        **({"gpus_per_node": options.gpus_per_task} if options.gpus_per_task else {}),
        **_cores(options.cpus_per_task),
    )
    command = Command(tuple(arguments))
    try:
        with _outside_of_jobs(), redirect_stderr(StringIO()):  # what Slurm says is in the error, too
            jobs = executor.submit_array([command] * tasks) if tasks > 1 else [executor.submit(command)]
    except submitit.core.utils.FailedJobError as err:
        if are_new:  # submitit has written down what was refused
            shutil.rmtree(logs, ignore_errors=True)
        raise UserError(f"--engine slurm: {_said(err)}") from None
    number = jobs[0].job_id.partition("_")[0]
    each = f" of {processes} processes" * (processes > 1)
    line = (
        f"submitted job {number}: {tasks} task{'s' * (tasks > 1)}{each} for {parts} parts, output in {logs}\n"
        f"watch it with: precompute --status --cache {shlex.quote(cache)}"
    )
    counts = {"job": number, "tasks": tasks, "processes_per_task": processes, "parts": parts}
    return line, {**counts, "logs": str(logs)}


def task_arguments(given: Sequence[str], *, device: str, precision: str) -> list[str]:
    """What a task runs: the submitter's own arguments, and what it has settled, which the last flags say.

    A node without a GPU may submit for nodes that have one, so these two never follow the machine.
    """
    flag = {dtype: name for name, dtype in PRECISION.items()}[precision]
    kept = [each for each in given if each.replace("_", "-") != "--retry-rejects"]  # is in the plan by now
    return [*kept, "--as-task", "--engine", "local", "--device", device, "--precision", flag]


def log_folder(cache: str) -> Path:
    """Beside a local cache; for one on an object store, in the folder in which the command is given."""
    folder = local_folder(cache)
    name = cache.rstrip("/").rpartition("/")[2] if folder is None else folder.absolute().name
    return (Path() if folder is None else folder.absolute().parent) / f"{name}-slurm"


def _submitit() -> ModuleType:
    try:
        import submitit.helpers
    except ModuleNotFoundError:
        advice = "needs the extra 'slurm': pip install 'kandinsky-cache[slurm]'"
        raise UserError(f"--engine slurm: {advice}") from None
    return submitit


def _cores(count: int | None) -> dict[str, Any]:
    """Of the job and of its step: since Slurm 22.05 `srun` does not take it over from the job."""
    return {} if count is None else {"cpus_per_task": count, "srun_args": [f"--cpus-per-task={count}"]}


@contextmanager
def _outside_of_jobs() -> Iterator[None]:
    """Without what Slurm says of the job in which the command is given: a new job would take it over."""
    names = [name for name in os.environ if name.startswith("SLURM_") and name != "SLURM_CONF"]
    hidden = {name: os.environ.pop(name) for name in names}
    try:
        yield
    finally:
        os.environ.update(hidden)


def _said(error: Exception) -> str:
    """The lines of `sbatch` in an error of submitit."""
    lines = [line.strip() for line in str(error).splitlines()]
    said = [line.removeprefix("sbatch: ").removeprefix("error: ") for line in lines if "sbatch: " in line]
    return "; ".join(said) or lines[0]
