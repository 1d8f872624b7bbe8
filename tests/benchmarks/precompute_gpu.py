"""`make bench-precompute-gpu`: `precompute` with encoders of the published sizes on a CUDA GPU.

    python -m tests.benchmarks.precompute_gpu [--precision fp16|bf16] [--resolution PX] [--samples N]

Weights are random: drawn on the GPU, saved in half precision to a temporary folder (5 GB; in memory where
/dev/shm has room) and read back by the command as any others. First what bounds it: matrix products, and
decoding in all threads; then each encoder alone on batches that lie on the GPU; then the command, column by
column and whole. `--device cpu --small` runs the same on small encoders.
"""

import json
import os
import shutil
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import click

from data_tools import console
from data_tools.errors import UserError

NEEDED = 8 << 30
"Bytes, of weights and data."


def tables(found: dict[str, Any]) -> str:
    """Markdown."""
    peak, decoded = found["matrix_flops"], found["decoding_per_second"]
    lines = [
        f"{found['device']}, {found['precision']}: matrix products {peak / 1e12:,.1f} TFLOP/s",
        f"decoding with nothing else to do: {decoded:,.0f} pictures/s\n",
        "| encoder alone | samples/s | TFLOP/s | of matrix products | peak memory |",
        "|---|---:|---:|---:|---:|",
    ]
    for name, each in found["alone"].items():
        cells = [f"{each['samples_per_second']:,.1f}", f"{each['flops'] / 1e12:,.2f}"]
        cells += [f"{each['flops'] / peak:.0%}", f"{each['peak_bytes'] / 1e9:.1f} GB"]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    lines.append(
        "\n| `precompute` | samples/s | of bare | wanted | waited for pictures, writer | peak memory |"
    )
    lines.append("|---|---:|---:|---:|---:|---:|")
    for name, each in found["command"].items():
        missed = "" if each["of_bare"] >= 0.9 else ", **missed**"
        waited = f"{each['waited_for_pictures']:.0%}, {each['waited_for_writer']:.0%}"
        lines.append(
            f"| {name} | {each['samples_per_second']:,.1f} | {each['of_bare']:.2f} | 0.9{missed} "
            f"| {waited} | {each['peak_bytes'] / 1e9:.1f} GB |"
        )
    return "\n".join(lines)


def _roomy() -> str | None:
    """A folder in memory, if there is one with room."""
    shared = Path("/dev/shm")
    return str(shared) if shared.is_dir() and shutil.disk_usage(shared).free > NEEDED else None


@click.command(name="bench-precompute-gpu", context_settings=console.CONTEXT)
@click.option("--device", default="cuda", show_default=True)
@click.option("--precision", type=click.Choice(["fp16", "bf16", "fp32"]), default="fp16", show_default=True)
@click.option("--resolution", default=768, show_default=True, help="Of MoVQ.")
@click.option("--samples", default=2048, show_default=True, help="Pictures of a measurement.")
@click.option("--batch-size", default=32, show_default=True)
@click.option("--workers", default=os.cpu_count() or 1, show_default="CPU cores", help="Threads that decode.")
@click.option("--compile", "compiled", is_flag=True, help="Both sides by torch.compile.")
@click.option("--small", is_flag=True, help="Encoders and pictures for a machine without a GPU.")
@click.option("--json", "as_json", type=click.Path(path_type=Path), help="Also write all numbers there.")
@click.option("--folder", type=click.Path(path_type=Path), help="For weights and data; deleted afterwards.")
def main(
    device: str,
    precision: str,
    resolution: int,
    samples: int,
    batch_size: int,
    workers: int,
    compiled: bool,
    small: bool,
    as_json: Path | None,
    folder: Path | None,
) -> None:
    """Print what bounds `precompute` on this GPU, and what it does."""
    import torch

    if device.startswith("cuda") and not torch.cuda.is_available():
        raise UserError(f"--device: {device}: there is no CUDA GPU; to try the script: --device cpu --small")
    from tests.benchmarks import precompute_bare as bare
    from tests.benchmarks import precompute_models as models
    from tests.benchmarks.precompute_gpu_measure import DTYPES, Bench, measure

    chosen = models.TINY if small else replace(models.PUBLISHED, resolution=resolution)
    settings = bare.Settings(device, DTYPES[precision], batch_size, compiled)
    flags = ("--workers", str(workers), *(["--compile"] if compiled else []))
    place = Path(tempfile.mkdtemp(dir=folder or _roomy()))
    try:
        found = measure(Bench(place, chosen, settings, precision, flags), samples, workers)
    finally:
        shutil.rmtree(place)
    if as_json is not None:
        as_json.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    click.echo(tables(found))


if __name__ == "__main__":
    console.run(main)
