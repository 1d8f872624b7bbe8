"""A cache follows its source: what is new or has changed is encoded, and the records are a fresh cache's."""

import json
import os
import shutil
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import click
import pytest
import xxhash
from PIL import Image

from data_tools import console
from data_tools.errors import UserError
from data_tools.sources import ImageFolder
from precompute import cli
from precompute.encoders import ImageEncoder, LatentsEncoder, TextEncoder
from tests.precompute.command import arguments, files, inspect, precompute
from tests.precompute.edits import (
    FP32,
    add,
    assert_as_fresh,
    by_key,
    captions,
    copy,
    data,
    encoded,
    recaption,
    remove,
    repaint,
    snapshot,
)
from tests.precompute.pictures import picture
from tests.precompute.test_run import counted

__all__ = ["copy", "data", "encoded"]  # fixtures


def test_everything_at_once(copy: Path, data: Path, pocket: Path, encoded: Counter[str]) -> None:
    remove(data, 2)
    recaption(data, n05="another caption", n14="one more")
    repaint(data, 9, 14)
    os.utime(data / "17.jpg", ns=(1, 1))
    add(data, "new.png", "something new")
    add(data, "silent.png", None)
    (data / "20.png").rename(data / "r20.png")
    captions(data, lambda rows: rows.update({"20.png": {**rows["20.png"], "file_name": "r20.png"}}))
    before = snapshot(copy)
    printed = precompute(data, copy, pocket, *FP32).splitlines()
    assert printed[0] == "the source has changed: 19 kept, 3 new, 3 changed, 2 removed"
    assert "image of 1, text of 1, latents@64 of 1 samples" in printed[2]
    assert printed[-1] == "25 samples found = 22 cached + 3 rejected"
    # 9, 14, new, silent, r20 as pictures; 5, 14, new and r20 with captions
    assert encoded == {"ImageEncoder": 5, "LatentsEncoder": 5, "TextEncoder": 4}
    assert {path: found for path, found in snapshot(copy).items() if path in before} == before
    assert len(list(copy.glob("columns/*/*/commits/part-00004.json"))) == 3
    assert_as_fresh(copy, data, pocket)
    assert precompute(data, copy, pocket, *FP32).startswith("nothing to do")


def test_an_edited_caption_redoes_text_only(
    copy: Path, data: Path, pocket: Path, encoded: Counter[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    recaption(data, n00="edited", n13="edited, too")
    for encoder in (ImageEncoder, LatentsEncoder):
        monkeypatch.setattr(encoder, "load", lambda _: pytest.fail("weights were loaded"))
    monkeypatch.setattr(ImageFolder, "read", lambda *_: pytest.fail("a picture was read"))
    precompute(data, copy, pocket, *FP32)
    assert encoded == {"TextEncoder": 2}
    monkeypatch.undo()
    assert_as_fresh(copy, data, pocket)


def test_an_edited_picture_redoes_no_text(
    copy: Path, data: Path, pocket: Path, encoded: Counter[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    repaint(data, 0, 13)
    with monkeypatch.context() as patch:
        patch.setattr(TextEncoder, "load", lambda _: pytest.fail("weights were loaded"))
        precompute(data, copy, pocket, *FP32)
    assert encoded == {"ImageEncoder": 2, "LatentsEncoder": 2}
    assert_as_fresh(copy, data, pocket)


def test_a_caption_for_a_silent_picture_and_a_mended_picture_are_no_rejects_any_more(
    copy: Path, data: Path, pocket: Path, encoded: Counter[str]
) -> None:
    captions(data, lambda rows: rows["12.jpg"].update(text="not silent any more"))
    (data / "07.png").write_bytes(picture(7)[1])
    printed = precompute(data, copy, pocket, *FP32)
    assert printed.endswith("24 samples found = 24 cached + 0 rejected\n")
    assert encoded == {"ImageEncoder": 1, "LatentsEncoder": 1, "TextEncoder": 1}
    assert_as_fresh(copy, data, pocket)


def test_a_source_that_changes_while_it_is_half_encoded(
    data: Path, pocket: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = tmp_path / "cache"
    with monkeypatch.context() as patch:
        patch.setattr(LatentsEncoder, "start", counted(LatentsEncoder.start, 4))
        with pytest.raises(click.Abort):
            precompute(data, root, pocket, *FP32)
    assert 0 < len(list(root.glob("columns/image/*/commits/part-*.json"))) < 4
    remove(data, 1, 22)
    recaption(data, n03="edited", n16="edited")
    repaint(data, 4, 21)
    precompute(data, root, pocket, *FP32)
    assert_as_fresh(root, data, pocket)


def test_three_changes_in_a_row_and_a_column_added_last(data: Path, pocket: Path, tmp_path: Path) -> None:
    root, two = tmp_path / "cache", ("--columns", "image,text")
    precompute(data, root, pocket, *FP32, *two)
    recaption(data, n03="first edit")
    precompute(data, root, pocket, *FP32, *two)
    recaption(data, n03="second edit", n04="edited")
    remove(data, 10)
    precompute(data, root, pocket, *FP32, *two)
    repaint(data, 3)
    add(data, "10.jpg", "it is back")
    precompute(data, root, pocket, *FP32, *two)
    precompute(data, root, pocket, *FP32, "--columns", "latents@64")
    assert len(list((root / "plans").iterdir())) == 4
    assert_as_fresh(root, data, pocket)


def test_dry_run_says_what_the_run_then_does(
    copy: Path, data: Path, pocket: Path, encoded: Counter[str]
) -> None:
    remove(data, 2)
    recaption(data, n05="another caption")
    repaint(data, 9)
    add(data, "new.png", "something new")
    before = snapshot(copy)
    printed = precompute(data, copy, pocket, *FP32, "--dry-run").splitlines()
    assert snapshot(copy) == before
    assert not encoded
    rows = {line.split()[0]: line.split()[1:6] for line in printed if line.split()[:1] and line[0] in "itl"}
    assert rows["image"] == ["22", "1", "1", "1", "2"]  # kept, new, changed, removed, to encode
    assert rows["text"] == ["22", "1", "1", "1", "2"]
    assert "image: new: new.png; changed: 09.jpg; removed: 02.png" in printed
    assert "text: new: new.png; changed: 05.jpg; removed: 02.png" in printed
    precompute(data, copy, pocket, *FP32)
    assert encoded == {"ImageEncoder": 2, "LatentsEncoder": 2, "TextEncoder": 2}


def test_rehash_finds_what_size_and_time_do_not_tell(copy: Path, data: Path, pocket: Path) -> None:
    path = data / "00.jpg"
    before = path.stat()
    other = picture(6)[1]
    path.write_bytes(other.ljust(before.st_size, b" ")[: before.st_size])
    os.utime(path, ns=(before.st_mtime_ns, before.st_mtime_ns))
    assert precompute(data, copy, pocket, *FP32).startswith("nothing to do")
    printed = precompute(data, copy, pocket, *FP32, "--rehash")
    assert printed.startswith("the source has changed: 23 kept, 0 new, 1 changed, 0 removed\n")
    assert_as_fresh(copy, data, pocket)


def test_a_model_that_cannot_be_loaded_is_noticed_before_the_plan_is_written(
    copy: Path, data: Path, pocket: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recaption(data, n05="another caption")
    before = snapshot(copy)

    def fails(_: TextEncoder) -> None:
        raise UserError("--prior-model: cannot be loaded")

    monkeypatch.setattr(TextEncoder, "load", fails)
    with pytest.raises(UserError):
        precompute(data, copy, pocket, *FP32)
    assert snapshot(copy) == before


def test_a_damaged_old_part_is_not_copied_from(
    copy: Path, data: Path, pocket: Path, encoded: Counter[str]
) -> None:
    recaption(data, n03="edited", n16="edited, too")
    (index,) = copy.glob("columns/image/*/parts/part-00000-*.npz")
    shard = next(p for p in index.with_suffix(".zarr").glob("image_embeds/c/**/*") if p.is_file())
    content = bytearray(shard.read_bytes())
    content[:] = bytes(byte ^ 1 for byte in content)
    shard.write_bytes(content)
    precompute(data, copy, pocket, *FP32)
    assert encoded == {"ImageEncoder": 1, "TextEncoder": 2}


def test_a_picture_that_changes_between_plan_and_encoder_is_rejected_and_encoded_by_the_next_run(
    data: Path, pocket: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root, read, calls = tmp_path / "cache", ImageFolder.read, Counter()

    def repainting(self: ImageFolder, sample: Any) -> bytes:
        calls[sample.key] += 1
        if sample.key == "05.jpg" and calls[sample.key] == 2:
            repaint(data, 5)
        return read(self, sample)

    with monkeypatch.context() as patch:
        patch.setattr(ImageFolder, "read", repainting)
        printed = precompute(data, root, pocket, *FP32)
    assert printed.endswith("24 samples found = 21 cached + 3 rejected\n")
    assert "changed while the cache was being made; run precompute again" in inspect(root)["reject_reasons"]
    assert precompute(data, root, pocket, *FP32).endswith("24 samples found = 22 cached + 2 rejected\n")
    assert_as_fresh(root, data, pocket)


def test_folders_may_move_and_change_their_order(pictures: Path, pocket: Path, tmp_path: Path) -> None:
    a, b = tmp_path / "a", tmp_path / "b"
    for folder, names in ((a, ("00.jpg", "01.png")), (b, ("05.jpg", "04.png", "03.jpg"))):
        folder.mkdir()
        for name in names:
            shutil.copy2(pictures / name, folder)
        lines = "".join(json.dumps({"file_name": name, "text": f"it is {name}"}) + "\n" for name in names)
        (folder / "metadata.jsonl").write_text(lines)
    root = tmp_path / "cache"
    precompute(a, root, pocket, *FP32, "--data", str(b), "--columns", "image,text")
    moved = a.rename(tmp_path / "moved")
    printed = precompute(b, root, pocket, *FP32, "--data", str(moved))
    assert "changed" not in printed
    assert (inspect(root)["cached"], len(list((root / "plans").iterdir()))) == (5, 1)
    keys = {xxhash.xxh3_64_intdigest(name.encode()) for name in ("00.jpg", "01.png", "03.jpg")}
    assert keys < {value for column, value in by_key(root) if column == "latents@64"}


def stopped(capsys: pytest.CaptureFixture[str], *command_line: str) -> tuple[int, str, str]:
    """Exit code, stdout and stderr of the command as a user runs it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["precompute", *command_line])
        with pytest.raises(SystemExit) as stop:
            console.run(cli.precompute)
    out, err = capsys.readouterr()
    return int(stop.value.code or 0), out, err


def test_a_source_that_has_lost_more_than_half_is_refused_until_it_is_allowed(
    copy: Path, data: Path, pocket: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    remove(data, *range(13))
    before = snapshot(copy)
    code, out, err = stopped(capsys, *arguments(data, copy, pocket, *FP32))
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert err.startswith(
        f"--data: lacks 13 of the 24 pictures of {copy} (13 removed, 0 changed; for example "
    )
    assert "give --allow-shrink" in err
    assert snapshot(copy) == before
    assert "--allow-shrink" in precompute(data, copy, pocket, *FP32, "--dry-run")
    printed = precompute(data, copy, pocket, *FP32, "--allow-shrink")
    assert printed.endswith("11 samples found = 11 cached + 0 rejected\n")
    assert_as_fresh(copy, data, pocket)


def test_too_many_rejects_end_with_exit_code_1_and_what_is_cached_stays(
    data: Path, pocket: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = tmp_path / "cache"
    command_line = arguments(data, root, pocket, *FP32, "--min-size", "70")
    code, out, err = stopped(capsys, *command_line, "--max-rejects", "0.25")
    assert code == 1
    assert out.endswith("24 samples found = 16 cached + 8 rejected\n")
    *_, line = err.strip().splitlines()
    assert line.startswith(
        "--max-rejects: 8 of 24 samples are rejected, wanted at most 0.25 of them; 6 for: 64x150"
    )
    assert line.endswith(f"data-tools inspect {root}")
    assert inspect(root)["cached"] == 16
    before = files(root)
    assert stopped(capsys, *command_line, "--max-rejects", "0.34")[0] == 0
    assert files(root) == before


def test_what_a_listing_says_is_wrong_is_the_reason_of_the_reject(
    data: Path, pocket: Path, tmp_path: Path
) -> None:
    """A link that leads out of the folder; a caption file without a caption."""
    Image.new("RGB", (80, 80)).save(tmp_path / "outside.png")
    (data / "link.png").symlink_to(tmp_path / "outside.png")
    captions(data, lambda rows: rows.update({"link.png": {"file_name": "link.png", "text": "outside"}}))
    add(data, "empty.png", None)
    (data / "empty.txt").write_text("  \n")
    precompute(data, tmp_path / "cache", pocket, *FP32)
    found = inspect(tmp_path / "cache")
    reasons = {reject["key"]: (reject["column"], reject["reason"]) for reject in found["rejected"]}
    assert found["cached"] + found["rejects"] == found["samples"] == 26
    assert reasons["link.png"][0] == "image"
    assert "leaves the folder" in reasons["link.png"][1]
    assert reasons["empty.png"][0] == "text"
    assert reasons["empty.png"][1] != "no caption"
