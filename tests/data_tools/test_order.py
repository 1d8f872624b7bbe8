"""The order of samples: pure, complete, and without any relation between seeds and epochs."""

import tracemalloc
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from data_tools.cache.order import Order, choice
from data_tools.cache.stream import Blocks, Stream
from tests.data_tools.orders import KINDS, NONE, order_of_kind, same, together


def order_of(num_samples: int, batch_size: int, seed: int) -> Order:
    return Order.plain(num_samples, NONE, batch_size, seed)


def epoch_of(num_samples: int, seed: int, epoch: int) -> np.ndarray:
    """One epoch's samples, in order."""
    return order_of(num_samples, num_samples, seed).batch(epoch).sample


@pytest.mark.parametrize(("num_samples", "batch_size"), [(10, 3), (7, 7), (5, 8), (64, 1), (3, 100)])
def test_every_sample_comes_once_an_epoch(num_samples: int, batch_size: int) -> None:
    order = order_of(num_samples, batch_size, 3)
    steps = -(-4 * num_samples // batch_size)
    drawn = together([order.batch(step) for step in range(steps)])
    assert (np.diff(drawn.epoch) >= 0).all()
    for epoch in range(4):
        assert sorted(drawn.sample[drawn.epoch == epoch]) == list(range(num_samples))


@pytest.mark.parametrize("kind", KINDS)
def test_a_batch_is_a_pure_function_of_its_step(kind: str) -> None:
    """A resumed run computes any step first."""
    forward = [order_of_kind(kind, 1).batch(step) for step in range(40)]
    order = order_of_kind(kind, 1)
    backward = [order.batch(step) for step in reversed(range(40))]
    fresh = [order_of_kind(kind, 1).batch(step) for step in (37, 38)]
    assert all(map(same, forward, backward[::-1]))
    assert all(map(same, forward[37:39], fresh))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("ranks", "rounds"), [(1, 1), (2, 1), (4, 2), (8, 1), (8, 2), (16, 1)])
def test_the_global_batch_does_not_depend_on_the_number_of_ranks(kind: str, ranks: int, rounds: int) -> None:
    order, micro = order_of_kind(kind, 2), 16 // (ranks * rounds)
    for step in (0, 1, 5, 18, 37):
        shares = [
            order_of_kind(kind, 2).share(step, range(micro * number, micro * (number + 1)))
            for number in range(ranks * rounds)
        ]
        assert {share.bucket for share in shares} == {order.batch(step).bucket}
        assert same(together(shares), order.batch(step))


@pytest.mark.parametrize("kind", KINDS)
def test_threads_that_share_an_order_draw_the_same(kind: str) -> None:
    alone, order = order_of_kind(kind, 3), order_of_kind(kind, 3)
    steps = np.random.default_rng(0).permutation(np.repeat(np.arange(24), 4)).tolist()
    with ThreadPoolExecutor(8) as pool:
        drawn = list(pool.map(order.batch, steps))
    expected = [alone.batch(step) for step in range(24)]
    assert all(same(batch, expected[step]) for step, batch in zip(steps, drawn))


@pytest.mark.parametrize("kind", KINDS)
def test_seeds_give_unrelated_batches(kind: str) -> None:
    batches = [order_of_kind(kind, seed).batch(5) for seed in range(8)]
    for number, one in enumerate(batches):
        for other in batches[:number]:
            assert (one.sample == other.sample).sum() < 6


def test_the_stream_does_not_depend_on_how_it_is_cut() -> None:
    streams = [
        np.concatenate([order_of(50, size, 2).batch(step).sample for step in range(240 // size)])
        for size in (1, 4, 12, 48, 240)
    ]
    assert all(np.array_equal(stream, streams[0]) for stream in streams)


def test_seeds_and_epochs_do_not_meet() -> None:
    """`seed + epoch` would make (1, 0) and (0, 1) the same order."""
    orders = {(seed, epoch): epoch_of(1000, seed, epoch) for seed in range(5) for epoch in range(5)}
    first = {key: tuple(order[:20]) for key, order in orders.items()}
    assert len(set(first.values())) == 25
    for key, order in orders.items():  # about one fixed point between unrelated permutations
        shared = [(order == other).sum() for name, other in orders.items() if name != key]
        assert max(shared) < 10


def test_any_integer_is_a_seed() -> None:
    firsts = [tuple(epoch_of(1000, seed, 0)[:10]) for seed in (0, 1, -1, 2**63, 2**64 - 2)]
    assert len(set(firsts)) == 5


def test_an_order_is_not_the_identity() -> None:
    order = epoch_of(1000, 0, 0)
    assert abs(np.corrcoef(order, np.arange(1000))[0, 1]) < 0.15


@pytest.mark.parametrize("held", [[0], [9], [0, 1, 2], [3, 4, 8], [0, 9], list(range(9))])
def test_held_out_samples_are_never_drawn_and_all_others_are(held: list[int]) -> None:
    order, count = Order.plain(10, np.array(held), 5, 1), 10 - len(held)
    drawn = together([order.batch(step) for step in range(2 * count)]).sample
    shares = np.bincount(drawn, minlength=10)
    assert (shares[held] == 0).all()
    assert (np.delete(shares, held) == 10).all()


def test_every_place_is_equally_likely() -> None:
    """Chi-square of (tenth of the epoch, tenth of the samples) over 2,000 epochs; 81 degrees of freedom."""
    counts, place = np.zeros((10, 10)), np.arange(200_000)
    np.add.at(counts, (place % 100 // 10, Stream(100, NONE, 1).at(place)[0] // 10), 1)
    chi_square = ((counts - 2000) ** 2 / 2000).sum()
    assert 40 < chi_square < 140


@pytest.mark.parametrize("blocks", [None, Blocks()], ids=["global", "blocks"])
def test_a_batch_of_a_hundred_million_samples_needs_no_memory_for_the_others(blocks: Blocks | None) -> None:
    order = Order(((Stream(100_000_000, NONE, 0, blocks=blocks),),), ((1,),), 256, 0)
    tracemalloc.start()
    samples = order.batch(100_000).sample
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(np.unique(samples)) == 256
    assert peak < 200_000


def test_what_cannot_be_an_order_is_refused() -> None:
    stream = Stream(10, NONE, 0)
    for message, streams, shares, rest in (
        ("batch size 0", ((stream,),), ((1,),), {"batch_size": 0}),
        ("group 0", ((stream,),), ((1,),), {"group": 0}),
        ("not one for each", ((stream,),), ((1, 1),), {}),
        ("not one for each", ((stream,), (stream, stream)), ((1,), (1, 1)), {}),
        ("no stream", ((stream, None),), ((1, 1),), {}),
        ("weights", ((stream,),), ((0,),), {}),
        ("group 2: needs lengths", ((stream,),), ((1,),), {"group": 2}),
        ("found 2", ((stream, stream),), ((1, 1),), {"group": 2, "lengths": lambda *_: NONE}),
    ):
        with pytest.raises(ValueError, match=message):
            Order(streams, shares, **{"batch_size": 4, "seed": 0, **rest})
    with pytest.raises(ValueError, match="3 samples, 3 held out"):
        Order.plain(3, np.arange(3), 1, 0)


def test_choice_is_uniform_over_the_rows_there_are() -> None:
    count = 60_000
    samples, epoch = np.arange(count), np.zeros(count, dtype=np.int64)
    for rows in (1, 2, 3, 7):
        chosen = choice(0, samples, epoch, np.full(count, rows), what="captions")
        shares = np.bincount(chosen, minlength=rows) / count
        assert len(shares) == rows
        assert np.abs(shares - 1 / rows).max() < 4 * np.sqrt(1 / rows / count)


def test_choice_changes_with_sample_epoch_seed_and_rows_and_with_nothing_else() -> None:
    samples, rows = np.arange(3000), np.full(3000, 4)
    zeros = np.zeros(3000, dtype=np.int64)
    base = choice(0, samples, zeros, rows, what="captions")
    part = slice(100, 200)
    alone = choice(0, samples[part], zeros[part], rows[part], what="captions")
    assert np.array_equal(base[part], alone)
    crossed = [
        choice(0, samples, zeros + 1, rows, what="captions"),
        choice(1, samples, zeros, rows, what="captions"),
    ]
    for other in (
        *crossed,
        choice(0, samples[::-1], zeros, rows, what="captions"),
        choice(0, samples, zeros, rows, what="views"),
    ):
        assert 0.2 < (other == base).mean() < 0.3
    assert 0.2 < (crossed[0] == crossed[1]).mean() < 0.3
