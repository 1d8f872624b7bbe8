"""Ranks that are real processes: one plans, all encode, and a rank that is dead stops nobody."""

import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest

from data_tools.cache.listing import Listing, compare
from data_tools.cache.manifest import Cache
from data_tools.cache.plan import plan_source
from data_tools.cache.store import Store, open_store
from data_tools.sources import SourceOptions, open_source
from precompute import waiting
from precompute.ranks import Rank
from tests.precompute.command import arguments, assert_same_records, records
from tests.precompute.pictures import write_pictures

ROOT = Path(__file__).parents[2]
PATIENCE = 120  # seconds


def comparison(store: Store, data: Path, made: list[Listing]) -> Callable[[], Listing]:
    def compared() -> Listing:
        made.append(compare(store, open_source([str(data)], SourceOptions()), 7))
        return made[-1]

    return compared


def plan(store: Store, data: Path) -> None:
    plan_source(store, open_source([str(data)], SourceOptions()), 7)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    write_pictures(tmp_path / "data", 9)
    return tmp_path / "data"


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return open_store(tmp_path / "cache")


def test_rank_0_waits_for_nobody(store: Store, data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    made: list[Listing] = []
    with closing(waiting.settled(Rank(0, 2), store, comparison(store, data, made), patience=0)) as found:
        assert (found.plan, len(made)) == (None, 1)
    assert capsys.readouterr().err == ""


def test_rank_0_gives_a_sign_of_life_until_its_plan_is_there(
    store: Store, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Longer than the other rank is patient; that one goes on when rank 0 has failed."""
    monkeypatch.setattr(waiting, "BEAT", 0.05)
    made: list[Listing] = []
    with waiting.Planner(Rank(0, 2), store) as planner:
        threading.Timer(1.5, planner.done).start()
        started = time.monotonic()
        with closing(
            waiting.settled(Rank(1, 2), store, comparison(store, data, made), patience=0.4)
        ) as found:
            assert found.plan is None
        assert time.monotonic() - started > 1.5
    assert store.names("samples") == []


def test_a_lone_process_gives_no_sign(store: Store) -> None:
    with waiting.Planner(Rank(), store), waiting.Planner(Rank(1, 2), store):
        assert store.names("samples") == []


def test_another_rank_reads_the_source_when_there_is_a_plan(
    store: Store, data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    made: list[Listing] = []
    later = threading.Timer(0.3, plan, (store, data))
    later.start()
    with closing(waiting.settled(Rank(3, 4), store, comparison(store, data, made))) as found:
        assert found.plan is not None
        assert (found.plan.number, len(made), bool(found.changes)) == (1, 1, False)
    assert capsys.readouterr().err == "rank 3 of 4 waits for the plan of rank 0\n"


def test_a_rank_whose_source_has_more_than_the_plan_waits_for_the_next(store: Store, data: Path) -> None:
    plan(store, data)
    shutil.copy(data / "00.jpg", data / "later.jpg")
    made: list[Listing] = []
    later = threading.Timer(0.3, plan, (store, data))
    later.start()
    with closing(waiting.settled(Rank(1, 2), store, comparison(store, data, made))) as found:
        assert found.plan is not None
        assert (found.plan.number, len(made), bool(found.changes)) == (2, 2, False)
    assert [bool(listing.changes) for listing in made] == [True, False]
    made[0].close()


@pytest.mark.parametrize("is_planned", [False, True])
def test_a_rank_that_has_waited_in_vain_plans_itself(store: Store, data: Path, is_planned: bool) -> None:
    if is_planned:
        plan(store, data)
        shutil.copy(data / "00.jpg", data / "later.jpg")
    made: list[Listing] = []
    with closing(waiting.settled(Rank(1, 2), store, comparison(store, data, made), patience=0.1)) as found:
        assert (len(made), bool(found.changes)) == (1, True)


def test_sample_tables_are_a_sign_of_life(store: Store, data: Path) -> None:
    """Whoever plans a large source writes one after another, for longer than anybody's patience."""
    stop = threading.Event()

    def work() -> None:
        number = 0
        while not stop.wait(0.05) and number < 40:
            store.put(f"samples/part-{number:05d}-00000000.jsonl", [b"{}\n"])
            number += 1
        plan(store, data)

    worker = threading.Thread(target=work)
    worker.start()
    made: list[Listing] = []
    with closing(waiting.settled(Rank(1, 2), store, comparison(store, data, made), patience=0.4)) as found:
        stop.set()
        assert (found.plan is not None, len(made)) == (True, 1)
    worker.join()


def start(rank: int, world: int, *command: str, patience: float = 600) -> subprocess.Popen[str]:
    """A rank as torchrun starts it, with patience of its own."""
    environment = {**os.environ, "RANK": str(rank), "WORLD_SIZE": str(world), "LOCAL_RANK": str(rank)}
    code = f"from precompute import cli, waiting; waiting.PLAN_PATIENCE = {patience}; cli.main()"
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    words = [sys.executable, "-c", code, *command]
    environment = {**environment, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(words, cwd=ROOT, env=environment, text=True, **pipes)


def test_two_ranks_make_one_plan_and_commit_every_part_once(
    cache: Path, pictures: Path, pocket: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "cache"
    command = arguments(pictures, folder, pocket, "--dtype", "fp32")
    pair = [start(rank, 2, *command) for rank in (1, 0)]
    (_, second), (_, first) = printed = [process.communicate(timeout=PATIENCE) for process in pair]
    assert [process.returncode for process in pair] == [0, 0], printed
    assert "rank 1 of 2 waits for the plan of rank 0" in second
    assert "waits for" not in first
    assert [path.name for path in (folder / "plans").iterdir()] == ["000001.json"]
    assert len(list(folder.glob("columns/*/*/commits/*"))) == 3 * 4 + 2
    assert not list(folder.rglob(".tmp-*"))
    assert_same_records(records(folder), records(cache))


def test_a_rank_without_the_others_does_everything(
    cache: Path, pictures: Path, pocket: Path, tmp_path: Path
) -> None:
    command = arguments(pictures, tmp_path / "cache", pocket, "--dtype", "fp32")
    process = start(2, 3, *command, patience=0.2)
    printed, _ = process.communicate(timeout=PATIENCE)
    assert process.returncode == 0
    assert "24 samples found = 22 cached + 2 rejected" in printed
    assert_same_records(records(tmp_path / "cache"), records(cache))


def test_torchrun_starts_ranks_that_share_the_work(
    cache: Path, pictures: Path, pocket: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "cache"
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command = [*torchrun, "-m", "precompute", *arguments(pictures, folder, pocket, "--dtype", "fp32")]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        command, cwd=ROOT, env=environment, text=True, capture_output=True, timeout=PATIENCE
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("24 samples found = 22 cached + 2 rejected") == 2
    assert len(Cache.open(open_store(folder)).plan()) == 4
    assert_same_records(records(folder), records(cache))
