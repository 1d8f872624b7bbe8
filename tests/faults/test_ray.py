"""A simulated cluster of three nodes that loses an actor and then a node, both at work."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.faults.processes import ROOT, start, wait_until
from tests.precompute.command import arguments, assert_same_records, inspect, precompute, records
from tests.precompute.pictures import write_pictures

SAMPLES = 60
PATIENCE = 300.0
"Seconds."


@pytest.fixture
def nodes() -> Iterator[tuple[Any, list[Any]]]:
    """A cluster whose head has no room for actors, and its three nodes, which have room for one each."""
    pytest.importorskip("ray")
    from ray.cluster_utils import Cluster

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_AUTH_MODE", "disabled")
        patch.setenv("PYTHONPATH", str(ROOT))
        for name, value in (("period_ms", 1000), ("failure_threshold", 3), ("initial_delay_ms", 1000)):
            patch.setenv(f"RAY_health_check_{name}", str(value))
        cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
        found = [cluster.add_node(num_cpus=1) for _ in range(3)]
        patch.setenv("RAY_ADDRESS", cluster.address)
        yield cluster, found
        cluster.shutdown()


def at_work(node: Any) -> list[psutil.Process]:
    """The actors of a node that do a job now, which Ray gives them as their title."""
    raylet = psutil.Process(node.all_processes["raylet"][0].process.pid)
    return [child for child in raylet.children() if "MapWorker" in title(child) and ".submit" in title(child)]


def title(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline())
    except psutil.Error:  # it has ended
        return ""


@pytest.mark.ray
def test_what_a_killed_actor_and_a_killed_node_were_at_is_done_again(
    nodes: tuple[Any, list[Any]], pocket: Path, tmp_path: Path
) -> None:
    cluster, (first, second, third) = nodes
    data, folder = tmp_path / "pictures", tmp_path / "cache"
    write_pictures(data, SAMPLES)
    flags = ("--dtype", "fp32", "--part-size", "1", "--batch-size", "1", "--workers", "1")
    pool = ("--engine", "ray", "--gpus-per-task", "0")
    run = start(tmp_path / "log.txt", "precompute", *arguments(data, folder, pocket, *flags, *pool))
    try:
        wait_until(
            lambda: len(parts(folder)) >= 6 and all(at_work(node) for node in (first, second, third)),
            PATIENCE,
            "three actors at work",
        )
        at_work(first)[0].kill()
        wait_until(lambda: len(parts(folder)) >= SAMPLES and bool(at_work(second)), PATIENCE, "work goes on")
        cluster.remove_node(second, allow_graceful=False)
        assert len(parts(folder)) < 3 * SAMPLES, "the node was killed too late"
        said = run.wait(PATIENCE)
    finally:
        run.child.kill()
        run.child.wait()
    assert "Traceback" not in said
    assert f"{SAMPLES}/{SAMPLES}" in said
    assert f"{SAMPLES} samples found = {SAMPLES - 2} cached + 2 rejected" in said
    precompute(data, tmp_path / "alone", pocket, *flags)
    assert [path.name for path in parts(folder)] == [path.name for path in parts(tmp_path / "alone")]
    assert inspect(folder)["complete"]
    assert_same_records(records(folder), records(tmp_path / "alone"))


def parts(folder: Path) -> list[Path]:
    """Commit records."""
    return sorted(folder.glob("columns/*/*/commits/part-*"), key=os.fspath)
