"""Peak memory of `precompute` by the number of samples, each run in a process of its own.

    python -m tests.benchmarks.precompute_memory FLAGS_OF_PRECOMPUTE…

runs `precompute` and prints the most bytes of memory that the process has held (VmHWM).
"""

import subprocess
import sys
from pathlib import Path

from tests.benchmarks import precompute_command as command
from tests.benchmarks import precompute_data as data
from tests.benchmarks import precompute_models as models

COUNTS = (240, 2400)
PART_SIZE = 48
BATCH_SIZE = 8


def measure(folder: Path) -> list[int]:
    """Bytes at the peak, for each of `COUNTS`; cheap encoders, pictures of 256 x 256 px."""
    captions = data.captions(COUNTS[-1])
    models.write_models(folder / "models", models.TINY, captions)
    data.write_data(folder / "data", captions, distinct=64, side=256)
    return [_peak(folder, count) for count in COUNTS]


def _peak(folder: Path, count: int) -> int:
    columns = ("image", "text", f"latents@{models.TINY.resolution}")
    sizes = ("--max-samples", count, "--part-size", PART_SIZE, "--batch-size", BATCH_SIZE, "--device", "cpu")
    cache = folder / f"cache-{count}"
    given = command.arguments(folder / "data", folder / "models", cache, columns, *sizes)
    program = [sys.executable, "-m", "tests.benchmarks.precompute_memory"]
    done = subprocess.run([*program, *given], capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(done.stderr[-2000:])
    return int(done.stdout.splitlines()[-1])


def _held() -> int:
    status = Path("/proc/self/status").read_text(encoding="ascii")
    return 1024 * int(status.partition("VmHWM:")[2].split()[0])


def main() -> None:
    import torch

    torch.set_num_threads(1)
    command.run(sys.argv[1:])
    print(_held())


if __name__ == "__main__":
    main()
