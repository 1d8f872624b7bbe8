"""Models that are damaged, or whose parts do not belong together: refused before the cache is touched."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import click
import pytest
from safetensors.torch import load_file, save_file

from precompute.worker import Worker
from tests.precompute.command import inspect, precompute
from tests.precompute.test_refusals import models, refused

__all__ = ["models", "refused"]  # fixtures

VISION = "prior/image_encoder/model.safetensors"


def cut_short(models: Path) -> None:
    path = models / VISION
    path.write_bytes(path.read_bytes()[:5000])


def without_a_tensor(models: Path) -> None:
    tensors = load_file(models / VISION)
    tensors.pop(next(name for name in tensors if "layers.0.mlp.fc1.weight" in name))
    save_file(tensors, models / VISION, metadata={"format": "pt"})


def with_fewer_layers(models: Path) -> None:
    path = models / "prior/image_encoder/config.json"
    config = json.loads(path.read_text())
    path.write_text(json.dumps({**config, "num_hidden_layers": config["num_hidden_layers"] - 1}))


def with_more_layers_in_movq(models: Path) -> None:
    path = models / "decoder/movq/config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "layers_per_block": 3}))


def with_a_config_that_is_no_json(models: Path) -> None:
    (models / "prior/image_encoder/config.json").write_text("{")


def without_a_vocabulary(models: Path) -> None:
    for path in (models / "prior/tokenizer").iterdir():
        if path.name in ("vocab.json", "merges.txt", "tokenizer.json"):
            path.unlink()


SPOILED = [
    cut_short,
    without_a_tensor,
    with_fewer_layers,
    with_more_layers_in_movq,
    with_a_config_that_is_no_json,
    without_a_vocabulary,
]


@pytest.mark.parametrize("spoil", SPOILED)
def test_a_spoiled_model_is_refused(
    refused, models: Path, tmp_path: Path, spoil: Callable[[Path], None]
) -> None:
    spoil(models)
    flags = ("--prior-model", str(models / "prior"), "--decoder-model", str(models / "decoder"))
    line = refused(*flags)
    wanted = "--decoder-model: " if spoil is with_more_layers_in_movq else "--prior-model: "
    assert line.startswith(wanted + str(models))
    assert not (tmp_path / "cache").exists()


def test_a_first_run_that_failed_does_not_bind_the_next(
    pictures: Path, pocket: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Interrupted before its first part, a run has declared columns; the next may declare them otherwise."""

    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Worker, "encode_conditions", interrupted)
        with pytest.raises(click.Abort):
            precompute(pictures, tmp_path / "cache", pocket, "--alpha", "drop")
    precompute(pictures, tmp_path / "cache", pocket)
    assert inspect(tmp_path / "cache")["complete"]


def test_a_cache_with_parts_is_still_bound(refused, cache: Path) -> None:
    assert "alpha white → drop" in refused("--dtype", "fp32", "--alpha", "drop", cache=cache)


def test_pictures_without_any_caption(refused, tmp_path: Path, pictures: Path) -> None:
    folder = tmp_path / "silent"
    folder.mkdir()
    shutil.copy(next(pictures.rglob("*.png")), folder)
    line = refused(data=folder)
    assert line.startswith(f"--data: {folder}: none of 1 pictures has a caption")
    assert "--columns image,latents@" in line


def test_a_resolution_given_twice_is_encoded_once(pictures: Path, pocket: Path, tmp_path: Path) -> None:
    precompute(pictures, tmp_path / "cache", pocket, "--resolution", "64", "--resolution", "64")
    parts = list((tmp_path / "cache").glob("columns/latents@64/*/parts/*.zarr"))
    assert len(parts) == inspect(tmp_path / "cache")["parts"]


def test_repair_writes_a_lost_sample_table_and_a_damaged_declaration_again(
    pictures: Path, pocket: Path, tmp_path: Path
) -> None:
    root = tmp_path / "cache"
    precompute(pictures, root, pocket)
    table = next((root / "samples").iterdir())
    before = table.read_bytes()
    table.write_bytes(before[:-5])
    (root / "columns" / "text" / "column.json").write_text("{}")
    printed = precompute(pictures, root, pocket, "--repair")
    assert printed.count("written again") == 2
    assert table.read_bytes() == before
    assert inspect(root)["complete"]


def test_a_finished_cache_that_cannot_be_written_to_is_fine(
    pictures: Path, pocket: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from data_tools.cache.store import LocalStore

    precompute(pictures, tmp_path / "cache", pocket)
    for verb in ("put", "create"):
        monkeypatch.setattr(LocalStore, verb, lambda *_: pytest.fail("written"))
    assert "nothing to do" in precompute(pictures, tmp_path / "cache", pocket)


def test_tars_hold_the_null_conditions_too(pictures: Path, pocket: Path, tmp_path: Path) -> None:
    precompute(pictures, tmp_path / "cache", pocket, "--format", "webdataset")
    assert not list((tmp_path / "cache").rglob("*.zarr"))
    assert len(list((tmp_path / "cache").glob("columns/*/*/parts/null-*.tar"))) == 2
