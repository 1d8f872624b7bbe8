"""What lies among the pictures of a folder and is none: nothing of it is passed over without a word."""

from pathlib import Path

import pytest

from data_tools import images
from data_tools.errors import UserError
from data_tools.sources import ImageFolder, Sample, SourceOptions, Unusable
from data_tools.sources.holders import OWN
from tests.data_tools.test_folder import metadata, touch


def listed(root: Path) -> dict[str, Sample]:
    source = ImageFolder.open(str(root))
    samples = {sample.key: sample for sample in source}
    assert source.count == len(samples)
    return samples


@pytest.mark.parametrize("name", ["0.tar", "sub/6.TAR", "train.parquet", "data-0.arrow"])
def test_datasets_among_pictures_are_rejected_with_what_to_do(tmp_path: Path, name: str) -> None:
    touch(tmp_path, "a.png", "a.txt", name)
    samples = listed(tmp_path)
    assert set(samples) == {"a.png", name}
    sample = samples[name]
    assert sample.problem == sample.caption_problem == OWN
    assert OWN == "holds samples of its own; give it as a --data of its own"
    with pytest.raises(Unusable, match="holds samples of its own"):
        ImageFolder.open(str(tmp_path)).read(sample)


def test_a_compressed_tar_among_pictures_says_to_unpack_it(tmp_path: Path) -> None:
    touch(tmp_path, "a.png", "x.tar.gz")
    assert listed(tmp_path)["x.tar.gz"].problem.startswith("a compressed tar; unpack it")


def test_metadata_and_what_img2dataset_writes_beside_its_folders_are_no_datasets(tmp_path: Path) -> None:
    pytest.importorskip("pyarrow")
    touch(tmp_path, "00000/a.png", "00000.parquet", "00000_stats.json", "00001.parquet")
    assert {key: sample.problem for key, sample in listed(tmp_path).items()} == {
        "00001.parquet": OWN,
        "00000/a.png": "",
    }


@pytest.mark.parametrize("name", ["x.psd", "x.CR2", "x.dng", "x.svg"])
def test_pictures_of_other_formats_are_rejected_by_name(tmp_path: Path, name: str) -> None:
    touch(tmp_path, "a.png", name, "x.txt")
    assert listed(tmp_path)[name].problem == f"{Path(name).suffix.lower()}: not a format that is read"


def test_a_photo_of_a_telephone_is_a_sample_that_is_rejected_with_its_caption(tmp_path: Path) -> None:
    touch(tmp_path, "a.png")
    (tmp_path / "photo.HEIC").write_bytes(b"\0\0\0\x18ftypheic\0\0\0\0mif1heic")
    (tmp_path / "photo.txt").write_text("a cat")
    sample = listed(tmp_path)["photo.HEIC"]
    assert sample.captions == ("a cat",)
    with pytest.raises(Unusable, match="not a picture that is read here: heic media file"):
        images.decode(ImageFolder.open(str(tmp_path)).read(sample))


def test_what_is_wanted_are_formats_that_are_decoded(tmp_path: Path) -> None:
    touch(tmp_path, "notes.md")
    with pytest.raises(UserError) as failure:
        ImageFolder.open(str(tmp_path))
    assert ".jpg" in str(failure.value)
    assert not any(ending in str(failure.value) for ending in (".jp2", ".ppm", ".tga", ".qoi", ".heic"))


def test_a_caption_column_that_is_named_must_be_in_some_metadata_file(tmp_path: Path) -> None:
    touch(tmp_path, "a.png", "a.txt")
    for name in ("captoin", "text"):
        source = ImageFolder.open(str(tmp_path), SourceOptions((name,)))
        with pytest.raises(UserError, match=rf"^--caption-column: .* no column '{name}': no metadata file; "):
            list(source)
    assert [sample.captions for sample in ImageFolder.open(str(tmp_path))] == [("a.txt",)]
    metadata(tmp_path, {"file_name": "a.png", "text": "x"})
    with_text = ImageFolder.open(str(tmp_path), SourceOptions(("text",)))
    assert [sample.captions for sample in with_text] == [("x", "a.txt")]
