"""`--push-to-hub` against a hub of our own: mistakes before training, the model after it, never the token."""

import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from diffusers import KandinskyV22Pipeline, KandinskyV22PriorPipeline
from huggingface_hub import ModelCard, constants

from tests.hub_server import serve
from tests.train import runs

TOKEN, OTHERS = "hf_aSecretThatNobodyMayRead", "hf_bobs"
PIPELINES = {"prior": KandinskyV22PriorPipeline, "decoder": KandinskyV22Pipeline}
HUB = {"HF_HUB_OFFLINE": "0", "HF_HUB_DISABLE_XET": "1", "HF_HUB_DISABLE_IMPLICIT_TOKEN": "0"}


@pytest.fixture
def hub():
    with serve({TOKEN: "ann", OTHERS: "bob"}) as running:
        yield running


@pytest.fixture
def online(hub, tmp_path, monkeypatch):
    """What huggingface_hub reads from the environment when it is imported, for runs in this process."""
    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(constants, "ENDPOINT", hub.endpoint)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "login"))
    return tmp_path / "login"


def in_a_process(hub, tmp_path, *command):
    environment = {**runs.environment(), **HUB, "HF_ENDPOINT": hub.endpoint, "HF_HOME": str(tmp_path / "hf")}
    environment |= {"CUDA_VISIBLE_DEVICES": "", "ACCELERATE_USE_CPU": "true"}
    environment.pop("HF_TOKEN", None)
    return subprocess.run(
        [sys.executable, *map(str, command)],
        cwd=runs.ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


def refused(kind, cache, output, *flags):
    """The one line that ends the run before anything was written."""
    ended = runs.program(kind, *runs.arguments(cache, output, "--push-to-hub", *flags))
    assert (ended.code, len(ended.lines)) == (2, 1), ended
    assert not output.exists()
    assert TOKEN not in ended.stderr + ended.stdout
    return ended.lines[0]


def public_files(output):
    """What of a run is for others."""
    found = {p.relative_to(output).as_posix(): p.read_bytes() for p in output.rglob("*") if p.is_file()}
    return {name: c for name, c in found.items() if not re.match(r"(checkpoint-|logs/|\.|.*/\.)", name)}


def without_token(folder, *texts):
    assert TOKEN not in "".join(texts)
    assert not [p for p in folder.rglob("*") if p.is_file() and TOKEN.encode() in p.read_bytes()]


def test_whole_command_pushes_what_the_stock_pipeline_loads(hub, cache, tmp_path):
    output = tmp_path / "my-prior"
    (output / ".notes").mkdir(parents=True)
    (output / ".notes" / "mine.txt").write_text("mine")
    flags = ("--push-to-hub", "--hub-token", TOKEN, "--save", "linked", "--report-to", "none")
    done = in_a_process(hub, tmp_path, "-m", "train.prior", *runs.arguments(cache, output, *flags))
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == f"pushed to {hub.endpoint}/ann/my-prior"
    pushed = hub.repositories["ann/my-prior"]
    assert pushed.messages == ["Trained up to step 3"]
    assert pushed.files == public_files(output)
    assert {"model_index.json", "README.md", "run.json", "metrics.jsonl", "loss.png"} <= pushed.files.keys()
    snapshot = hub.snapshot("ann/my-prior", tmp_path / "downloaded")
    pipeline = KandinskyV22PriorPipeline.from_pretrained(snapshot)
    assert runs.same_tensors(dict(pipeline.prior.state_dict()), runs.weights(output / "prior"))
    card = ModelCard.load(snapshot / "README.md")
    assert card.data.license == "apache-2.0"
    assert 'from_pretrained("ann/my-prior")' in card.text
    without_token(tmp_path, done.stdout, done.stderr)


def test_login_pushes_to_the_name_that_is_given(hub, online, cache, tmp_path):
    online.write_text(f"{TOKEN}\n")
    output = tmp_path / "out"
    flags = ("--max-train-steps", "1", "--lora-rank", "2", "--push-to-hub", "--hub-model-id", "apples")
    for _ in range(2):  # the repository is there the second time, and is written again
        ended = runs.program("decoder", *runs.arguments(cache, output, *flags))
        assert ended.code == 0, ended
        assert f"pushed to {hub.endpoint}/ann/apples" in ended.stdout
    assert hub.repositories["ann/apples"].files == public_files(output)
    assert "pytorch_lora_weights.safetensors" in hub.repositories["ann/apples"].files
    assert KandinskyV22Pipeline.from_pretrained(hub.snapshot("ann/apples", tmp_path / "downloaded"))
    without_token(output, ended.stdout, ended.stderr)


def test_upload_that_fails_leaves_the_result_and_the_command_that_uploads_it(hub, online, cache, tmp_path):
    hub.full = True
    output = tmp_path / "my decoder"
    name = ("--hub-model-id", "ann/my-decoder")
    flags = ("--max-train-steps", "1", "--push-to-hub", "--hub-token", TOKEN, *name)
    ended = runs.program("decoder", *runs.arguments(cache, output, *flags))
    assert ended.code == 1, ended
    line = ended.lines[-1]
    assert line.startswith(
        "--push-to-hub: ann/my-decoder did not get all files: no room left; the result is "
    )
    assert f"safe in {output}; " in line
    assert "Traceback" not in ended.stderr
    without_token(tmp_path, ended.stdout, ended.stderr)
    assert KandinskyV22Pipeline.from_pretrained(output)
    assert hub.repositories["ann/my-decoder"].files == {}

    hub.full = False
    program, *command = shlex.split(line.partition(", or: ")[2])
    assert program == "hf"
    (tmp_path / "hf").mkdir()
    (tmp_path / "hf" / "token").write_text(TOKEN)  # as `hf auth login` leaves it
    done = in_a_process(hub, tmp_path, shutil.which("hf", path=Path(sys.executable).parent), *command)
    assert done.returncode == 0, done.stderr
    assert hub.repositories["ann/my-decoder"].files == public_files(output)


@pytest.mark.parametrize("kind", runs.KINDS)
def test_mistakes_are_found_before_training(kind, hub, online, cache, tmp_path, monkeypatch):
    output = tmp_path / "out"
    assert refused(kind, cache, output).startswith(f"--push-to-hub: no login at {hub.endpoint} was found; ")
    assert refused(kind, cache, output, "--hub-token", "hf_wrong").startswith(
        "--hub-token: this token is not"
    )
    online.write_text("hf_old")
    assert refused(kind, cache, output).startswith("--push-to-hub: the login's token is not valid at ")
    mine = ("--hub-token", TOKEN)
    said = refused(kind, cache, output, "--hub-token", f"{TOKEN}\nmore")
    assert said == "--hub-token: holds spaces or other characters that no token has"
    said = refused(kind, cache, output, *mine, "--hub-model-id", "my run")
    assert said.startswith("--hub-model-id: my run cannot be a repository's name; ")
    said = refused(kind, cache, output, *mine, "--hub-model-id", "carl/apples")
    assert said.startswith("--hub-model-id: carl/apples: the token has no right to write there (You don't")
    assert hub.repositories == {}
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert refused(kind, cache, output, *mine).startswith("--push-to-hub: HF_HUB_OFFLINE is set; ")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    said = refused(kind, cache, output, *mine)
    assert said.startswith("--push-to-hub: http://127.0.0.1:9 cannot be reached: ")


def test_repository_of_somebody_else_is_refused_although_it_can_be_read(hub, online, cache, tmp_path):
    flags = ("--push-to-hub", "--max-train-steps", "1", "--hub-token", OTHERS)
    runs.train("prior", cache, tmp_path / "apples", *flags)
    before = dict(hub.repositories["bob/apples"].files)
    said = refused("prior", cache, tmp_path / "out", "--hub-token", TOKEN, "--hub-model-id", "bob/apples")
    assert said.startswith("--hub-model-id: bob/apples: the token has no right to write there (Forbidden: ")
    assert hub.repositories["bob/apples"].files == before


def test_neither_a_dry_run_nor_a_run_without_the_flag_asks_the_hub(hub, online, cache, tmp_path):
    runs.train("prior", cache, tmp_path / "a", "--push-to-hub", "--hub-token", TOKEN, "--dry-run")
    runs.train("prior", cache, tmp_path / "b", "--max-train-steps", "1", "--hub-token", TOKEN)
    assert hub.requests == []
    without_token(tmp_path)


@pytest.mark.slow
def test_two_ranks_push_once_and_end_alike_at_a_mistake(hub, cache, tmp_path):
    output, flags = tmp_path / "out", ("--max-train-steps", "1", "--push-to-hub", "--hub-token")
    launcher = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "train.prior")
    done = in_a_process(hub, tmp_path, *launcher, *runs.arguments(cache, output, *flags, "hf_wrong"))
    assert done.returncode != 0
    said = [line for line in done.stderr.splitlines() if line.startswith("--hub-token: this token is not")]
    assert len(said) == 1
    assert "[rank" not in done.stderr  # where torchrun shows a traceback
    assert not output.exists()
    done = in_a_process(hub, tmp_path, *launcher, *runs.arguments(cache, output, *flags, TOKEN))
    assert done.returncode == 0, done.stderr
    assert hub.repositories["ann/out"].messages == ["Trained up to step 1"]
    assert hub.repositories["ann/out"].files == public_files(output)
    assert sum(request.endswith("whoami-v2") for request in hub.requests) == 2
