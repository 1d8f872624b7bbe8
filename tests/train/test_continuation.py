"""Who continues a run gets the same run: not another base model, not another cache."""

import json
import shutil

import pytest
from safetensors.torch import load_file, save_file

from tests.train import runs
from train.step import Step


@pytest.fixture(params=runs.KINDS)
def kind(request):
    return request.param


@pytest.fixture
def output(kind, finished, tmp_path):
    return shutil.copytree(finished[kind], tmp_path / "out")


MORE = (*runs.STANDARD, "--max-train-steps", "7")


def refused(kind, cache, output, *flags):
    before = (output / "run.json").read_bytes()
    ended = runs.program(kind, *runs.arguments(cache, output, *MORE, *flags))
    assert (ended.code, len(ended.lines)) == (2, 1), ended
    assert (output / "run.json").read_bytes() == before
    return ended.lines[0]


def test_another_base_model_is_refused(kind, cache, output, pocket, tmp_path):
    base = shutil.copytree(pocket / kind, tmp_path / "base")
    path = base / runs.TRAINED[kind] / "diffusion_pytorch_model.safetensors"
    save_file({name: 2 * tensor for name, tensor in load_file(path).items()}, path)
    line = refused(kind, cache, output, f"--{kind}-model", base)
    assert line.startswith(f"--{kind}-model: {base} (")
    assert f"is not what {output / 'checkpoint-6'} began from, which was " in line
    old = json.loads((output / "run.json").read_text())
    assert f"{old['base_model']} ({old['base_identity'][:12]})" in line


def test_another_noise_schedule_is_another_base_model(kind, cache, output, pocket, tmp_path):
    base = shutil.copytree(pocket / kind, tmp_path / "base")
    path = base / "scheduler" / "scheduler_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "num_train_timesteps": 500}))
    assert refused(kind, cache, output, f"--{kind}-model", base).startswith(f"--{kind}-model: {base} (")


def test_the_same_base_model_in_another_place_is_the_same(kind, cache, output, pocket, tmp_path):
    base = shutil.copytree(pocket / kind, tmp_path / "moved")
    ended = runs.program(kind, *runs.arguments(cache, output, *MORE, f"--{kind}-model", base))
    assert ended.code == 0, ended
    assert (output / "checkpoint-7").is_dir()


@pytest.mark.parametrize("elsewhere", [False, True])
def test_another_cache_is_refused(elsewhere, kind, cache, cache16, output, tmp_path):
    place = output
    flags = ()
    if elsewhere:  # a checkpoint of another folder: what counts is the run that wrote it
        place = tmp_path / "branch"
        flags = ("--resume-from-checkpoint", str(output / "checkpoint-6"))
        place.mkdir()
        shutil.copyfile(output / "run.json", place / "run.json")
    line = refused(kind, cache16, place, *flags)
    assert line.startswith(f"--cache: column image of {cache16} is ")
    assert f"{output / 'checkpoint-6'} was trained on " in line
    assert f" of {cache}; " in line


def test_the_same_cache_in_another_place_is_the_same(kind, cache, output, tmp_path):
    moved = shutil.copytree(cache, cache.parent / f"moved-{tmp_path.name}")
    assert runs.program(kind, *runs.arguments(moved, output, *MORE)).code == 0


@pytest.mark.parametrize(
    ("stop", "wanted", "said"),
    [
        (1, "latest", "begins again from the start (no checkpoint was written yet)"),
        (5, "latest", "continues from {out}/checkpoint-3"),
        (4, "{finished}/checkpoint-3", "begins again from {finished}/checkpoint-3"),
        (7, "{finished}/checkpoint-3", "continues from {out}/checkpoint-6"),
    ],
)
def test_ctrl_c_says_where_the_same_command_goes_on(stop, wanted, said, cache, finished, tmp_path):
    places = {"out": tmp_path / "out", "finished": finished["prior"]}
    step = Step.take

    def interrupts(self, number, *rest):
        if number == stop:
            raise KeyboardInterrupt
        step(self, number, *rest)

    flags = (*runs.STANDARD, "--max-train-steps", "8", "--resume-from-checkpoint", wanted.format(**places))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Step, "take", interrupts)
        ended = runs.program("prior", *runs.arguments(cache, places["out"], *flags))
    assert ended.code == 130
    assert ended.lines[-1].startswith("interrupted; the same command ")
    assert ended.lines[-1].endswith(said.format(**places))


def record(output):
    return json.loads((output / "run.json").read_text())


def test_same_command_says_nothing_but_where_it_resumes(cache, tmp_path):
    output = tmp_path / "out"
    flags = ("--max-train-steps", "2", "--lr-scheduler", "cosine")
    for _ in range(2):
        ended = runs.program("prior", *runs.arguments(cache, output, *flags))
    assert ended.code == 0
    assert ended.lines == [f"resuming from {output / 'checkpoint-2'}"]


def test_another_optimizer_is_refused(cache, tmp_path):
    output = tmp_path / "out"
    runs.train("prior", cache, output, "--max-train-steps", "1")
    ended = runs.program("prior", *runs.arguments(cache, output, "--optimizer", "adafactor"))
    assert ended.code == 2
    assert ended.lines == [
        f"--optimizer: adafactor, but {output / 'checkpoint-1'} was trained with adamw; give that, or "
        "another --output-dir"
    ]


def test_command_that_began_from_a_checkpoint_elsewhere_continues_its_own(cache, tmp_path):
    first, branch = tmp_path / "first", tmp_path / "branch"
    runs.train("prior", cache, first, "--max-train-steps", "2", "--checkpointing-steps", "2")
    flags = ("--resume-from-checkpoint", first / "checkpoint-2")
    for steps in (4, 6):
        runs.train("prior", cache, branch, *flags, "--max-train-steps", steps)
        assert record(branch)["began_from"] == str(first / "checkpoint-2")
    assert list(runs.series(branch, "loss")) == [3, 4, 5, 6]
    whole = runs.train("prior", cache, tmp_path / "whole", "--max-train-steps", "6")
    assert runs.same_tensors(runs.weights(branch / "prior"), runs.weights(whole / "prior"))


def test_trackers_see_one_run_when_it_goes_on_and_another_when_it_branches(cache, tmp_path):
    first, branch = tmp_path / "first", tmp_path / "branch"
    runs.train("prior", cache, first, "--max-train-steps", "2")
    own = record(first)["run_id"]
    runs.train("prior", cache, first, "--max-train-steps", "3")
    assert record(first)["run_id"] == own
    runs.train(
        "prior", cache, branch, "--resume-from-checkpoint", first / "checkpoint-3", "--max-train-steps", "4"
    )
    assert record(branch)["run_id"] != own
