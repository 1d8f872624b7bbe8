"""Runs from several caches and in other orders; and what a continuation may not change."""

import json
import shutil

import pytest
import torch

from tests.precompute.command import precompute
from tests.train import runs
from train.options import LENGTH_WINDOW, TrainOptions
from train.prefetch import Prefetch
from train.step import Step

CPU = torch.device("cpu")
FEW = ("--max-train-steps", "6", "--checkpointing-steps", "3", "--adam-epsilon", "1e-2")


@pytest.fixture(scope="module")
def late(pictures, pocket, cache):
    """A second cache, of the last ten pictures: named differently, cached alike."""
    folder = shutil.copytree(pictures, pictures.parent / "late")
    rows = [json.loads(line) for line in (folder / "metadata.jsonl").read_text().splitlines()][-10:]
    for row in rows:
        (folder / row["file_name"]).rename(folder / f"late-{row['file_name']}")
        row["file_name"] = f"late-{row['file_name']}"
    for path in folder.glob("*"):
        if not path.name.startswith("late-"):
            path.unlink()
    (folder / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    precompute(folder, cache.parent / "late", pocket, "--dtype", "fp32")
    return cache.parent / "late"


def ran(kind, caches, output, *flags):
    ended = runs.program(kind, *runs.arguments(caches, output, *flags))
    assert ended.code == 0, ended
    return json.loads((output / "run.json").read_text())


def refused(kind, caches, output, *flags):
    ended = runs.program(kind, *runs.arguments(caches, output, *flags))
    assert (ended.code, len(ended.lines)) == (2, 1), ended
    return ended.lines[0]


def test_other_samples_of_the_same_encoders_are_refused(cache, late, tmp_path):
    ran("prior", cache, tmp_path / "out", *FEW)
    line = refused("prior", late, tmp_path / "out", *FEW)
    assert line.startswith(f"--cache: {late} holds 10 samples (plan ")
    assert f"was trained on {cache} with 22 samples (plan " in line


def test_the_same_caches_in_another_order_are_refused(cache, late, tmp_path):
    ran("prior", [cache, late], tmp_path / "out", *FEW)
    line = refused("prior", [late, cache], tmp_path / "out", *FEW)
    assert line.startswith(f"--cache: {late}, {cache} holds 10 samples (plan ")


@pytest.mark.parametrize("kind", runs.KINDS)
def test_union_counts_all_samples_of_all_caches(kind, cache, late, tmp_path):
    flags = ("--validation-fraction", "0.2", "--train-batch-size", "8")
    record = ran(kind, [cache, late], tmp_path / "out", *flags)
    first = {"prior": 22, "decoder": 23}[kind]  # one picture has no caption
    assert record["cache"]["samples"] == [first, 10]
    assert record["train_samples"] + record["validation_samples"] == first + 10
    assert record["options"]["cache"] == [str(cache), str(late)]
    assert record["ordering"]["weights"] == ["none", "none"]
    assert runs.series(tmp_path / "out", "validation_loss")


def test_weights_are_recorded(cache, late, tmp_path):
    record = ran("prior", [cache, f"{late}=0.3"], tmp_path / "out")
    assert record["ordering"]["weights"] == [1.0, 0.3]


@pytest.mark.parametrize("kind", runs.KINDS)
@pytest.mark.parametrize("weights", [("", ""), ("", "=0.5")], ids=["union", "weighted"])
def test_run_from_several_caches_is_resumed_at_another_layout(kind, weights, cache, late, tmp_path):
    caches = [f"{place}{weight}" for place, weight in zip((cache, late), weights)]
    flags = (*FEW, "--validation-fraction", "0.2", "--validation-steps", "3", "--order", "block")
    ran(kind, caches, tmp_path / "whole", *flags, "--train-batch-size", "8")

    class Stopped(Exception):
        pass

    step = Step.take

    def stops(self, now, *rest):
        if now == 4:
            raise Stopped
        step(self, now, *rest)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Step, "take", stops)
        with pytest.raises(Stopped):
            runs.program(kind, *runs.arguments(caches, tmp_path / "out", *flags, "--train-batch-size", "8"))
    rounds = ("--train-batch-size", "2", "--gradient-accumulation-steps", "4", "--preload", "ram")
    ran(kind, caches, tmp_path / "out", *flags, *rounds)
    for key in ("loss", "validation_loss"):
        found, wanted = runs.series(tmp_path / "out", key), runs.series(tmp_path / "whole", key)
        assert found == pytest.approx(wanted, rel=1e-5)


@pytest.fixture(scope="module")
def mixed(cache, late, tmp_path_factory):
    output = tmp_path_factory.mktemp("mixed") / "out"
    ran("prior", [cache, f"{late}=0.5"], output, *FEW)
    return output


@pytest.mark.parametrize(
    ("weights", "flags", "said"),
    [
        (("", ""), (), "--cache: {cache}, {late} of weights none, none, but "),
        (("", "=0.25"), (), "--cache: {cache}, {late}=0.25 of weights 1.0, 0.25, but "),
        (("",), (), "--cache: {cache} of weights none, but "),
        (("", "=0.5"), ("--order", "block"), "--order: block, but "),
        (("", "=0.5"), ("--no-group-by-length",), "--group-by-length: false, but "),
    ],
)
def test_what_changes_the_order_is_refused(weights, flags, said, mixed, cache, late, tmp_path):
    output = shutil.copytree(mixed, tmp_path / "out")
    caches = [f"{place}{weight}" for place, weight in zip((cache, late), weights)]
    line = refused("prior", caches, output, *FEW, "--max-train-steps", "7", *flags)
    assert line.startswith(
        said.format(cache=cache, late=late) + f"{output / 'checkpoint-6'} was trained with"
    )
    assert line.endswith("; give that, or another --output-dir")
    assert (output / "run.json").read_bytes() == (mixed / "run.json").read_bytes()


def test_another_tail_is_refused(cache, tmp_path):
    ran("decoder", [cache], tmp_path / "out")
    line = refused("decoder", [cache], tmp_path / "out", "--tail", "drop", "--max-train-steps", "4")
    assert line.startswith("--tail: drop, but ")
    assert "was trained with wrap" in line


def test_how_the_cache_is_read_may_change(mixed, cache, late, tmp_path):
    output = shutil.copytree(mixed, tmp_path / "out")
    flags = ("--preload", "ram", "--prefetch-mib", "1", "--paranoid", "--order", "global")
    again = runs.arguments([cache, f"{late}=0.50"], output, *FEW, *flags)
    ended = runs.program("prior", *again, "--max-train-steps", "7")
    assert ended.code == 0, ended
    said = [line for line in ended.lines if "changed since" in line]
    assert not [line for line in said if any(word in line for word in ("preload", "prefetch", "paranoid"))]


def options_of(kind, *flags) -> TrainOptions:
    params = runs.COMMANDS[kind].make_context(kind, list(flags)).params
    return TrainOptions(**params)


@pytest.mark.parametrize(
    ("flags", "kind"),
    [
        (("--cache", "a", "--cache", "b"), "global"),
        (("--cache", "file:///a"), "global"),
        (("--cache", "a", "--cache", "s3://bucket/b=0.5"), "block"),
        (("--cache", "s3://bucket/b", "--order", "global"), "global"),
        (("--cache", "a", "--order", "block"), "block"),
    ],
)
def test_order_is_in_blocks_where_a_cache_is_on_an_object_store(flags, kind):
    assert options_of("decoder", *flags).order_kind == kind


def test_captions_are_grouped_by_length_for_the_prior_only_and_not_one_by_one():
    alone = ("--cache", "a", "--train-batch-size", "1")
    assert options_of("prior", "--cache", "a").length_window(1) == LENGTH_WINDOW
    assert options_of("prior", "--cache", "a", "--no-group-by-length").length_window(1) == 1
    assert options_of("decoder", "--cache", "a").length_window(1) == 1
    assert options_of("prior", *alone).length_window(1) == 1
    assert options_of("prior", *alone).length_window(2) == LENGTH_WINDOW


def test_prefetch_limit_of_the_command_line_reaches_the_reading_thread(cache, tmp_path, monkeypatch):
    limits, made = [], Prefetch.__init__

    def noted(self, limit):
        limits.append(limit)
        made(self, limit)

    monkeypatch.setattr(Prefetch, "__init__", noted)
    ran("decoder", [cache], tmp_path / "out", "--prefetch-mib", "3", "--max-train-steps", "1")
    assert limits == [3 << 20]


def test_unlike_caches_are_refused(cache, cache16, tmp_path):
    line = refused("prior", [cache, cache16], tmp_path / "out")
    assert line.startswith(f"--cache: column image of {cache16} is not what it is in {cache}: dtype ")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("second", "said"),
    [
        ("{cache}/", "--cache: {cache}/ is given twice"),
        ("{late}=0", "--cache: {late} has weight 0, wanted a number from 1e-06 to 1e+06"),
        ("{late}=nan", "--cache: {late} has weight nan, wanted a number from 1e-06 to 1e+06"),
        ("{late}=much", "--cache: {late}=much is not a cache"),
    ],
)
def test_second_cache_that_is_none_is_refused(second, said, cache, late, tmp_path):
    places = {"cache": cache, "late": late}
    line = refused("prior", [cache, second.format(**places)], tmp_path / "out")
    assert line.startswith(said.format(**places))
    assert not (tmp_path / "out").exists()


def test_output_folder_that_is_the_second_cache_is_refused(cache, late):
    before = sorted(late.rglob("*"))
    line = refused("prior", [cache, f"{late}=0.5"], late)
    assert line == f"--output-dir: {late} is the cache, wanted a folder of its own"
    assert sorted(late.rglob("*")) == before


def test_dropped_tail_makes_whole_epochs(cache, tmp_path):
    flags = ("--train-batch-size", "8", "--num-train-epochs", "2", "--dry-run")
    lines = runs.arguments([cache], tmp_path / "out", *flags)
    place = lines.index("--max-train-steps")
    del lines[place : place + 2]
    steps = {}
    for tail in ("wrap", "drop"):
        ended = runs.program("decoder", *lines, "--tail", tail)
        assert ended.code == 0, ended
        record = json.loads(ended.stdout[: ended.stdout.rindex("}") + 1])
        steps[tail] = (record["total_steps"], record["train_samples"])
    assert steps == {"wrap": (6, 23), "drop": (4, 16)}  # 46 / 8 upwards; 2 * (23 // 8)
