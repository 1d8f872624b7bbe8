"""What `accelerate launch` may ask for and a trainer cannot do is one line."""

import json
import math

import pytest
from accelerate import Accelerator

from data_tools.errors import UserError
from tests.train import runs
from tests.train.test_sharding import FSDP
from train.sharding import fsdp_plugin, set_up_fsdp
from train.zero import deepspeed_config

FIRST_VERSION = "accelerate: FSDP of version 1 is not supported, wanted --fsdp_version 2"


STAGE_2 = {"zero_optimization": {"stage": 2}}


def zero(stage=2):
    return {"ACCELERATE_USE_DEEPSPEED": "true", "ACCELERATE_DEEPSPEED_ZERO_STAGE": str(stage)}


@pytest.mark.parametrize(
    ("environment", "line"),
    [
        ({"ACCELERATE_USE_FSDP": "true"}, FIRST_VERSION),
        (FSDP | {"FSDP_VERSION": "1"}, FIRST_VERSION),
        (
            FSDP | {"FSDP_ACTIVATION_CHECKPOINTING": "true"},
            "accelerate: fsdp_activation_checkpointing is not heeded; give --gradient-checkpointing",
        ),
        (zero(), "accelerate: DeepSpeed needs a launcher, wanted accelerate launch --use_deepspeed …"),
        (
            zero() | {"ACCELERATE_DEEPSPEED_CONFIG_FILE": "{}"},
            "accelerate: the DeepSpeed config: Please specify the ZeRO optimization config in the DeepSpeed "
            "config",
        ),
        (
            zero(stage=3),
            "accelerate: DeepSpeed's --zero_stage 3 is not supported, wanted 1 or 2, or --use_fsdp "
            "--fsdp_version 2, which shards what ZeRO-3 does",
        ),
        (zero(stage=0), "accelerate: --zero_stage: found 0, wanted 1 or 2"),
        (
            zero() | {"ACCELERATE_DEEPSPEED_OFFLOAD_OPTIMIZER_DEVICE": "cpu"},
            "accelerate: DeepSpeed's offload_optimizer is not supported, wanted none",
        ),
        (
            zero() | {"ACCELERATE_DEEPSPEED_CONFIG_FILE": json.dumps(STAGE_2 | {"scheduler": {}})},
            "accelerate: scheduler in the DeepSpeed config is not heeded; leave it out",
        ),
        (
            zero() | {"ACCELERATE_DEEPSPEED_CONFIG_FILE": json.dumps(STAGE_2 | {"bf16": {"enabled": True}})},
            "accelerate: bf16 in the DeepSpeed config is not heeded; leave it out, and give "
            "--mixed-precision bf16",
        ),
    ],
)
def test_what_cannot_be_kept_is_refused(environment, line, cache, tmp_path, monkeypatch):
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    ended = runs.program("prior", *runs.arguments(cache, tmp_path / "out"))
    assert (ended.code, ended.lines) == (2, [line])
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("precision", "optimizer", "line"),
    [
        ("fp16", "adamw", "--mixed-precision: fp16 is not supported with FSDP, wanted bf16 or no"),
        ("no", "adafactor", "--optimizer: adafactor is not supported with FSDP, wanted adamw"),
    ],
)
def test_options_that_do_not_go_with_fsdp_are_refused(precision, optimizer, line, monkeypatch):
    for name, value in FSDP.items():
        monkeypatch.setenv(name, value)
    accelerator, plugin = Accelerator(mixed_precision=precision, cpu=True), fsdp_plugin(FSDP)
    with pytest.raises(UserError) as refused:
        set_up_fsdp(accelerator, plugin, optimizer)
    assert str(refused.value) == line


def test_optimizer_that_does_not_go_with_deepspeed_is_refused(cache, tmp_path, monkeypatch):
    for name, value in zero().items():
        monkeypatch.setenv(name, value)
    ended = runs.program("prior", *runs.arguments(cache, tmp_path / "out", "--optimizer", "adafactor"))
    assert ended.lines == ["--optimizer: adafactor is not supported with DeepSpeed, wanted adamw"]


def test_config_of_the_launcher_gets_the_numbers_of_the_flags(cache, tmp_path, monkeypatch):
    given = {
        **{"zero_optimization": {"stage": 1, "reduce_bucket_size": "auto", "overlap_comm": True}},
        **{"train_batch_size": 7, "train_micro_batch_size_per_gpu": "auto", "gradient_clipping": 9.0},
    }
    environment = zero() | {"ACCELERATE_DEEPSPEED_CONFIG_FILE": json.dumps(given), "RANK": "0"}
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    flags = ("--train-batch-size", "3", "--gradient-accumulation-steps", "2", "--max-grad-norm", "0.5")
    _, _, options = runs.prepared("prior", cache, tmp_path / "out", *flags)
    assert deepspeed_config(options) == {
        "zero_optimization": {"stage": 1, "overlap_comm": True},
        "train_micro_batch_size_per_gpu": 3,
        "gradient_accumulation_steps": 2,
        "gradient_clipping": 0.5,
        "zero_allow_untested_optimizer": True,
        "steps_per_print": math.inf,
    }
