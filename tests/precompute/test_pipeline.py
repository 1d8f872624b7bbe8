"""Batches: the same rows however they are cut, halved where memory is full, done again in float32."""

import json
import threading
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import click
import numpy as np
import pytest
import torch

from data_tools.cache.writer import PartWriter
from data_tools.errors import UserError
from precompute.encoders import ImageEncoder, LatentsEncoder, Rows, TextEncoder
from precompute.parts import Job
from precompute.pipeline import Work
from precompute.summary import Summary
from precompute.worker import Worker
from tests.precompute.command import COLUMNS, files, inspect, precompute, records
from tests.precompute.pictures import COUNT

FP32 = ("--dtype", "fp32")


def objects(root: Path) -> dict[str, bytes]:
    """Every stored object of every part by name, without the name of the attempt that wrote it."""
    found = {}
    for name, data in files(root).items():
        folder, _, attempt = name.partition("/parts/")
        if attempt and not name.endswith(".npz"):  # an index names the attempt's object
            part, _, rest = attempt.partition("/")
            found[f"{folder}/{part.rpartition('-')[0]}{part[-4:] * ('.' in part)}/{rest}"] = data
    assert found
    return found


@pytest.mark.parametrize("container", ["zarr", "webdataset"])
def test_parts_are_byte_identical_whatever_the_number_of_threads(
    container: str, pictures: Path, pocket: Path, tmp_path: Path
) -> None:
    for workers in ("1", "5"):
        precompute(pictures, tmp_path / workers, pocket, *FP32, "--workers", workers, "--format", container)
    assert objects(tmp_path / "1") == objects(tmp_path / "5")


def test_parts_are_byte_identical_after_an_interruption(
    pictures: Path, pocket: Path, tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for limit in (1, 3, 4):
        calls, start = iter(range(limit)), LatentsEncoder.start

        def failing(self: LatentsEncoder, pictures: Sequence[np.ndarray]) -> Rows:
            if next(calls, None) is None:  # noqa: B023
                raise KeyboardInterrupt
            return start(self, pictures)  # noqa: B023

        with monkeypatch.context() as patch:
            patch.setattr(LatentsEncoder, "start", failing)
            with pytest.raises(click.Abort):
                precompute(pictures, tmp_path / "cache", pocket, *FP32)
    precompute(pictures, tmp_path / "cache", pocket, *FP32)
    assert objects(tmp_path / "cache") == objects(cache)


def test_batches_of_another_size_change_the_last_bits_alone(
    pictures: Path, pocket: Path, tmp_path: Path, cache: Path
) -> None:
    """The bound of docs/cache-format.md: 2e-6 of the largest value of a column in float32."""
    precompute(pictures, tmp_path / "cache", pocket, *FP32, "--batch-size", "3")
    ours, theirs = records(tmp_path / "cache"), records(cache)
    assert ours.keys() == theirs.keys()
    for name, value in ours.items():
        if value.dtype == np.float32:
            assert np.abs(value - theirs[name]).max() <= 2e-6 * np.abs(value).max(), name
        else:
            assert np.array_equal(value, theirs[name]), name


def test_batches_of_another_size_change_what_is_stored_by_a_step_at_most(
    pictures: Path, pocket: Path, tmp_path: Path, cache16: Path
) -> None:
    precompute(pictures, tmp_path / "cache", pocket, "--batch-size", "7")
    ours, theirs = records(tmp_path / "cache"), records(cache16)
    for name, value in ours.items():
        if value.dtype == np.float16:  # as integers, neighbours differ by one
            steps = np.abs(value.view(np.int16).astype(int) - theirs[name].view(np.int16))
            tiny = np.abs(value.astype(np.float32) - theirs[name]) < 1e-5
            assert (steps[~tiny] <= 1).all(), name
            assert (steps > 0).mean() < 0.02, name


def test_a_full_memory_halves_the_batch_and_the_run_goes_on(
    pictures: Path, pocket: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys, cache: Path
) -> None:
    sizes, start = [], LatentsEncoder.start

    def small(self: LatentsEncoder, pictures: Sequence[np.ndarray]) -> Rows:
        sizes.append(len(pictures))
        if len(pictures) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 3 GiB.\nGPU 0 has 80 GiB")
        return start(self, pictures)

    with monkeypatch.context() as patch:
        patch.setattr(LatentsEncoder, "start", small)
        printed = precompute(pictures, tmp_path / "cache", pocket, *FP32, "--batch-size", "7")
    assert sizes[:3] == [7, 3, 1]
    assert set(sizes[3:]) == {1}, "it is not tried again"
    assert "latents@64: the GPU's memory was full; batches were made smaller, down to 1" in printed
    ours, theirs = records(tmp_path / "cache"), records(cache)
    assert np.array_equal(ours["latents@64: keys"], theirs["latents@64: keys"])
    assert np.allclose(ours["latents@64: latents"], theirs["latents@64: latents"], atol=1e-4)


def test_memory_too_small_for_one_picture_ends_with_one_line(
    pictures: Path, pocket: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> Rows:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 3 GiB.\nGPU 0 has 80 GiB")

    monkeypatch.setattr(ImageEncoder, "start", full)
    with pytest.raises(
        UserError, match=r"^--device: not enough memory for one row of image: CUDA out of mem.*B\.$"
    ):
        precompute(pictures, tmp_path / "cache", pocket)


class Huge(torch.nn.Module):
    """CLIP's activation, gone through numbers that float16 does not have, as some large models do."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * 1e6 * torch.sigmoid(1.702 * x) / 1e6


def test_json_is_json_also_when_the_memory_is_full(
    pictures: Path, pocket: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    start = LatentsEncoder.start

    def small(self: LatentsEncoder, pictures: Sequence[np.ndarray]) -> Rows:
        if len(pictures) > 2:
            raise RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`")
        return start(self, pictures)

    monkeypatch.setattr(LatentsEncoder, "start", small)
    said = json.loads(precompute(pictures, tmp_path / "cache", pocket, "--json"))
    assert said["batch_sizes"] == {"latents@64": 2}


def test_a_memory_too_small_for_the_weights_is_said_in_one_line(
    pictures: Path, pocket: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 3 GiB.\nGPU 0 has 8 GiB")

    monkeypatch.setattr(torch.nn.Module, "to", full)
    with pytest.raises(
        UserError, match=r"^--device: cpu: not enough memory for the 0.0 GB of image_encoder: C.*B\.$"
    ):
        precompute(pictures, tmp_path / "cache", pocket)
    assert not (tmp_path / "cache").exists()


def test_a_row_that_cannot_be_done_again_for_lack_of_memory_is_rejected(
    pictures: Path, pocket: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(_: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 3 GiB.")

    load = LatentsEncoder.load

    def broken(self: LatentsEncoder) -> None:
        load(self)
        torch.nn.init.constant_(self.model.quant_conv.bias, float("nan"))
        monkeypatch.setattr(self.model, "float", lambda: full(self))

    monkeypatch.setattr(LatentsEncoder, "load", broken)
    precompute(pictures, tmp_path / "cache", pocket, "--precision", "bf16", "--columns", "latents@64")
    found = inspect(tmp_path / "cache")
    assert found["reject_reasons"]["latents: NaN or infinity"] == COUNT - 1


@pytest.mark.parametrize("encoder", [ImageEncoder, TextEncoder])
def test_what_overflows_in_half_precision_is_done_again_in_float32(
    encoder: type, pictures: Path, pocket: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cache: Path
) -> None:
    load = encoder.load

    def overflowing(self: ImageEncoder | TextEncoder) -> None:
        load(self)
        tower = self.model.vision_model if encoder is ImageEncoder else self.model.text_model
        tower.encoder.layers[0].mlp.activation_fn = Huge()

    monkeypatch.setattr(encoder, "load", overflowing)
    column = {ImageEncoder: "image", TextEncoder: "text"}[encoder]
    flags = ("--precision", "bf16", "--dtype", "fp32", "--columns", column)
    printed = precompute(pictures, tmp_path / "bf16", pocket, *flags)
    assert "in float32" not in printed, "bfloat16 has the range"
    flags = ("--precision", "fp16", "--dtype", "fp32", "--columns", column)
    printed = precompute(pictures, tmp_path / "fp16", pocket, *flags)
    assert "rows came out as NaN or infinity and were encoded again in float32" in printed
    ours, theirs = records(tmp_path / "fp16", (column,)), records(cache, (column,))
    for name, value in ours.items():
        if value.dtype == np.float32:
            assert np.isfinite(value).all()
            assert np.abs(value - theirs[name]).max() < 0.02 * np.abs(value).max()


def test_equal_captions_of_a_part_are_encoded_once(
    pictures: Path, pocket: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen, start = Counter(), TextEncoder.start

    def counting(self: TextEncoder, input_ids: Sequence[list[int]]) -> Rows:
        seen.update(map(tuple, input_ids))
        assert len({len(ids) for ids in input_ids}) == 1, "one length a batch"
        return start(self, input_ids)

    monkeypatch.setattr(TextEncoder, "start", counting)
    flags = ("--part-size", "100", "--columns", "text")
    precompute(pictures, tmp_path / "cache", pocket, *flags)
    assert set(seen.values()) == {1}
    assert inspect(tmp_path / "cache")["columns"]["text"]["rows"] > 2 * len(seen)


@pytest.mark.parametrize("column", ["text", "image"])
def test_no_more_than_three_parts_are_in_memory(
    column: str, pictures: Path, pocket: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One is written, one encoded, one opened; also where there is nothing to decode that would take time."""
    parts, most, opened, commit = 0, 0, Worker._open, PartWriter.commit

    def opening(self: Worker, job: Job) -> Work:
        nonlocal parts, most
        parts += 1
        most = max(most, parts)
        return opened(self, job)

    def committing(self: PartWriter) -> bool:
        nonlocal parts
        done = commit(self)
        parts -= self.part.startswith("part-")
        return done

    monkeypatch.setattr(Worker, "_open", opening)
    monkeypatch.setattr(PartWriter, "commit", committing)
    flags = ("--columns", column, "--part-size", "1", "--batch-size", "32")
    precompute(pictures, tmp_path / "cache", pocket, *flags)
    assert (parts, most) == (0, 3)


def test_encoders_that_wait_for_a_part_to_be_opened_say_so(
    pictures: Path, pocket: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened = Worker._open

    def slow(self: Worker, job: Job) -> Work:
        threading.Event().wait(0.3)  # as storage far away does
        return opened(self, job)

    monkeypatch.setattr(Worker, "_open", slow)
    said = json.loads(precompute(pictures, tmp_path / "cache", pocket, "--json", "--columns", "text"))
    assert said["waited_for_pictures"] * said["seconds"] > 0.3
    assert said["waited_for_pictures"] * said["seconds"] + sum(said["encode_seconds"].values()) > 1.0


def test_json_says_how_long_what_took_and_how_many_there_are(
    pictures: Path, pocket: Path, tmp_path: Path
) -> None:
    said = json.loads(precompute(pictures, tmp_path / "cache", pocket, "--json"))
    assert (said["samples"], said["found"], said["cached"], said["rejected"]) == (COUNT, COUNT, COUNT - 2, 2)
    assert said["complete"] is True
    assert said["samples_per_second"] == pytest.approx(COUNT / said["seconds"], rel=0.01)
    assert 0 <= said["waited_for_pictures"] + said["waited_for_writer"] <= 1
    assert set(said["encode_seconds"]) == {*COLUMNS}
    assert 0 < sum(said["encode_seconds"].values()) <= said["seconds"]
    assert said["truncated_captions"] == 1
    again = json.loads(precompute(pictures, tmp_path / "cache", pocket, "--json"))
    assert (again["samples"], again["notes"][0]) == (0, "nothing to do: every part is committed")


def test_summaries_add_up() -> None:
    one = Summary(3, 2.0, 0.5, 0.1, 1, 0, {"image": 1.0}, Counter(text=2), {"image": 8}, ["a"])
    two = Summary(
        4, 1.0, 0.0, 0.2, 0, 2, {"image": 2.0, "text": 3.0}, Counter(text=1), {"image": 4, "text": 2}
    )
    both = one + two
    assert (both.samples, both.seconds, both.truncated, both.redone) == (7, 3.0, 1, 2)
    assert both.encode_seconds == {"image": 3.0, "text": 3.0}
    assert both.batch_sizes == {"image": 4, "text": 2}
    assert (both.carried["text"], both.notes) == (3, ["a"])
