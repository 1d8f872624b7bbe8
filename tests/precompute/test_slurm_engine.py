"""`--engine slurm` as far as it goes without a cluster: what is asked of sbatch, what is refused.

sbatch is a script that keeps what it gets; tests/slurm has the real one.
"""

import json
import os
import sys
from pathlib import Path

import pytest

from data_tools import console
from precompute import cli
from precompute.engine_flags import _minutes
from precompute.engines.slurm import Command, log_folder
from tests.precompute.command import arguments, assert_same_records, files, records

SBATCH = """#!/bin/sh
cp "$1" "$KEEP/script"
env > "$KEEP/environment"
echo "Submitted batch job 7"
"""
REFUSAL = """#!/bin/sh
echo "sbatch: error: invalid partition specified: fast" >&2
echo "sbatch: error: Batch job submission failed: Invalid partition name specified" >&2
exit 1
"""


@pytest.fixture
def programs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with all programs there are: sbatch and srun."""
    folder = tmp_path / "bin"
    folder.mkdir()
    write_program(folder / "sbatch", SBATCH)
    write_program(folder / "srun", "#!/bin/sh\n")
    monkeypatch.setenv("PATH", f"{folder}:/usr/bin:/bin")
    monkeypatch.setenv("KEEP", str(tmp_path))
    return folder


def write_program(path: Path, text: str) -> None:
    path.write_text(text)
    path.chmod(0o755)


@pytest.fixture
def give(pictures: Path, pocket: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys):
    """The command with --engine slurm; returns exit code, stdout and stderr."""

    def run(*flags: str, cache: Path | str = tmp_path / "cache") -> tuple[int, str, str]:
        command = arguments(pictures, cache, pocket, "--dtype", "fp32", "--engine", "slurm", *flags)
        monkeypatch.setattr(sys, "argv", ["precompute", *command])
        with pytest.raises(SystemExit) as stopped:
            console.run(cli.precompute)
        out, err = capsys.readouterr()
        return int(stopped.value.code or 0), out, err

    return run


def test_an_array_job_is_asked_for_with_every_flag(programs: Path, give, tmp_path: Path) -> None:
    where = ["--slurm-partition", "gpu", "--slurm-time", "1-2:30", "--slurm-logs", str(tmp_path / "my logs")]
    size = ["--tasks", "3", "--gpus-per-task", "2", "--cpus-per-task", "6"]
    code, out, err = give(*where, *size, "--slurm-option", "account=me", "--slurm-option", "exclusive")
    assert (code, err) == (0, "")
    assert out.startswith("submitted job 7: 3 tasks of 2 processes for 4 parts, output in ")
    assert out.endswith(f"watch it with: precompute --status --cache {tmp_path / 'cache'}\n")
    script = (tmp_path / "script").read_text()
    wanted = ["partition=gpu", f"time={26 * 60 + 30}", "array=0-2%3", "nodes=1", "ntasks-per-node=2"]
    wanted += ["gpus-per-node=2", "cpus-per-task=6", "account=me", "exclusive", "requeue"]
    assert {f"#SBATCH --{flag}" for flag in wanted} <= set(script.splitlines())
    assert "--cpus-per-task=6" in next(line for line in script.splitlines() if line.startswith("srun "))
    assert sorted(path.name for path in (tmp_path / "my logs").glob("7_*.pkl")) == [
        f"7_{task}_submitted.pkl" for task in range(3)
    ]


def test_the_submitter_writes_the_plan_and_encodes_nothing(programs: Path, give, tmp_path: Path) -> None:
    assert give("--tasks", "2", "--gpus-per-task", "0")[0] == 0
    cache = tmp_path / "cache"
    assert sorted(path.name for path in cache.iterdir()) == ["cache.json", "plans", "samples"]
    assert "gpus" not in (tmp_path / "script").read_text()


def test_no_more_tasks_than_parts_are_asked_for(programs: Path, give, tmp_path: Path) -> None:
    assert "submitted job 7: 4 tasks for 4 parts" in give("--tasks", "99")[1]
    assert "submitted job 7: 1 task for 4 parts" in give()[1]
    assert "--array" not in (tmp_path / "script").read_text()


def test_a_whole_cache_submits_nothing(programs: Path, give, cache: Path, tmp_path: Path) -> None:
    code, out, _ = give("--gpus-per-task", "0", cache=cache)
    assert code == 0
    assert out.splitlines()[0] == "nothing to do: every part is committed"
    assert not (tmp_path / "script").exists()


def test_a_dry_run_submits_nothing(programs: Path, give, tmp_path: Path) -> None:
    assert give("--dry-run")[0] == 0
    assert not (tmp_path / "script").exists()
    assert not (tmp_path / "cache").exists()


def test_a_job_does_not_take_over_the_job_in_which_it_is_submitted(
    programs: Path, give, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ours = {"SLURM_JOB_ID": "3", "SLURM_MEM_PER_CPU": "9", "SLURM_CONF": "/a/b", "SBATCH_ACCOUNT": "me"}
    for name, value in ours.items():
        monkeypatch.setenv(name, value)
    assert give()[0] == 0
    names = {line.partition("=")[0] for line in (tmp_path / "environment").read_text().splitlines()}
    assert names & ours.keys() == {"SLURM_CONF", "SBATCH_ACCOUNT"}
    assert os.environ["SLURM_JOB_ID"] == "3"


def test_a_task_runs_the_command_itself_with_what_the_submitter_has_settled(
    programs: Path, give, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import cloudpickle

    assert give("--gpus-per-task", "0", "--tasks", "1", "--slurm-time", "30")[0] == 0
    (stored,) = (tmp_path / "cache-slurm").glob("7*_submitted.pkl")
    command = cloudpickle.loads(stored.read_bytes()).function
    assert command.arguments[-6:] == ("--engine", "local", "--device", "cpu", "--precision", "fp32")
    monkeypatch.setenv("RANK", "1")  # of the submitter's own launcher
    monkeypatch.setenv("WORLD_SIZE", "2")
    command()
    assert_same_records(records(tmp_path / "cache"), records(cache))
    assert command.checkpoint().function == command


def test_a_task_that_fails_ends_with_the_exit_code_of_the_command() -> None:
    with pytest.raises(SystemExit) as stopped:
        Command(("--cache", "/nowhere", "--engine", "local"))()
    assert stopped.value.code == 2


@pytest.mark.parametrize(("flags", "precision"), [((), "fp16"), (("--precision", "bf16"), "bf16")])
def test_a_node_without_a_gpu_submits_for_nodes_that_have_one(
    programs: Path, give, tmp_path: Path, flags: tuple[str, ...], precision: str
) -> None:
    import cloudpickle

    assert give(*flags)[0] == 0
    (stored,) = (tmp_path / "cache-slurm").glob("7*_submitted.pkl")
    command = cloudpickle.loads(stored.read_bytes()).function
    assert command.arguments[-4:] == ("--device", "cuda", "--precision", precision)


def test_what_cannot_be_submitted_is_one_line_and_nothing_is_written(
    programs: Path, give, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(*flags: str) -> str:
        code, out, err = give(*flags)
        assert (code, out, err.count("\n")) == (2, "", 1), err
        assert not (tmp_path / "cache").exists()
        return err

    assert refused("--repair").startswith("--repair: reads every byte, once")
    assert refused("--slurm-time", "soon").startswith("--slurm-time: found 'soon', wanted minutes, hours:")
    assert refused("--slurm-option", "-A me").startswith(
        "--slurm-option: found '-A me', wanted the long name"
    )
    with monkeypatch.context() as patch:
        patch.setenv("RANK", "1")
        patch.setenv("WORLD_SIZE", "4")
        assert refused().startswith("--engine slurm: submits the job once, and this is rank 1 of 4")
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "submitit", None)
        patch.setitem(sys.modules, "submitit.helpers", None)
        advice = "needs the extra 'slurm': pip install 'kandinsky-cache[slurm]'"
        assert refused() == f"--engine slurm: {advice}\n"
    (programs / "sbatch").unlink()
    monkeypatch.setenv("PATH", str(programs))
    assert refused().startswith("--engine slurm: there is no sbatch on this machine")


def test_what_slurm_says_when_it_refuses(programs: Path, give, tmp_path: Path) -> None:
    write_program(programs / "sbatch", REFUSAL)
    code, out, err = give("--slurm-partition", "fast")
    assert (code, out) == (2, "")
    assert err == (
        "--engine slurm: invalid partition specified: fast; "
        "Batch job submission failed: Invalid partition name specified\n"
    )
    assert not (tmp_path / "cache-slurm").exists()


def test_a_refused_job_leaves_the_logs_of_others(programs: Path, give, tmp_path: Path) -> None:
    write_program(programs / "sbatch", REFUSAL)
    (tmp_path / "logs").mkdir()
    (tmp_path / "logs" / "6_log.out").write_text("of an earlier job")
    assert give("--slurm-logs", str(tmp_path / "logs"))[0] == 2
    assert (tmp_path / "logs" / "6_log.out").read_text() == "of an earlier job"


def test_the_job_is_a_value_of_the_json(programs: Path, give, tmp_path: Path) -> None:
    code, out, _ = give("--tasks", "3", "--gpus-per-task", "2", "--json")
    found = json.loads(out)
    assert code == 0
    assert (found["job"], found["tasks"], found["processes_per_task"], found["parts"]) == ("7", 3, 2, 4)
    assert found["logs"] == str(tmp_path / "cache-slurm")
    assert found["notes"][-1].startswith("submitted job 7: ")


@pytest.mark.parametrize(
    ("given", "minutes"),
    [("90", 90), ("0:30", 1), ("4:00:00", 240), ("1:00:01", 61), ("2-0", 2880), ("1-2:30", 1590)],
)
def test_times_are_read_as_slurm_reads_them(given: str, minutes: int) -> None:
    assert _minutes(None, None, given) == minutes  # type: ignore[arg-type]


def test_logs_lie_beside_the_cache(tmp_path: Path) -> None:
    assert log_folder(str(tmp_path / "shards")) == tmp_path / "shards-slurm"
    assert log_folder("s3://bucket/some/shards/") == Path("shards-slurm")
    assert files(tmp_path) == {}
