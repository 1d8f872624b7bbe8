"""What a run refuses: one line, exit code 2, and not a byte written or changed."""

import json
import re
import shutil
import sys
from pathlib import Path

import pytest

from data_tools import console
from precompute import cli
from tests.precompute.command import arguments, files
from tests.precompute.pictures import write_pictures


@pytest.fixture
def refused(
    pictures: Path,
    pocket: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
):
    """Run the command with some flags; returns the line with which it was refused."""

    def run(*flags: str, data: Path = pictures, cache: Path = tmp_path / "cache") -> str:
        before = files(cache) if cache.exists() else None
        monkeypatch.setattr(sys, "argv", ["precompute", *arguments(data, cache, pocket, *flags)])
        with pytest.raises(SystemExit) as stopped:
            console.run(cli.precompute)
        out, err = capsys.readouterr()
        assert (stopped.value.code, out, err.count("\n")) == (2, "", 1), err
        assert (files(cache) if cache.exists() else None) == before
        return err

    return run


@pytest.fixture
def models(pocket: Path, tmp_path: Path) -> Path:
    """The pocket, to be spoiled."""
    return Path(shutil.copytree(pocket, tmp_path / "models"))


def test_a_model_folder_that_is_not_there(refused) -> None:
    line = refused("--prior-model", "/nowhere/prior")
    assert line.startswith("--prior-model: /nowhere/prior: no such folder")


def test_a_model_of_the_wrong_kind(refused, pocket: Path) -> None:
    line = refused("--prior-model", str(pocket / "decoder"))
    assert line.startswith(f"--prior-model: {pocket / 'decoder'} has no folder image_encoder/")
    line = refused("--decoder-model", str(pocket / "prior"))
    assert line.startswith(f"--decoder-model: {pocket / 'prior'} has no folder movq/")


@pytest.mark.parametrize("component", ["image_encoder", "image_processor", "text_encoder", "tokenizer"])
def test_a_model_without_one_of_its_components(refused, models: Path, component: str) -> None:
    shutil.rmtree(models / "prior" / component)
    line = refused("--prior-model", str(models / "prior"))
    assert line.startswith(f"--prior-model: {models / 'prior'} has no folder {component}/")


@pytest.mark.parametrize("component", ["prior/image_encoder", "prior/text_encoder", "decoder/movq"])
def test_a_model_without_safetensors(refused, models: Path, component: str) -> None:
    (weights,) = (models / component).glob("*.safetensors")
    weights.rename(weights.with_suffix(".bin"))
    flags = ("--prior-model", str(models / "prior"), "--decoder-model", str(models / "decoder"))
    line = refused(*flags)
    assert "has no .safetensors weights" in line
    assert line.startswith(f"--{component.split('/')[0]}-model: ")


def test_a_model_without_a_config(refused, models: Path) -> None:
    (models / "decoder" / "movq" / "config.json").unlink()
    line = refused("--decoder-model", str(models / "decoder"))
    assert line.startswith("--decoder-model: ")
    assert "has no config.json" in line


def test_a_resolution_that_does_not_fit(refused) -> None:
    assert refused("--resolution", "100").startswith("--resolution: found 100, wanted a multiple of 64")
    assert refused("--resolution", "0").startswith("--resolution: 0 is not in the range")


def test_a_column_that_does_not_exist(refused) -> None:
    line = refused("--columns", "image,latents")
    assert line == "--columns: found 'latents', wanted image, text or latents@RESOLUTION\n"


@pytest.mark.parametrize(
    "column",
    [
        "latents@100",
        "latents@0",
        "latents@064",
    ],
)
def test_a_column_of_a_resolution_that_does_not_fit(refused, column: str) -> None:
    assert re.match("--(columns|resolution): ", refused("--columns", column))


def test_data_that_is_not_there_or_empty(refused, tmp_path: Path) -> None:
    assert refused(data=tmp_path / "gone").startswith(f"--data: {tmp_path / 'gone'}: found nothing")
    (tmp_path / "empty").mkdir()
    assert refused(data=tmp_path / "empty").startswith(f"--data: {tmp_path / 'empty'}: no pictures found")


def test_a_mistyped_caption_column(refused) -> None:
    line = refused("--caption-column", "caption")
    assert line.startswith("--caption-column: ")
    assert line.endswith("has no column 'caption'; it has: file_name, text\n")


@pytest.mark.parametrize(
    ("flags", "columns", "keys"),
    [
        (("--precision", "bf16"), "image", ["precision float32 → bfloat16"]),
        (("--dtype", "bf16"), "image", ["dtype float32 → bfloat16"]),
        (("--alpha", "drop"), "image", ["alpha white → drop"]),
        (("--precision", "fp16", "--dtype", "fp16"), "text", ["dtype float32", "precision float32"]),
    ],
)
def test_another_identity_names_the_keys_that_differ(
    refused, cache: Path, flags: tuple[str, ...], columns: str, keys: list[str]
) -> None:
    line = refused("--dtype", "fp32", "--columns", columns, *flags, cache=cache)
    assert line.startswith(f"--cache: {cache}: column {columns} was made otherwise (")
    assert all(key in line for key in keys)
    assert line.count(" → ") == len(keys)


@pytest.mark.parametrize(
    ("component", "column", "key"),
    [
        ("prior/image_encoder/model.safetensors", "image", "weights"),
        ("prior/tokenizer/merges.txt", "text", "tokenizer"),
        ("decoder/movq/diffusion_pytorch_model.safetensors", "latents@64", "weights"),
    ],
)
def test_another_model_is_noticed_by_its_bytes(
    refused, cache: Path, models: Path, component: str, column: str, key: str
) -> None:
    with (models / component).open("r+b") as file:
        file.seek(-1, 2)
        last = file.read(1)
        file.seek(-1, 2)
        file.write(bytes([last[0] ^ 1]))
    flags = ("--prior-model", str(models / "prior"), "--decoder-model", str(models / "decoder"))
    line = refused("--dtype", "fp32", "--columns", column, *flags, cache=cache)
    assert f"column {column} was made otherwise ({key}" in line


def test_another_config_is_noticed_and_who_saved_it_is_not(
    refused, cache: Path, models: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = models / "decoder" / "movq" / "config.json"
    config = json.loads(path.read_text())
    path.write_text(json.dumps({**config, "_diffusers_version": "0.1", "scaling_factor": 9}))
    line = refused(
        "--dtype", "fp32", "--columns", "latents@64", "--decoder-model", str(models / "decoder"), cache=cache
    )
    assert "(config " in line
    assert line.count(" → ") == 1


def test_a_source_with_hardly_any_of_the_pictures_is_refused(refused, cache: Path, tmp_path: Path) -> None:
    write_pictures(tmp_path / "data", 5)
    line = refused("--dtype", "fp32", data=tmp_path / "data", cache=cache)
    assert line.startswith(
        f"--data: lacks 19 of the 24 pictures of {cache} (19 removed, 0 changed; for example"
    )
    assert line.endswith("give --allow-shrink to retire them, or a new --cache\n")


def test_a_cache_of_another_format_version_is_refused(refused, cache: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(cache, tmp_path / "copy"))
    (copy / "cache.json").write_text('{"format": "kandinsky-cache", "version": 2}')
    assert refused("--dtype", "fp32", cache=copy).endswith("has format version 2, this program reads 1\n")


def test_a_cache_that_is_a_file_is_refused(refused, pocket: Path, pictures: Path, tmp_path: Path) -> None:
    write_pictures(tmp_path / "data", 2)
    blocker = tmp_path / "blocker"
    blocker.write_text("x")
    assert str(blocker) in refused(data=tmp_path / "data", cache=blocker / "cache")


@pytest.mark.parametrize("columns", ["image", "image,text"])
def test_repair_with_other_options_touches_no_column_whose_declaration_is_damaged(
    refused, cache: Path, tmp_path: Path, columns: str
) -> None:
    """Its identity cannot be compared, but what is committed lies in a folder named after it."""
    spoiled = Path(shutil.copytree(cache, tmp_path / "spoiled"))
    path = spoiled / "columns" / "image" / "column.json"
    path.write_text(path.read_text().replace("float32", "float33"))
    line = refused("--dtype", "bf16", "--columns", columns, "--repair", cache=spoiled)
    (held,) = [folder.name for folder in path.parent.iterdir() if folder.is_dir()]
    assert line.startswith("--repair: ")
    assert f"what is there of it is {held}, and these options make " in line


@pytest.mark.parametrize(
    ("flags", "line"),
    [
        (("--tflops", "9"), "--tflops: is for --dry-run, which is not given"),
        (("--tasks", "2"), "--tasks: is for --engine slurm or ray, found local"),
        (("--gpus_per_task", "1"), "--gpus-per-task: is for --engine slurm or ray, found local"),
        (("--cpus-per-task", "1", "-n"), "--cpus-per-task: is for --engine slurm or ray, found local"),
        (("--slurm-time", "4:00:00"), "--slurm-time: is for --engine slurm, found local"),
        (("--slurm-option", "account=me"), "--slurm-option: is for --engine slurm, found local"),
        (("--slurm-logs", "x", "--engine", "ray"), "--slurm-logs: is for --engine slurm, found ray"),
        (("--slurm-partition", "p", "--audit", "1"), "--slurm-partition: is for --engine slurm, found local"),
    ],
)
def test_a_flag_that_would_have_nothing_to_say_is_refused(
    refused, flags: tuple[str, ...], line: str, tmp_path: Path
) -> None:
    assert refused(*flags) == f"{line}\n"
    assert not (tmp_path / "cache").exists()


def test_the_limit_of_pixels_goes_as_far_as_a_picture_can(refused) -> None:
    over = refused("--max-pixels", str(2**31))
    assert over.startswith("--max-pixels: ")
    assert "1<=x<=2147483647" in over
    assert refused("--max-pixels", str(2**31 - 1), data=Path("nowhere")).startswith("--data: nowhere: ")
