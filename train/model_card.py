"""README.md of the finished folder: what the model was trained from and how, and code that loads it.

Everything in it comes from the folder: run.json, metrics.jsonl and the pictures of the last validation.
"""

import json
import re
from pathlib import Path
from typing import Any
from urllib.parse import quote

from train.export import Base
from train.lora import FILE, MODELS
from train.metrics import read_metrics

TITLES = {"prior": "Kandinsky 2.2 prior", "unet": "Kandinsky 2.2 decoder"}
PIPELINES = {"prior": "KandinskyV22PriorPipeline", "unet": "KandinskyV22Pipeline"}
LICENSE = "apache-2.0"
"Of the Kandinsky 2.2 weights."


def model_card(output: Path, base: Base, trained: str, prior: str | None = None) -> str:
    """The text of README.md. `trained` is the component: `prior` or `unet`.

    `prior` names the prior repository that AutoPipelineForText2Image puts before a decoder.
    """
    record = json.loads((output / "run.json").read_text())
    title = TITLES[trained]
    if base.save == "trained-only":
        prior = None  # only a whole pipeline is asked for it
    sections = [
        _front_matter(base, prior, record),
        f"# {title}, fine-tuned",
        f"{title}, trained from {_origin(base)} with kandinsky-cache on cached outputs of the encoders.",
        "\n".join(["| | |", "|---|---|", *(f"| {k} | {v} |" for k, v in _facts(output, record).items())]),
        "`run.json` holds all options, the identity of the cache and the versions of the libraries, "
        "`metrics.jsonl` the losses.",
        *_pictures(output),
        "## Loading",
        *_loading(base, trained, record),
    ]
    return "\n\n".join(sections) + "\n"


def _front_matter(base: Base, prior: str | None, record: dict[str, Any]) -> str:
    lines = ["---", f"license: {_license(base.folder)}", "library_name: diffusers"]
    origin = _address(base.name, record)
    if not Path(origin).is_dir():
        lines.append(f"base_model: {origin}")
    if prior is not None:
        lines += ["prior:", f"- {json.dumps(_address(prior, record))}"]
    tags = ["text-to-image", "kandinsky", "diffusers", "diffusers-training"]
    tags += ["lora"] if record["lora"] else []
    return "\n".join([*lines, "tags:", *(f"- {tag}" for tag in tags), "---"])


def _address(name: str, record: dict[str, Any]) -> str:
    """A repository for `from_pretrained` of whoever reads the card.

    A folder by its absolute path, since diffusers opens it from wherever it is called; on a card that is
    pushed, a folder of ours by the name that it was pushed under itself.
    """
    folder = Path(name)
    if not folder.is_dir():
        return name
    run = folder / "run.json"
    known = json.loads(run.read_text()) if record.get("hub_repository") and run.is_file() else {}
    return known.get("hub_repository") or str(folder.resolve())


def _license(folder: Path) -> str:
    """What the base's own README.md says, if it came with one."""
    readme = folder / "README.md"
    text = readme.read_text(encoding="utf-8", errors="replace") if readme.is_file() else ""
    front = text.split("---")[1] if text.startswith("---") else ""
    found = re.search(r"^license: *([\w.-]+) *$", front, re.MULTILINE)
    return found[1] if found else LICENSE


def _origin(base: Base) -> str:
    if (folder := Path(base.name)).is_dir():
        return f"`{folder.resolve().name}`"  # not its path, which says nothing to others
    return f"[{base.name}](https://huggingface.co/{base.name})"


def _facts(output: Path, record: dict[str, Any]) -> dict[str, str]:
    """What is said of the run, in the order of the table."""
    options, lora = record["options"], record["lora"]
    held = record["validation_samples"]
    facts = {
        "trained": f"all weights of `{record['trains']}/`" if lora is None else _lora(lora),
        "samples": f"{record['train_samples']:,}" + (f", {held:,} more for validation" if held else ""),
        "steps": f"{record['total_steps']:,} of {record['global_batch_size']} samples",
        "learning rate": _learning_rate(options),
        "optimizer": f"{options['optimizer']}, weight decay {options['adam_weight_decay']:g}",
        "precision": {"no": "fp32"}.get(record["mixed_precision"], record["mixed_precision"]),
        "conditions dropped": f"{options['cond_dropout']:g}",
    }
    columns = [name.removeprefix("latents@") for name in record["cache"]["columns"] if "@" in name]
    if columns:
        facts["resolution"] = f"{columns[0]} px"
    if options["snr_gamma"] is not None:
        facts["min-SNR"] = f"gamma {options['snr_gamma']:g}"
    if options["noise_draws"] > 1:
        facts["noise"] = f"{options['noise_draws']} draws for each sample and step"
    if options["use_ema"]:
        facts["EMA"] = f"decay {options['ema_decay']:g}; the weights here are the average"
    return {**facts, **_losses(output)}


def _learning_rate(options: dict[str, Any]) -> str:
    said = f"{options['learning_rate']:g}, {options['lr_scheduler'].replace('_', ' ')}"
    if options["lr_scheduler"] == "constant":  # which has no warm-up
        return said
    return f"{said}, {options['lr_warmup_steps']} steps of warm-up"


def _lora(lora: dict[str, Any]) -> str:
    return f"LoRA of rank {lora['rank']}, alpha {lora['alpha']}, on {', '.join(lora['targets'])}"


def _losses(output: Path) -> dict[str, str]:
    """The last training loss, and the last of each that was measured on held-out samples."""
    last: dict[str, str] = {}
    for line in read_metrics(output / "metrics.jsonl"):
        for key in line:
            if key in ("loss", "validation_loss", "ema_validation_loss"):
                last[key.replace("_", " ")] = f"{line[key]:.4g} at step {line['step']:,}"
    return last


def _pictures(output: Path) -> list[str]:
    """The newest of validation/*.png, and loss.png."""
    drawn = sorted((output / "validation").glob("*.png"), key=lambda path: (path.stat().st_mtime, path.name))
    shown = [f"![validation](validation/{quote(path.name)})" for path in drawn[-1:]]
    return shown + (["![loss](loss.png)"] if (output / "loss.png").is_file() else [])


def _loading(base: Base, trained: str, record: dict[str, Any]) -> list[str]:
    """Code that runs as it stands: in the finished folder, or anywhere once that is on the hub."""
    here = json.dumps(record.get("hub_repository") or ".")
    origin = json.dumps(_address(base.name, record))
    lora = record["lora"]
    merged = f"; the LoRA is merged into `{trained}/`" if lora else ""
    if base.save == "trained-only":
        sections = [f"Inside the base's pipeline{merged}:", _alone(trained, here, origin)]
    else:
        sections = [f"As a whole{merged}:", _whole(trained, here)]
    if base.save == "linked" and not record.get("hub_repository"):
        sections.append(f"The weights of the other components are links to those of `{base.name}`.")
    if lora:
        sections += [
            f"Or the LoRA alone, `{FILE}` (rank {lora['rank']}, alpha {lora['alpha']}), onto the base model, "
            "at any strength (needs `pip install peft`):",
            _lora_alone(trained, here, origin),
        ]
    return sections


def _whole(trained: str, here: str) -> str:
    pipeline = PIPELINES[trained]
    return f"""```python
from diffusers import {pipeline}

pipeline = {pipeline}.from_pretrained({here})
```"""


def _alone(trained: str, here: str, origin: str) -> str:
    model, pipeline = MODELS[trained], PIPELINES[trained]
    return f"""```python
from diffusers import {pipeline}, {model}

{trained} = {model}.from_pretrained({here}, subfolder="{trained}")
pipeline = {pipeline}.from_pretrained({origin}, {trained}={trained})
```"""


def _lora_alone(trained: str, here: str, origin: str) -> str:
    pipeline = PIPELINES[trained]
    return f"""```python
from diffusers import {pipeline}

pipeline = {pipeline}.from_pretrained({origin})
pipeline.{trained}.load_lora_adapter(
    {here}, prefix=None, weight_name="{FILE}", adapter_name="lora"
)
pipeline.{trained}.set_adapters("lora", weights=1.0)
```"""
