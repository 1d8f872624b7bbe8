"""Two processes are one: the same losses, the same weights, and either continues what the other began."""

import shutil
import subprocess
import sys

import pytest

from tests.train import runs

FLAGS = (
    *("--max-train-steps", "4", "--checkpointing-steps", "2", "--gradient-accumulation-steps", "2"),
    *("--validation-fraction", "0.3", "--validation-steps", "2", "--cond-dropout", "0.3", "--snr-gamma", "5"),
    *("--timestep-sampling", "stratified"),
    # Adam's own epsilon blows rounding up to whole steps where a gradient is next to zero
    *("--adam-epsilon", "1e-2"),
)
BOUND = 1e-5
"Relative; the order of a sum differs, and the padding of the texts."


def on_two_ranks(kind, cache, output, *flags):
    """Start the module under torchrun, as users do."""
    done = launched(kind, cache, output, *flags)
    assert done.returncode == 0, done.stderr.decode()
    return output


def launched(kind, cache, output, *flags, use_cpu="true"):
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    return subprocess.run(
        [sys.executable, *launcher, "-m", f"train.{kind}", *runs.arguments(cache, output, *flags)],
        cwd=runs.ROOT,
        env={**runs.environment(), "CUDA_VISIBLE_DEVICES": "", "ACCELERATE_USE_CPU": use_cpu},
        capture_output=True,
        timeout=180,
        check=False,
    )


@pytest.fixture(scope="module", params=runs.KINDS)
def pair(request, cache, tmp_path_factory):
    """(kind, output of one process with 2 × 4 samples, output of two with 2 × 2 each)."""
    folder = tmp_path_factory.mktemp("ranks")
    one = runs.train(request.param, cache, folder / "one", *FLAGS, "--train-batch-size", "4")
    two = on_two_ranks(request.param, cache, folder / "two", *FLAGS, "--train-batch-size", "2")
    return request.param, one, two


def assert_close(found, wanted):
    assert found.keys() == wanted.keys()
    assert found == pytest.approx(wanted, rel=BOUND)


def test_two_ranks_take_the_steps_of_one(pair):
    kind, one, two = pair
    for key in ("loss", "validation_loss", "validation_loss_q1", "grad_norm", "lr"):
        assert_close(runs.series(two, key), runs.series(one, key))
    sampled = runs.series(one, "sampled_cosine_g4")
    assert bool(sampled) == (kind == "prior")
    assert_close(runs.series(two, "sampled_cosine_g4"), sampled)
    name = runs.TRAINED[kind]
    before, alone, together = (runs.weights(folder / name) for folder in (one / "checkpoint-2", one, two))
    assert runs.distance(together, alone) < 1e-3 * runs.distance(alone, before)


def test_one_rank_continues_what_two_began(pair, cache, tmp_path):
    kind, one, two = pair
    output = tmp_path / "out"
    shutil.copytree(two / "checkpoint-2", output / "checkpoint-2")
    for name in ("metrics.jsonl", "run.json"):
        shutil.copyfile(two / name, output / name)
    runs.train(kind, cache, output, *FLAGS, "--train-batch-size", "4")
    for key in ("loss", "validation_loss", "grad_norm"):
        assert_close(runs.series(output, key), runs.series(one, key))
    name = runs.TRAINED[kind]
    before, alone, found = (runs.weights(folder / name) for folder in (one / "checkpoint-2", one, output))
    assert runs.distance(found, alone) < 1e-3 * runs.distance(alone, before)


def test_mistake_is_said_once_a_node(cache, tmp_path):
    ended = launched("prior", cache, tmp_path / "out", "--prior-model", "nowhere")
    assert ended.returncode != 0
    said = [line for line in ended.stderr.decode().splitlines() if line.startswith("--prior-model: nowhere")]
    assert len(said) == 1


def test_processes_that_accelerate_would_take_for_runs_of_their_own_are_refused(cache, tmp_path):
    done = launched("prior", cache, tmp_path / "out", use_cpu="false")
    assert done.returncode != 0
    assert (
        "WORLD_SIZE: 2 processes were started, but accelerate sees 1; without a GPU set"
        in done.stderr.decode()
    )
    assert not (tmp_path / "out").exists()
