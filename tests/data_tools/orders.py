"""Orders of every kind for the tests, and what they draw."""

from collections.abc import Sequence

import numpy as np

from data_tools.cache.interleave import mixture_shares
from data_tools.cache.order import Drawn, Order
from data_tools.cache.stream import Blocks, Stream, Tail, make_stream

NONE = np.zeros(0, dtype=np.int64)
SMALL = Blocks(samples=4, streams=4, window=2)


def mixed(
    counts: Sequence[Sequence[int]],
    batch_size: int,
    seed: int = 0,
    *,
    weights: Sequence[float | None] | None = None,
    tail: Tail = "wrap",
    blocks: Blocks | None = None,
) -> Order:
    """Caches of `counts[cache][bucket]` samples."""
    streams = tuple(
        tuple(
            make_stream(count, NONE, batch_size, seed, salt=100 * cache + bucket, tail=tail, blocks=blocks)
            if count
            else None
            for bucket, count in enumerate(row)
        )
        for cache, row in enumerate(counts)
    )
    places = [[stream.places if stream else 0 for stream in row] for row in streams]
    return Order(streams, mixture_shares(weights or [None] * len(counts), places), batch_size, seed)


def lengths_of(cache: np.ndarray, sample: np.ndarray, epoch: np.ndarray) -> np.ndarray:
    """Tokens of a caption: 2 … 76, another one each epoch."""
    return 2 + (sample * 7919 + cache * 31 + epoch * 13) % 75


def grouped(num_samples: int, batch_size: int, group: int, seed: int = 0) -> Order:
    stream = Stream(num_samples, NONE, seed)
    return Order(((stream,),), ((1,),), batch_size, seed, group, lengths_of)


def order_of_kind(kind: str, seed: int) -> Order:
    """Batches of 16 over some hundred samples."""
    if kind == "plain":
        return Order.plain(203, np.array([0, 17, 202]), 16, seed)
    if kind == "blocks":
        return mixed([[203]], 16, seed, blocks=SMALL)
    if kind == "mixture":
        return mixed([[100], [37], [60]], 16, seed, weights=[None, 0.5, 2], blocks=SMALL)
    if kind == "buckets":
        return mixed([[100, 40, 0], [20, 0, 70]], 16, seed, tail="drop")
    return grouped(203, 16, 4, seed)


KINDS = ("plain", "blocks", "mixture", "buckets", "grouped")


def together(drawn: Sequence[Drawn]) -> Drawn:
    """Several, one after another; the first one's bucket."""
    return Drawn(
        np.concatenate([one.cache for one in drawn]),
        drawn[0].bucket,
        np.concatenate([one.sample for one in drawn]),
        np.concatenate([one.epoch for one in drawn]),
    )


def same(one: Drawn, other: Drawn) -> bool:
    return one.bucket == other.bucket and all(
        np.array_equal(getattr(one, name), getattr(other, name)) for name in ("cache", "sample", "epoch")
    )
