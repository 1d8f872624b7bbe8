"""Hugging Face datasets, on disk and streamed, as the `datasets` library reads them."""

import shutil
from pathlib import Path
from typing import Any

import pytest

from data_tools.errors import UserError
from data_tools.sources.hub import HubSource, Loaded, load
from data_tools.sources.rows import chosen
from data_tools.sources.sample import Sample, SourceOptions, Unusable
from tests.data_tools.hubs import arrows, check_in_any_order, made, opened, parquets, picture, saved

datasets = pytest.importorskip("datasets")


@pytest.fixture(autouse=True)
def _home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_OFFLINE", True)
    datasets.disable_progress_bars()


def test_a_saved_dataset_gives_its_bytes_as_they_are(tmp_path: Path) -> None:
    source = opened(saved(tmp_path, made()))
    samples = list(source)
    assert source.count == 20
    assert (samples[12].key, samples[12].captions, samples[12].place) == ("row-00000012", ("c12",), "12")
    assert samples[0].mtime_ns > 0
    check_in_any_order(source, [picture(number) for number in range(20)])


def test_a_saved_choice_of_rows_keeps_its_order(tmp_path: Path) -> None:
    source = opened(saved(tmp_path, made().select([7, 3, 11])))
    assert [sample.captions for sample in source] == [("c7",), ("c3",), ("c11",)]
    check_in_any_order(source, [picture(7), picture(3), picture(11)])


def test_a_folder_of_arrow_files_is_read_in_order_of_names(tmp_path: Path) -> None:
    source = opened(arrows(tmp_path, 3, 5))
    assert source.count == 8
    check_in_any_order(source, [picture(number) for number in [*range(3), *range(5)]])


def test_a_folder_of_parquet_files_is_read_as_one_table(tmp_path: Path) -> None:
    source = opened(parquets(tmp_path, 3, 30))
    assert source.count == 33
    samples = list(source)
    assert [sample.captions[0] for sample in samples] == [f"c{number}" for number in [*range(3), *range(30)]]
    assert (samples[4].key, samples[4].place) == ("1.parquet:row-00000001", "1.parquet:1")
    check_in_any_order(source, [picture(number) for number in [*range(3), *range(30)]])


def test_a_stream_of_parquet_files_is_read_in_any_order(tmp_path: Path) -> None:
    files = sorted(map(str, parquets(tmp_path, 3, 30).iterdir()))
    dataset = load(datasets, "parquet", None, data_files=files, split="train", streaming=True)
    source = streamed(dataset)
    check_in_any_order(source, [picture(number) for number in [*range(3), *range(30)]])
    assert list(source) == list(source)


def test_parquet_files_with_other_columns_are_one_line(tmp_path: Path) -> None:
    path = parquets(tmp_path, 3)
    made(3).rename_column("text", "alt").to_parquet(path / "1.parquet")
    with pytest.raises(UserError, match=r"^--data: .*1.parquet: has no column 'text', which 0.parquet has$"):
        opened(path)


def streamed(dataset: Any, **options: Any) -> HubSource:
    """As one that comes from the Hub."""
    chosen_columns = chosen("hf:me/it", list(dataset.features), SourceOptions(**options), image="image")
    return HubSource(
        "hf:me/it", SourceOptions(**options), Loaded(dataset, 5, None, name="me/it"), chosen_columns
    )


def test_a_stream_without_arrow_files_behind_it_is_read_too() -> None:
    def rows() -> Any:
        for number in range(50):
            yield {"image": {"bytes": picture(number), "path": None}, "text": [f"a{number}", "b"]}

    features = datasets.Features(
        {"image": datasets.Image(), "text": datasets.Sequence(datasets.Value("string"))}
    )
    source = streamed(datasets.IterableDataset.from_generator(rows, features=features))
    assert source.count is None
    first = next(iter(source))
    assert (first.captions, first.mtime_ns) == (("a0", "b"), 5)
    check_in_any_order(source, [picture(number) for number in range(50)])


def test_of_a_stream_only_texts_are_keys_as_numbers_may_come_twice() -> None:
    def rows() -> Any:
        for name in ("a", "b"):
            yield {"image": {"bytes": picture(0), "path": None}, "text": "t", "id": 7, "key": name}

    kinds = {"image": datasets.Image(), "text": datasets.Value("string"), "id": datasets.Value("int64")}
    features = datasets.Features({**kinds, "key": datasets.Value("string")})
    dataset = datasets.IterableDataset.from_generator(rows, features=features)
    assert [sample.key for sample in streamed(dataset)] == ["a", "b"]
    keys = [sample.key for sample in streamed(dataset.remove_columns("key"))]
    assert keys == ["row-00000000", "row-00000001"]


def test_a_stream_that_breaks_off_is_one_line_in_the_listing_and_a_reason_in_reading() -> None:
    def rows() -> Any:
        yield {"image": {"bytes": b"x", "path": None}, "text": "a"}
        raise ConnectionResetError("the line\nis dead")

    features = datasets.Features({"image": datasets.Image(), "text": datasets.Value("string")})
    source = streamed(datasets.IterableDataset.from_generator(rows, features=features))
    with pytest.raises(UserError, match=r"^--data: hf:me/it: cannot be read: .*$") as failure:
        list(source)
    assert "\n" not in str(failure.value)
    with pytest.raises(Unusable, match="cannot be read"):
        source.read(Sample("k", (), "1", -1, 0))


@pytest.mark.parametrize(
    "path",
    [
        "/etc/passwd",
        "file:///etc/passwd",
        "hf://datasets/other/it/a.png",
        "hf://datasets/me/it/../../other/it/a.png",
        "zip:///etc/x.png::file:///etc/x.zip",
        "https://x/a.png",
    ],
)
def test_a_dataset_of_the_hub_names_no_files_but_its_own(path: str) -> None:
    def rows() -> Any:
        yield {"image": {"bytes": None, "path": path}, "text": "a"}

    features = datasets.Features({"image": datasets.Image(), "text": datasets.Value("string")})
    source = streamed(datasets.IterableDataset.from_generator(rows, features=features))
    with pytest.raises(Unusable, match=r"^the picture's path leads out of the dataset$"):
        source.read(next(iter(source)))


def test_paths_in_a_folder_stay_in_it(tmp_path: Path) -> None:
    cells = [{"bytes": None, "path": path} for path in ("a.png", "../secret.png", "/etc/passwd", "gone.png")]
    dataset = datasets.Dataset.from_dict({"image": [*cells, None], "text": list("abcde")})
    path = saved(tmp_path, dataset)
    (path / "a.png").write_bytes(b"mine")
    (tmp_path / "secret.png").write_bytes(b"secret")
    source = opened(path)
    samples = list(source)
    assert source.read(samples[0]) == b"mine"
    for number, said in [
        (1, "leads out"),
        (2, "leads out"),
        (3, "no such file"),
        (4, "no bytes in this row"),
    ]:
        with pytest.raises(Unusable, match=said):
            source.read(samples[number])


def test_captions_may_be_lists_and_of_several_columns(tmp_path: Path) -> None:
    path = saved(tmp_path, made(2, long=[["x", "y"], []], extra=["e", None]))
    source = opened(path, caption_columns=("extra", "long"))
    assert [sample.captions for sample in source] == [("e", "x", "y"), ()]


def test_a_key_column_names_the_samples(tmp_path: Path) -> None:
    source = opened(saved(tmp_path, made(2, id=["a", "b"])))
    assert [sample.key for sample in source] == ["a", "b"]


def test_wrong_columns_are_one_line_with_those_there_are(tmp_path: Path) -> None:
    path = saved(tmp_path, made())
    with pytest.raises(UserError, match=r"^--caption-column: .* no column 'captoin'; it has: image, text$"):
        opened(path, caption_columns=("captoin",))
    with pytest.raises(UserError, match=r"^--image-column: .* has no column 'pic'; it has: image, text$"):
        opened(path, image_column="pic")


def test_the_picture_column_is_the_one_of_images_whatever_its_name(tmp_path: Path) -> None:
    dataset = made().rename_column("image", "drawing")
    source = opened(saved(tmp_path, dataset))
    assert source.read(next(iter(source))) == picture(0)


def test_two_picture_columns_ask_which(tmp_path: Path) -> None:
    dataset = made()
    both = dataset.add_column("mask", dataset.with_format("arrow")["image"]).cast_column(
        "mask", datasets.Image()
    )
    path = saved(tmp_path, both)
    with pytest.raises(
        UserError, match=r"^--image-column: .* has pictures in image, mask; name one of them$"
    ):
        opened(path)
    assert opened(path, image_column="mask").columns.image == "mask"


def test_several_splits_ask_which_and_one_is_taken(tmp_path: Path) -> None:
    path = saved(tmp_path, datasets.DatasetDict({"train": made(2), "test": made(3)}))
    with pytest.raises(
        UserError, match=r"^--data: .*: has the splits train, test; name one: --data .*/data/train$"
    ):
        opened(path)
    assert opened(path / "test").count == 3
    shutil.rmtree(path)
    assert opened(saved(tmp_path, datasets.DatasetDict({"only": made(4)}))).count == 4


def test_without_the_library_the_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "datasets", None)
    with pytest.raises(UserError, match=r"^--data: hf:x: needs the library datasets.*kandinsky-cache\[hub\]"):
        opened("hf:x")


def test_a_place_that_is_no_row_is_not_read(tmp_path: Path) -> None:
    source = opened(saved(tmp_path, made(3)))
    for place in ("3", "-1", "x"):
        with pytest.raises(Unusable, match="no such row"):
            source.read(Sample("k", (), place, -1, 0))
