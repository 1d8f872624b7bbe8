"""`precompute`: run the frozen encoders once over a source, into a cache."""

from typing import TYPE_CHECKING, Any

import click

from data_tools import console, models
from data_tools.errors import UserError
from precompute.flags import PRECISION, run_options

if TYPE_CHECKING:
    from precompute.options import RunOptions


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


def _check_redo(redo: tuple[str, ...], wanted: tuple[str, ...], repair: bool) -> None:
    for name in redo:
        if name not in wanted:
            raise UserError(f"--redo: found {name!r}, wanted a column of this run: {', '.join(wanted)}")
    if redo and repair:
        raise UserError("--redo: makes a column anew, --repair mends it as it was; give one of them")


def _device(name: str | None) -> str:
    """The device asked for, or the best there is. Raises `UserError` for one that is not there."""
    import torch

    name = name or ("cuda" if torch.cuda.is_available() else "cpu")
    try:
        torch.empty(0, device=name)
    except (RuntimeError, AssertionError) as err:  # torch raises either for a device that is not there
        raise UserError(f"--device: {name}: {str(err).splitlines()[0]}") from None
    return name


@click.command(name="precompute", context_settings=console.CONTEXT)
@run_options
@click.option("-n", "--dry-run", is_flag=True, help="Print what would be done; write nothing.")
def precompute(dry_run: bool, **given: Any) -> None:
    """Run the frozen encoders of Kandinsky 2.2 once over pictures and captions, into a cache.

    To resume an interrupted run, give the same command again; it does only what is missing.

    \b
    precompute --data pictures/ --cache shards/ --resolution 768
    """
    wanted = _wanted(given.pop("columns"), given.pop("resolution"))
    _check_redo(given["redo"], wanted, given["repair"])
    if given["prompts"] and "text" not in wanted:
        raise UserError(f"--prompts: wants the column text, and --columns is {','.join(wanted)}")
    if given["tar_block"] and given["format"] != "webdataset":
        raise UserError(f"--tar-block: wants --format webdataset, found {given['format']}")
    from precompute.run import run

    click.echo(run(_resolved(wanted, given), dry_run=dry_run))


def _resolved(columns: tuple[str, ...], given: dict[str, Any]) -> "RunOptions":
    """The flags as given → the options of the run. Raises `UserError` for a device that is not there."""
    from data_tools.sources.sample import SourceOptions
    from precompute.options import EncoderOptions, RunOptions

    device, precision = _device(given.pop("device")), given.pop("precision")
    encoders = EncoderOptions(
        device=device,
        precision=PRECISION[precision or ("fp32" if device == "cpu" else "fp16")],
        dtype=PRECISION[given.pop("dtype")],
        alpha=given.pop("alpha"),
        icc=given.pop("icc"),
        prior_record=models.record(given["prior_model"], given["cache"]),
        decoder_record=models.record(given["decoder_model"], given["cache"]),
    )
    captions = given.pop("caption_column")
    source = SourceOptions(
        caption_columns=captions or SourceOptions.caption_columns,
        **{name: given.pop(name) for name in ("image_column", "caption_lines", "lenient")},
    )
    return RunOptions(columns=columns, encoders=encoders, source=source, **given)


def main() -> None:
    console.run(precompute)
