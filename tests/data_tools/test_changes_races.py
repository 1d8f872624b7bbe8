"""Planners that race or are killed: one plan, which is the one that a single planner makes."""

import signal
import subprocess
import sys
import threading
from contextlib import closing
from pathlib import Path

import pytest

from data_tools.cache.listing import compare
from data_tools.cache.manifest import Cache
from data_tools.cache.plan import plan_source, write_plan
from data_tools.cache.store import LocalStore
from tests.data_tools.shelf import NEW, Shelf, follow, live, pictures, without


def test_racing_planners_of_one_source_make_one_plan(tmp_path: Path) -> None:
    store, now = LocalStore(tmp_path), pictures()
    plan_source(store, Shelf(now), 3)
    now = {**without(now, "k0"), "a": NEW}
    barrier, plans = threading.Barrier(6), []

    def planner() -> None:
        barrier.wait()
        plans.append(plan_source(LocalStore(tmp_path), Shelf(now), 3))

    threads = [threading.Thread(target=planner) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(plans) == 6
    assert all(plan == plans[0] for plan in plans)
    assert store.names("plans") == ["000001.json", "000002.json"]
    assert len(store.names("samples")) == 4


KILLED_AT = """
import os, signal, sys
from pathlib import Path
from data_tools.cache.plan import plan_source
from data_tools.cache.store import LocalStore
from tests.data_tools.shelf import Shelf, follow

root, killed_at = sys.argv[1:]
for verb in ("put", "create"):
    def killed(self, name, data, verb=getattr(LocalStore, verb)):
        if name.startswith(killed_at):
            os.kill(os.getpid(), signal.SIGKILL)
        return verb(self, name, data)
    setattr(LocalStore, verb, killed)
plan_source(LocalStore(Path(root)), Shelf(follow()), 3)
"""


@pytest.mark.parametrize("killed_at", ["samples/part-00003", "samples/part-00004", "plans/"])
def test_a_planner_that_is_killed_leaves_the_plan_as_it_was_and_the_next_one_ends_it(
    tmp_path: Path, killed_at: str
) -> None:
    store = LocalStore(tmp_path)
    before = plan_source(store, Shelf(pictures()), 3)
    command = [sys.executable, "-c", KILLED_AT, str(tmp_path), killed_at]
    assert subprocess.run(command, cwd=Path(__file__).parents[2]).returncode == -signal.SIGKILL
    assert Cache.open(store).plan() == before
    plan = plan_source(store, Shelf(follow()), 3)
    assert live(store).keys() == follow().keys()
    assert [part.name for part in plan[-2:]] == ["part-00003", "part-00004"]
    assert sorted(f"samples/{name}" for name in store.names("samples")) == sorted(
        part.table for part in {p.name: p for p in (*before, *plan)}.values()
    )


def test_who_loses_to_another_plan_compares_again(tmp_path: Path) -> None:
    store, now = LocalStore(tmp_path), pictures()
    plan_source(store, Shelf(now), 3)
    with closing(compare(store, Shelf({**now, "mine": NEW}), 3)) as mine:
        plan_source(store, Shelf({**now, "yours": NEW}), 3)
        assert write_plan(store, mine) is None
    plan_source(store, Shelf({**now, "mine": NEW}), 3)
    assert live(store).keys() == {*now, "mine"}
    assert store.names("plans") == ["000001.json", "000002.json", "000003.json"]
