"""The order of samples: pure, complete, and without any relation between seeds and epochs."""

import numpy as np
import pytest

from data_tools.cache.order import Order

NONE = np.zeros(0, dtype=np.int64)


def order_of(num_samples: int, batch_size: int, seed: int) -> Order:
    return Order(num_samples, NONE, batch_size, seed)


def epoch_of(num_samples: int, seed: int, epoch: int) -> np.ndarray:
    """One epoch's samples, in order."""
    return order_of(num_samples, num_samples, seed).batch(epoch)[0]


@pytest.mark.parametrize(("num_samples", "batch_size"), [(10, 3), (7, 7), (5, 8), (64, 1), (3, 100)])
def test_every_sample_comes_once_an_epoch(num_samples: int, batch_size: int) -> None:
    order = order_of(num_samples, batch_size, 3)
    steps = -(-4 * num_samples // batch_size)
    batches = [order.batch(step) for step in range(steps)]
    samples = np.concatenate([samples for samples, _ in batches])
    epochs = np.concatenate([epoch for _, epoch in batches])
    assert (np.diff(epochs) >= 0).all()
    for epoch in range(4):
        assert sorted(samples[epochs == epoch]) == list(range(num_samples))


def test_a_batch_is_a_pure_function_of_its_step() -> None:
    forward = [order_of(100, 8, 1).batch(step)[0].tolist() for step in range(40)]
    backward = [order_of(100, 8, 1).batch(step)[0].tolist() for step in reversed(range(40))]
    assert forward == backward[::-1]


def test_the_stream_does_not_depend_on_how_it_is_cut() -> None:
    streams = [
        np.concatenate([order_of(50, size, 2).batch(step)[0] for step in range(240 // size)])
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


def test_an_order_is_not_the_identity() -> None:
    order = epoch_of(1000, 0, 0)
    assert abs(np.corrcoef(order, np.arange(1000))[0, 1]) < 0.15


def test_choice_is_uniform_over_the_rows_there_are() -> None:
    order, count = order_of(60_000, 1, 0), 60_000
    samples = np.arange(count)
    for rows in (1, 2, 3, 7):
        chosen = order.choice(samples, np.zeros(count, dtype=np.int64), np.full(count, rows))
        shares = np.bincount(chosen, minlength=rows) / count
        assert len(shares) == rows
        assert np.abs(shares - 1 / rows).max() < 4 * np.sqrt(1 / rows / count)


def test_choice_changes_with_sample_epoch_and_seed_and_with_nothing_else() -> None:
    samples, rows = np.arange(3000), np.full(3000, 4)
    zeros = np.zeros(3000, dtype=np.int64)
    base = order_of(3000, 8, 0).choice(samples, zeros, rows)
    assert np.array_equal(
        base[100:200], order_of(3000, 64, 0).choice(samples[100:200], zeros[:100], rows[:100])
    )
    for other in (
        order_of(3000, 8, 0).choice(samples, zeros + 1, rows),
        order_of(3000, 8, 1).choice(samples, zeros, rows),
        order_of(3000, 8, 0).choice(samples[::-1], zeros, rows),
    ):
        assert 0.2 < (other == base).mean() < 0.3
    crossed = [
        order_of(3000, 8, 1).choice(samples, zeros, rows),
        order_of(3000, 8, 0).choice(samples, zeros + 1, rows),
    ]
    assert not np.array_equal(*crossed)


@pytest.mark.parametrize("held", [[0], [9], [0, 1, 2], [3, 4, 8], [0, 9], list(range(9))])
def test_held_out_samples_are_never_drawn_and_all_others_are(held: list[int]) -> None:
    order = Order(10, np.array(held), 5, 1)
    assert order.num_drawn == 10 - len(held)
    drawn = np.concatenate([order.batch(step)[0] for step in range(2 * order.num_drawn)])
    shares = np.bincount(drawn, minlength=10)
    assert (shares[held] == 0).all()
    assert (np.delete(shares, held) == 10).all()


@pytest.mark.parametrize("size", [1, 2, 3, 7, 64, 65, 1000, 4097])
def test_permuted_is_a_permutation(size: int) -> None:
    assert sorted(epoch_of(size, 5, 2)) == list(range(size))


def test_every_place_is_equally_likely() -> None:
    """Chi-square of (tenth of the epoch, tenth of the samples) over 2,000 epochs; 81 degrees of freedom."""
    counts = np.zeros((10, 10))
    for epoch in range(2000):
        np.add.at(counts, (np.arange(100) // 10, epoch_of(100, 1, epoch) // 10), 1)
    chi_square = ((counts - 2000) ** 2 / 2000).sum()
    assert 40 < chi_square < 140


def test_a_batch_of_a_hundred_million_samples_needs_no_memory_for_the_others() -> None:
    import tracemalloc

    order = order_of(100_000_000, 256, 0)
    tracemalloc.start()
    samples, _ = order.batch(100_000)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(np.unique(samples)) == 256
    assert peak < 1_000_000
