"""Command lines of diffusers' scripts, word for word, in today's flags."""

import json

import pytest

from data_tools.errors import UserError
from tests.train import runs
from train.old_flags import rewritten


def options(kind, *command_line):
    """What the command makes of it."""
    return runs.COMMANDS[kind].make_context(kind, ["--cache=shards", *command_line]).params


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("--use_8bit_adam", "--optimizer adamw-8bit"),
        ("--use-8bit-adam --seed 1", "--optimizer adamw-8bit --seed 1"),
        ("--enable_xformers_memory_efficient_attention", "--attention xformers"),
        ("--dataloader_num_workers 4 --seed 1", "--seed 1"),
        ("--dataloader_num_workers=4 --seed 1", "--seed 1"),
        ("--local_rank -1 --seed 1", "--seed 1"),
        ("--seed 1 --local-rank", "--seed 1"),
        ("--validation_prompts a", "--validation_prompts a"),
        ("--validation_prompts a b --seed 1", "--validation_prompts a --validation_prompts b --seed 1"),
        ("--validation-prompts a b -n", "--validation-prompts a --validation-prompts b -n"),
        ("--validation-prompts=--odd", "--validation-prompts=--odd"),
        ("--validation_prompts -5° b", "--validation_prompts -5° --validation_prompts b"),
        ("--validation_prompts=a --seed 1", "--validation_prompts=a --seed 1"),
        ("--train_batch_size 2 --use_ema", "--train_batch_size 2 --use_ema"),
        ("--hub_token use_8bit_adam", "--hub_token use_8bit_adam"),
    ],
)
def test_old_words_become_new_ones_and_all_others_stay(old, new):
    assert rewritten(old.split()) == new.split()


def test_given_words_are_left_as_they_were():
    given = ["--use_8bit_adam", "--validation_prompts", "a", "b"]
    rewritten(given)
    assert given == ["--use_8bit_adam", "--validation_prompts", "a", "b"]


def test_old_flags_reach_the_options():
    found = options("prior", "--use_8bit_adam", "--enable_xformers_memory_efficient_attention")
    assert (found["optimizer"], found["attention"]) == ("adamw-8bit", "xformers")


@pytest.mark.parametrize("flag", ["--validation_prompts", "--validation-prompts"])
def test_several_prompts_in_a_row_are_several_prompts(flag):
    found = options("prior", flag, "a red apple", "кошка", "--validation_prompt", "a bus", "--seed", "3")
    assert (found["validation_prompts"], found["seed"]) == (("a red apple", "кошка", "a bus"), 3)


@pytest.mark.parametrize("rest", [[], ["--seed", "3"]])
def test_prompts_without_a_text_are_refused(rest):
    with pytest.raises(UserError, match=r"^--validation-prompts: nothing given"):
        rewritten(["--validation_prompts", *rest])


@pytest.mark.parametrize(
    "flag", ["--dataset_name", "--train_data_dir", "--caption_column", "--max_train_samples"]
)
@pytest.mark.parametrize("kind", runs.KINDS)
def test_flags_of_the_data_are_sent_to_precompute(kind, flag):
    ended = runs.program(kind, flag, "pictures", "--output_dir", "out")
    assert (ended.code, len(ended.lines)) == (2, 1)
    assert ended.lines[0].startswith(f"{flag.replace('_', '-')}: is for precompute (--")
    assert ended.lines[0].endswith("; give the cache it made, with --cache")


def test_folder_of_downloads_is_not_taken_for_the_cache():
    with pytest.raises(UserError, match=r"^--cache-dir: .* HF_HOME"):
        rewritten(["--cache_dir", "downloads"])


def test_whole_command_line_of_the_prior_script_trains_after_its_data_flags_are_replaced(
    cache, pocket, tmp_path
):
    line = f"""--pretrained_prior_model_name_or_path={pocket / "prior"} --cache={cache}
        --resolution=768 --train_batch_size=1 --gradient_accumulation_steps=4 --max_train_steps=1
        --learning_rate=1e-05 --max_grad_norm=1 --checkpoints_total_limit=3 --lr_scheduler=constant
        --lr_warmup_steps=0 --validation_epochs 5 --dataloader_num_workers 4 --local_rank -1 --allow_tf32
        --adam_beta1 0.9 --adam_beta2 0.999 --adam_weight_decay 0.0 --adam_epsilon 1e-08 --snr_gamma 5.0
        --tracker_project_name mine --report_to none --logging_dir logs --mixed_precision no --seed 42
        --checkpointing_steps 500 --output_dir={tmp_path / "out"}"""
    ended = runs.program("prior", *line.split())
    assert ended.code == 0, ended
    chosen = json.loads((tmp_path / "out" / "run.json").read_text())["options"]
    assert (chosen["adam_beta2"], chosen["snr_gamma"], chosen["seed"]) == (0.999, 5.0, 42)
    assert list(runs.series(tmp_path / "out", "loss")) == [1]
