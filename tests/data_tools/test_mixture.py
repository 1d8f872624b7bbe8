"""Several caches read as one: what each sample is, is what its own cache says."""

import numpy as np
import pytest

from data_tools.cache.mixture import Mixture, open_caches
from data_tools.cache.places import CachePlace, parse_places
from data_tools.cache.reader import CacheReader
from data_tools.errors import UserError
from tests.data_tools.caches import BUCKETS, COLUMNS, build

COUNTS = (14, 9)
IMAGE, TEXT, LATENTS = COLUMNS


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    """Two caches: the keys of the second are among those of the first."""
    folder = tmp_path_factory.mktemp("two")
    for name, count in zip("ab", COUNTS):
        build(folder / name, count=count)
    return folder / "a", folder / "b"


@pytest.fixture(scope="module")
def bucketed(tmp_path_factory):
    """Two caches with buckets: one shape is in both, one in each alone."""
    folder = tmp_path_factory.mktemp("bucketed")
    build(folder / "a", count=13, buckets=BUCKETS[:2])
    build(folder / "b", count=10, buckets=BUCKETS[1:])
    return folder / "a", folder / "b"


@pytest.fixture
def opened():
    """Readers of caches and the mixture of them; closed afterwards."""
    made = []

    def opened(places, columns=COLUMNS) -> tuple[Mixture, list[CacheReader]]:
        alone = [CacheReader(place, columns) for place in places]
        made.extend([open_caches([CachePlace(str(place)) for place in places], columns), *alone])
        return made[-len(alone) - 1], alone

    yield opened
    for reader in made:
        reader.close()


def same(first, second) -> bool:
    return first.keys() == second.keys() and all(
        first[name].dtype == second[name].dtype and np.array_equal(first[name], second[name])
        for name in first
    )


def whose(sample: int) -> tuple[int, int]:
    """Cache of a sample of the mixture, and its number there."""
    return (0, sample) if sample < COUNTS[0] else (1, sample - COUNTS[0])


@pytest.mark.parametrize(
    ("text", "place", "weight"),
    [
        ("a", "a", None),
        ("a=0.3", "a", 0.3),
        ("a=2", "a", 2.0),
        ("runs/lr=1e-3/cache=0.5", "runs/lr=1e-3/cache", 0.5),
        ("runs/lr=1e-3/cache", "runs/lr=1e-3/cache", None),
        ("s3://bucket/x=y", "s3://bucket/x=y", None),
        ("s3://bucket/x=y=.25", "s3://bucket/x=y", 0.25),
        ("a=", "a=", None),
        ("0.3", "0.3", None),
    ],
)
def test_weight_is_the_number_behind_the_last_equals_sign(text, place, weight):
    assert CachePlace.parse(text) == CachePlace(place, weight)


def test_folder_that_ends_in_a_number_is_a_folder(tmp_path):
    folder = tmp_path / "alpha=0.3"
    assert CachePlace.parse(str(folder)) == CachePlace(str(tmp_path / "alpha"), 0.3)
    folder.mkdir()
    assert CachePlace.parse(str(folder)) == CachePlace(str(folder))
    assert CachePlace.parse(f"{folder}=2") == CachePlace(str(folder), 2.0)


@pytest.mark.parametrize("weight", ["0", "-1", "nan", "inf", "1e308", "1e-9"])
def test_weight_that_is_none_is_refused(weight):
    with pytest.raises(
        UserError, match=f"^--cache: some/a has weight {weight}, wanted a number from 1e-06 to 1e"
    ):
        CachePlace.parse(f"some/a={weight}")


def test_weight_without_a_place_is_refused():
    with pytest.raises(UserError, match=r"^--cache: found =0\.3, wanted a folder or URL"):
        CachePlace.parse("=0.3")


def test_same_cache_twice_is_refused(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "link").symlink_to("a")
    for again in (f"{tmp_path}/a/", f"{tmp_path}/b/../a=2", f"{tmp_path}/link", f"file://{tmp_path}/a"):
        with pytest.raises(UserError, match="given twice"):
            parse_places([f"{tmp_path}/a=0.5", again])
    with pytest.raises(UserError, match=r"^--cache: s3://bucket/a/ is given twice"):
        parse_places(["s3://bucket/a", "s3://bucket/a/=3"])
    assert len(parse_places([f"{tmp_path}/a", f"{tmp_path}/b", "s3://bucket/a", "s3://bucket/b"])) == 4


def test_one_cache_is_its_reader(two):
    reader = open_caches([CachePlace(str(two[0]), 0.5)], COLUMNS)
    assert type(reader) is CacheReader
    reader.close()


def test_rows_of_any_samples_are_those_of_their_own_caches(two, opened):
    mixture, alone = opened(two)
    assert mixture.num_samples == sum(COUNTS)
    samples = np.random.default_rng(0).permutation(sum(COUNTS))
    for column in COLUMNS:
        first, count = mixture.rows(column, samples)
        wanted = []
        for sample, rows in zip(samples.tolist(), count.tolist()):
            cache, local = whose(sample)
            start, number = (values[0] for values in alone[cache].rows(column, np.array([local])))
            assert rows == number
            wanted.append(alone[cache].gather(column, np.array([start + number - 1])))
        last = first + count - 1  # the last caption of each
        found = mixture.gather(column, last)
        for place, row in enumerate(wanted):
            for name, value in row.items():
                got = found[name][place]
                if found[name].ndim > value.ndim - 1 and name == "text_encoder_hidden_states":
                    assert not got[value.shape[1] :].any()
                    got = got[: value.shape[1]]
                assert np.array_equal(got, value[0]), (column, name)
                assert got.dtype == value.dtype
    text = mixture.rows(TEXT, samples)[0]
    assert mixture.lengths(TEXT, text).tolist() == mixture.gather(TEXT, text)["n_tokens"].tolist()
    assert np.array_equal(mixture.rows(TEXT)[0][samples], text)


def test_batch_is_padded_to_its_longest_row_of_any_cache(two, opened):
    mixture, _ = opened(two)
    rows = mixture.rows(TEXT)[0]
    batch = mixture.gather(TEXT, rows)
    assert batch["text_encoder_hidden_states"].shape[1] == batch["n_tokens"].max()
    for row, length in zip(batch["text_encoder_hidden_states"], batch["n_tokens"]):
        assert not row[length:].any()
        assert row[:length].any(axis=1).all()


@pytest.mark.parametrize("samples", [[3, 1], [20, 15], [20, 3]], ids=["first", "second", "both"])
def test_arrays_are_the_callers(samples, two, opened):
    mixture, _ = opened(two)
    made = []

    def empty(shape, dtype):
        made.append(np.full(shape, 7, dtype=dtype))
        return made[-1]

    for column in COLUMNS:
        rows = mixture.rows(column, np.array(samples))[0]
        found = mixture.gather(column, rows, empty=empty)
        assert same(found, mixture.gather(column, rows))
        fields = [found[field.name] for field in mixture.columns[column].fields]
        assert all(any(value is array for array in made) for value in fields)


def test_no_rows_make_an_empty_batch(two, opened):
    mixture, alone = opened(two)
    none = np.zeros(0, dtype=np.int64)
    assert same(mixture.gather(IMAGE, none), alone[0].gather(IMAGE, none))


def test_key_in_both_is_held_out_in_both(two, opened):
    mixture, alone = opened(two)
    held = mixture.held_out(0.5)
    own = [reader.held_out(0.5) for reader in alone]
    assert sorted(held.tolist()) == sorted([*own[0].tolist(), *(own[1] + COUNTS[0]).tolist()])
    assert {whose(sample)[0] for sample in held[:3].tolist()} == {0, 1}  # the first few are of both
    left = np.setdiff1d(np.arange(mixture.num_samples), held)
    assert not set(mixture.key_hashes(held)) & set(mixture.key_hashes(left))
    assert len(set(mixture.key_hashes(held))) < len(held)


def test_null_bytes_and_keys_are_those_of_the_caches(two, opened):
    mixture, alone = opened(two)
    assert same(mixture.null(TEXT), alone[0].null(TEXT))
    assert mixture.payload_bytes(COLUMNS) == sum(reader.payload_bytes(COLUMNS) for reader in alone)
    assert mixture.prompts(TEXT) == {}
    assert mixture.key_hashes().tolist() == [h for reader in alone for h in reader.key_hashes().tolist()]
    assert mixture.keys(np.array([COUNTS[0], 0])) == [reader.keys(np.array([0]))[0] for reader in alone[::-1]]


def test_buckets_are_united(bucketed, opened):
    mixture, alone = opened(bucketed)
    shapes = mixture.buckets(LATENTS)
    assert shapes == sorted((4, *sides) for sides in BUCKETS)
    assert mixture.buckets(IMAGE) == []
    own = [dict(zip(reader.buckets(LATENTS), reader.bucket_counts(LATENTS).tolist())) for reader in alone]
    assert mixture.bucket_counts(LATENTS).tolist() == [own[0].get(s, 0) + own[1].get(s, 0) for s in shapes]
    seen = []
    for bucket, count in enumerate(mixture.bucket_counts(LATENTS).tolist()):
        places = np.random.default_rng(bucket).permutation(count)
        samples = mixture.in_bucket(LATENTS, bucket, places)
        found, back = mixture.bucket_of(LATENTS, samples)
        assert set(found.tolist()) == {bucket}
        assert back.tolist() == places.tolist()
        batch = mixture.gather(LATENTS, mixture.rows(LATENTS, samples)[0])
        assert batch["latents"].shape == (count, *shapes[bucket])
        for sample, latents in zip(samples.tolist(), batch["latents"]):
            cache, local = (0, sample) if sample < 13 else (1, sample - 13)
            row = alone[cache].rows(LATENTS, np.array([local]))[0]
            assert np.array_equal(alone[cache].gather(LATENTS, row)["latents"][0], latents)
        seen += samples.tolist()
    assert sorted(seen) == list(range(23))


def test_caches_made_by_unlike_encoders_are_refused(two, tmp_path):
    build(tmp_path / "c", count=3, dtype="float16")
    places = [CachePlace(str(two[0])), CachePlace(str(tmp_path / "c"))]
    with pytest.raises(UserError) as refused:
        open_caches(places, [IMAGE])
    assert str(refused.value) == (
        f"--cache: column image of {tmp_path / 'c'} is not what it is in {two[0]}: dtype float16 → float32; "
        "wanted caches whose columns were made alike"
    )


def test_cache_that_lacks_a_column_is_named(two, tmp_path):
    build(tmp_path / "c", count=3)
    (tmp_path / "c" / "columns" / "text").rename(tmp_path / "text")
    with pytest.raises(UserError, match=f"^--cache: {tmp_path / 'c'} has no column 'text'"):
        open_caches([CachePlace(str(two[0])), CachePlace(str(tmp_path / "c"))], COLUMNS)
