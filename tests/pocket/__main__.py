"""`python -m tests.pocket DIR [--captions FILE_OR_FOLDER]`: write the pocket, print its costs."""

from pathlib import Path

import click


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("folder", type=click.Path(file_okay=False, path_type=Path))
@click.option(
    "--captions",
    type=click.Path(exists=True, path_type=Path),
    help="A metadata.jsonl, or the folder that holds one, to train the tokenizer on. Default: 50 of its own.",
)
@click.option("--seed", default=0, show_default=True, help="Seed of every weight.")
def main(folder: Path, captions: Path | None, seed: int) -> None:
    """Write a small Kandinsky 2.2 with random weights to FOLDER/prior and FOLDER/decoder."""
    from tests.pocket.build import build_pocket
    from tests.pocket.captions import CAPTIONS, read_captions
    from tests.pocket.flops import cost_table

    try:
        build_pocket(folder, read_captions(captions) if captions else CAPTIONS, seed)
    except (ValueError, OSError) as error:
        raise click.ClickException(str(error)) from error
    click.echo(f"{folder / 'prior'} and {folder / 'decoder'}: pocket Kandinsky 2.2, seed {seed}\n")
    click.echo(cost_table(seed))


if __name__ == "__main__":
    main(prog_name="python -m tests.pocket")
