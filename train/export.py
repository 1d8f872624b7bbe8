"""The output folder: the trained model, and around it what makes it a pipeline.

Every other component is copied from the base repository as it is (not linked: what is saved over a copy
later must not reach the original). Encoders are files here, never loaded.
"""

import json
import shutil
from pathlib import Path

from data_tools import models
from train.checkpoint import Saveable


def export_pipeline(output: Path, base: str, trained: str, model: Saveable, *, flag: str, card: str) -> None:
    """Write `output` so that the stock pipeline loads it: model_index.json, all components, README.md.

    `trained` is the component that `model` replaces; `flag` names `base` in errors.
    """
    temporary = output / f".tmp-{trained}"
    shutil.rmtree(temporary, ignore_errors=True)
    model.save_pretrained(temporary)
    shutil.rmtree(output / trained, ignore_errors=True)
    temporary.rename(output / trained)
    (output / "README.md").write_text(card, encoding="utf-8")
    index = json.loads((models.local_folder(base, (), flag=flag) / "model_index.json").read_text())
    others = tuple(
        name for name, value in index.items() if isinstance(value, list) and value[0] and name != trained
    )
    folder = models.local_folder(base, others, flag=flag)
    if folder.resolve() == output.resolve():
        return
    for name in others:
        shutil.copytree(folder / name, output / name, dirs_exist_ok=True, copy_function=shutil.copyfile)
    shutil.copyfile(folder / "model_index.json", output / "model_index.json")


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
