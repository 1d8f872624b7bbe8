"""`precompute --redo`: a column made anew while trainers go on with the old one."""

import shutil
import signal
from pathlib import Path

import click
import numpy as np
import pytest

from data_tools.cache import gc, redo
from data_tools.cache.manifest import Cache, column_folder
from data_tools.cache.store import open_store
from precompute.encoders import TextEncoder
from tests.precompute.command import COLUMNS, assert_same_records, files, inspect, precompute, records
from tests.precompute.test_processes import start, wait_for
from tests.precompute.test_refusals import refused as refused  # a fixture
from tests.precompute.test_run import counted

REDO = ("--dtype", "fp16", "--columns", "text", "--redo", "text")


@pytest.fixture
def copy(cache: Path, tmp_path: Path) -> Path:
    """The session's cache in float32, to be changed."""
    return Path(shutil.copytree(cache, tmp_path / "cache"))


def collect(root: Path) -> list[str]:
    removed, _ = gc.collect(Cache.open(open_store(root)), older_than_hours=0)
    return [top for garbage in removed for top in garbage.tops]


def folders(root: Path, column: str) -> list[str]:
    return sorted(path.name for path in root.glob(f"columns/{column}/*/"))


def test_a_column_is_made_anew_alone_and_gc_removes_the_old_one(
    copy: Path, cache16: Path, cache: Path, pictures: Path, pocket: Path
) -> None:
    before, (old,) = files(copy), folders(copy, "text")
    lines = precompute(pictures, copy, pocket, *REDO).splitlines()
    assert lines[-2] == "text was made anew; data-tools gc removes what it was before"
    assert lines[-1] == "24 samples found = 23 cached + 1 rejected"  # in the columns of this run
    after = files(copy)
    changed = {name for name in before if after.get(name) != before[name]}
    assert changed == {"columns/text/column.json"}
    assert all(name.startswith("columns/text/") for name in after.keys() - before.keys())
    assert_same_records(records(copy, ("text",)), records(cache16, ("text",)))
    assert collect(copy) == [f"columns/text/{old}"]
    assert_same_records(records(copy, ("text",)), records(cache16, ("text",)))
    assert_same_records(records(copy, ("image",)), records(cache, ("image",)))


def test_the_same_command_again_does_nothing(copy: Path, pictures: Path, pocket: Path) -> None:
    precompute(pictures, copy, pocket, *REDO)
    before = files(copy)
    assert precompute(pictures, copy, pocket, *REDO).startswith("nothing to do: every part is committed\n")
    assert files(copy) == before


def test_another_text_encoder_and_several_columns_at_once(
    copy: Path, cache: Path, pictures: Path, pocket: Path, tmp_path: Path
) -> None:
    """One byte of a weight is changed: all rows of the column may differ, none of another column does."""
    models = Path(shutil.copytree(pocket, tmp_path / "models"))
    for name in ("text_encoder", "image_encoder"):
        with (models / "prior" / name / "model.safetensors").open("r+b") as file:
            file.seek(-2, 2)
            file.write(b"\x00\x00")
    columns = ("--columns", "image,text", "--redo", "image", "--redo", "text")
    flags = ("--dtype", "fp32", "--prior-model", str(models / "prior"))
    precompute(pictures, copy, pocket, *flags, *columns)
    precompute(pictures, tmp_path / "fresh", pocket, *flags, "--columns", "image,text")
    for name in ("image", "text"):
        assert_same_records(records(copy, (name,)), records(tmp_path / "fresh", (name,)))
    assert not np.array_equal(
        records(copy, ("text",))["text: prompt_embeds"], records(cache, ("text",))["text: prompt_embeds"]
    )
    assert_same_records(records(copy, ("latents@64",)), records(cache, ("latents@64",)))


def test_a_killed_redo_leaves_the_old_columns_and_is_finished_by_the_same_command(
    copy: Path, cache: Path, cache16: Path, pictures: Path, pocket: Path
) -> None:
    old = {name: folders(copy, name) for name in COLUMNS}
    flags = [flag for name in COLUMNS for flag in ("--redo", name)]
    process = start(pictures, copy, pocket, *flags, "--workers", "1")
    wait_for(copy, "columns/text/redo.json", process)
    new = redo.pending(Cache.open(open_store(copy)), "text")
    assert new is not None
    wait_for(copy, f"{column_folder(new)}/commits/part-*.json", process)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    collect(copy)
    done = [inspect(copy)["columns"][name]["redo"]["parts"] for name in COLUMNS]
    assert 0 < sum(done) < 12
    assert_same_records(records(copy), records(cache))
    precompute(pictures, copy, pocket, *flags)
    assert_same_records(records(copy), records(cache16))
    assert {f"columns/{name}/{folder}" for name in COLUMNS for folder in old[name]} <= {*collect(copy)}
    assert_same_records(records(copy), records(cache16))


def test_a_dry_run_says_what_a_redo_would_do(copy: Path, pictures: Path, pocket: Path) -> None:
    before, (old,) = files(copy), folders(copy, "text")
    printed = precompute(pictures, copy, pocket, *REDO, "--dry-run")
    assert f"0 of 5 parts are there; {old} stays in use until all are" in printed.splitlines()[0]
    assert printed.startswith("text: made anew as ")
    assert [line.split()[5] for line in printed.splitlines() if line.startswith("text ")] == ["23"]
    assert files(copy) == before


def test_another_identity_is_told_of_redo(refused, cache: Path) -> None:
    line = refused("--dtype", "bf16", "--columns", "image", cache=cache)
    assert "give the options it was made with, --redo image to make it anew, or a new --cache" in line


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--redo", "txt"), "--redo: found 'txt', wanted a column of this run: image, text, latents@64\n"),
        (
            ("--columns", "image", "--redo", "text"),
            "--redo: found 'text', wanted a column of this run: image",
        ),
        (("--redo", "text", "--repair"), "--redo: makes a column anew, --repair mends it as it was"),
        (("--redo", "text"), "--redo: {cache}: column text was made with these very options; --repair"),
        (
            ("--columns", "text,latents@128", "--redo", "latents@128"),
            "--redo: column latents@128 is not in the cache {cache}; leave --redo out\n",
        ),
    ],
)
def test_what_cannot_be_redone_is_refused(refused, cache: Path, flags: tuple[str, ...], message: str) -> None:
    assert refused("--dtype", "fp32", *flags, cache=cache).startswith(message.format(cache=cache))


def test_a_cache_that_is_not_there_cannot_be_redone(refused, tmp_path: Path) -> None:
    line = refused("--redo", "text")
    assert line == f"--redo: there is no cache at {tmp_path / 'cache'} yet; leave --redo out\n"


def test_another_redo_is_refused_while_one_is_under_way_and_the_old_column_can_be_used(
    refused, copy: Path, pictures: Path, pocket: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(TextEncoder, "start", counted(TextEncoder.start, 3))
        with pytest.raises(click.Abort):
            precompute(pictures, copy, pocket, *REDO)
    line = refused("--dtype", "bf16", "--columns", "text", "--redo", "text", cache=copy)
    assert "column text is being redone otherwise (dtype float16 → bfloat16)" in line
    assert "delete columns/text/redo.json to give it up" in line
    printed = precompute(pictures, copy, pocket, "--dtype", "fp32", "--columns", "text")
    assert printed.startswith("nothing to do: every part is committed\n")
