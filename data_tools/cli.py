"""`data-tools`: look after caches, make demo data. Nothing in here needs torch."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from data_tools import console

if TYPE_CHECKING:
    from data_tools.cache.manifest import Cache

DTYPES = {"fp16": "float16", "bf16": "bfloat16", "fp32": "float32"}

cache_argument = click.argument("cache", metavar="CACHE")
dest_argument = click.argument("dest", metavar="DEST")
format_option = click.option(
    "--format",
    type=click.Choice(["zarr", "webdataset"]),
    help="Container of the parts.  [default: that of the source]",
)
tar_block_option = click.option(
    "--tar-block",
    type=click.IntRange(min=0),
    default=0,
    metavar="ROWS",
    help="Rows in each member of a tar.  [default: 1 to 2.5 MB]",
)
part_size_option = click.option(
    "--part-size",
    type=click.IntRange(min=1),
    metavar="SAMPLES",
    help="Samples in each part.  [default: that of the source]",
)


def _names(_: click.Context, __: click.Parameter, value: str | None) -> tuple[str, ...] | None:
    """Names separated by commas."""
    return None if value is None else tuple(dict.fromkeys(name.strip() for name in value.split(",")))


def _open(place: str, flag: str) -> "Cache":
    from data_tools.cache.manifest import Cache
    from data_tools.cache.store import open_store

    return Cache.open(open_store(place, flag=flag), flag=flag)


@click.group(name="data-tools", context_settings=console.CONTEXT, no_args_is_help=False)
def cli() -> None:
    """Look after caches of Kandinsky 2.2 embeddings and latents."""


@cli.command()
@cache_argument
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of a table.")
def inspect(cache: str, as_json: bool) -> None:
    """Columns, counts, bytes, identities, token lengths, shapes and rejects of a cache.

    Answers at once: reads the plan and each column's latest generation, and of what was committed since the
    commit records and extent indices.
    """
    from data_tools.cache import report

    found = report.inspect(_open(cache, "CACHE"))
    click.echo(json.dumps(found, indent=1, ensure_ascii=False) if as_json else report.as_text(found))


@cli.command()
@cache_argument
@click.option("--full", is_flag=True, help="Read everything: hashes, the crc32c of every row, finite values.")
def verify(cache: str, full: bool) -> None:
    """Is everything in a cache still what was committed? Lists all faults; exit code 1 if there are any.

    Without --full: that plan, sample tables, declarations, commit records and extent indices are sound, and
    every object is there with its size.
    """
    from data_tools.cache import check
    from data_tools.cache.report import human_bytes
    from data_tools.errors import DataFault

    found = check.verify(_open(cache, "CACHE"), full=full)
    for fault in found.faults:
        click.echo(str(fault))
    if found.faults:
        raise DataFault(check.remedies(found, cache))
    read = "all read" if full else "sizes and indices; --full reads everything"
    size = f"{found.objects} objects, {human_bytes(found.num_bytes)}"
    missing = f"; {found.missing} parts still to encode" if found.missing else ""
    click.echo(f"{cache}: {found.parts} parts, {size} ({read}): no faults{missing}")


@cli.command()
@cache_argument
@click.option(
    "--older-than",
    type=click.FloatRange(min=0),
    default=24.0,
    show_default=True,
    metavar="HOURS",
    help="Leave alone what was changed since: a run may be writing it.",
)
@click.option("-n", "--dry-run", is_flag=True, help="Print what would be removed; remove nothing.")
def gc(cache: str, older_than: float, dry_run: bool) -> None:
    """Remove what no plan, declaration or commit record names.

    Attempts that were never committed or were replaced by a repair, files of killed writers, sample tables of
    no plan, all but the two newest generations, and what a column was before it was made anew (from that
    moment --older-than counts: give more than your longest training run). What a killed upload leaves in an
    object store is no object yet: a lifecycle rule of the bucket (incomplete multipart uploads) removes it.
    """
    from data_tools.cache import gc
    from data_tools.cache.report import human_bytes

    removed, young = gc.collect(
        _open(cache, "CACHE"), older_than_hours=older_than, dry_run=dry_run, flag="CACHE"
    )
    for garbage in removed:
        names = ", ".join(f"{cache.rstrip('/')}/{top}" for top in garbage.tops)
        click.echo(f"{human_bytes(garbage.num_bytes):>9}  {names}  ({garbage.why})")
    size = human_bytes(sum(garbage.num_bytes for garbage in removed))
    later = f"; {len(young)} are younger than {older_than:g} hours and stay" if young else ""
    click.echo(f"{cache}: {size} in {len(removed)} items {'would be ' if dry_run else ''}removed{later}")


@cli.command()
@click.argument("source", metavar="SOURCE")
@dest_argument
@format_option
@tar_block_option
@click.option("--dtype", type=click.Choice([*DTYPES]), help="As stored.  [default: that of the source]")
@part_size_option
def convert(
    source: str, dest: str, format: str | None, tar_block: int, dtype: str | None, part_size: int | None
) -> None:
    """Copy SOURCE into the new cache DEST, in another container, stored dtype or part size.

    With the dtype unchanged every row stays bit for bit the same. Another one rounds to the nearest value
    and stops at one it cannot hold; rounding that has happened is not undone by a wider dtype. To resume,
    give the same command again.
    """
    from data_tools.cache import convert
    from data_tools.cache.store import open_store

    options = convert.ConvertOptions(format, tar_block, DTYPES[dtype] if dtype else None, part_size)
    click.echo(convert.convert(_open(source, "SOURCE"), open_store(dest, flag="DEST"), options))


@cli.command()
@dest_argument
@click.argument("sources", nargs=-1, required=True, metavar="SOURCE...")
@click.option(
    "--columns", callback=_names, metavar="NAMES", help="Only these, separated by commas.  [default: all]"
)
@format_option
@tar_block_option
@part_size_option
def merge(dest: str, sources: tuple[str, ...], **options: Any) -> None:
    """Copy several caches, made by the same encoders in the same way, into the new cache DEST.

    A sample that several list is kept once. Null conditions come from the first source; a line says whether
    the others' are bit-equal. To resume, give the same command again.
    """
    from data_tools.cache import merge
    from data_tools.cache.store import open_store

    caches = [_open(source, "SOURCE") for source in sources]
    click.echo(merge.merge(caches, open_store(dest, flag="DEST"), merge.MergeOptions(**options)))


@cli.command()
@cache_argument
@dest_argument
@click.option(
    "--columns", callback=_names, metavar="NAMES", help="Only these, separated by commas.  [default: all]"
)
@click.option(
    "--samples-per-tar", type=click.IntRange(min=1), default=2048, show_default=True, metavar="SAMPLES"
)
def export(cache: str, dest: str, columns: tuple[str, ...] | None, samples_per_tar: int) -> None:
    """Write classic webdataset tars, one sample a key, into DEST, for other programs to read.

    \b
    <key>.json                     key (as in the source), captions, place
    <key>.<field>.npy              one array a field; bfloat16 as float32
    <key>.prompt_embeds.npy        (captions, D), also of one caption
    <key>.text_encoder_hidden_states.npy
                                   (tokens, D) of all captions end to end; caption j has rows
    <key>.text_encoder_hidden_states_offsets.npy
                                   offsets[j] to offsets[j + 1] - 1
    null/<field>.npy               the null condition

    Dots, slashes and the like in a key are percent-encoded. To resume, give the same command again.
    """
    from data_tools.cache import export
    from data_tools.cache.store import open_store

    options = export.ExportOptions(columns, samples_per_tar)
    click.echo(export.export(_open(cache, "CACHE"), open_store(dest, flag="DEST"), options))


@cli.command("demo-data")
@click.argument("folder", type=click.Path(path_type=Path), metavar="FOLDER")
@click.option("--count", type=click.IntRange(min=8), default=400, show_default=True, metavar="PICTURES")
@click.option("--seed", type=int, default=0, show_default=True)
def demo_data(folder: Path, count: int, seed: int) -> None:
    """Draw OpenMoji pictures with captions into FOLDER, as a Hugging Face ImageFolder (extra `demo`)."""
    from data_tools.demo import write_demo_data

    written = write_demo_data(folder, count=count, seed=seed)
    click.echo(f"{folder}: {written} pictures; OpenMoji, CC BY-SA 4.0, see {folder}/LICENSE.txt")


def main() -> None:
    console.run(cli)
