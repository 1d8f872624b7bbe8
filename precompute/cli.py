"""`precompute`: run the frozen encoders once over a source, into a cache."""

import json
import sys
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

from data_tools import console, models
from data_tools.errors import DataFault, UserError
from precompute.engine_flags import ENGINES_OF, engine_options
from precompute.flags import PRECISION, run_options

if TYPE_CHECKING:
    from precompute.options import RunOptions
    from precompute.ranks import Rank
    from precompute.run import Submit


def _wanted(columns: tuple[str, ...] | None, resolutions: tuple[int, ...]) -> tuple[str, ...]:
    """The columns of this run. Raises `UserError` for flags that contradict each other or the models."""
    latents = tuple(f"latents@{side}" for side in dict.fromkeys(resolutions))
    if columns and not set(latents) <= set(columns):
        raise UserError(f"--resolution: {', '.join(latents)} is not among --columns {','.join(columns)}")
    wanted = columns or ("image", "text", *(latents or ("latents@512",)))
    for name in wanted:
        side = int(name.partition("@")[2] or 64)
        if side % 64 or not side:
            raise UserError(
                f"--resolution: found {side}, wanted a multiple of 64 (MoVQ and UNet halve it 6 times)"
            )
    return wanted


def _device(name: str | None, rank: "Rank", *, elsewhere: bool) -> str:
    """The device asked for, or the best there is: of several GPUs, each of a machine's ranks has its own.

    `elsewhere`: on machines with GPUs, whatever this one has. Raises `UserError` for one that is not there.
    """
    if elsewhere:
        return name or "cuda"
    import torch

    if name in (None, "cuda") and torch.cuda.is_available():
        name = f"cuda:{rank.local % torch.cuda.device_count()}" if rank.world > 1 else "cuda"
    name = name or "cpu"
    try:
        torch.empty(0, device=name)
    except (RuntimeError, AssertionError) as err:  # torch raises either for a device that is not there
        raise UserError(f"--device: {name}: {str(err).splitlines()[0]}") from None
    return name


@click.command(name="precompute", context_settings=console.CONTEXT)
@run_options
@engine_options
@click.option("-n", "--dry-run", is_flag=True, help="Print what would be done; write nothing.")
def precompute(dry_run: bool, status: bool, as_json: bool, **given: Any) -> None:
    """Run the frozen encoders of Kandinsky 2.2 once over pictures and captions, into a cache.

    To resume an interrupted run, give the same command again; it does only what is missing.

    \b
    precompute --data pictures/ --cache shards/ --resolution 768
    """
    if status:
        click.echo(_status(given["cache"], as_json=as_json))
        return
    if not given["data"]:
        raise UserError("--data: missing; see --help")
    _refuse_idle(given["engine"], dry_run=dry_run, is_task=given.pop("as_task"))
    count, tolerance = given.pop("audit"), given.pop("tolerance")
    of_slurm = {name: given.pop(name) for name in list(given) if name.startswith("slurm_")}
    options = _resolved(_wanted(given.pop("columns"), given.pop("resolution")), given)
    _check(options)
    if count is None and tolerance is not None:
        raise UserError("--tolerance: is for --audit COUNT, which is not given")
    if count is not None:
        _check_audit(options, dry_run=dry_run)
        from precompute.audit import audit

        closing = audit(options, count, tolerance)
    else:
        from precompute.run import run

        submit = _submitter(options, of_slurm) if options.engine == "slurm" and not dry_run else None
        closing = run(options, dry_run=dry_run, submit=submit)
    click.echo(json.dumps(closing.to_json()) if as_json else "\n".join(closing.lines))
    if closing.fault:
        raise DataFault(closing.fault)


def _refuse_idle(engine: str, *, dry_run: bool, is_task: bool) -> None:
    """Raises `UserError` for a flag that was given and has nothing to say. `is_task`: of a Slurm job, which
    has its submitter's flags."""
    context = click.get_current_context()
    given = {name for name in context.params if context.get_parameter_source(name) != ParameterSource.DEFAULT}
    if "tflops" in given and not dry_run:
        raise UserError("--tflops: is for --dry-run, which is not given")
    for name, engines in {} if is_task else ENGINES_OF.items():
        if name in given and engine not in engines:
            wanted = " or ".join(engines)
            raise UserError(f"--{name.replace('_', '-')}: is for --engine {wanted}, found {engine}")


def _check_audit(options: "RunOptions", *, dry_run: bool) -> None:
    """Raises `UserError` for options that ask for something else at once."""
    others = {"dry-run": dry_run, "redo": options.redo, "repair": options.repair, "prompts": options.prompts}
    others |= {"retry-rejects": options.retry_rejects, "engine": options.engine != "local"}
    if given := [f"--{name}" for name, value in others.items() if value]:
        raise UserError(f"--audit: only looks, and here; leave {given[0]} out")


def _status(cache: str, *, as_json: bool) -> str:
    """How far a cache is. Raises `UserError` where there is none."""
    from data_tools.cache import status
    from data_tools.cache.manifest import Cache
    from data_tools.cache.store import open_store

    found = status.status(Cache.open(open_store(cache)))
    return json.dumps(found, indent=1) if as_json else status.as_text(found)


def _submitter(options: "RunOptions", of_slurm: dict[str, Any]) -> "Submit":
    """What has so many parts done by Slurm. Raises `UserError` if this machine cannot submit jobs."""
    from precompute.engines import slurm

    slurm.check(repair=options.repair)
    about = slurm.SlurmOptions(
        tasks=options.tasks or 1,
        gpus_per_task=options.gpus_per_task,
        cpus_per_task=options.cpus_per_task,
        partition=of_slurm["slurm_partition"],
        minutes=of_slurm["slurm_time"],
        more=of_slurm["slurm_option"],
        logs=of_slurm["slurm_logs"],
    )
    given, encoders = sys.argv[1:], options.encoders
    arguments = slurm.task_arguments(given, device=encoders.device, precision=encoders.precision)
    return lambda parts: slurm.submit(arguments, about, cache=options.cache, parts=parts)


def _check(options: "RunOptions") -> None:
    """Raises `UserError` for options that contradict each other."""
    for name in options.redo:
        if name not in options.columns:
            columns = ", ".join(options.columns)
            raise UserError(f"--redo: found {name!r}, wanted a column of this run: {columns}")
    if options.redo and options.repair:
        raise UserError("--redo: makes a column anew, --repair mends it as it was; give one of them")
    if options.prompts and "text" not in options.columns:
        raise UserError(f"--prompts: wants the column text, and --columns is {','.join(options.columns)}")
    if options.tar_block and options.format != "webdataset":
        raise UserError(f"--tar-block: wants --format webdataset, found {options.format}")
    if options.repair and options.rank.world > 1:
        raise UserError(f"--repair: wants one process, found {options.rank}; give it alone")
    if options.engine == "ray":
        from precompute.engines import ray

        ray.check()


def _resolved(columns: tuple[str, ...], given: dict[str, Any]) -> "RunOptions":
    """The flags as given → the options of the run. Raises `UserError` for a device that is not there."""
    from data_tools.sources.sample import SourceOptions
    from precompute.options import EncoderOptions, RunOptions
    from precompute.ranks import Rank

    rank = Rank.of_environment() if given["engine"] == "local" else Rank()
    elsewhere = given["engine"] != "local" and given["gpus_per_task"] > 0
    device, precision = _device(given.pop("device"), rank, elsewhere=elsewhere), given.pop("precision")
    encoders = EncoderOptions(
        device=device,
        precision=PRECISION[precision or ("fp32" if device == "cpu" else "fp16")],
        dtype=PRECISION[given.pop("dtype")],
        prior_record=models.record(given["prior_model"], given["cache"]),
        decoder_record=models.record(given["decoder_model"], given["cache"]),
        **{name: given.pop(name) for name in ("alpha", "icc", "flip", "buckets", "attention", "compile")},
    )
    captions = given.pop("caption_column")
    source = SourceOptions(
        caption_columns=captions or SourceOptions.caption_columns,
        **{name: given.pop(name) for name in ("image_column", "caption_lines", "lenient")},
    )
    return RunOptions(columns=columns, encoders=encoders, source=source, rank=rank, **given)


def main() -> None:
    console.run(precompute)
