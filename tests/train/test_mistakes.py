"""A user's mistake: one line that begins with the flag or the file, exit code 2, nothing written."""

import json
import shutil

import pytest

from tests.train import runs


@pytest.fixture(params=runs.KINDS)
def kind(request):
    return request.param


@pytest.fixture
def output(tmp_path):
    return tmp_path / "out"


def refused(kind, *command_line):
    """The one line that a wrong command ends with."""
    ended = runs.program(kind, *command_line)
    assert ended.code == 2, ended
    assert len(ended.lines) == 1, ended
    assert ended.stdout == ""
    return ended.lines[0]


def given(cache, output, *flags):
    return runs.arguments(cache, output, *flags)


@pytest.fixture
def copied(cache, tmp_path):
    """A copy of the cache where its recorded models are still found."""
    return shutil.copytree(cache, cache.parent / f"copy-{tmp_path.name}")


@pytest.fixture
def without(copied):
    def without(column):
        shutil.rmtree(copied / "columns" / column)
        return copied

    return without


def model(pocket, kind, target, **config):
    """A copy of a repository whose trained model has another config; its weights are not looked at."""
    folder = shutil.copytree(pocket / kind, target)
    path = folder / runs.TRAINED[kind] / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **config}))
    return folder


def test_folder_that_is_no_cache(kind, tmp_path, output):
    line = refused(kind, *given(tmp_path, output))
    assert line == f"--cache: {tmp_path} is not a cache (it has no cache.json)"
    assert not output.exists()


def test_cache_that_is_not_there(kind, tmp_path, output):
    line = refused(kind, *given(tmp_path / "nowhere", output))
    assert line.startswith(f"--cache: {tmp_path / 'nowhere'} ")
    assert not output.exists()


def test_cache_not_given(kind, output):
    assert refused(kind, "--output-dir", output) == "--cache: missing; see --help"


def test_flag_that_there_is_not(kind, cache, output):
    line = refused(kind, *given(cache, output, "--train-batchsize", "3"))
    assert line.startswith("--train-batchsize: no such option")
    assert "--train-batch-size" in line
    assert not output.exists()


@pytest.mark.parametrize(
    ("flag", "value"),
    [
        ("--learning-rate", "fast"),
        ("--train-batch-size", "0"),
        ("--cond-dropout", "1.5"),
        ("--snr-gamma", "0"),
        ("--lr-scheduler", "cosinus"),
        ("--mixed-precision", "fp8"),
        ("--validation-fraction", "1"),
        ("--max-train-steps", "-1"),
    ],
)
def test_value_out_of_range(kind, cache, output, flag, value):
    line = refused(kind, *given(cache, output, flag, value))
    assert line.startswith(f"{flag}: ")
    assert value in line
    assert not output.exists()


def test_unfinished_cache_unless_partial_is_allowed(kind, copied, output):
    commit = sorted((copied / "columns" / "image").glob("*/commits/part-*.json"))[-1]
    commit.unlink()
    shutil.rmtree(commit.parent.parent / "generations")
    line = refused(kind, *given(copied, output))
    assert line.startswith(f"--cache: {copied} is unfinished: column image lacks {commit.stem}")
    assert not output.exists()
    runs.train(kind, copied, output, "--allow-partial", "--max-train-steps", "1")
    assert json.loads((output / "run.json").read_text())["train_samples"] < 21


def test_model_of_another_width(kind, pocket, cache, output, tmp_path):
    widths = {"prior": {"embedding_dim": 32}, "decoder": {"encoder_hid_dim": 32}}[kind]
    folder = model(pocket, kind, tmp_path / "narrow", **widths)
    line = refused(kind, *given(cache, output, f"--{kind}-model", folder))
    assert line.startswith(f"--{kind}-model: {folder} takes image_embeds of width 32, but {cache} holds ")
    assert "width 64" in line
    assert not output.exists()


def test_model_folder_without_the_model(kind, pocket, cache, output):
    other = pocket / {"prior": "decoder", "decoder": "prior"}[kind]
    line = refused(kind, *given(cache, output, f"--{kind}-model", other))
    assert line.startswith(f"--{kind}-model: {other} has no folder {runs.TRAINED[kind]}/")
    assert not output.exists()


def test_recorded_model_that_is_gone(kind, cache, output, tmp_path):
    moved = shutil.copytree(cache, tmp_path / "deeper" / "and deeper" / "cache")
    line = refused(kind, *given(moved, output))
    assert line.startswith(f"--{kind}-model: ")
    assert line.endswith("which is not there any more")
    assert not output.exists()


def test_model_trained_on_the_embeddings_of_another_clip(kind, finished, cache, output, tmp_path):
    folder = shutil.copytree(finished[kind], tmp_path / "other")
    record = json.loads((folder / "run.json").read_text())
    record["cache"]["columns"]["image"]["weights"] = {"model.safetensors": "0" * 64}
    (folder / "run.json").write_text(json.dumps(record))
    line = refused(kind, *given(cache, output, f"--{kind}-model", folder))
    assert line.startswith(f"--{kind}-model: {folder} was trained on column image made by encoder ")
    assert str(cache) in line
    assert not output.exists()


def test_checkpoint_that_is_none(kind, cache, output, tmp_path):
    for wanted in (str(tmp_path), "checkpoint-7"):
        line = refused(kind, *given(cache, output, "--resume-from-checkpoint", wanted))
        assert line.startswith(f"--resume-from-checkpoint: {wanted} is not a checkpoint")
        assert not output.exists()


def test_output_folder_that_is_the_cache(kind, cache):
    before = sorted(cache.rglob("*"))
    line = refused(kind, *given(cache, cache))
    assert line == f"--output-dir: {cache} is the cache, wanted a folder of its own"
    assert sorted(cache.rglob("*")) == before


def test_output_folder_that_is_a_file(kind, cache, output):
    output.write_text("mine")
    assert refused(kind, *given(cache, output)) == f"--output-dir: {output} is a file, wanted a folder"
    assert output.read_text() == "mine"


def test_everything_held_out(kind, cache, output):
    line = refused(kind, *given(cache, output, "--validation-fraction", "0.999999"))
    assert line.startswith(f"--cache: {cache}: no sample to train on (")
    assert not output.exists()


def test_prior_without_cached_texts(without, output):
    cache = without("text")
    line = refused("prior", *given(cache, output))
    assert line.startswith(f"--cache: {cache} has no column 'text' (it has: image, latents@64)")
    assert not output.exists()


def test_decoder_without_cached_latents(without, output):
    cache = without("latents@64")
    line = refused("decoder", *given(cache, output))
    assert line.startswith(f"--cache: {cache} has no latents")
    assert not output.exists()


def test_decoder_with_several_resolutions_and_no_choice(copied, output):
    (copied / "columns" / "latents@128").mkdir()
    declared = copied / "columns" / "latents@64" / "column.json"
    shutil.copyfile(declared, copied / "columns" / "latents@128" / "column.json")
    line = refused("decoder", *given(copied, output))
    assert line.startswith("--resolution: missing")
    assert "128, 64" in line
    assert not output.exists()
    runs.train("decoder", copied, output, "--resolution", "64", "--max-train-steps", "1")


def test_decoder_at_a_resolution_that_is_not_cached(cache, output):
    line = refused("decoder", *given(cache, output, "--resolution", "512"))
    assert line == f"--resolution: {cache} has no latents of 512 px (it has: 64)"
    assert not output.exists()


def test_inpainting_decoder(pocket, cache, output, tmp_path):
    folder = model(pocket, "decoder", tmp_path / "inpaint", in_channels=9)
    line = refused("decoder", *given(cache, output, "--decoder-model", folder))
    assert line.startswith(f"--decoder-model: {folder} takes 9 input channels, the latents have 4")
    assert not output.exists()


def test_old_command_lines_with_underscores_work(cache, pocket, tmp_path):
    words = {
        "cache": cache,
        "output_dir": tmp_path / "out",
        "train_batch_size": 2,
        "gradient_accumulation_steps": 1,
        "max_train_steps": 1,
        "learning_rate": 1e-5,
        "max_grad_norm": 1,
        "lr_scheduler": "constant",
        "lr_warmup_steps": 0,
        "snr_gamma": 5.0,
        "adam_beta1": 0.9,
        "adam_weight_decay": 0.0,
        "checkpointing_steps": 500,
        "checkpoints_total_limit": 3,
        "resume_from_checkpoint": "latest",
        "mixed_precision": "no",
        "seed": 42,
        "pretrained_prior_model_name_or_path": pocket / "prior",
        "pretrained_decoder_model_name_or_path": pocket / "decoder",
    }
    for kind in runs.KINDS:
        words["output_dir"] = tmp_path / kind
        if kind == "prior":
            flags = {name: value for name, value in words.items() if "decoder" not in name}
        else:
            flags = {**words, "resolution": 64}
        command_line = [part for name, value in flags.items() for part in (f"--{name}", str(value))]
        assert runs.program(kind, *command_line, "--gradient_checkpointing").code == 0
        options = json.loads((tmp_path / kind / "run.json").read_text())["options"]
        assert {name: options[name] for name in ("seed", "snr_gamma", "train_batch_size")} == {
            "seed": 42,
            "snr_gamma": 5.0,
            "train_batch_size": 2,
        }


def test_cuda_graphs_over_several_rounds_are_refused(kind, cache, output):
    flags = ("--compile", "--compile-mode", "reduce-overhead", "--gradient-accumulation-steps", "2")
    line = refused(kind, *given(cache, output, *flags))
    assert line.startswith("--compile-mode: reduce-overhead takes CUDA graphs, ")
    assert not output.exists()


def test_flags_without_effect_are_said(cache, output):
    ended = runs.program(
        "prior", *given(cache, output, "--ema-decay", "0.9", "--hub-model-id", "x", "--dry-run")
    )
    assert ended.code == 0
    assert ended.lines == [
        "--ema-decay: has no effect without --use-ema",
        "--hub-model-id: has no effect without --push-to-hub",
    ]


def test_pictures_of_a_side_that_is_no_multiple_of_64(pocket, cache, output):
    flags = ("--validation-prompts", "a cat", "--decoder-model", pocket / "decoder", "--resolution", "100")
    line = refused("prior", *given(cache, output, *flags))
    assert line == "--resolution: 100 px, wanted a multiple of 64 for pictures"


def test_prompts_are_encoded_whatever_is_saved(pocket, cache, output):
    flags = ("--validation-prompts", "a cat", "--decoder-model", pocket / "decoder", "--resolution", "64")
    ended = runs.program("prior", *given(cache, output, *flags, "--save", "prior-only", "--dry-run"))
    assert ended.code == 0, ended
    assert json.loads(ended.stdout[: ended.stdout.rindex("}") + 1])["options"]["resolution"] == 64
