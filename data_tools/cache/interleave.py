"""Several streams mixed into one, by weight: which stream the next item comes from, in closed form.

Shares are kept exactly, not on average: at every prefix of the mixed stream each of the m streams is within
`RUN / 4 + ceil(log2(m))` items of its share, so nothing drifts however long a run is.
"""

from collections.abc import Sequence

import numpy as np

from data_tools.cache.permutation import Ids, Words, keyed, permuted

RUN = 16
"Items that are shuffled among themselves, so that the streams do not alternate in a fixed pattern."

MAX_WEIGHT = 2**31
"Largest sum of weights: the products below stay under 2**64."


def interleave(weights: Sequence[int], index: Ids, key: int | Words) -> tuple[Ids, Ids]:
    """Stream and place in it of each item of the mix: (B,), (B,), for index < 2**40.

    Stream i gives weights[i] of every sum(weights) items, and its items are used up in order: among the
    first items of the mix its places are 0, 1, 2, … without holes, but for those that trade places within a
    run of `RUN` items. Each (stream, place) comes exactly once; weight 0 never. `key` is one for all items,
    or each item's own (B,), which makes that many mixes.
    ValueError: a negative weight, no positive one, or a sum over `MAX_WEIGHT`.
    """
    check_weights(weights)
    positive = [number for number, weight in enumerate(weights) if weight]
    if len(positive) == 1:
        return np.full_like(index, positive[0]), index
    run, within = np.divmod(index, RUN)
    place = run * RUN + permuted(within, RUN, keyed(key, "interleave", run))
    stream, place = _dealt([weights[number] for number in positive], place)
    return np.array(positive)[stream], place


def check_weights(weights: Sequence[int]) -> None:
    """ValueError unless `interleave` can mix by these."""
    if min(weights, default=0) < 0 or not 0 < sum(weights) <= MAX_WEIGHT:
        raise ValueError(f"weights {list(weights)}: none may be negative, their sum is 1 … {MAX_WEIGHT:,}")


def _dealt(weights: Sequence[int], index: Ids) -> tuple[Ids, Ids]:
    """`interleave` without the shuffle: the items are split in two by a Beatty sequence, each side again.

    A split gives floor(x * share) of any first x items to the left and the rest to the right: less than one
    item from the exact share, and there are ceil(log2(m)) splits on the way to a stream.
    """
    stream, place = np.zeros_like(index), index.copy()
    if len(weights) == 1:
        return stream, place
    half = len(weights) // 2
    left, total = sum(weights[:half]), sum(weights)
    before = _scaled(index, left, total)
    goes_left = _scaled(index + 1, left, total) > before
    stream[goes_left], place[goes_left] = _dealt(weights[:half], before[goes_left])
    right = ~goes_left
    number, place[right] = _dealt(weights[half:], (index - before)[right])
    stream[right] = number + half
    return stream, place


def _scaled(value: Ids, numerator: int, denominator: int) -> Ids:
    """floor(value * numerator / denominator), exact: no product reaches 2**64."""
    whole, rest = np.divmod(value.astype(np.uint64), np.uint64(denominator))
    scaled = whole * np.uint64(numerator) + rest * np.uint64(numerator) // np.uint64(denominator)
    result: Ids = scaled.astype(np.int64)
    return result


def mixture_shares(
    weights: Sequence[float | None], counts: Sequence[Sequence[int]]
) -> tuple[tuple[int, ...], ...]:
    """How many of the drawn samples come from each bucket of each cache, relatively: `Order.shares`.

    `counts[cache][bucket]` are samples that can be drawn in an epoch (`Stream.places`). Without any weight
    every cache counts by its samples: together they are one cache, each sample once an epoch. Otherwise
    cache c gives weights[c] / sum(weights) of the drawn samples, 1 where it has no weight, whatever its
    size; its buckets share that by their samples.
    ValueError: a weight that is not a positive finite number, a cache with nothing to draw.
    """
    totals = [sum(buckets) for buckets in counts]
    for number, (weight, total) in enumerate(zip(weights, totals)):
        if weight is not None and not 0 < weight < float("inf"):
            raise ValueError(f"cache {number}: weight {weight}; a weight is a positive number")
        if total < 1:
            raise ValueError(f"cache {number}: no sample to draw")
    given = [1.0 if weight is None else weight for weight in weights]
    if all(weight is None for weight in weights):
        if sum(totals) <= MAX_WEIGHT:
            return tuple(tuple(buckets) for buckets in counts)
        given = [float(total) for total in totals]
    exact = [
        [weight * count / total for count in buckets] for weight, buckets, total in zip(given, counts, totals)
    ]
    # half the largest sum leaves room for shares that would round to nothing
    scale = (MAX_WEIGHT // 2) / sum(map(sum, exact))
    return tuple(
        tuple(max(1, round(share * scale)) if share else 0 for share in buckets) for buckets in exact
    )
