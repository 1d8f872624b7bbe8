"""FSDP: two ranks with half of the weights each train as one process, and checkpoints do not show it."""

import json
import shutil
import subprocess
import sys
from types import SimpleNamespace

import diffusers
import pytest
import torch

from tests.train import runs
from tests.train.test_ranks import assert_close, on_two_ranks
from tests.train.two_ranks import outputs_around_a_change
from train import checkpoint
from train.optimizer import make_optimizer
from train.sharding import block_classes

FSDP = {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2"}
FLAGS = (
    *("--max-train-steps", "4", "--checkpointing-steps", "2", "--gradient-accumulation-steps", "2"),
    *("--cond-dropout", "0.3", "--snr-gamma", "5", "--timestep-sampling", "stratified"),
    # Adam's own epsilon blows rounding up to whole steps where a gradient is next to zero
    *("--adam-epsilon", "1e-2"),
)
LORA = ("--lora-rank", "4", "--learning-rate", "1e-2")


def alone(kind, cache, output, *flags):
    """One process with the global batch of two."""
    return runs.train(kind, cache, output, *FLAGS, "--train-batch-size", "4", *flags)


def sharded(kind, cache, output, *flags):
    """Two ranks with half of the weights and of the batch each."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in FSDP.items():
            patch.setenv(name, value)
        return on_two_ranks(kind, cache, output, *FLAGS, "--train-batch-size", "2", *flags)


def begun(run, output):
    """A folder in which `run` was stopped after its first checkpoint."""
    shutil.copytree(run / "checkpoint-2", output / "checkpoint-2")
    for name in ("metrics.jsonl", "run.json"):
        shutil.copyfile(run / name, output / name)
    return output


def assert_same_run(kind, found, wanted):
    """Losses, weights and moments to rounding; files, names, shapes and config exactly."""
    for key in ("loss", "grad_norm", "lr"):
        assert_close(runs.series(found, key), runs.series(wanted, key))
    name = runs.TRAINED[kind]
    for folder in ("checkpoint-4", f"checkpoint-4/{name}", name):
        files = [sorted(p.name for p in (output / folder).iterdir()) for output in (found, wanted)]
        assert files[0] == files[1]
        first, second = runs.weights(found / folder), runs.weights(wanted / folder)
        start = runs.weights(wanted / folder.replace("checkpoint-4", "checkpoint-2"))
        if start.keys() == second.keys() and folder != name:
            assert runs.distance(first, second) < 1e-4 * runs.distance(start, second)
        assert {n: t.shape for n, t in first.items()} == {n: t.shape for n, t in second.items()}
    configs = [p.relative_to(wanted) for p in wanted.glob(f"**/{name}/config.json")]
    assert configs
    assert all((found / c).read_bytes() == (wanted / c).read_bytes() for c in configs)


@pytest.fixture(scope="module")
def pair(cache, tmp_path_factory):
    """Outputs of one process and of two FSDP ranks."""
    folder = tmp_path_factory.mktemp("sharding")
    return alone("prior", cache, folder / "one"), sharded("prior", cache, folder / "two")


def test_two_fsdp_ranks_take_the_steps_of_one_process(pair):
    one, two = pair
    assert_same_run("prior", two, one)


def test_one_process_continues_what_fsdp_began(pair, cache, tmp_path):
    one, two = pair
    assert_same_run("prior", alone("prior", cache, begun(two, tmp_path)), one)


def test_fsdp_continues_what_one_process_began(pair, cache, tmp_path):
    one, _ = pair
    assert_same_run("prior", sharded("prior", cache, begun(one, tmp_path)), one)


def test_lora_begun_in_one_process_is_continued_by_fsdp(cache, tmp_path):
    one = alone("prior", cache, tmp_path / "one", *LORA)
    two = sharded("prior", cache, begun(one, tmp_path / "two"), *LORA)
    assert_same_run("prior", two, one)
    first, second = (runs.weights(output) for output in (two, one))  # the exported LoRA
    assert runs.distance(first, second) < 1e-5 * runs.distance(second, {n: 0 * t for n, t in second.items()})


@pytest.mark.slow
def test_fsdp_continues_what_fsdp_began_bit_for_bit(pair, cache, tmp_path):
    _, two = pair
    output = sharded("prior", cache, begun(two, tmp_path))
    assert runs.metrics(output) == runs.metrics(two)
    for folder in ("checkpoint-4", "checkpoint-4/prior", "prior"):
        assert runs.same_tensors(runs.weights(output / folder), runs.weights(two / folder))


@pytest.mark.slow
@pytest.mark.parametrize("flags", [(), LORA], ids=["full", "lora"])
def test_decoder_under_fsdp(flags, cache, tmp_path):
    one = alone("decoder", cache, tmp_path / "one", *flags)
    two = sharded("decoder", cache, tmp_path / "two", *flags)
    assert_same_run("decoder", two, one)
    assert_same_run("decoder", alone("decoder", cache, begun(two, tmp_path / "on"), *flags), one)


@pytest.mark.slow
def test_half_precision_and_gradient_checkpointing_under_fsdp(cache, tmp_path):
    flags = ("--mixed-precision", "bf16", "--gradient-checkpointing")
    one = alone("prior", cache, tmp_path / "one", *flags)
    two = sharded("prior", cache, tmp_path / "two", *flags)
    # norms are in half precision here and in float32 under autocast
    assert runs.series(two, "loss") == pytest.approx(runs.series(one, "loss"), rel=2e-3)
    assert {t.dtype for t in runs.weights(two / "prior").values()} == {torch.float32}


@pytest.mark.slow
def test_accelerate_launch_starts_fsdp(pair, cache, tmp_path):
    one, _ = pair
    launcher = ["--use_fsdp", "--fsdp_version", "2", "--num_processes", "2", "-m", "train.prior"]
    flags = runs.arguments(cache, tmp_path / "out", *FLAGS, "--train-batch-size", "2")
    runs.accelerate_launch(*launcher, *flags)
    assert_same_run("prior", tmp_path / "out", one)


@pytest.fixture(scope="module")
def ranks(cache, tmp_path_factory):
    """(folder, what rank 0 saw, what rank 1 saw); see two_ranks.py."""
    folder = tmp_path_factory.mktemp("ranks")
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    done = subprocess.run(
        [sys.executable, *launcher, "-m", "tests.train.two_ranks", str(cache), str(folder)],
        cwd=runs.ROOT,
        env={**runs.environment(), **FSDP, "CUDA_VISIBLE_DEVICES": "", "ACCELERATE_USE_CPU": "true"},
        capture_output=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr.decode()
    return folder, *(json.loads((folder / f"rank-{rank}.json").read_text()) for rank in (0, 1))


def test_each_rank_holds_half_of_the_weights(ranks):
    _, *seen = ranks
    assert sum(s["here"] for s in seen) == seen[0]["whole"]
    assert all(abs(s["here"] / s["whole"] - 0.5) < 0.05 for s in seen)


def test_forward_after_a_forward_sees_weights_that_changed_between_them(ranks, cache, tmp_path):
    folder, *seen = ranks
    task, *_ = runs.prepared("prior", cache, tmp_path / "out")
    task.model.load_state_dict(runs.weights(folder / "checkpoint-1" / "prior"))
    named = [(name, p) for name, p in task.module.named_parameters() if p.requires_grad]
    wanted = outputs_around_a_change(task.module, SimpleNamespace(parameters=named))
    assert wanted[0] == wanted[2] != wanted[1]
    for rank in seen:
        assert rank["outputs"] == pytest.approx(wanted, rel=1e-4)


def test_largest_weight_is_found_on_any_rank(ranks):
    for seen in ranks[1:]:
        assert seen["with_a_large_one"] == [1e6, 1e6]
        assert seen["with_a_nan"] == [True, True]


def test_sharded_weights_moments_and_averages_are_restored_exactly(ranks):
    assert all(seen["step"] == 1 and seen["restored"] for seen in ranks[1:])


def test_full_disk_ends_all_ranks_with_one_line(ranks):
    folder, main, other = ranks
    wanted = f"DataFault: {folder}/checkpoint-2: cannot be written: "
    assert main["full_disk"].startswith(wanted)
    assert "\n" not in main["full_disk"]
    assert other["full_disk"] == "SystemExit: 1"
    assert [p.name for p in checkpoint.checkpoints(folder)] == ["checkpoint-1"]
    assert not list(folder.glob(".tmp-*"))


def assert_averages(folder, trained):
    """Trained weights were doubled by who saved; the rest, like clip_mean, is the model's."""
    raw, averaged = (runs.weights(folder / name) for name in ("prior", "prior_ema"))
    assert raw.keys() == averaged.keys()
    for name, tensor in raw.items():
        assert torch.equal(averaged[name], 2 * tensor if name in trained else tensor), name


def trained_names(task):
    return {name for name, parameter in task.model.named_parameters() if parameter.requires_grad}


def test_averages_of_shards_are_a_diffusers_model(ranks, cache, pocket, tmp_path):
    folder, *_ = ranks
    task, *_ = runs.prepared("prior", cache, tmp_path / "out")
    assert_averages(folder / "checkpoint-1", trained_names(task))
    assert not trained_names(task) >= runs.weights(folder / "checkpoint-1" / "prior").keys()
    loaded = diffusers.PriorTransformer.from_pretrained(folder / "checkpoint-1" / "prior_ema")
    assert runs.same_tensors(loaded.state_dict(), runs.weights(folder / "checkpoint-1" / "prior_ema"))


def training_of(task, options):
    """As the loop has it in one process, with averages."""
    optimizer, named = make_optimizer(task.module, options)
    for _, parameter in named:
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    ema = SimpleNamespace(shadow=[2 * parameter.detach() for _, parameter in named])
    return checkpoint.Training(task.name, task.adapter or task.model, optimizer, named, None, ema)


@pytest.mark.parametrize("flags", [(), LORA], ids=["full", "lora"])
def test_averages_of_one_process_are_saved_and_restored(flags, cache, tmp_path):
    task, _, options = runs.prepared("prior", cache, tmp_path / "out", *flags)
    training = training_of(task, options)
    folder = checkpoint.save(tmp_path / "run", 1, training, keep=None)
    names = training.model.state_dict().keys() if task.adapter else trained_names(task)
    assert_averages(folder, names)
    files = [sorted(p.name for p in (folder / name).iterdir()) for name in ("prior", "prior_ema")]
    assert files[0] == files[1]
    wanted = [mean.clone() for mean in training.ema.shadow]
    for mean in training.ema.shadow:
        mean.zero_()
    checkpoint.load(folder, training)
    assert all(map(torch.equal, training.ema.shadow, wanted))


def test_averages_begin_with_the_weights_of_a_checkpoint_without_them(cache, tmp_path):
    task, _, options = runs.prepared("prior", cache, tmp_path / "out")
    training = training_of(task, options)
    folder = checkpoint.save(tmp_path / "run", 1, training, keep=None)
    shutil.rmtree(folder / "prior_ema")
    checkpoint.load(folder, training)
    parameters = [parameter for _, parameter in training.parameters]
    assert all(map(torch.equal, training.ema.shadow, parameters))


@pytest.mark.parametrize("kind", runs.KINDS)
def test_blocks_are_put_together_one_at_a_time(kind, cache, tmp_path):
    task, *_ = runs.prepared(kind, cache, tmp_path / "out")
    names = block_classes(task.module)
    parts = [m for m in task.module.modules() if type(m).__name__ in names]
    count = sum(p.numel() for part in parts for p in part.parameters())
    whole = sum(p.numel() for p in task.module.parameters())
    assert 0.5 * whole < count <= whole  # no block lies in another
    assert len(parts) > 1
