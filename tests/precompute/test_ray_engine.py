"""`--engine ray`: a pool of actors makes the cache that one process makes."""

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType

import pytest

from precompute.summary import Summary
from tests.precompute.command import arguments, assert_same_records, records

ROOT = Path(__file__).parents[2]
PATIENCE = 180.0
"Seconds; a minute where nothing else runs."
RAY = ("--engine", "ray", "--gpus-per-task", "0", "--dtype", "fp32")
Run = Callable[..., subprocess.CompletedProcess[str]]


def test_without_ray_the_extra_is_named(pictures: Path, pocket: Path, tmp_path: Path) -> None:
    blocked = "import sys; sys.modules['ray'] = None; from precompute.cli import main; main()"
    command = [sys.executable, "-c", blocked, *arguments(pictures, tmp_path / "cache", pocket, *RAY)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=PATIENCE)
    assert done.stderr == "--engine ray: needs the extra 'ray': pip install 'kandinsky-cache[ray]'\n"
    assert (done.returncode, done.stdout) == (2, "")
    assert not (tmp_path / "cache").exists()


def test_the_bar_adds_up_what_the_actors_have_waited_for() -> None:
    first = Summary(seconds=3.0, waited_for_pictures=1.0, waited_for_writer=0.0)
    both = first + Summary(seconds=1.0, waited_for_pictures=0.0, waited_for_writer=0.2)
    assert both.waits(both.seconds) == "waited for pictures 25%, for the writer 5%"
    assert Summary().waits(0.0) == "waited for pictures 0%, for the writer 0%"


@pytest.fixture(scope="module")
def ray() -> ModuleType:
    module: ModuleType = pytest.importorskip("ray")
    return module


@pytest.fixture(scope="module")
def cluster(ray: ModuleType) -> Iterator[str]:
    """Address of a cluster of one node with room for three actors."""
    from ray.cluster_utils import Cluster

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_AUTH_MODE", "disabled")
        patch.setenv("PYTHONPATH", str(ROOT))
        running = Cluster(initialize_head=True, head_node_args={"num_cpus": 3, "include_dashboard": False})
        patch.setenv("RAY_ADDRESS", running.address)
        yield running.address
        running.shutdown()


@pytest.fixture
def run(cluster: str, pocket: Path, tmp_path: Path) -> Run:
    def command(data: Path, cache: Path | str, *flags: str) -> subprocess.CompletedProcess[str]:
        line = [sys.executable, "-m", "precompute", *arguments(data, cache, pocket, *RAY, *flags)]
        return subprocess.run(line, cwd=tmp_path, capture_output=True, text=True, timeout=PATIENCE)

    return command


@pytest.mark.ray
def test_a_pool_makes_the_cache_of_one_process(cache: Path, pictures: Path, run: Run, tmp_path: Path) -> None:
    (tmp_path / "prompts.txt").write_text("a red apple\n")
    relative = os.path.relpath(pictures, tmp_path)
    done = run(Path(relative), "here/cache", "--tasks", "2", "--prompts", "prompts.txt")
    assert done.returncode == 0, done.stderr
    first, *_, last = done.stdout.splitlines()
    assert first.startswith("encoded 1 prompts as prompts-")
    assert last == "24 samples found = 22 cached + 2 rejected"
    assert "encoded 24 samples in " in done.stdout
    assert "100%" in done.stderr
    assert "24/24" in done.stderr
    assert re.search(r"waited for pictures \d+%, for the writer \d+%", done.stderr)
    assert "Traceback" not in done.stderr
    assert_same_records(records(tmp_path / "here/cache"), records(cache))


@pytest.mark.ray
def test_an_actors_error_ends_the_run_with_one_line(
    pictures: Path, pocket: Path, run: Run, tmp_path: Path
) -> None:
    decoder = Path(shutil.copytree(pocket / "decoder", tmp_path / "decoder"))
    weights = decoder / "movq/diffusion_pytorch_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    done = run(pictures, tmp_path / "cache", "--decoder-model", "decoder", "--columns", "latents@64")
    assert done.returncode == 2, done.stderr
    assert done.stderr.splitlines()[-1].startswith("--decoder-model: decoder/movq: cannot be loaded: ")
    assert "Traceback" not in done.stderr
    assert done.stdout == ""


@pytest.mark.ray
def test_an_actor_larger_than_every_node_is_refused(pictures: Path, run: Run, tmp_path: Path) -> None:
    done = run(pictures, tmp_path / "cache", "--cpus-per-task", "4")
    assert done.returncode == 2, done.stderr
    line = "--cpus-per-task: found 4, wanted at most 3, as no node of Ray has more"
    assert done.stderr.splitlines()[-1] == line


@pytest.mark.ray
def test_a_cluster_that_is_not_there_is_named(
    ray: ModuleType, pictures: Path, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:1")
    done = run(pictures, tmp_path / "cache")
    line = "RAY_ADDRESS: 127.0.0.1:1: [errno 111] connection refused; is the cluster up?"
    assert (done.returncode, done.stderr.splitlines()[-1]) == (2, line)
