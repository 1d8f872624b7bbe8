"""Captions of webdataset tars: text members, JSON members, and what is wrong with them."""

import json
from pathlib import Path

import pytest

from data_tools.errors import UserError
from tests.data_tools.tars import listing, opened, pictures, tar


def caption(tmp_path: Path, *members: tuple[str, bytes], **options: object) -> tuple[tuple[str, ...], str]:
    path = tar(tmp_path / "c.tar", [("a.jpg", b"x"), *members])
    sample = listing(path, **options)["a"]
    return sample.captions, sample.caption_problem


def test_the_caption_is_the_txt_or_else_the_json(tmp_path: Path) -> None:
    row = ("a.json", json.dumps({"caption": "from json", "text": "other", "url": "u"}).encode())
    assert caption(tmp_path, ("a.txt", b"from txt\n"), row) == (("from txt",), "")
    assert caption(tmp_path, row) == (("from json",), "")
    assert caption(tmp_path, ("a.json", b'{"text": ["one", "two", "one"]}')) == (("one", "two"), "")
    assert caption(tmp_path, ("a.txt", b" \n"), row) == (("from json",), "")


def test_named_columns_are_json_keys_or_members_each_caption_once(tmp_path: Path) -> None:
    row = ("a.json", b'{"caption": "same", "long": "longer"}')
    both = caption(tmp_path, ("a.txt", b"same"), row, caption_columns=("txt", "caption", "long"))
    assert both == (("same", "longer"), "")
    assert caption(tmp_path, ("a.txt", b"same"), row, caption_columns=("long",)) == (("longer",), "")
    assert caption(tmp_path, ("a.short.txt", b"s"), row, caption_columns=("short.txt",)) == (("s",), "")


def test_a_mistyped_caption_column_is_one_line_that_names_the_keys(tmp_path: Path) -> None:
    said = (
        r"^--caption-column: .*/c\.tar has no 'captoin'; it has the members \.jpg \.json and the JSON keys "
    )
    with pytest.raises(UserError, match=said + r"caption, url$"):
        caption(tmp_path, ("a.json", b'{"caption": "x", "url": "u"}'), caption_columns=("captoin",))


def test_a_mistyped_caption_column_is_one_line_without_json_too(tmp_path: Path) -> None:
    said = r"^--caption-column: .* has no 'captoin' or 'b'; it has the members \.jpg \.txt and no JSON$"
    with pytest.raises(UserError, match=said):
        caption(tmp_path, ("a.txt", b"x"), caption_columns=("captoin", "b"))


def test_json_that_cannot_be_read_is_no_mistyped_column(tmp_path: Path) -> None:
    assert caption(tmp_path, ("a.json", b"{"), caption_columns=("long",)) == ((), "json: no JSON")


def test_a_caption_column_that_some_samples_lack_is_no_mistake(tmp_path: Path) -> None:
    path = tar(tmp_path / "0.tar", [("a.jpg", b"x"), ("b.jpg", b"x"), ("b.Long", b"here")])
    found = listing(path, caption_columns=("Long",))
    assert (found["a"].captions, found["b"].captions) == ((), ("here",))


def test_a_mistyped_caption_column_is_told_before_all_is_listed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("data_tools.sources.tar_captions.TYPO_SAMPLES", 2)
    source = iter(opened(tar(tmp_path / "0.tar", pictures("a", "b", "c")), caption_columns=("captoin",)))
    assert next(source).key == "a"
    with pytest.raises(UserError, match="captoin"):
        next(source)


def test_lines_of_a_txt_may_be_captions_of_their_own(tmp_path: Path) -> None:
    assert caption(tmp_path, ("a.txt", b"one\r\ntwo\n\n"), caption_lines=True) == (("one", "two"), "")
    assert caption(tmp_path, ("a.txt", b"one\ntwo\n")) == (("one\ntwo",), "")


def test_captions_that_are_not_utf8_are_said_and_decoded_if_lenient(tmp_path: Path) -> None:
    captions, problem = caption(tmp_path, ("a.txt", b"caf\xe9"))
    assert captions == ()
    assert "not UTF-8" in problem
    assert caption(tmp_path, ("a.txt", b"caf\xe9"), lenient=True) == (("caf\ufffd",), "")
    assert "not UTF-8" in caption(tmp_path, ("a.json", b'{"caption": "caf\xe9"}'))[1]
    assert caption(tmp_path, ("a.json", b'{"caption": "caf\xe9"}'), lenient=True) == (("caf\ufffd",), "")
    assert caption(tmp_path, ("a.txt", b"\xef\xbb\xbfmark")) == (("mark",), "")


@pytest.mark.parametrize(
    ("name", "data", "said"),
    [
        ("a.txt", b"  \n", "caption is empty"),
        ("a.json", b"{", "json: no JSON"),
        ("a.json", b"[1]", "json: no JSON object"),
        ("a.json", b"[" * 200_000, "json: no JSON"),
        ("a.json", b'{"caption": ' + b"9" * 5000 + b"}", "json: no JSON"),
        ("a.txt", b"x" * (1 << 20 | 1), "txt: 1,048,577 bytes, wanted a caption"),
    ],
)
def test_captions_that_cannot_be_used_are_said(tmp_path: Path, name: str, data: bytes, said: str) -> None:
    assert caption(tmp_path, (name, data)) == ((), said)


def test_half_a_surrogate_in_json_becomes_text_that_utf8_can_hold(tmp_path: Path) -> None:
    assert caption(tmp_path, ("a.json", b'{"caption": "x\\ud800"}')) == (("x?",), "")
