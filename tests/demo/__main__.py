"""`python -m tests.demo DIR`: pictures and figures of what `make demo` has made in DIR."""

from pathlib import Path

import click


@click.command()
@click.argument("folder", type=click.Path(exists=True, file_okay=False, path_type=Path))
def main(folder: Path) -> None:
    """Draw with FOLDER/runs into FOLDER/samples.png and print the figures."""
    import warnings

    import diffusers
    import transformers

    from tests.demo.draw import draw_prompts, write_sheet
    from tests.demo.speedup import measure
    from tests.demo.table import figures

    diffusers.utils.logging.set_verbosity_error()
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    warnings.filterwarnings("ignore", category=FutureWarning, module="diffusers")
    prior, decoder = folder / "runs" / "prior", folder / "runs" / "decoder"
    write_sheet(draw_prompts(prior, decoder, resolution=128), folder / "samples.png")
    speedups = measure(
        folder / "data", folder / "shards", folder / "models" / "prior", folder / "models" / "decoder", 128
    )
    click.echo(figures(folder / "shards", prior, decoder, speedups))
    click.echo(f"\npictures: {folder / 'samples.png'}   loss curves: {prior}/loss.png {decoder}/loss.png")


if __name__ == "__main__":
    main(prog_name="python -m tests.demo")
