"""What `accelerate launch` may ask for and a trainer cannot do is one line."""

import pytest
from accelerate import Accelerator

from data_tools.errors import UserError
from tests.train import runs
from tests.train.test_sharding import FSDP
from train.sharding import fsdp_plugin, set_up_fsdp

FIRST_VERSION = "accelerate: FSDP of version 1 is not supported, wanted --fsdp_version 2"


@pytest.mark.parametrize(
    ("environment", "line"),
    [
        ({"ACCELERATE_USE_FSDP": "true"}, FIRST_VERSION),
        (FSDP | {"FSDP_VERSION": "1"}, FIRST_VERSION),
        (
            FSDP | {"FSDP_ACTIVATION_CHECKPOINTING": "true"},
            "accelerate: fsdp_activation_checkpointing is not heeded; give --gradient-checkpointing",
        ),
        (
            {"ACCELERATE_USE_DEEPSPEED": "true"},
            "accelerate: DeepSpeed is not supported, wanted --use_fsdp --fsdp_version 2, which shards what "
            "ZeRO-3 does, or plain data parallelism",
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
