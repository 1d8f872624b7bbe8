"""The output folder: the trained model, and around it what makes it a pipeline.

Every other component is copied from the base repository as it is (not linked: what is saved over a copy
later must not reach the original). Encoders are files here, never loaded.
"""

import json
import shutil
from dataclasses import dataclass
from pathlib import Path

from data_tools import models
from data_tools.errors import UserError
from train.checkpoint import Saveable


@dataclass(frozen=True)
class Base:
    """The pipeline that training starts from: the files around the trained component."""

    folder: Path
    components: tuple[str, ...]
    "All of the pipeline's folders but the trained one."

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
        return cls(models.local_folder(name, tuple(listed), flag=flag), tuple(listed))


def export_pipeline(output: Path, base: Base, trained: str, model: Saveable, card: str) -> None:
    """Write `output` so that the stock pipeline loads it: model_index.json, all components, README.md."""
    temporary = output / f".tmp-{trained}"
    shutil.rmtree(temporary, ignore_errors=True)
    model.save_pretrained(temporary)
    shutil.rmtree(output / trained, ignore_errors=True)
    temporary.rename(output / trained)
    (output / "README.md").write_text(card, encoding="utf-8")
    for name in base.components:
        shutil.copytree(base.folder / name, output / name, dirs_exist_ok=True, copy_function=shutil.copyfile)
    shutil.copyfile(base.folder / "model_index.json", output / "model_index.json")


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
