"""Nothing of the user's is written over, and a disk that is full costs no checkpoint."""

import json
import shutil

import pytest

from tests.train import runs
from train.checkpoint import checkpoints

OTHER = {"prior": "decoder", "decoder": "prior"}

LIMITED = """
import resource
from train import checkpoint, export, {kind}, metrics

original = {target}
def limited(*args, **options):
    resource.setrlimit(resource.RLIMIT_FSIZE, ({size}, {size}))
    return original(*args, **options)
{target} = limited
{kind}.main()
"""


@pytest.fixture(params=runs.KINDS)
def kind(request):
    return request.param


def contents(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def refused(kind, cache, output):
    before = contents(output)
    ended = runs.program(kind, *runs.arguments(cache, output))
    assert (ended.code, len(ended.lines)) == (2, 1), ended
    assert contents(output) == before
    return ended.lines[0]


@pytest.mark.parametrize("name", ["prior/notes.txt", "unet/notes.txt", "README.md", "run.json"])
def test_folder_with_the_users_files_is_refused_and_untouched(name, kind, cache, tmp_path):
    path = tmp_path / "proj" / name
    path.parent.mkdir(parents=True)
    path.write_text("mine")
    line = refused(kind, cache, tmp_path / "proj")
    where = f"--output-dir: {tmp_path / 'proj'}"
    assert line == f"{where} is not empty and not a run of train-{kind}; give another"


def test_run_of_the_other_trainer_is_refused(kind, cache, finished, tmp_path):
    output = shutil.copytree(finished[OTHER[kind]], tmp_path / "out")
    assert refused(kind, cache, output).startswith(f"--output-dir: {output} is not empty and not a run of ")


def test_hidden_files_do_not_count(kind, cache, tmp_path):
    output = tmp_path / "out"
    output.mkdir()
    (output / ".gitignore").write_text("*")
    runs.train(kind, cache, output, "--max-train-steps", "1")
    assert (output / ".gitignore").read_text() == "*"


def test_export_replaces_its_own_files_only(kind, cache, finished, tmp_path):
    output = shutil.copytree(finished[kind], tmp_path / "out")
    trained = output / runs.TRAINED[kind]
    notes = [trained / "notes.txt", output / "scheduler" / "notes.txt", output / "notes.txt"]
    for path in notes:
        path.write_text("mine")
    shard = "diffusion_pytorch_model-00001-of-00002.safetensors"
    stale = [trained / shard, trained / "diffusion_pytorch_model.safetensors.index.json"]
    for path in stale:
        path.write_bytes(b"of an earlier export")
    weights = trained / "diffusion_pytorch_model.safetensors"
    wanted = weights.read_bytes()
    weights.write_bytes(b"damaged")
    runs.train(kind, cache, output, *runs.STANDARD)
    assert [path.read_text() for path in notes] == ["mine"] * 3
    assert not [path for path in stale if path.exists()]
    assert weights.read_bytes() == wanted
    assert not [path for path in output.iterdir() if path.name.startswith(".")]


def test_default_folders_of_the_two_trainers_differ():
    defaults = {
        kind: next(p.default for p in runs.COMMANDS[kind].params if p.name == "output_dir")
        for kind in runs.KINDS
    }
    assert {kind: str(path) for kind, path in defaults.items()} == {
        "prior": "kandi_2_2-prior-finetuned",
        "decoder": "kandi_2_2-decoder-finetuned",
    }


@pytest.mark.parametrize("size", [1000, 100_000, "'optimizer'"])
def test_full_disk_while_saving_is_one_line_and_the_older_checkpoint_survives(size, cache, tmp_path):
    output = tmp_path / "out"
    runs.train("prior", cache, output, "--max-train-steps", "2")
    before = contents(output / "checkpoint-2")
    if size == "'optimizer'":  # the weights fit, the optimizer's twice as many numbers do not
        size = 1 + (output / "checkpoint-2" / "prior" / "diffusion_pytorch_model.safetensors").stat().st_size
    ended = limited("checkpoint.save", size, cache, output, "--max-train-steps", "4")
    assert ended.startswith(f"{output / 'checkpoint-4'}: cannot be written: ")
    assert [path.name for path in checkpoints(output)] == ["checkpoint-2"]
    assert contents(output / "checkpoint-2") == before
    assert not list(output.glob(".tmp*"))
    runs.train("prior", cache, output, "--max-train-steps", "4")


@pytest.mark.parametrize(
    ("target", "size", "named"),
    [
        ("metrics.MetricsFile.write", 10, "metrics.jsonl"),
        ("export.shutil.copyfile", 100, ""),
        ("export._save", 1000, ""),
        ("metrics.read_metrics", 1000, "loss.png"),
    ],
)
def test_full_disk_elsewhere_is_one_line(target, size, named, cache, tmp_path):
    output = tmp_path / "out"
    line = limited(target, size, cache, output, "--max-train-steps", "1")
    assert line.startswith(f"{output / named}: cannot be written: ")
    assert "File too large" in line
    assert "[(" not in line  # copytree's own error is a list of tuples
    assert json.loads((output / "run.json").read_text())["trains"] == "prior"


def limited(target, size, cache, output, *flags):
    """The last line of a run for which files can grow to `size` bytes only, from a call of `target` on."""
    program = LIMITED.format(kind="prior", target=target, size=size)
    done = runs.script(program, *runs.arguments(cache, output, *flags))
    assert done.returncode == 1, done.stderr
    assert "Traceback" not in done.stderr
    return done.stderr.strip().splitlines()[-1]
