"""Which process does what: environments of real launchers, and the order in which jobs are taken."""

import pytest

from data_tools.errors import UserError
from precompute.ranks import Rank, Shares

TORCHRUN = {"RANK": "5", "WORLD_SIZE": "8", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "4"}
SRUN = {"SLURM_STEP_ID": "0", "SLURM_PROCID": "3", "SLURM_STEP_NUM_TASKS": "4", "SLURM_LOCALID": "1"}
ARRAY = {
    "SLURM_ARRAY_TASK_ID": "12",
    "SLURM_ARRAY_TASK_MIN": "10",
    "SLURM_ARRAY_TASK_MAX": "14",
    "SLURM_ARRAY_TASK_COUNT": "5",
    "SLURM_ARRAY_TASK_STEP": "1",
}
BATCH = {"SLURM_PROCID": "0", "SLURM_NTASKS": "4", "SLURM_LOCALID": "0", "SLURM_JOB_ID": "7"}


@pytest.mark.parametrize(
    ("environ", "rank"),
    [
        ({}, Rank(0, 1, 0)),
        (TORCHRUN, Rank(5, 8, 1)),
        (SRUN, Rank(3, 4, 1)),
        (BATCH, Rank(0, 1, 0)),
        ({**BATCH, "SLURM_STEP_ID": "4294967291"}, Rank(0, 1, 0)),
        ({**BATCH, "SLURM_STEP_ID": "4294967290"}, Rank(0, 1, 0)),
        (ARRAY, Rank(2, 5, 0)),
        ({**ARRAY, **SRUN}, Rank(2 * 4 + 3, 5 * 4, 1)),
        ({**ARRAY, **SRUN, **TORCHRUN}, Rank(2 * 8 + 5, 5 * 8, 1)),
        ({**ARRAY, "SLURM_ARRAY_TASK_STEP": "2"}, Rank(1, 5, 0)),
        ({**ARRAY, "SLURM_ARRAY_TASK_ID": "99", "SLURM_ARRAY_TASK_COUNT": "3"}, Rank(89 % 3, 3, 0)),
    ],
    ids=[
        *("alone", "torchrun", "srun", "batch-script", "old-batch-script", "salloc-shell", "array"),
        *("srun-in-array", "torchrun-in-srun-in-array", "array-with-steps", "array-with-gaps"),
    ],
)
def test_the_rank_that_a_launcher_gives(environ: dict[str, str], rank: Rank) -> None:
    assert Rank.of_environment(environ) == rank


@pytest.mark.parametrize(
    ("environ", "line"),
    [
        ({**TORCHRUN, "RANK": "one"}, "RANK: found 'one', wanted a number"),
        ({**TORCHRUN, "RANK": "-1"}, "RANK: found '-1', wanted a number"),
        ({**TORCHRUN, "RANK": "8"}, "RANK: found 8, wanted less than WORLD_SIZE, which is 8"),
        ({"RANK": "0"}, "WORLD_SIZE: missing, wanted a number"),
        ({"WORLD_SIZE": "2"}, "RANK: missing, wanted a number"),
        ({**TORCHRUN, "LOCAL_RANK": ""}, "LOCAL_RANK: found '', wanted a number"),
        ({**SRUN, "SLURM_PROCID": "4"}, "SLURM_PROCID: found 4, wanted less than SLURM_STEP_NUM_TASKS"),
        ({**ARRAY, "SLURM_ARRAY_TASK_COUNT": "x"}, "SLURM_ARRAY_TASK_COUNT: found 'x', wanted a number"),
    ],
)
def test_nonsense_names_the_variable(environ: dict[str, str], line: str) -> None:
    with pytest.raises(UserError, match=f"^{line}"):
        Rank.of_environment(environ)


def test_a_lone_process_takes_the_jobs_in_their_order() -> None:
    assert list(Shares(range(9), Rank())) == list(range(9))


@pytest.mark.parametrize("count", [0, 1, 7, 40])
def test_each_rank_does_its_own_share_first_and_the_own_shares_are_all_jobs(count: int) -> None:
    orders = [list(Shares(range(count), Rank(number, 4))) for number in range(4)]
    assert all(sorted(order) == list(range(count)) for order in orders)
    own = [order[: len(range(number, count, 4))] for number, order in enumerate(orders)]
    assert own == [list(range(number, count, 4)) for number in range(4)]


def test_ranks_that_are_ready_early_go_different_ways() -> None:
    rest = [list(Shares(range(400), Rank(number, 4)))[100:] for number in range(4)]
    for one, other in [(0, 1), (0, 2), (0, 3), (1, 2), (1, 3), (2, 3)]:
        assert sum(a == b for a, b in zip(rest[one], rest[other])) < 20


def test_two_launches_of_one_command_part_ways_and_the_own_share_stays_first() -> None:
    pair = [Shares(range(400), Rank(1, 2)) for _ in range(2)]
    assert [next(shares) for shares in pair] == [1, 1]
    for shares in pair:
        shares.scatter()
    first, second = (list(shares) for shares in pair)
    assert sum(a == b for a, b in zip(first, second)) < 40
    for order in (first, second):
        assert sorted(order[:199]) == list(range(3, 400, 2))
        assert sorted(order[199:]) == list(range(0, 400, 2))


def test_ranks_that_start_later_and_see_fewer_jobs_keep_to_their_share() -> None:
    late = [3, 4, 5, 6, 7, 8, 9]  # 0, 1 and 2 are done
    early, later = Shares(range(10), Rank(0, 2)), Shares(late, Rank(1, 2), places=late)
    assert [next(early) for _ in range(5)] == [0, 2, 4, 6, 8]
    assert [next(later) for _ in range(4)] == [3, 5, 7, 9]
    assert sorted(later) == [4, 6, 8]


def test_of_the_other_ranks_jobs_only_those_are_taken_that_are_not_done_when_the_own_share_is() -> None:
    asked = []

    def left(jobs: list[int]) -> list[int]:
        asked.append(sorted(jobs))
        return [job for job in jobs if job > 5]

    shares = Shares(range(9), Rank(1, 3), left=left)
    assert [next(shares) for _ in range(3)] == [1, 4, 7]
    assert asked == []
    assert sorted(shares) == [6, 8]
    assert asked == [[0, 2, 3, 5, 6, 8]]
