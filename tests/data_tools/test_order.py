"""The order of samples: pure, complete, and without any relation between seeds and epochs."""

import numpy as np
import pytest

from data_tools.cache.order import Order, held_out, permutation


@pytest.mark.parametrize(("num_samples", "batch_size"), [(10, 3), (7, 7), (5, 8), (64, 1), (3, 100)])
def test_every_sample_comes_once_an_epoch(num_samples: int, batch_size: int) -> None:
    order = Order(num_samples, batch_size, seed=3)
    steps = -(-4 * num_samples // batch_size)
    batches = [order.batch(step) for step in range(steps)]
    samples = np.concatenate([samples for samples, _ in batches])
    epochs = np.concatenate([epoch for _, epoch in batches])
    assert (np.diff(epochs) >= 0).all()
    for epoch in range(4):
        assert sorted(samples[epochs == epoch]) == list(range(num_samples))


def test_a_batch_is_a_pure_function_of_its_step() -> None:
    forward = [Order(100, 8, 1).batch(step)[0].tolist() for step in range(40)]
    permutation.cache_clear()
    backward = [Order(100, 8, 1).batch(step)[0].tolist() for step in reversed(range(40))]
    assert forward == backward[::-1]


def test_the_stream_does_not_depend_on_how_it_is_cut() -> None:
    streams = [
        np.concatenate([Order(50, size, 2).batch(step)[0] for step in range(240 // size)])
        for size in (1, 4, 12, 48, 240)
    ]
    assert all(np.array_equal(stream, streams[0]) for stream in streams)


def test_seeds_and_epochs_do_not_meet() -> None:
    """`seed + epoch` would make (1, 0) and (0, 1) the same order."""
    orders = {(seed, epoch): permutation(1000, seed, epoch) for seed in range(5) for epoch in range(5)}
    first = {key: tuple(order[:20]) for key, order in orders.items()}
    assert len(set(first.values())) == 25
    for key, order in orders.items():  # about one fixed point between unrelated permutations
        shared = [(order == other).sum() for name, other in orders.items() if name != key]
        assert max(shared) < 10


def test_an_order_is_not_the_identity() -> None:
    order = permutation(1000, 0, 0)
    assert abs(np.corrcoef(order, np.arange(1000))[0, 1]) < 0.15


def test_choice_is_uniform_over_the_rows_there_are() -> None:
    order, count = Order(60_000, 1, 0), 60_000
    samples = np.arange(count)
    for rows in (1, 2, 3, 7):
        chosen = order.choice(samples, np.zeros(count, dtype=np.int64), np.full(count, rows))
        shares = np.bincount(chosen, minlength=rows) / count
        assert len(shares) == rows
        assert np.abs(shares - 1 / rows).max() < 4 * np.sqrt(1 / rows / count)


def test_choice_changes_with_sample_epoch_and_seed_and_with_nothing_else() -> None:
    samples, rows = np.arange(3000), np.full(3000, 4)
    zeros = np.zeros(3000, dtype=np.int64)
    base = Order(3000, 8, 0).choice(samples, zeros, rows)
    assert np.array_equal(base[100:200], Order(3000, 64, 0).choice(samples[100:200], zeros[:100], rows[:100]))
    for other in (
        Order(3000, 8, 0).choice(samples, zeros + 1, rows),
        Order(3000, 8, 1).choice(samples, zeros, rows),
        Order(3000, 8, 0).choice(samples[::-1], zeros, rows),
    ):
        assert 0.2 < (other == base).mean() < 0.3
    crossed = [
        Order(3000, 8, 1).choice(samples, zeros, rows),
        Order(3000, 8, 0).choice(samples, zeros + 1, rows),
    ]
    assert not np.array_equal(*crossed)


def test_held_out_is_a_share_of_the_keys_that_growing_does_not_move() -> None:
    hashes = np.random.default_rng(0).integers(0, 2**64, 20_000, dtype=np.uint64)
    kept = held_out(hashes, 0.1)
    assert kept.mean() == pytest.approx(0.1, abs=0.01)
    assert np.array_equal(held_out(hashes[:500], 0.1), kept[:500])
    assert (held_out(hashes, 0.2) >= kept).all()
    assert not held_out(hashes, 0.0).any()
    assert held_out(hashes, 1.0).all()
