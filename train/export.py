"""The output folder: the trained model, and around it what makes it a pipeline.

Every other component is copied from the base repository as it is (not linked: what is saved over a copy
later must not reach the original). Encoders are files here, never loaded.
"""

import json
import shutil
from dataclasses import dataclass
from pathlib import Path

from data_tools import models
from data_tools.cache.identity import digest, hash_files
from data_tools.errors import UserError
from train.checkpoint import Saved
from train.writing import writing


@dataclass(frozen=True)
class Base:
    """The pipeline that training starts from: the files around the trained component."""

    name: str
    "As the user gave it."
    flag: str
    "The flag that gives it."
    folder: Path
    components: tuple[str, ...]
    "All of the pipeline's folders but the trained one."
    identity: str
    "Hash of the trained component's weights and config and of the scheduler, wherever they lie."

    @classmethod
    def find(cls, name: str, trained: str, output: Path, *, flag: str) -> "Base":
        """Raises `UserError` for what could not be made a pipeline of, before training rather than after."""
        folder = models.local_folder(name, (trained,), flag=flag)
        if folder.resolve() == output.resolve():
            raise UserError(
                f"--output-dir: {output} is the model that training starts from, wanted another folder"
            )
        try:
            index = json.loads((folder / "model_index.json").read_text())
        except (OSError, ValueError):
            raise UserError(
                f"{flag}: {name} has no readable model_index.json; wanted a whole pipeline"
            ) from None
        listed = [
            key for key, value in index.items() if isinstance(value, list) and value[0] and key != trained
        ]
        folder = models.local_folder(name, tuple(listed), flag=flag)
        return cls(name, flag, folder, tuple(listed), _identity(folder, trained, flag))


def export_pipeline(output: Path, base: Base, trained: str, model: Saved, card: str) -> None:
    """Write `output` so that the stock pipeline loads it: model_index.json, all components, README.md."""
    with writing(output):
        _save(model, output / trained)
        (output / "README.md").write_text(card, encoding="utf-8")
        for name in base.components:
            _copy(base.folder / name, output / name)
        shutil.copyfile(base.folder / "model_index.json", output / "model_index.json")


def _save(model: Saved, folder: Path) -> None:
    """Replace the weights in `folder`, and no other file."""
    temporary = folder.with_name(f".tmp-{folder.name}")
    shutil.rmtree(temporary, ignore_errors=True)
    try:
        model.save_pretrained(temporary)
        folder.mkdir(exist_ok=True)
        for old in folder.iterdir():
            if models.WEIGHTS.fullmatch(old.name) or old.name.endswith(".safetensors.index.json"):
                old.unlink()  # shards of an earlier export would be loaded instead
        for new in temporary.iterdir():
            new.replace(folder / new.name)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _copy(source: Path, target: Path) -> None:
    shutil.copytree(source, target, dirs_exist_ok=True, copy_function=shutil.copyfile)


def _identity(folder: Path, trained: str, flag: str) -> str:
    settings = {
        name: {
            key: v for key, v in models.config(folder / name, flag=flag).items() if not key.startswith("_")
        }
        for name in (trained, "scheduler")
    }
    return digest({"weights": hash_files(models.weight_files(folder / trained, flag=flag)), **settings})


def model_card(title: str, base: str, *, prior: str | None) -> str:
    """README.md. `prior` names the prior repository that AutoPipelineForText2Image puts before a decoder."""
    if prior is not None and Path(prior).is_dir():
        prior = str(Path(prior).resolve())  # diffusers opens it from wherever it is called
    lines = ["---", "license: apache-2.0"]
    if not Path(base).is_dir():
        lines.append(f"base_model: {base}")
    if prior is not None:
        lines += ["prior:", f"- {json.dumps(prior)}"]
    lines += ["tags:", "- text-to-image", "- kandinsky", "- diffusers", "---", "", f"# {title}", ""]
    lines.append("Fine-tuned with kandinsky-cache from precomputed embeddings; `run.json` holds all options.")
    return "\n".join(lines) + "\n"
