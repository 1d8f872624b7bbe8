"""DeepSpeed: two ranks with half of the moments each train as one process, and checkpoints do not show it."""

import json
import subprocess
import sys

import pytest
import torch

from tests.train import runs
from tests.train.test_ranks import launched
from tests.train.test_sharding import FLAGS, LORA, alone, assert_same_run, begun

pytestmark = pytest.mark.deepspeed


def zero(kind, cache, output, *flags, stage=2):
    """Two ranks with half of the batch each."""
    done = zero_ended(kind, cache, output, *FLAGS, "--train-batch-size", "2", *flags, stage=stage)
    assert done.returncode == 0, done.stderr.decode()
    return output


def zero_ended(kind, cache, output, *flags, stage=2):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ACCELERATE_USE_DEEPSPEED", "true")
        patch.setenv("ACCELERATE_DEEPSPEED_ZERO_STAGE", str(stage))
        return launched(kind, cache, output, *flags)


@pytest.fixture(scope="module", params=[1, 2], ids=["stage1", "stage2"])
def pair(request, cache, tmp_path_factory):
    """(stage, output of one process, output of two ranks)."""
    folder = tmp_path_factory.mktemp("zero")
    one = alone("prior", cache, folder / "one", "--use-ema")
    return request.param, one, zero("prior", cache, folder / "two", "--use-ema", stage=request.param)


def test_two_ranks_take_the_steps_of_one_process(pair):
    _, one, two = pair
    assert_same_run("prior", two, one)
    first, second = (runs.weights(output / "checkpoint-4" / "prior_ema") for output in (two, one))
    start = runs.weights(one / "checkpoint-2" / "prior_ema")
    assert runs.distance(first, second) < 1e-4 * runs.distance(start, second)


def test_one_process_continues_what_zero_began(pair, cache, tmp_path):
    _, one, two = pair
    assert_same_run("prior", alone("prior", cache, begun(two, tmp_path), "--use-ema"), one)


def test_zero_continues_what_one_process_began(pair, cache, tmp_path):
    stage, one, _ = pair
    assert_same_run("prior", zero("prior", cache, begun(one, tmp_path), "--use-ema", stage=stage), one)


def test_zero_continues_what_zero_began_bit_for_bit(pair, cache, tmp_path):
    stage, _, two = pair
    output = zero("prior", cache, begun(two, tmp_path), "--use-ema", stage=stage)
    assert runs.metrics(output) == runs.metrics(two)
    for folder in ("checkpoint-4", "checkpoint-4/prior", "checkpoint-4/prior_ema", "prior"):
        assert runs.same_tensors(runs.weights(output / folder), runs.weights(two / folder))


@pytest.mark.parametrize(
    ("kind", "flags"), [("decoder", ()), ("prior", LORA), ("decoder", LORA)], ids=["decoder", "lora", "both"]
)
def test_decoder_and_lora(kind, flags, cache, tmp_path):
    one = alone(kind, cache, tmp_path / "one", *flags)
    two = zero(kind, cache, tmp_path / "two", *flags)
    assert_same_run(kind, two, one)
    assert_same_run(kind, alone(kind, cache, begun(two, tmp_path / "on"), *flags), one)


@pytest.mark.parametrize("flags", [(), LORA], ids=["full", "lora"])
def test_half_precision_and_gradient_checkpointing(flags, cache, tmp_path):
    flags = ("--gradient-checkpointing", "--validation-fraction", "0.3", *flags)
    half = ("--mixed-precision", "bf16")
    one = alone("prior", cache, tmp_path / "one", *flags, *half)
    two = zero("prior", cache, tmp_path / "two", *flags, *half)
    full = alone("prior", cache, tmp_path / "full", *flags)
    for key in ("loss", "validation_loss", "grad_norm"):
        assert runs.series(two, key) == pytest.approx(runs.series(one, key), rel=2e-3)
    losses = [runs.series(output, "loss")[1] for output in (one, two, full)]
    assert abs(losses[1] - losses[0]) < 0.3 * abs(losses[2] - losses[0])
    assert {t.dtype for t in runs.weights(two / "prior").values()} == {torch.float32}
    record = json.loads((two / "run.json").read_text())
    assert record["mixed_precision"] == "bf16"


def test_accelerate_launch_starts_zero(pair, cache, tmp_path):
    stage, one, _ = pair
    launcher = ["--use_deepspeed", "--zero_stage", str(stage), "--num_processes", "2", "-m", "train.prior"]
    flags = runs.arguments(cache, tmp_path / "out", *FLAGS, "--train-batch-size", "2", "--use-ema")
    runs.accelerate_launch(*launcher, *flags)
    assert_same_run("prior", tmp_path / "out", one)


@pytest.fixture(scope="module")
def ranks(cache, tmp_path_factory):
    """What each rank saw; see two_zero_ranks.py."""
    folder = tmp_path_factory.mktemp("ranks")
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    done = subprocess.run(
        [sys.executable, *launcher, "-m", "tests.train.two_zero_ranks", str(cache), str(folder)],
        cwd=runs.ROOT,
        env={
            **{**runs.environment(), "CUDA_VISIBLE_DEVICES": "", "ACCELERATE_USE_CPU": "true"},
            **{"ACCELERATE_USE_DEEPSPEED": "true", "ACCELERATE_DEEPSPEED_ZERO_STAGE": "2"},
        },
        capture_output=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr.decode()
    return [json.loads((folder / f"rank-{rank}.json").read_text()) for rank in (0, 1)]


def test_each_rank_holds_half_of_the_moments(ranks):
    assert all(seen["whole"] <= 2 * seen["here"] < 1.01 * seen["whole"] for seen in ranks)


def test_sound_step_is_taken(ranks):
    assert all(seen["sound"]["changed"] and not seen["sound"]["said"] for seen in ranks)


@pytest.mark.parametrize(("which", "samples"), [("loss", "picture-1"), ("gradient", "picture-0, picture-1")])
def test_what_is_not_finite_on_one_rank_changes_nothing_on_any(which, samples, ranks):
    for seen in ranks:
        assert not seen[which]["changed"]
        assert seen[which]["said"].startswith(f"{which}: not finite in the step after 1, samples {samples};")


def test_largest_weight_is_found_on_any_rank(ranks):
    assert [seen["largest"] for seen in ranks] == [1e6, 1e6]
