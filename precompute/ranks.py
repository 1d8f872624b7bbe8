"""Which of several equal processes this one is, and in which order it takes the jobs.

A process is a rank of the world that its launcher has set up: `torchrun`, `accelerate launch`, `srun`, the
tasks of a Slurm array, or each of these within an array. Ranks do not talk to each other: what is done is in
the cache. A rank does its own share first and then whatever of the others' is not committed yet, so a slow or
dead rank stops nobody.
"""

import os
import random
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from threading import Lock
from typing import Generic, TypeVar

from data_tools.errors import UserError

T = TypeVar("T")
RESERVED_STEP = 0xFFFFFFF0
"Step ids from here on are not of `srun`: batch scripts and the shells of `salloc` have them."


@dataclass(frozen=True)
class Rank:
    """One of `world` processes that run the same command."""

    number: int = 0
    world: int = 1
    local: int = 0
    "Its number among those on the same machine: which GPU it takes."

    @classmethod
    def of_environment(cls, environ: Mapping[str, str] = os.environ) -> "Rank":
        """As the launcher says in environment variables; the only process where there is none.

        Raises `UserError` that names the variable for one that makes no sense.
        """
        process, (task, tasks) = _of_launcher(environ), _of_array(environ)
        return cls(task * process.world + process.number, tasks * process.world, process.local)

    def __str__(self) -> str:
        return f"rank {self.number} of {self.world}"


class Shares(Iterator[T], Generic[T]):
    """The jobs of all ranks in the order of this one: its own share first, every `world`-th, then all others.

    The others' come in an order that each rank draws for itself, so that ranks which are ready early rarely
    take the same job. A lone process has all of them, in their order.
    """

    def __init__(
        self,
        jobs: Sequence[T],
        rank: Rank,
        *,
        places: Sequence[int] | None = None,
        left: Callable[[list[T]], list[T]] | None = None,
    ) -> None:
        """places: of the jobs, the same for every rank, also if some see fewer jobs; None: 0, 1, 2, …
        left: gives those that are not done yet; asked once the own share is done."""
        numbered = list(zip(range(len(jobs)) if places is None else places, jobs, strict=True))
        self._own = deque(job for place, job in numbered if place % rank.world == rank.number)
        self._others = [job for place, job in numbered if place % rank.world != rank.number]
        random.Random(rank.number).shuffle(self._others)
        self._left, self._is_scattered = left, False
        self._lock = Lock()

    def __next__(self) -> T:
        with self._lock:
            if self._own:
                return self._own.popleft()
            if self._left is not None:
                self._others, self._left = self._left(self._others), None
            if self._others:
                return self._others.pop()
            raise StopIteration

    def scatter(self) -> None:
        """Somebody else does this share too: go on with what is left of it in an order that nobody shares.

        To be called, from any thread, when a job turns out to be done already; counts once. Two launches of
        the same command would otherwise walk through all jobs side by side and do each of them twice.
        """
        with self._lock:
            if not self._is_scattered:
                random.shuffle(self._own)
                random.shuffle(self._others)
                self._is_scattered = True


def _of_launcher(environ: Mapping[str, str]) -> Rank:
    """Among the processes of `torchrun`, `accelerate launch` or `srun`; in this order, as they may nest."""
    if "RANK" in environ or "WORLD_SIZE" in environ:
        names = ("RANK", "WORLD_SIZE", "LOCAL_RANK")
    elif _number(environ, "SLURM_STEP_ID", RESERVED_STEP) < RESERVED_STEP:
        names = ("SLURM_PROCID", "SLURM_STEP_NUM_TASKS", "SLURM_LOCALID")
    else:
        return Rank()
    number, world, local = (_number(environ, names[0]), _number(environ, names[1]), names[2])
    if number >= world:
        raise UserError(f"{names[0]}: found {number}, wanted less than {names[1]}, which is {world}")
    return Rank(number, world, _number(environ, local, 0))


def _of_array(environ: Mapping[str, str]) -> tuple[int, int]:
    """Which task of a Slurm array, and how many there are; (0, 1) outside of one."""
    if "SLURM_ARRAY_TASK_ID" not in environ:
        return 0, 1
    place = _number(environ, "SLURM_ARRAY_TASK_ID") - _number(environ, "SLURM_ARRAY_TASK_MIN", 0)
    count = max(1, _number(environ, "SLURM_ARRAY_TASK_COUNT", 1))
    step = max(1, _number(environ, "SLURM_ARRAY_TASK_STEP", 1))
    return place // step % count, count  # in an array with gaps (1,3,9) two tasks may begin with one share


def _number(environ: Mapping[str, str], name: str, default: int | None = None) -> int:
    """The value of a variable, a number from 0 on. Raises `UserError`."""
    if default is not None and name not in environ:
        return default
    value = environ.get(name, "")
    if not value.isdecimal():
        found = f"found {value!r}" if name in environ else "missing"
        raise UserError(f"{name}: {found}, wanted a number, as torchrun and srun set it")
    return int(value)
