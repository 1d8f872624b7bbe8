"""Peak memory of a training process, each in a process of its own.

    python -m tests.benchmarks.train_prior_memory train-prior FLAGS_OF_TRAIN_PRIOR…
    python -m tests.benchmarks.train_prior_memory online MODELS PICTURES BATCH_SIZE
    python -m tests.benchmarks.train_prior_memory imports

runs the trainer, or some updates of the reference with its encoders, or only imports what both need, and
prints the most bytes of memory that the process has held. That is VmHWM of its own memory: `ru_maxrss` of a
child also counts what its parent held when it was started.
"""

import subprocess
import sys
from pathlib import Path

import torch

from tests.train.runs import ROOT, environment

UPDATES = 3


def peak(*words: object) -> int:
    """Bytes, of a process that does what is written above."""
    program = [sys.executable, "-m", "tests.benchmarks.train_prior_memory", *map(str, words)]
    done = subprocess.run(program, cwd=ROOT, env=environment(), capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(done.stderr[-2000:])
    return int(done.stdout.splitlines()[-1])


def _online(models: Path, pictures: Path, batch_size: int) -> None:
    from tests.benchmarks.train_prior_data import online

    side = online(models, pictures, num_preloaded=batch_size)
    for step in range(UPDATES):
        side.update(step, batch_size)


def _held() -> int:
    status = Path("/proc/self/status").read_text(encoding="ascii")
    return 1024 * int(status.partition("VmHWM:")[2].split()[0])


def main() -> None:
    torch.set_num_threads(1)
    side, *words = sys.argv[1:]
    if side == "train-prior":
        from train.prior import train_prior

        train_prior.main(words, standalone_mode=False)
    elif side == "online":
        _online(Path(words[0]), Path(words[1]), int(words[2]))
    else:
        from diffusers import PriorTransformer  # noqa: F401
    print(_held())


if __name__ == "__main__":
    main()
