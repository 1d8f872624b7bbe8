"""The trainers beside diffusers' own scripts: the same pictures, model and hyperparameters, both really run.

    python -m tests.benchmarks.side_by_side --script PATH/TO/train_text_to_image_prior.py [--folder DIR]

The script comes from a checkout of diffusers (examples/kandinsky2_2/text_to_image) that fits the installed
diffusers, and runs as it is, in a process of its own with its own command line; its losses and their times
are read from the TensorBoard file it writes. It also needs the packages `datasets` and `tensorboard`.

Both sides start from the same pocket model, draw timesteps uniformly and samples in a random order of their
own, in float32; so their losses are not equal step by step, but equal in the mean if they train the same.
Each round runs the script, then the trainer, with another seed.
"""

import json
import tempfile
from pathlib import Path

import click

from data_tools import console
from data_tools.demo import write_demo_data
from data_tools.errors import UserError
from tests.benchmarks import precompute_command
from tests.benchmarks.side_by_side_report import draw, table
from tests.benchmarks.side_by_side_sides import OBJECTIVES, Objective, Setting, Sides, require_packages
from tests.pocket import build_pocket


def prepare(folder: Path, count: int) -> None:
    """`data`, an ImageFolder both sides read to the same pixels, and `models`, the pocket made for it.

    The demo's pictures lie in half a dozen formats and modes, one is broken, and the two sides differ in
    what they make of transparency. So each is written again as an upright RGB JPEG, with its first caption.
    """
    from data_tools import images
    from data_tools.sources import ImageFolder

    data = folder / "data"
    if not (data / "metadata.jsonl").exists():
        write_demo_data(folder / "demo", count, seed=0)
        source = ImageFolder.open(str(folder / "demo"))
        data.mkdir(exist_ok=True)
        rows = []
        for sample in source:
            try:
                picture = images.decode(source.read(sample))
            except ValueError:
                continue
            if sample.captions:
                rows.append({"file_name": f"{len(rows):05}.jpg", "text": sample.captions[0]})
                picture.save(data / rows[-1]["file_name"], quality=95)
        (data / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    captions = [json.loads(line)["text"] for line in (data / "metadata.jsonl").read_text().splitlines()]
    build_pocket(folder / "models", captions)
    # what AutoPipelineForText2Image, with which the scripts end, finds the prior by, as in the published card
    card = f"---\nprior:\n- {json.dumps(str((folder / 'models' / 'prior').resolve()))}\n---\n"
    (folder / "models" / "decoder" / "README.md").write_text(card)


def compare(objective: Objective, script: Path, folder: Path, setting: Setting, rounds: int) -> Sides:
    """Fill the cache once, then run both sides in turn."""
    data, models, cache = folder / "data", folder / "models", folder / f"cache-{objective.name}"
    columns = objective.columns(setting.resolution)
    given = precompute_command.arguments(data, models, cache, columns, "--dtype", "fp32")
    filled = precompute_command.run(given)["wall"] if not cache.exists() else None
    sides = Sides(objective, setting, filled)
    for seed in range(rounds):
        sides.script.append(objective.run_script(script, folder, setting, seed))
        click.echo(f"round {seed + 1} of {rounds}: {script.name} {sides.script[-1].seconds:.0f} s", err=True)
        sides.trainer.append(objective.run_trainer(cache, folder, setting, seed))
        click.echo(
            f"round {seed + 1} of {rounds}: {objective.command} {sides.trainer[-1].seconds:.0f} s", err=True
        )
    return sides


@click.command()
@click.option("--script", "--script-prior", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--folder", type=click.Path(file_okay=False, path_type=Path), help="Keep everything there.")
@click.option("--updates", type=click.IntRange(min=20), default=500, show_default=True)
@click.option("--rounds", type=click.IntRange(min=1), default=2, show_default=True, help="Of both sides.")
@click.option("--batch-size", type=click.IntRange(min=1), default=16, show_default=True)
@click.option("--learning-rate", type=float, default=3e-4, show_default=True)
@click.option("--pictures", type=click.IntRange(min=4), default=400, show_default=True)
def main(
    script: Path | None,
    folder: Path | None,
    updates: int,
    rounds: int,
    batch_size: int,
    learning_rate: float,
    pictures: int,
) -> None:
    """Write FOLDER/side_by_side_prior.png and .md, and print the latter."""
    scripts = {name: path for name, path in {"prior": script}.items() if path is not None}
    if not scripts:
        raise UserError("--script: missing; wanted diffusers' train_text_to_image_prior.py")
    require_packages()
    setting = Setting(updates, batch_size, learning_rate)
    with tempfile.TemporaryDirectory() as temporary:
        place = (folder or Path(temporary)).resolve()
        place.mkdir(parents=True, exist_ok=True)
        prepare(place, pictures)
        for name, path in scripts.items():
            sides = compare(OBJECTIVES[name], path.resolve(), place, setting, rounds)
            text = table(sides)
            (place / f"side_by_side_{name}.md").write_text(text)
            draw(sides, place / f"side_by_side_{name}.png")
            click.echo(text)
            if folder is not None:
                click.echo(f"picture: {place / f'side_by_side_{name}.png'}")


if __name__ == "__main__":
    console.run(main)
