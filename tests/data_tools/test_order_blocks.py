"""Block order: each sample once an epoch, few blocks at a time, ranks apart, and still well shuffled."""

import numpy as np
import pytest

from data_tools.cache.order import Order
from data_tools.cache.stream import Blocks, Stream, make_stream
from tests.data_tools.orders import NONE, SMALL, mixed

BLOCKS = [
    None,
    SMALL,
    Blocks(),
    Blocks(samples=1, streams=1, window=1),
    Blocks(samples=3, streams=1, window=5),
    Blocks(samples=7, streams=5, window=1),
    Blocks(samples=50, streams=3, window=2),
    Blocks(samples=5000, streams=64, window=64),
]


def one(stream: Stream, batch_size: int) -> Order:
    return Order(((stream,),), ((1,),), batch_size, stream.seed)


def companions(order: Order, steps: int, block: int) -> float:
    """Mean number of other samples of a batch that are from a sample's own block."""
    found = []
    for step in range(steps):
        blocks = order.batch(step).sample // block
        found.append(np.bincount(blocks)[blocks] - 1)
    return float(np.mean(found))


@pytest.mark.parametrize("blocks", BLOCKS, ids=str)
@pytest.mark.parametrize("num_samples", [1, 2, 3, 4, 31, 32, 33, 97, 128, 1000, 2053])
def test_every_sample_comes_once_an_epoch(blocks: Blocks | None, num_samples: int) -> None:
    for held_out in (NONE, np.unique(np.arange(num_samples) * 3 % num_samples)[: num_samples // 2]):
        stream = Stream(num_samples, held_out, 5, blocks=blocks)
        samples, epoch = stream.at(np.arange(3 * stream.num_drawn))
        assert np.array_equal(epoch, np.repeat(np.arange(3), stream.num_drawn))
        wanted = np.setdiff1d(np.arange(num_samples), held_out)
        for drawn in samples.reshape(3, -1):
            assert np.array_equal(np.sort(drawn), wanted)


@pytest.mark.parametrize("blocks", BLOCKS, ids=str)
@pytest.mark.parametrize(("num_samples", "batch_size"), [(100, 7), (96, 32), (33, 32), (7, 4), (1000, 48)])
def test_a_dropped_tail_is_another_one_each_epoch(
    blocks: Blocks | None, num_samples: int, batch_size: int
) -> None:
    order = one(make_stream(num_samples, NONE, batch_size, 1, tail="drop", blocks=blocks), batch_size)
    per_epoch = num_samples // batch_size
    left_out = []
    for epoch in range(4):
        batches = [order.batch(epoch * per_epoch + number) for number in range(per_epoch)]
        assert all((batch.epoch == epoch).all() for batch in batches)
        samples = np.concatenate([batch.sample for batch in batches])
        assert len(np.unique(samples)) == len(samples) == per_epoch * batch_size
        left_out.append(frozenset(range(num_samples)) - frozenset(samples.tolist()))
    if num_samples % batch_size:
        assert len(set(left_out)) > 1


@pytest.mark.parametrize("blocks", [None, SMALL, Blocks()], ids=str)
def test_every_sample_is_as_likely_to_be_left_out_and_at_each_place(blocks: Blocks | None) -> None:
    epochs = 6000
    stream = make_stream(43, NONE, 16, 3, tail="drop", blocks=blocks)
    samples = stream.at(np.arange(epochs * 32))[0].reshape(epochs, 32)
    drawn = np.bincount(samples.ravel(), minlength=43) / epochs
    assert np.abs(drawn - 32 / 43).max() < 5 * np.sqrt(32 / 43 * 11 / 43 / epochs)
    for place in (0, 1, 15, 31):
        at_place = np.bincount(samples[:, place], minlength=43) / epochs
        assert np.abs(at_place - 1 / 43).max() < 5 * np.sqrt(1 / 43 / epochs)


def test_too_few_samples_to_drop_a_tail_are_refused_with_the_numbers() -> None:
    with pytest.raises(ValueError, match="30 samples to draw are fewer than one batch of 32"):
        make_stream(33, np.arange(3), 32, 0, tail="drop")
    with pytest.raises(ValueError, match="3 samples, 3 held out"):
        make_stream(3, np.arange(3), 32, 0, tail="drop")
    assert make_stream(33, np.arange(3), 32, 0).places == 30
    with pytest.raises(ValueError, match="11 samples per epoch, 10 to draw from"):
        Stream(10, NONE, 0, per_epoch=11)
    with pytest.raises(ValueError, match="at least 1"):
        Blocks(window=0)


def test_epochs_seeds_and_salts_are_unrelated() -> None:
    """To each other and to the samples' own order: 250 blocks correlate by 1 / sqrt(250) by chance."""

    def drawn(seed: int, salt: int, epoch: int) -> np.ndarray:
        return Stream(1000, NONE, seed, salt, blocks=SMALL).at(np.arange(1000) + epoch * 1000)[0]

    orders = [drawn(*key) for key in np.ndindex(3, 3, 3)]
    for number, order in enumerate(orders):
        assert abs(np.corrcoef(order, np.arange(1000))[0, 1]) < 5 / np.sqrt(250)
        assert all((order == other).sum() < 12 for other in orders[:number])


def test_blocks_have_other_neighbours_in_each_epoch() -> None:
    stream = Stream(1000, NONE, 0, blocks=Blocks(samples=1, streams=1, window=1))
    epochs = stream.at(np.arange(3000))[0].reshape(3, 1000)
    followed = [set(zip(epoch, np.roll(epoch, -1))) for epoch in epochs]
    assert max(len(followed[one] & followed[other]) for one, other in ((0, 1), (0, 2), (1, 2))) < 8


def test_the_end_of_an_epoch_is_shuffled_as_well() -> None:
    """A rest of one block would leave its eight samples together; they are from six or seven blocks of 17."""
    blocks, turns = Blocks(samples=8, streams=2, window=16), 64 + 2 * 128 + 8
    found = []
    for seed in range(50):
        samples, _ = Stream(2 * turns, NONE, seed, blocks=blocks).at(np.arange(2 * turns))
        found.append(len(np.unique(samples[0::2][-8:] // 8)))
    assert np.mean(found) > 5.5


def test_windows_are_shuffled_apart() -> None:
    """Those of one stream, of another, of the next epoch: by the place in its block of each sample drawn."""
    num_samples = 2 * 8 * 64
    samples, _ = Stream(num_samples, NONE, 1, blocks=Blocks(samples=8, streams=2, window=8)).at(
        np.arange(2 * num_samples)
    )
    within = samples.reshape(2, -1, 2) % 8  # (epoch, turn, stream)
    windows = [within[0, 32:96, 0], within[0, 96:160, 0], within[0, 64:128, 1], within[1, 32:96, 0]]
    for number, one in enumerate(windows):
        for other in windows[:number]:  # also if an epoch begins elsewhere in a block
            assert np.bincount((one - other) % 8).max() < 24


def test_a_batch_is_nearly_as_mixed_as_in_global_order(capsys: pytest.CaptureFixture[str]) -> None:
    """Samples of the same block of 32 in a batch of 256, of 24,576: 255 * 31 / 24,575 = 0.32 at random."""
    found = {
        str(blocks): companions(one(Stream(24_576, NONE, 0, blocks=blocks), 256), 96, 32)
        for blocks in (None, Blocks(), Blocks(window=4), Blocks(streams=1))
    }
    with capsys.disabled():
        print("", *(f"same-block companions, {name}: {mean:.2f}" for name, mean in found.items()), sep="\n")
    everywhere, default, narrow, single = found.values()
    assert 0.25 < everywhere < 0.40
    assert default <= 1.0
    assert narrow > 2 * default  # the measure sees too small a window
    assert single > 2 * default


def test_a_block_is_needed_for_a_window_only() -> None:
    """First to last use of a block of the same stream: within two windows, of up to one and a half each."""
    blocks = Blocks(samples=8, streams=4, window=8)
    stream = Stream(8 * 4 * 8 * 40, NONE, 2, blocks=blocks)
    place = np.arange(stream.num_drawn)
    block, turn = stream.at(place)[0] // 8, place // 4
    reach = []
    for number in range(4):
        mine = place % 4 == number
        order = np.argsort(block[mine], kind="stable")
        bounds = np.flatnonzero(np.diff(block[mine][order], prepend=-1))
        turns = turn[mine][order]
        reach.append(np.maximum.reduceat(turns, bounds) - np.minimum.reduceat(turns, bounds))
    assert np.concatenate(reach).max() < 3 * blocks.window * blocks.samples
    assert np.median(np.concatenate(reach)) < blocks.window * blocks.samples
    # few blocks are cut by an end of a window or of a run and needed by two streams
    assert sum(map(len, reach)) < 1.02 * stream.num_drawn / 8


def test_streams_do_not_all_need_new_blocks_at_the_same_step() -> None:
    blocks = Blocks()
    order = one(Stream(32 * 32 * 16 * 8, NONE, 4, blocks=blocks), 256)
    steps = order.streams[0][0].places // 256
    block = np.concatenate([order.batch(step).sample for step in range(steps)]) // 32
    first_use = np.unique(block, return_index=True)[1] // 256
    needed = np.bincount(first_use, minlength=steps)
    settled = needed[64:]  # all streams begin with the epoch
    assert needed.sum() == 32 * 16 * 8
    # one window of 16 begins in 64 steps / 16 streams = every 4 steps; together it would be over 100 blocks
    assert settled.max() < 5 * settled.mean()


@pytest.mark.parametrize(
    "order",
    [
        one(Stream(30_000, NONE, 0, blocks=Blocks()), 256),
        mixed([[30_000], [9_000]], 256, weights=[None, 0.5], blocks=Blocks()),
        mixed([[20_000, 9_000]], 256, blocks=Blocks()),
    ],
    ids=["one", "mixture", "buckets"],
)
def test_ranks_read_blocks_of_their_own(order: Order) -> None:
    """Within an epoch; but for the few blocks that lie across two runs."""
    batches = [order.batch(step) for step in range(60)]
    for ranks in (2, 4, 8):
        read: list[set[tuple[int, ...]]] = [set() for _ in range(ranks)]
        for batch in batches:
            rank = np.arange(256) // (256 // ranks)  # whose sample each is
            for number in range(ranks):
                mine = (rank == number) & (batch.epoch == 0)
                keys = zip(batch.cache[mine].tolist(), (batch.sample[mine] // 32).tolist())
                read[number].update((batch.bucket, *key) for key in keys)
        together = set.union(*read)
        assert len(together) > 600
        assert sum(map(len, read)) < 1.06 * len(together)


def test_ranks_keep_apart_whatever_divides_the_batch() -> None:
    """24 = 3 * 8 samples over 16 canonical streams: 8 lanes, each with two of them."""
    order = one(Stream(10_000, NONE, 0, blocks=Blocks()), 24)
    block = np.stack([order.batch(step).sample for step in range(300)]) // 32  # (steps, 24)
    read = [np.unique(mine) for mine in np.split(block, 4, axis=1)]
    assert sum(map(len, read)) < 1.06 * len(np.unique(block))
