"""`--engine ray`: a pool of actors on a Ray cluster does the jobs, Ray Data being what runs it.

The driver compares, plans and publishes as any run does; jobs go out, summaries come back. The pool grows and
shrinks with the cluster. An actor loads its encoders once. A job whose actor or node dies is done again by an
actor that takes its place, and what had been committed of it is skipped (`precompute.worker`).
"""

import io
import logging
import os
import platform
import socket
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass, replace
from pathlib import Path
from types import ModuleType
from typing import Any

from tqdm import tqdm

from data_tools.errors import DataFault, UserError
from data_tools.models import first_line
from precompute.options import RunOptions
from precompute.parts import Conditions, Job
from precompute.summary import Summary
from precompute.worker import Worker

PATIENCE = 10.0
"Seconds for the cluster to answer."
LONGEST = 200
"Characters of a message of Ray that are shown."


@dataclass(frozen=True)
class Done:
    """What an actor sends back of a job."""

    summary: Summary
    samples: int = 0
    "Finished."
    fault: Exception | None = None
    "What it would have ended with as a process of its own."


class Actor:
    """One of the pool. Ray Data makes it in its process and calls it with one job at a time."""

    def __init__(self, options: RunOptions, folder: Path) -> None:
        """folder: of the driver, in which relative paths begin."""
        self.options, self.folder = options, folder
        self._worker: Worker | None = None

    def __call__(self, batch: dict[str, Any]) -> dict[str, list[Done]]:
        [job] = batch["item"]
        return {"done": [self.do(job)]}

    def do(self, job: Job | Conditions) -> Done:
        """What a run would tell its user in one line comes back as a value: Ray would wrap an error."""
        finished: list[int] = []
        try:
            worker = self._opened()
            worker.summary = Summary()
            if isinstance(job, Conditions):
                worker.encode_conditions(job)
            else:
                worker.encode([job], advance=finished.append)
        except (UserError, DataFault, OSError) as err:
            return Done(Summary(), fault=err)
        return Done(worker.summary, sum(finished))

    def _opened(self) -> Worker:
        """The worker, which keeps its encoders. Raises `UserError` for a node that does not see the cache."""
        if self._worker is None:
            node = platform.node()
            try:
                os.chdir(self.folder)
            except OSError:
                advice = "give the command in a folder that all nodes have"
                raise UserError(f"--engine ray: node {node} has no folder {self.folder}; {advice}") from None
            worker = Worker.open(self.options)
            if worker.cache.store.size("cache.json") is None:
                wanted = "wanted a folder that all nodes share, or s3://bucket/prefix"
                raise UserError(f"--cache: {worker.cache.store.url} is not there on node {node}; {wanted}")
            self._worker = worker
        return self._worker


class Shortened(io.StringIO):
    """Where Ray prints that nodes and actors have died: the first line of each message goes to stderr."""

    def write(self, text: str) -> int:
        line = text.strip().partition("\n")[0]
        if line and "Traceback" not in line:  # an error is raised, too
            tqdm.write(line[:LONGEST], file=sys.stderr)
        return len(text)


def check() -> None:
    """Raises `UserError` if Ray is not installed; to be called before any work."""
    _ray()


def encode(worker: Worker, jobs: Sequence[Job], conditions: Conditions) -> None:
    """Do jobs and what the columns lack beside parts; `worker.summary` says what came of it.

    On the cluster that `RAY_ADDRESS` or `ray start` says, else on one that is started on this machine.
    Raises what an actor raised, and `UserError` for a cluster that cannot be reached or has too small nodes.
    """
    work: list[Job | Conditions] = [conditions, *jobs] if conditions else [*jobs]
    if not work:
        return
    with _connected(_ray()) as ray:
        started, summary = time.perf_counter(), worker.summary
        total = sum(job.part.live for job in jobs)
        with tqdm(total=total, unit=" samples", desc="precompute", file=sys.stderr) as bar:
            for done in _done(ray, worker.options, work):
                if done.fault is not None:
                    raise done.fault
                summary += done.summary
                bar.set_postfix_str(summary.waits(summary.seconds), refresh=False)
                bar.update(done.samples)
        worker.summary = _at_once(summary, time.perf_counter() - started)


def _done(ray: ModuleType, options: RunOptions, work: list[Job | Conditions]) -> Iterator[Done]:
    """Of each job, as the pool gets on."""
    on_gpu = options.encoders.device.startswith("cuda")
    gpus, cpus = options.gpus_per_task if on_gpu else 0, options.cpus_per_task or 1
    _refuse_too_large(ray, {"GPU": gpus, "CPU": cpus})
    if on_gpu:  # an actor sees no other than its own
        options = replace(options, encoders=replace(options.encoders, device="cuda"))
    largest = min(options.tasks or len(work), len(work))
    results = ray.data.from_items(work, override_num_blocks=len(work)).map_batches(
        Actor,
        fn_constructor_args=(options, Path.cwd()),
        batch_size=1,
        compute=ray.data.ActorPoolStrategy(min_size=1, max_size=largest),
        num_gpus=gpus,
        num_cpus=cpus,
    )
    batches = iter(results.iter_batches(batch_size=None, prefetch_batches=0))
    try:
        for batch in batches:
            yield from batch["done"]
    except ray.exceptions.ActorDiedError as err:  # an actor that has once been started is started again
        why = str(err).strip().splitlines()[-1]
        advice = "every node needs this kandinsky-cache and this Python"
        raise UserError(f"--engine ray: no actor can be started: {why}; {advice}") from None
    finally:
        sys.stdout = io.StringIO()  # Ray tells at length of each actor that is stopped at work


def _at_once(summary: Summary, seconds: float) -> Summary:
    """The sum over actors as that of one worker that took so many seconds: shares of waiting stay."""
    scale = seconds / summary.seconds if summary.seconds else 0.0
    waited = summary.waited_for_pictures * scale, summary.waited_for_writer * scale
    return replace(summary, seconds=seconds, waited_for_pictures=waited[0], waited_for_writer=waited[1])


def _ray() -> ModuleType:
    try:
        import ray.data
    except ImportError:
        advice = "needs the extra 'ray': pip install 'kandinsky-cache[ray]'"
        raise UserError(f"--engine ray: {advice}") from None
    return ray


@contextmanager
def _connected(ray: ModuleType) -> Iterator[ModuleType]:
    """Ray with a cluster, and as quiet as it can be made."""
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    logging.getLogger("ray.data").setLevel(logging.CRITICAL)  # an error of an actor is raised here
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
    with redirect_stdout(Shortened()):
        if ray.is_initialized():
            yield ray
            return
        _refuse_unreachable(os.environ.get("RAY_ADDRESS", ""))
        try:
            ray.init(include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)
        except (ConnectionError, RuntimeError, ValueError) as err:
            raise UserError(f"--engine ray: {first_line(err)}") from None
        try:
            yield ray
        finally:
            ray.shutdown()


def _refuse_unreachable(address: str) -> None:
    """Raises `UserError` at once where Ray would go on trying for minutes. Only host:port is looked at."""
    host, _, port = address.rpartition(":")
    if "://" in address or not port.isdecimal():
        return
    try:
        socket.create_connection((host, int(port)), timeout=PATIENCE).close()
    except (OSError, OverflowError) as err:
        raise UserError(f"RAY_ADDRESS: {address}: {str(err).lower()}; is the cluster up?") from None


def _refuse_too_large(ray: ModuleType, wanted: dict[str, int]) -> None:
    """Raises `UserError` for an actor that would wait for room forever."""
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    for resource, count in wanted.items():
        most = max((node.get(resource, 0) for node in nodes), default=0)
        if most < count:
            flag = f"--{resource.lower()}s-per-task"
            raise UserError(f"{flag}: found {count}, wanted at most {most:g}, as no node of Ray has more")
