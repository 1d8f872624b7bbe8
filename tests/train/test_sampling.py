"""Which samples make a batch: of one cache or several, of any shapes, in any order."""

from collections import Counter
from itertools import chain

import numpy as np
import pytest
import torch

from data_tools.cache.mixture import open_caches
from data_tools.cache.places import CachePlace
from data_tools.errors import UserError
from tests.data_tools.caches import BUCKETS, COLUMNS, build
from train.batches import Slice, TrainingBatches
from train.sampling import Ordering, Sampling

CPU = torch.device("cpu")
COUNTS = (23, 14)
NONE = np.zeros(0, dtype=np.int64)


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    folder = tmp_path_factory.mktemp("plain")
    for name, count in zip("ab", COUNTS):
        build(folder / name, count=count, views=2)
    return folder


@pytest.fixture(scope="module")
def bucketed(tmp_path_factory):
    """Buckets of 10, 8 and 5 samples and of 6 and 8: one shape is in both."""
    folder = tmp_path_factory.mktemp("bucketed")
    build(folder / "a", count=COUNTS[0], buckets=BUCKETS)
    build(folder / "b", count=COUNTS[1], buckets=BUCKETS[1::-1])
    return folder


@pytest.fixture
def opened():
    made = []

    def opened(folder, *weights):
        places = [CachePlace(str(folder / name), weight) for name, weight in zip("ab", weights)]
        made.append(open_caches(places, COLUMNS))
        return made[-1]

    yield opened
    for reader in made:
        reader.close()


def drawn(sampling, steps, size):
    """The samples of each step, by the rows of their pictures."""
    everything = sampling.reader.rows("image")[0]
    assert (np.diff(everything) > 0).all()
    rows = [sampling.rows(step, range(size))["image"] for step in range(steps)]
    return [(np.searchsorted(everything, row, side="right") - 1).tolist() for row in rows]


def flat(batches):
    return list(chain.from_iterable(batches))


def epochs(samples, size):
    return [sorted(samples[start : start + size]) for start in range(0, len(samples) - size + 1, size)]


@pytest.mark.parametrize("kind", ["global", "block"])
def test_caches_without_weights_are_one_each_sample_once_an_epoch(kind, plain, opened):
    reader = opened(plain, None, None)
    held = reader.held_out(0.2)
    left = np.setdiff1d(np.arange(sum(COUNTS)), held).tolist()
    sampling = Sampling(reader, held, 5, 3, Ordering(kind))
    assert sampling.samples_per_epoch == len(left)
    samples = flat(drawn(sampling, 3 * len(left) // 5 + 1, 5))
    found = epochs(samples, len(left))
    assert found == [left] * 3
    assert samples[: len(left)] != samples[len(left) : 2 * len(left)]


def test_weighted_caches_give_their_shares_of_real_batches(plain, opened):
    reader = opened(plain, None, 0.25)  # 1 : 0.25, so four of five from the first
    batches = TrainingBatches(reader, NONE, Slice(0, 1, 10, 1), 3, CPU)
    latents = [each.gather("latents@24", each.rows("latents@24")[0])["latents"] for each in reader.readers]
    latents += [
        each.gather("latents@24", each.rows("latents@24")[0] + 1)["latents"] for each in reader.readers
    ]
    whose = {row.tobytes(): number % 2 for number, rows in enumerate(latents) for row in rows}
    assert len(whose) == 2 * sum(COUNTS)
    counts = Counter()
    for done, (batch, _) in enumerate(batches.iterate(0, 60), start=1):
        counts.update(whose[row.numpy().tobytes()] for row in batch["latents"])
        assert abs(counts[1] - 2 * done) <= 5  # at every moment, not only in the end
    assert counts[0] + counts[1] == 600


def test_weighted_cache_shows_each_of_its_samples_once_before_any_again(plain, opened):
    reader = opened(plain, 1.0, 3.0)
    held = reader.held_out(0.2)
    sampling = Sampling(reader, held, 8, 3, Ordering())
    samples = np.array(flat(drawn(sampling, 200, 8)))
    for cache, start in enumerate((0, COUNTS[0])):
        own = np.arange(start, start + COUNTS[cache])
        left = np.setdiff1d(own, held)
        mine = samples[np.isin(samples, own)]
        times = np.bincount(mine - start, minlength=len(own))
        assert not times[np.isin(own, held)].any()
        times = times[np.isin(own, left)]
        assert times.min() >= 5
        assert times.max() - times.min() <= 1 + (len(left) < 16)  # draws of a run of 16 trade places


@pytest.mark.parametrize("weights", [(None,), (None, None), (1.0, 1.0)])
def test_batch_is_of_one_bucket_and_each_sample_comes_once_an_epoch(weights, bucketed, opened):
    reader = opened(bucketed, *weights)
    held = reader.held_out(0.1)
    left = np.setdiff1d(np.arange(reader.num_samples), held)
    sampling = Sampling(reader, held, 4, 3, Ordering())
    assert sampling.samples_per_epoch == len(left)
    batches = TrainingBatches(reader, held, Slice(0, 1, 4, 1), 3, CPU)
    samples = drawn(sampling, 120, 4)
    shapes = Counter()
    for step, own in enumerate(samples):
        (bucket,) = set(reader.bucket_of("latents@24", np.array(own))[0].tolist())
        shape = reader.buckets("latents@24")[bucket]
        assert batches.read(step, 0)["latents"].shape == (4, *shape)
        shapes[shape] += 1
    assert len(shapes) == len(reader.buckets("latents@24"))
    times = np.bincount(flat(samples), minlength=reader.num_samples)
    assert not times[held].any()
    if len(weights) == 1 or weights[0] is None:  # 480 draws are 12 to 23 epochs
        assert times[left].max() - times[left].min() <= 4
    else:
        start = reader.starts[1]
        assert abs(times[:start].sum() - 240) <= 8


def test_columns_with_views_show_the_same_one_and_captions_are_drawn_apart(plain, opened):
    reader = opened(plain, None)
    sampling = Sampling(reader, NONE, 23, 3, Ordering())
    views, captions = [], []
    for step in range(8):
        rows = sampling.rows(step, range(23))
        samples = sampling.samples(sampling.order.batch(step))
        shown = {column: rows[column] - reader.rows(column, samples)[0] for column in COLUMNS}
        assert shown["image"].tolist() == shown["latents@24"].tolist()
        two = reader.rows("text", samples)[1] == 2
        views += shown["image"][two].tolist()
        captions += shown["text"][two].tolist()
    assert set(zip(views, captions)) == {(0, 0), (0, 1), (1, 0), (1, 1)}


def padding(sampling, steps):
    """Share of the text rows that hold nothing."""
    reader, read, valid = sampling.reader, 0, 0
    for step in range(steps):
        lengths = reader.lengths("text", sampling.rows(step, range(4))["text"])
        read, valid = read + 4 * lengths.max(), valid + lengths.sum()
    return 1 - valid / read


@pytest.mark.parametrize("weights", [(None,), (None, None), (1.0, 2.0)])
def test_grouping_pads_less_and_shows_the_same_samples(weights, plain, opened):
    reader = opened(plain, *weights)
    held = reader.held_out(0.1)
    alike, mixed = (Sampling(reader, held, 4, 3, Ordering(group=group)) for group in (8, 1))
    assert padding(alike, 64) < 0.5 * padding(mixed, 64)
    first, second = (drawn(sampling, 64, 4) for sampling in (alike, mixed))
    assert first != second
    assert alike.order.group == min(8, alike.samples_per_epoch // 4) > 1
    start = 0
    while start < 48:
        window = alike.order._window(start)
        assert window.start == start
        shown = [sorted(flat(each[start : window.stop])) for each in (first, second)]
        assert shown[0] == shown[1]
        start = window.stop


@pytest.mark.parametrize("weights", [(None, None), (None, 0.5)])
@pytest.mark.parametrize("kind", ["global", "block"])
def test_global_batch_is_the_same_however_ranks_and_rounds_share_it(kind, weights, plain, opened):
    reader = opened(plain, *weights)
    how = Ordering(kind, group=4)
    whole = TrainingBatches(reader, NONE, Slice(0, 1, 8, 1), 3, CPU, ordering=how)
    for world, rounds in ((2, 1), (1, 4), (4, 2)):
        shares = [Slice(rank, world, 8 // (world * rounds), rounds) for rank in range(world)]
        for step in (9, 2):  # not in turn
            parts = [
                TrainingBatches(reader, NONE, share, 3, CPU, ordering=how).read(step, n)
                for n in range(rounds)
                for share in shares
            ]
            wanted = whole.read(step, 0)
            for name in ("image_embeds", "latents", "prompt_embeds", "n_tokens"):
                assert torch.equal(torch.cat([part[name] for part in parts]), wanted[name])


def test_dropped_tail_leaves_out_less_than_a_batch_an_epoch(plain, opened):
    reader = opened(plain, None)
    sampling = Sampling(reader, NONE, 5, 3, Ordering(tail="drop"))
    assert sampling.samples_per_epoch == 20
    found = epochs(flat(drawn(sampling, 12, 5)), 20)
    assert all(len(set(epoch)) == 20 for epoch in found)
    assert len({tuple(epoch) for epoch in found}) > 1  # not always the same are left out


def test_dropped_tail_keeps_epochs_apart_in_each_bucket(bucketed, opened):
    reader = opened(bucketed, None, None)
    sampling = Sampling(reader, NONE, 3, 3, Ordering(tail="drop"))
    seen: dict[tuple[int, int], list[int]] = {}
    for step in range(60):
        batch = sampling.order.batch(step)
        (epoch,) = set(batch.epoch.tolist())
        seen.setdefault((batch.bucket, epoch), []).extend(batch.sample.tolist())
    assert all(len(set(samples)) == len(samples) for samples in seen.values())
    counts = reader.bucket_counts("latents@24").tolist()
    assert all(len(seen[bucket, 0]) == count // 3 * 3 for bucket, count in enumerate(counts))


def test_dropped_tail_that_would_leave_nothing_is_refused(plain, bucketed, opened):
    how = Ordering(tail="drop")
    with pytest.raises(UserError, match=r"^--tail: drop, but .*/a has 23 samples to train on, fewer than a"):
        Sampling(opened(plain, None), NONE, 24, 3, how)
    with pytest.raises(UserError, match=r"^--tail: drop, but .* samples of shape \(4, \d, \d\) to train on"):
        Sampling(opened(bucketed, None), NONE, 9, 3, how)
    with pytest.raises(UserError, match=r"^--tail: drop with weighted caches"):
        Sampling(opened(plain, 1.0, 2.0), NONE, 4, 3, how)


def test_caches_of_one_size_are_shuffled_apart(plain):
    """Otherwise the n-th sample of one always came with the n-th of the other."""
    twice = open_caches([CachePlace(str(plain / "a"), 1.0)] * 2, COLUMNS)
    streams = Sampling(twice, NONE, 4, 3, Ordering()).order.streams
    first, second = (stream.at(np.arange(COUNTS[0]))[0].tolist() for (stream,) in streams)
    assert sorted(first) == sorted(second)
    assert first != second
    twice.close()


def test_weighted_cache_of_which_all_is_held_out_is_named(plain, opened):
    reader = opened(plain, 1.0, 1.0)
    held = np.arange(COUNTS[0], sum(COUNTS))
    with pytest.raises(UserError, match=r"^--cache: .*/b: no sample to train on \(14 held out\)"):
        Sampling(reader, held, 4, 3, Ordering())
