"""`data-tools`: look at a cache, make demo data. Nothing in here needs torch."""

import json
from pathlib import Path

import click

from data_tools import console


@click.group(name="data-tools", context_settings=console.CONTEXT, no_args_is_help=False)
def cli() -> None:
    """Look after caches of Kandinsky 2.2 embeddings and latents."""


@cli.command()
@click.argument("cache", type=click.Path(path_type=Path), metavar="CACHE")
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of a table.")
def inspect(cache: Path, as_json: bool) -> None:
    """Columns, counts, bytes, identities and rejects of a cache."""
    from data_tools.cache import report
    from data_tools.cache.manifest import Cache
    from data_tools.cache.store import LocalStore

    found = report.inspect(Cache.open(LocalStore(cache), flag="CACHE"))
    click.echo(json.dumps(found, indent=1, ensure_ascii=False) if as_json else report.as_text(found))


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
