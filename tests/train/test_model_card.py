"""README.md says what was trained from what, and its code runs as it stands."""

import json
import os
import re
import shutil

import pytest
from huggingface_hub import ModelCard

from tests.train import runs
from train.export import Base
from train.model_card import model_card


@pytest.fixture(params=runs.KINDS)
def kind(request):
    return request.param


def table(text):
    return dict(re.findall(r"^\| (\S.*?) \| (.*) \|$", text, re.MULTILINE))


def base_of(kind, folder, output, save="pipeline", name=None):
    base = Base.find(str(folder), runs.TRAINED[kind], output, flag="--model", save=save)
    return base if name is None else Base(name, *list(vars(base).values())[1:])


def run_code(text):
    """The names that each block of code leaves behind."""
    left = []
    for block in re.findall(r"```python\n(.*?)```", text, re.DOTALL):
        names = {}
        exec(block, names)
        left.append(names)
    return left


def test_card_says_what_was_done(kind, finished):
    facts = table((finished[kind] / "README.md").read_text())
    record = json.loads((finished[kind] / "run.json").read_text())
    assert facts["trained"] == f"all weights of `{runs.TRAINED[kind]}/`"
    assert (
        facts["samples"] == f"{record['train_samples']}, {record['validation_samples']} more for validation"
    )
    assert facts["steps"] == "6 of 4 samples"
    assert facts["learning rate"] == "0.0001, cosine, 2 steps of warm-up"
    assert facts["optimizer"] == "adamw, weight decay 0.01"
    assert facts["min-SNR"] == "gamma 5"
    assert facts["precision"] == "fp32"
    assert facts.get("resolution") == {"prior": None, "decoder": "64 px"}[kind]
    for key in ("loss", "validation_loss"):
        step, value = max(runs.series(finished[kind], key).items())
        assert facts[key.replace("_", " ")] == f"{value:.4g} at step {step}"
    assert "![loss](loss.png)" in (finished[kind] / "README.md").read_text()


def test_front_matter_is_what_the_hub_reads(kind, finished, pocket):
    data = ModelCard.load(finished[kind] / "README.md").data
    assert (data.license, data.library_name, data.base_model) == ("apache-2.0", "diffusers", None)
    assert {"text-to-image", "kandinsky", "diffusers"} <= set(data.tags)
    assert data.get("prior") == {"prior": None, "decoder": [str(pocket / "prior")]}[kind]


def test_base_on_the_hub_is_linked_and_its_licence_kept(kind, finished, pocket, tmp_path):
    folder = shutil.copytree(pocket / kind, tmp_path / "base")
    (folder / "README.md").write_text("---\nlicense: mit\ntags: [a]\n---\n\nlicense: none\n")
    card = model_card(
        finished[kind], base_of(kind, folder, tmp_path / "out", name="some/one"), runs.TRAINED[kind]
    )
    data = ModelCard(card).data
    assert (data.license, data.base_model) == ("mit", "some/one")
    assert "[some/one](https://huggingface.co/some/one)" in card


@pytest.mark.parametrize("save", ["linked", "trained-only"])
def test_code_in_the_readme_loads_what_was_trained(save, kind, cache, tmp_path, monkeypatch):
    trained = runs.TRAINED[kind]
    given = f"{trained}-only" if save == "trained-only" else save
    output = runs.train(kind, cache, tmp_path / "out", "--max-train-steps", "1", "--save", given)
    monkeypatch.chdir(output)
    (names,) = run_code((output / "README.md").read_text())
    found = dict(getattr(names["pipeline"], trained).state_dict())
    assert runs.same_tensors(found, runs.weights(output / trained))
    assert ("prior:" in (output / "README.md").read_text()) == (kind == "decoder" and save == "linked")


def test_card_shows_the_newest_pictures_and_the_name_on_the_hub(kind, finished, pocket, tmp_path):
    output = tmp_path / "run"
    (output / "validation").mkdir(parents=True)
    record = json.loads((finished[kind] / "run.json").read_text())
    record["hub_repository"] = "ann/my-run"
    record["mixed_precision"] = "bf16"
    record["options"].update(use_ema=True, ema_decay=0.99, snr_gamma=None)
    (output / "run.json").write_text(json.dumps(record))
    for seconds, name in ((300, "step-000020.png"), (200, "step-000010.png")):
        (output / "validation" / name).write_bytes(b"")
        os.utime(output / "validation" / name, (seconds, seconds))
    card = model_card(output, base_of(kind, pocket / kind, output), runs.TRAINED[kind])
    assert re.findall(r"!\[(.*?)\]\((.*?)\)", card) == [("validation", "validation/step-000020.png")]
    assert 'from_pretrained("ann/my-run")' in card
    facts = table(card)
    assert facts["EMA"] == "decay 0.99; the weights here are the average"
    assert facts["precision"] == "bf16"
    assert not {"min-SNR", "loss", "validation loss"} & facts.keys()


def test_pushed_decoder_names_the_prior_as_that_was_pushed(finished, pocket, tmp_path):
    output, prior = tmp_path / "run", tmp_path / "prior"
    for folder, name in ((output, "ann/decoder"), (prior, "ann/prior")):
        folder.mkdir()
        record = json.loads((finished["decoder"] / "run.json").read_text())
        (folder / "run.json").write_text(json.dumps({**record, "hub_repository": name}))
    base = base_of("decoder", pocket / "decoder", output)
    assert ModelCard(model_card(output, base, "unet", str(prior))).data.get("prior") == ["ann/prior"]
    (output / "run.json").write_text(json.dumps(record | {"hub_repository": None}))
    assert ModelCard(model_card(output, base, "unet", str(prior))).data.get("prior") == [str(prior)]
