"""The model that training starts from is whole, and its encoders are the cache's; else one line, exit 2."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.train import runs

WEIGHTS = "diffusion_pytorch_model.safetensors"


@pytest.fixture(params=runs.KINDS)
def kind(request):
    return request.param


@pytest.fixture
def output(tmp_path):
    return tmp_path / "out"


@pytest.fixture
def base(kind, pocket, tmp_path):
    return shutil.copytree(pocket / kind, tmp_path / "base")


def refused(kind, cache, output, *flags):
    """The one line that ends the run before anything was written."""
    ended = runs.program(kind, *runs.arguments(cache, output, *flags))
    assert ended.code == 2, ended
    assert len(ended.lines) == 1, ended
    assert not output.exists()
    return ended.lines[0]


def config(folder, **changes):
    """Change a component's config; None takes a key away."""
    path = next(folder.glob("*config.json"))
    values = {**json.loads(path.read_text()), **changes}
    path.write_text(json.dumps({key: value for key, value in values.items() if value is not None}))


def rewrite(path, change):
    tensors = load_file(path)
    change(tensors, sorted(name for name in tensors if name.endswith("weight"))[0])
    save_file(tensors, path)


def missing(tensors, name):
    del tensors[name]


def unexpected(tensors, name):
    tensors["extra.weight"] = tensors[name].clone()


def shape(tensors, name):
    tensors[name] = tensors[name][:-1].clone()


@pytest.mark.parametrize("change", [missing, unexpected, shape])
def test_weights_that_are_not_the_configs(change, kind, cache, base, output):
    trained = base / runs.TRAINED[kind]
    rewrite(trained / WEIGHTS, change)
    line = refused(kind, cache, output, f"--{kind}-model", base)
    assert line.startswith(f"--{kind}-model: {trained}: ")
    assert {"missing": "1 missing", "unexpected": "1 unexpected", "shape": "expected shape"}[
        change.__name__
    ] in line


@pytest.mark.parametrize("more", [1, -1])
def test_config_with_more_or_fewer_layers_than_the_weights(more, kind, cache, base, output):
    trained = base / runs.TRAINED[kind]
    key = {"prior": "num_layers", "decoder": "layers_per_block"}[kind]
    config(trained, **{key: json.loads((trained / "config.json").read_text())[key] + more})
    line = refused(kind, cache, output, f"--{kind}-model", base)
    assert line.startswith(f"--{kind}-model: {trained}: ")


@pytest.mark.parametrize("content", [b"", b"half of it", None])
def test_weights_that_cannot_be_read(content, kind, cache, base, output):
    path = base / runs.TRAINED[kind] / WEIGHTS
    path.write_bytes(path.read_bytes()[:1000] if content is None else content)
    line = refused(kind, cache, output, f"--{kind}-model", base)
    assert line.startswith(f"--{kind}-model: {path.parent}: cannot be loaded: ")


def test_pickled_weights_are_not_read(kind, cache, base, output):
    path = base / runs.TRAINED[kind] / WEIGHTS
    path.rename(path.with_suffix(".bin"))
    line = refused(kind, cache, output, f"--{kind}-model", base)
    assert line.startswith(f"--{kind}-model: {path.parent} ")
    assert "pickled .bin files are not read" in line


def test_config_without_the_width(kind, cache, base, output):
    trained = base / runs.TRAINED[kind]
    key = {"prior": "embedding_dim", "decoder": "encoder_hid_dim"}[kind]
    config(trained, **{key: None})
    line = refused(kind, cache, output, f"--{kind}-model", base)
    assert line.startswith(f"--{kind}-model: {trained}/config.json has no {key}")


@pytest.mark.parametrize("change", [{"prediction_type": "flow"}, {"beta_schedule": "wild"}])
def test_scheduler_that_training_does_not_know(change, kind, cache, base, output):
    config(base / "scheduler", _class_name="DDPMScheduler", **change)
    line = refused(kind, cache, output, f"--{kind}-model", base)
    assert line.startswith(f"--{kind}-model: ")
    assert next(iter(change.values())) in line


@pytest.mark.parametrize(
    ("kind", "component", "column"),
    [
        ("prior", "image_encoder", "image"),
        ("prior", "text_encoder", "text"),
        ("decoder", "movq", "latents@64"),
    ],
    indirect=["kind"],
)
def test_base_with_other_encoders_than_the_caches(kind, component, column, cache, base, output):
    (path,) = (base / component).glob("*.safetensors")
    rewrite(path, lambda tensors, name: tensors.update({name: torch.zeros_like(tensors[name])}))
    line = refused(kind, cache, output, f"--{kind}-model", base)
    made = json.loads((cache / "columns" / column / "column.json").read_text())
    assert line.startswith(f"--{kind}-model: {base} has a {component} with weights ")
    assert f"column {column} of {cache} was made by " in line
    (here, there) = (word for word in line.replace(",", " ").replace(";", " ").split() if is_hash(word))
    assert here != there
    assert there in json.dumps(made)


def is_hash(word):
    return len(word) == 12 and set(word) <= set("0123456789abcdef")


def test_prior_that_the_decoder_cannot_be_drawn_with(cache, pocket, output, tmp_path):
    index = shutil.copytree(pocket / "prior", tmp_path / "indexless") / "model_index.json"
    index.unlink()
    wrong = {
        pocket / "decoder": f"{pocket / 'decoder'} has no prior; wanted",
        index.parent: f"{index.parent} has no model_index.json; wanted",
        tmp_path / "nowhere": f"{tmp_path / 'nowhere'}: no such folder, and not a hub id",
        "nowhere": "nowhere: no such folder, and not a hub id",
        "./a/b": "./a/b: no such folder, and not a hub id",
    }
    for given, said in wrong.items():
        assert refused("decoder", cache, output, "--prior-model", given).startswith(f"--prior-model: {said}")
    runs.train("decoder", cache, output, "--max-train-steps", "1", "--prior-model", "some-one/prior_2.2")
    assert "some-one/prior_2.2" in (output / "README.md").read_text()
