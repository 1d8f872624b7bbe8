"""Symbolic links in a folder of pictures: nothing outside the folder is read, and nothing hangs."""

from pathlib import Path

import pytest

from data_tools.errors import UserError
from data_tools.sources import ImageFolder, Sample, Unusable

LEAVES = "symbolic link that leaves the folder"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A folder with one picture, beside another folder with a secret."""
    for name in ("data/sub/a.png", "secret/s.png", "secret/s.txt"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(f"bytes of {name}")
    return tmp_path / "data"


def listed(root: Path) -> dict[str, Sample]:
    return {sample.key: sample for sample in ImageFolder.open(str(root))}


def read(root: Path, key: str) -> bytes:
    return ImageFolder.open(str(root)).read(listed(root)[key])


@pytest.mark.parametrize("target", ["../secret/s.png", "../secret/gone.png"])
def test_a_link_to_a_file_outside_is_a_problem(root: Path, target: str) -> None:
    (root / "link.png").symlink_to(target)
    sample = listed(root)["link.png"]
    assert (sample.problem, sample.num_bytes) == (LEAVES, -1)
    with pytest.raises(Unusable, match=f"^{LEAVES}$"):
        read(root, "link.png")


@pytest.mark.parametrize("name", ["link", "link.png"])
def test_a_link_to_a_folder_outside_is_a_problem_and_not_followed(root: Path, name: str) -> None:
    (root / name).symlink_to("../secret")
    samples = listed(root)
    assert set(samples) == {name, "sub/a.png"}
    assert samples[name].problem == samples[name].caption_problem == LEAVES


def test_a_folder_that_only_begins_like_it_is_outside(root: Path) -> None:
    (root.parent / "data2").mkdir()
    (root / "link").symlink_to("../data2")
    assert listed(root)["link"].problem == LEAVES


@pytest.mark.parametrize("row", ["link/s.png", "link.png"])
def test_a_metadata_row_does_not_read_through_a_link_that_leaves(root: Path, row: str) -> None:
    (root / "link").symlink_to("../secret")
    (root / "link.png").symlink_to("../secret/s.png")
    (root / "metadata.jsonl").write_text(f'{{"file_name": "{row}", "text": "x"}}')
    with pytest.raises(Unusable, match=f"^{LEAVES}$"):
        read(root, row)


def test_a_caption_file_outside_is_not_read(root: Path) -> None:
    (root / "sub/a.txt").symlink_to("../../secret/s.txt")
    sample = listed(root)["sub/a.png"]
    assert (sample.captions, sample.caption_problem) == ((), f"sub/a.txt: {LEAVES}")


def test_a_metadata_file_outside_is_refused(root: Path) -> None:
    (root.parent / "metadata.csv").write_text("file_name,text\nsub/a.png,x\n")
    (root / "metadata.csv").symlink_to("../metadata.csv")
    with pytest.raises(UserError, match=rf"^--data: .*metadata\.csv: {LEAVES}; put the file itself there$"):
        listed(root)


def test_links_inside_the_folder_are_read(root: Path) -> None:
    (root / "link.png").symlink_to("sub/a.png")
    (root / "absolute.png").symlink_to(root / "sub/a.png")
    for key in ("link.png", "absolute.png", "sub/a.png"):
        assert read(root, key) == b"bytes of data/sub/a.png"


def test_the_folder_itself_may_be_a_link(root: Path) -> None:
    (root.parent / "link").symlink_to("data")
    assert read(root.parent / "link", "sub/a.png") == b"bytes of data/sub/a.png"


def test_pictures_behind_a_link_to_a_folder_inside_are_listed_once(root: Path) -> None:
    (root / "again").symlink_to("sub")
    assert set(listed(root)) == {"sub/a.png"}


def test_a_hidden_folder_is_listed_where_the_first_link_leads_to_it(root: Path) -> None:
    (root / ".store").mkdir()
    (root / ".store/b.png").write_bytes(b"b")
    (root / "one").symlink_to(".store")
    (root / "two").symlink_to(".store")
    assert len(listed(root)) == 2
    key = (set(listed(root)) - {"sub/a.png"}).pop()
    assert key in ("one/b.png", "two/b.png")
    assert read(root, key) == b"b"


def test_loops_of_links_end(root: Path) -> None:
    (root / "self.png").symlink_to("self.png")
    (root / "up").symlink_to(".")
    (root / ".hidden").mkdir()
    (root / ".hidden/c.png").write_bytes(b"c")
    for name in "abcdefgh":  # each of eight leads to all of them
        (root / ".hidden" / name).symlink_to(".")
    (root / "in").symlink_to(".hidden")
    samples = listed(root)
    assert set(samples) == {"self.png", "sub/a.png", "in/c.png"}
    with pytest.raises(Unusable, match=r"^unreadable file: Too many levels of symbolic links$"):
        read(root, "self.png")


def test_a_link_set_after_the_listing_is_not_followed(root: Path) -> None:
    source = ImageFolder.open(str(root))
    (sample,) = source
    (root / "sub/a.png").unlink()
    (root / "sub").rmdir()
    (root / "sub").symlink_to("../secret")
    (root.parent / "secret/s.png").rename(root.parent / "secret/a.png")
    with pytest.raises(Unusable, match=LEAVES):
        source.read(sample)
