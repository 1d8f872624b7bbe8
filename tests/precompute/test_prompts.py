"""`precompute --prompts`: a trainer finds the validation prompts in the cache."""

import shutil
from pathlib import Path

import click
import numpy as np
import pytest

from data_tools.cache import check
from data_tools.cache.manifest import Cache
from data_tools.cache.reader import CacheReader
from data_tools.cache.store import open_store
from data_tools.errors import DataFault
from precompute.encoders import TextEncoder
from tests.precompute.command import assert_same_records, files, inspect, precompute, records
from tests.precompute.pictures import LONG
from tests.precompute.test_refusals import refused as refused  # a fixture
from tests.precompute.test_run import counted

CAT = "рисунок кошки, которая спит на диване"  # also a caption of the pictures
TEXT = f"\ufeff{CAT}\r\n\n  a red apple \na red apple\n{LONG}\n"
PROMPTS = (CAT, "a red apple", LONG.strip())


@pytest.fixture
def copy(cache: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(cache, tmp_path / "cache"))


@pytest.fixture
def file(tmp_path: Path) -> str:
    path = tmp_path / "prompts.txt"
    path.write_bytes(TEXT.encode())
    return str(path)


def prompts(root: Path) -> dict[str, dict[str, np.ndarray]]:
    reader = CacheReader(root, ["text"])
    found = reader.prompts("text")
    reader.close()
    return found


def test_prompts_are_encoded_as_captions_are_and_no_sample_changes(
    copy: Path, file: str, cache: Path, pictures: Path, pocket: Path
) -> None:
    printed = precompute(pictures, copy, pocket, "--dtype", "fp32", "--prompts", file)
    assert "encoded 3 prompts as prompts-" in printed
    assert "; 1 were longer than the tokenizer takes and were truncated" in printed
    assert_same_records(records(copy), records(cache))
    found, stored = prompts(copy), records(cache, ("text",))
    assert set(found) == set(PROMPTS)
    alike = np.isclose(stored["text: prompt_embeds"], found[CAT]["prompt_embeds"], atol=1e-5).all(axis=1)
    assert alike.any()
    assert len(found[PROMPTS[2]]["text_encoder_hidden_states"]) == 77
    assert len(found["a red apple"]["text_encoder_hidden_states"]) < 10
    assert inspect(copy)["columns"]["text"]["prompts"] == 3
    assert check.verify(Cache.open(open_store(copy)), full=True).faults == []


@pytest.mark.parametrize("format", ["zarr", "webdataset"])
def test_the_same_file_does_nothing_and_another_is_added(
    format: str, file: str, pictures: Path, pocket: Path, tmp_path: Path
) -> None:
    folder, flags = tmp_path / "cache", ("--columns", "text", "--format", format)
    precompute(pictures, folder, pocket, *flags, "--prompts", file)
    before = files(folder)
    printed = precompute(pictures, folder, pocket, *flags, "--prompts", file)
    assert printed.startswith("nothing to do: every part is committed\n")
    assert files(folder) == before
    Path(file).write_text("a house")
    printed = precompute(pictures, folder, pocket, *flags, "--prompts", file, "--dry-run")
    assert "and 1 prompts as prompts-" in printed
    assert files(folder) == before
    precompute(pictures, folder, pocket, *flags, "--prompts", file)
    assert set(prompts(folder)) == {*PROMPTS, "a house"}
    precompute(pictures, folder, pocket, *flags)  # without the flag they stay
    assert set(prompts(folder)) == {*PROMPTS, "a house"}


def test_an_interrupted_run_is_finished_by_the_same_command(
    copy: Path, file: str, pictures: Path, pocket: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    flags = ("--dtype", "fp32", "--prompts", file, "--batch-size", "1")
    with monkeypatch.context() as patch:
        patch.setattr(TextEncoder, "start", counted(TextEncoder.start, 2))
        with pytest.raises(click.Abort):
            precompute(pictures, copy, pocket, *flags)
    assert prompts(copy) == {}
    precompute(pictures, copy, pocket, *flags)
    assert set(prompts(copy)) == set(PROMPTS)


def test_a_redo_takes_the_prompts_along(
    copy: Path, file: str, pictures: Path, pocket: Path, tmp_path: Path
) -> None:
    precompute(pictures, copy, pocket, "--dtype", "fp32", "--prompts", file)
    redo = ("--dtype", "fp16", "--columns", "text", "--redo", "text")
    precompute(pictures, copy, pocket, *redo)
    found = prompts(copy)
    assert set(found) == set(PROMPTS)
    assert found[CAT]["prompt_embeds"].dtype == np.float16


@pytest.mark.parametrize("what", ["record", "payload"])
def test_repair_makes_a_damaged_set_again_without_the_file(
    what: str, copy: Path, file: str, pictures: Path, pocket: Path
) -> None:
    precompute(pictures, copy, pocket, "--dtype", "fp32", "--prompts", file)
    before = prompts(copy)
    pattern = "commits/prompts-*.json" if what == "record" else "parts/prompts-*/prompt_embeds/c/0/0"
    (path,) = copy.glob(f"columns/text/*/{pattern}")
    path.write_bytes(b"x" * path.stat().st_size)
    printed = precompute(pictures, copy, pocket, "--dtype", "fp32", "--repair")
    assert "text, prompts-" in printed
    after = prompts(copy)
    assert after.keys() == before.keys()
    for prompt, row in before.items():
        for name, value in row.items():
            assert np.array_equal(after[prompt][name], value)


def test_a_set_of_which_nothing_can_be_read_is_named_and_withdrawn_by_repair(
    copy: Path, file: str, pictures: Path, pocket: Path
) -> None:
    precompute(pictures, copy, pocket, "--dtype", "fp32", "--prompts", file)
    next(copy.glob("columns/text/*/commits/prompts-*.json")).write_bytes(b"{}")
    shutil.rmtree(next(copy.glob("columns/text/*/generations")))
    with pytest.raises(DataFault, match=r"commits/prompts-.*has changed bytes"):
        precompute(pictures, copy, pocket, "--dtype", "fp32")
    assert "text, prompts-" in precompute(pictures, copy, pocket, "--dtype", "fp32", "--repair")
    assert prompts(copy) == {}
    precompute(pictures, copy, pocket, "--dtype", "fp32", "--prompts", file)
    assert set(prompts(copy)) == set(PROMPTS)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "--prompts: {file}: no such file or directory\n"),
        (b"", "--prompts: {file}: found no prompt, wanted one a line\n"),
        (b" \n\n\t\n", "--prompts: {file}: found no prompt, wanted one a line\n"),
        (b"a cat\n\xff\xfe\n", "--prompts: {file}: not UTF-8 (byte 6); save it as UTF-8\n"),
    ],
)
def test_a_file_that_has_no_prompts_is_refused(
    refused, content: bytes | None, message: str, tmp_path: Path
) -> None:
    file = tmp_path / "bad.txt"
    if content is not None:
        file.write_bytes(content)
    assert refused("--prompts", str(file)) == message.format(file=file)


def test_prompts_without_the_text_column_are_refused(refused, file: str, tmp_path: Path) -> None:
    line = refused("--prompts", file, "--columns", "image,latents@64")
    assert line == "--prompts: wants the column text, and --columns is image,latents@64\n"
    assert refused("--prompts", str(tmp_path)).startswith(f"--prompts: {tmp_path}: is a directory")
