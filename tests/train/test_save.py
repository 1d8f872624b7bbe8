"""`--save`: copies, links or the trained part alone, also over an earlier export; the base stays the same."""

import errno
import json
import os
import shutil
from pathlib import Path

import diffusers
import pytest
from safetensors.torch import load_file

from tests.train import runs
from train.export import Base, export_pipeline

WEIGHTS = "diffusion_pytorch_model.safetensors"
PIPELINES = {"prior": diffusers.KandinskyV22PriorPipeline, "decoder": diffusers.KandinskyV22Pipeline}
CLASSES = {"prior": diffusers.PriorTransformer, "decoder": diffusers.UNet2DConditionModel}
ENCODER = {"prior": "text_encoder", "decoder": "movq"}
ONE_STEP = ("--max-train-steps", "1")


def contents(folder):
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def links(folder):
    return {p.relative_to(folder).as_posix(): p for p in folder.rglob("*") if p.is_symlink()}


@pytest.fixture(params=runs.KINDS)
def kind(request):
    return request.param


@pytest.fixture
def base(kind, pocket, tmp_path):
    """The model as the hub's cache holds it: a snapshot of links to blobs."""
    blobs, snapshot = tmp_path / "models--pocket" / "blobs", tmp_path / "models--pocket" / "snapshots" / "1"
    blobs.mkdir(parents=True)
    for number, path in enumerate(sorted(p for p in (pocket / kind).rglob("*") if p.is_file())):
        shutil.copyfile(path, blobs / str(number))
        link = snapshot / path.relative_to(pocket / kind)
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(os.path.relpath(blobs / str(number), link.parent))
    before = contents(tmp_path / "models--pocket")
    yield snapshot
    assert contents(tmp_path / "models--pocket") == before, "the base has changed"
    assert len(links(snapshot)) == len(contents(snapshot))


@pytest.fixture
def export(kind, base, tmp_path):
    """Write the folder as the end of a run does, whatever is there already; returns it."""
    trained = runs.TRAINED[kind]
    model = CLASSES[kind].from_pretrained(base, subfolder=trained)
    for parameter in model.parameters():
        parameter.data += 1

    def write(save):
        found = Base.find(str(base), trained, tmp_path / "out", flag=f"--{kind}-model", save=save)
        export_pipeline(tmp_path / "out", found, trained, model, lambda: "card of this export")
        assert not list((tmp_path / "out").rglob(".tmp*"))
        return tmp_path / "out"

    return write


def is_whole(kind, output, base):
    """The stock pipeline loads, with the trained weights one above the base's and the encoder the base's."""
    pipeline = PIPELINES[kind].from_pretrained(output)
    trained, encoder = runs.TRAINED[kind], ENCODER[kind]
    weights = dict(getattr(pipeline, trained).named_parameters())
    assert all((weights[n] - t - 1).abs().max() < 1e-5 for n, t in runs.weights(base / trained).items())
    found = dict(getattr(pipeline, encoder).state_dict())
    wanted = {n: t for n, t in runs.weights(base / encoder).items() if n in found}
    assert wanted
    assert runs.same_tensors({n: found[n] for n in wanted}, wanted)
    return (output / "README.md").read_text() == "card of this export"


def test_linked_folder_is_a_pipeline_of_links_to_the_weights_themselves(kind, cache, base, tmp_path):
    flags = (f"--{kind}-model", base, "--save", "linked")
    output = runs.train(kind, cache, tmp_path / "out", *ONE_STEP, *flags)
    assert PIPELINES[kind].from_pretrained(output)
    found = links(output)
    others = {p.relative_to(base).as_posix() for p in base.rglob("*.safetensors")}
    others.discard(f"{runs.TRAINED[kind]}/{WEIGHTS}")
    assert found.keys() == others
    for name, link in found.items():
        assert link.readlink() == (base / name).resolve()  # the blob, not the snapshot's link to it
    for path in output.rglob("*.json"):  # whoever edits a config edits a copy
        path.write_text("{}")


def test_every_way_can_follow_every_other(kind, export, base):
    for save in ("pipeline", "linked", "linked", "trained-only", "linked", "pipeline", "trained-only"):
        output = export(save)
        assert is_whole(kind, output, base)
        encoder = next((output / ENCODER[kind]).glob("*.safetensors"))
        assert encoder.is_symlink() or save != "linked"
        assert not encoder.is_symlink() or save != "pipeline"


def test_links_that_lie_in_the_folder_are_not_written_through(kind, export, base, tmp_path):
    output, trained = export("pipeline"), runs.TRAINED[kind]
    mine = tmp_path / "mine.txt"
    mine.write_text("mine")
    for name in (trained, ENCODER[kind]):  # somebody saves space by hand
        shutil.rmtree(output / name)
        (output / name).symlink_to(base / name)
    for name in ("README.md", ".tmp-README.md", "model_index.json"):
        (output / name).unlink(missing_ok=True)
        (output / name).symlink_to(mine)
    for save in ("linked", "pipeline"):
        assert is_whole(kind, export(save), base)
    assert mine.read_text() == "mine"


def test_hard_links_to_the_base_are_not_written_through(kind, export, base):
    output = export("pipeline")
    for path in (base / ENCODER[kind]).glob("*.json"):
        target = output / ENCODER[kind] / path.name
        target.unlink()
        target.hardlink_to(path.resolve())
    export("pipeline")
    for path in (output / ENCODER[kind]).glob("*.json"):
        path.write_text("{}")  # the fixture looks whether the base has changed


def test_folder_without_links_is_known_before_training(cache, tmp_path, monkeypatch):
    def refuse(*_, **__):  # as FAT does
        raise OSError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(Path, "symlink_to", refuse)
    ended = runs.program("prior", *runs.arguments(cache, tmp_path / "a" / "out", "--save", "linked"))
    assert (ended.code, ended.lines) == (
        2,
        [
            f"--save: linked, but {tmp_path} cannot hold symbolic links (Operation not permitted); wanted "
            "pipeline, or an --output-dir elsewhere"
        ],
    )
    assert list(tmp_path.iterdir()) == []


def test_trained_part_alone(kind, cache, base, tmp_path):
    trained = runs.TRAINED[kind]
    alone = tmp_path / "alone"  # a base that is no more than this
    for name in (trained, "scheduler"):
        shutil.copytree(base / name, alone / name)
    flags = (f"--{kind}-model", alone, "--save", f"{trained}-only")
    output = runs.train(kind, cache, tmp_path / "out", *ONE_STEP, *flags)
    assert {p.name for p in output.iterdir() if p.is_dir()} == {trained, "scheduler", "checkpoint-1"}
    assert not (output / "model_index.json").exists()
    loaded = CLASSES[kind].from_pretrained(output, subfolder=trained)
    assert runs.same_tensors(dict(loaded.state_dict()), load_file(output / trained / WEIGHTS))

    again = runs.train(kind, cache, tmp_path / "again", *ONE_STEP, f"--{kind}-model", output, *flags[2:])
    assert runs.distance(runs.weights(again / trained), runs.weights(output / trained)) > 0
    ended = runs.program(kind, *runs.arguments(cache, tmp_path / "no", f"--{kind}-model", output))
    assert (ended.code, ended.lines) == (
        2,
        [
            f"--{kind}-model: {output} has no readable model_index.json; wanted a whole pipeline, or --save "
            f"{trained}-only"
        ],
    )


def test_lora_alone(kind, cache, pocket, tmp_path):
    trained = runs.TRAINED[kind]
    flags = ("--lora-rank", "2", "--save", f"{trained}-only", "--learning-rate", "1e-2")
    output = runs.train(kind, cache, tmp_path / "out", *ONE_STEP, *flags)
    assert (output / "pytorch_lora_weights.safetensors").is_file()
    assert not (output / "model_index.json").exists()
    loaded = CLASSES[kind].from_pretrained(output, subfolder=trained)
    assert runs.distance(dict(loaded.state_dict()), runs.weights(pocket / kind / trained)) > 0
    assert json.loads((output / "run.json").read_text())["options"]["save"] == "trained-only"
