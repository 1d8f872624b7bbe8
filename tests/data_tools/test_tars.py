"""webdataset tars: what is a sample, and where tars are."""

import io
import tarfile
from pathlib import Path

import fsspec
import pytest
import webdataset

from data_tools.errors import UserError
from data_tools.sources.remote import expanded, files_of
from data_tools.sources.sample import Unusable
from tests.data_tools.tars import listing, opened, pictures, problems, readable, tar

FORMATS = {"ustar": tarfile.USTAR_FORMAT, "pax": tarfile.PAX_FORMAT, "gnu": tarfile.GNU_FORMAT}


def test_what_webdataset_writes_is_read(tmp_path: Path) -> None:
    with webdataset.TarWriter(str(tmp_path / "0.tar"), encoder=False) as out:
        out.write({"__key__": "sub/кот", "jpg": b"one", "txt": b"a cat", "json": b'{"caption": "a cat"}'})
        out.write({"__key__": "b", "png": b"two", "cls": b"7"})
    source = opened(tmp_path / "0.tar")
    first, second = source
    assert (first.key, first.captions, first.num_bytes, first.problem) == ("sub/кот", ("a cat",), 3, "")
    assert first.mtime_ns == (tmp_path / "0.tar").stat().st_mtime_ns
    assert (second.key, second.captions, second.caption_problem) == ("b", (), "")
    assert [source.read(sample) for sample in (first, second)] == [b"one", b"two"]
    assert source.count is None
    assert [
        sample["__key__"] for sample in webdataset.WebDataset(str(tmp_path / "0.tar"), shardshuffle=False)
    ] == [
        "sub/кот",
        "b",
    ]


@pytest.mark.parametrize("kind", FORMATS.values(), ids=FORMATS)
def test_every_format_of_tar_with_long_names(tmp_path: Path, kind: int) -> None:
    key = "folder/" * 20 + "k" * 80 if kind != tarfile.USTAR_FORMAT else "folder/" * 20 + "k"
    path = tar(
        tmp_path / "0.tar", [(f"{key}.PNG", b"p"), (f"{key}.txt", "длинное".encode()), ("b.gif", b"g")], kind
    )
    assert listing(path)[key].captions == ("длинное",)
    assert readable(path) == {key: b"p", "b": b"g"}


def test_folders_in_the_tar_and_what_macos_adds_are_no_samples(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "0.tar", "w") as out:
        folder = tarfile.TarInfo("sub.jpg")
        folder.type = tarfile.DIRTYPE
        out.addfile(folder)
        for name in ("sub.jpg/._a.jpg", ".DS_Store", "sub/._a.jpg", "__meta__/x.jpg", "sub.jpg/a.jpg"):
            out.addfile(tarfile.TarInfo(name))
    assert list(listing(tmp_path / "0.tar")) == ["sub.jpg/a"]


def test_members_whose_names_make_no_sample_are_counted_by_the_tar(tmp_path: Path) -> None:
    path = tar(tmp_path / "0.tar", [("a.jpg", b"1"), ("no\nending", b"2"), ("s/.jpg", b"3")])
    said = r"members without a name like KEY.ENDING: 2, the first 'no\nending'"
    assert problems(path) == {"0.tar": f"tar: {said}"}
    path.write_bytes(path.read_bytes()[:3072])
    assert problems(path)["0.tar"] == f"tar: cut short: there is no end mark; {said}"


def test_braces_name_tars_and_places_are_relative_to_them(tmp_path: Path) -> None:
    for split in ("train", "test"):
        for number in range(9, 12):
            name = f"{split}/{number:05d}.tar"
            tar(tmp_path / name, pictures(f"{split}{number}"))
    source = opened(f"{tmp_path}/{{train,test}}/{{00009..00011}}.tar")
    samples = list(source)
    assert [sample.key for sample in samples] == ["train9", "train10", "train11", "test9", "test10", "test11"]
    assert samples[0].place == "train/00009.tar#512"
    assert source.read(samples[5]) == b"picture test11"


def test_braces_are_those_of_bash() -> None:
    assert list(expanded("{8..10}")) == ["8", "9", "10"]
    assert list(expanded("{08..10}")) == ["08", "09", "10"]
    assert list(expanded("{2..0}-{a,b}")) == ["2-a", "2-b", "1-a", "1-b", "0-a", "0-b"]
    assert list(expanded("x{a,b{1..2}}")) == ["xa", "xb1", "xa", "xb2"]


def test_a_brace_pattern_of_too_many_files_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("data_tools.sources.remote.MAX_FILES", 1000)
    with pytest.raises(UserError, match=r"^--data: .*: means more than 1,000 files$"):
        opened(f"{tmp_path}/{{0..999999999}}.tar")


def test_a_folder_of_tars_is_read_in_order_of_names(tmp_path: Path) -> None:
    tar(tmp_path / "b" / "1.tar", pictures("x"))
    tar(tmp_path / "a.tar", pictures("y"))
    tar(tmp_path / ".cache" / "2.tar", pictures("z"))
    assert [sample.place for sample in opened(tmp_path)] == ["a.tar#512", "b/1.tar#512"]


def test_a_folder_without_tars_and_a_path_to_nothing_are_one_line(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"^--data: .*: no tars found in this folder$"):
        opened(tmp_path)
    with pytest.raises(UserError, match=r"no such file: .*/0\.tar \(nor any other of the 3 that it means\)$"):
        opened(f"{tmp_path}/{{0..2}}.tar")
    with pytest.raises(UserError, match=r"the folder, or braces like \{00\.\.41\}$"):
        opened(f"{tmp_path}/*.tar")


def test_a_missing_tar_of_a_pattern_is_named_and_the_others_are_read(tmp_path: Path) -> None:
    tar(tmp_path / "0.tar", pictures("a"))
    tar(tmp_path / "2.tar", pictures("c"))
    pattern = f"{tmp_path}/{{0..2}}.tar"
    assert problems(pattern) == {"1.tar": "tar: no such file"}
    assert sorted(readable(pattern)) == ["a", "c"]


def test_a_tar_at_a_url_is_listed_and_read_in_ranges() -> None:
    fs = fsspec.filesystem("memory")
    for number in range(2):
        data = io.BytesIO()
        with tarfile.open(fileobj=data, mode="w") as out:
            for name, payload in pictures(f"k{number}"):
                info = tarfile.TarInfo(name)
                info.size = len(payload)
                out.addfile(info, io.BytesIO(payload))
        fs.pipe(f"/bucket/{number}.tar", data.getvalue())
    source = opened("memory://bucket/{0..2}.tar")
    samples = list(source)
    assert [sample.key for sample in samples] == ["k0", "k1", "2.tar"]
    assert (samples[1].place, samples[1].captions) == ("1.tar#512", ("k1",))
    assert source.read(samples[1]) == b"picture k1"
    assert samples[2].problem == "tar: no such file"
    with pytest.raises(Unusable, match="no such file"):
        source.read(samples[2])


def test_listing_a_url_does_not_fetch_large_payloads(monkeypatch: pytest.MonkeyPatch) -> None:
    fs = fsspec.filesystem("memory")
    data = io.BytesIO()
    with tarfile.open(fileobj=data, mode="w") as out:
        for number in range(4):
            info = tarfile.TarInfo(f"{number}.jpg")
            info.size = 8 << 20
            out.addfile(info, io.BytesIO(bytes(info.size)))
    fs.pipe("/large.tar", data.getvalue())
    fetched = []
    monkeypatch.setattr(fs, "_open", lambda path, **kw: Counting(fs, path, fetched, **kw))
    source = opened("memory://large.tar")
    assert [sample.num_bytes for sample in source] == [8 << 20] * 4
    assert sum(fetched) < 12 << 20


class Counting(fsspec.spec.AbstractBufferedFile):  # type: ignore[misc]
    """A file of the memory store that counts the bytes of its range requests."""

    def __init__(self, fs: object, path: str, fetched: list[int], **options: object) -> None:
        self._fetched = fetched
        super().__init__(fs, path, **options)

    def _fetch_range(self, start: int, end: int) -> bytes:
        self._fetched.append(end - start)
        return self.fs.cat_file(self.path, start, end)


def test_a_url_of_an_unknown_protocol_is_one_line() -> None:
    with pytest.raises(UserError, match=r"^--data: gopher9://x/0.tar: cannot read from there: .*gopher9"):
        opened("gopher9://x/0.tar")


def test_without_fsspec_a_url_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "fsspec", None)
    with pytest.raises(UserError, match=r"needs the library fsspec.*kandinsky-cache\[remote\]"):
        opened("https://x/0.tar")


def test_the_question_of_a_url_is_not_in_places() -> None:
    files = files_of("https://host/data/{0..1}.tar?token=secret/x")
    assert [file.name for file in files] == ["0.tar", "1.tar"]
    assert files[1].url == "https://host/data/1.tar?token=secret/x"


def test_names_that_lead_out_are_keys_and_nothing_is_opened_by_them(tmp_path: Path) -> None:
    (tmp_path / "secret.jpg").write_bytes(b"secret")
    names = ["../secret.jpg", f"{tmp_path}/secret2.jpg", "/etc/passwd.png"]
    path = tar(tmp_path / "in" / "0.tar", [(name, b"mine") for name in names])
    assert readable(path) == {name.rsplit(".", 1)[0]: b"mine" for name in names}


def test_names_that_are_not_utf8_are_shown_with_backslashes(tmp_path: Path) -> None:
    path = tar(
        tmp_path / "0.tar", [(b"caf\xe9.jpg".decode("utf-8", "surrogateescape"), b"x")], tarfile.GNU_FORMAT
    )
    assert list(listing(path)) == ["caf\\xe9"]


@pytest.mark.parametrize(
    ("kind", "said"),
    [
        (tarfile.SYMTYPE, "jpg: a symbolic link"),
        (tarfile.LNKTYPE, "jpg: a hard link"),
        (tarfile.CHRTYPE, "jpg: a device"),
        (tarfile.FIFOTYPE, "jpg: a pipe"),
        (tarfile.GNUTYPE_SPARSE, "jpg: a sparse file"),
        (b"Q", "jpg: a member of type b'Q'"),
    ],
)
def test_members_that_are_no_files_are_rejected_and_the_rest_goes_on(
    tmp_path: Path, kind: bytes, said: str
) -> None:
    with tarfile.open(tmp_path / "0.tar", "w") as out:
        link = tarfile.TarInfo("a.jpg")
        link.type, link.linkname = kind, "/etc/passwd"
        out.addfile(link)
        out.addfile(tarfile.TarInfo("b.jpg"))
    assert problems(tmp_path / "0.tar") == {"a": said}
    source = opened(tmp_path / "0.tar")
    with pytest.raises(Unusable, match=said):
        source.read(next(iter(source)))
    assert list(readable(tmp_path / "0.tar")) == ["b"]


def test_samples_without_a_picture_or_with_several_are_rejected_by_name(tmp_path: Path) -> None:
    path = tar(
        tmp_path / "0.tar",
        [("a.txt", b"x"), ("b.jpg", b"1"), ("b.png", b"2"), ("c.v2.jpg", b"3"), ("d.jpg", b"4")],
    )
    found = problems(path)
    assert found["a"] == "no picture; found: txt"
    assert found["b"] == "several pictures under one key: jpg, png; choose one with --image-column"
    assert found["c"].startswith("no picture; found: v2.jpg; a key ends at the first dot")
    assert readable(path) == {"d": b"4"}


def test_the_picture_field_can_be_named(tmp_path: Path) -> None:
    path = tar(tmp_path / "0.tar", [("a.input.JPG", b"in"), ("a.jpg", b"out"), ("b.jpg", b"alone")])
    assert readable(path, image_column="input.jpg") == {"a": b"in"}
    assert problems(path, image_column="input.jpg") == {"b": "no member .input.jpg; found: jpg"}


def test_the_members_of_one_key_are_bounded(tmp_path: Path) -> None:
    path = tar(tmp_path / "0.tar", [("a.jpg", b"x"), *((f"a.{number}.txt", b"") for number in range(500))])
    assert readable(path) == {"a": b"x"}
