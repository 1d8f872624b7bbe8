"""Which place a --cache names, and the one line that a user sees when it cannot be had."""

import sys
from pathlib import Path

import pytest

from data_tools.cache.store import LocalStore, open_store
from data_tools.errors import UserError
from tests.s3 import BUCKET, S3Server, refused


@pytest.fixture
def object_store(s3: S3Server):
    """The module, which needs the extra."""
    from data_tools.cache import object_store

    return object_store


def refusal(place: str | Path) -> str:
    with pytest.raises(UserError) as caught:
        open_store(place)
    (line,) = str(caught.value).splitlines()
    return line


def test_a_folder_is_named_by_a_path_a_string_or_a_url(tmp_path: Path) -> None:
    folder = tmp_path / "a b"
    for place in (folder, str(folder), folder.as_uri()):
        store = open_store(place)
        assert isinstance(store, LocalStore)
        assert store.root == folder
    assert open_store("relative").url == "relative"


@pytest.mark.parametrize("end", ["", "/"])
def test_an_object_store_is_named_by_bucket_and_prefix(s3: S3Server, end: str) -> None:
    place = s3.place()
    store = open_store(f"{place}{end}")
    store.put("a/b", [b"1"])
    assert store.url == place
    assert place.removeprefix("s3://") in [f"{BUCKET}/{key}".removesuffix("/a/b") for key in s3.objects()]
    assert open_store(store.url).read("a/b") == b"1"


def test_a_cache_can_be_a_whole_bucket(s3: S3Server) -> None:
    s3.request("PUT", "whole")
    store = open_store("s3://whole")
    store.put("a/b", [b"1"])
    assert (store.names(""), store.url) == (["a"], "s3://whole")


@pytest.mark.parametrize("place", ["gs://bucket/x", "https://host/x", "file://host/x"])
def test_another_scheme_is_refused(place: str) -> None:
    assert refusal(place) == f"--cache: found {place}, wanted a folder, file:///folder or s3://bucket/prefix"


@pytest.mark.parametrize(
    "place", ["s3://", "s3:///x", "s3://bucket/../x", "s3://bucket//x", "s3://bucket/x/./y"]
)
def test_a_url_without_a_bucket_or_with_dots_is_refused(s3: S3Server, place: str) -> None:
    assert refusal(place) == f"--cache: found {place}, wanted s3://bucket/prefix"


def test_a_url_that_a_path_has_swallowed_a_slash_of_is_refused() -> None:
    assert refusal(Path("s3://bucket/x")) == "--cache: found s3:/bucket/x, wanted s3://bucket/x"


def test_without_the_extra_the_refusal_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "data_tools.cache.object_store", raising=False)
    monkeypatch.setitem(sys.modules, "obstore", None)
    wanted = "needs the extra 's3': pip install 'kandinsky-cache[s3]'"
    assert refusal("s3://bucket/x") == f"--cache: s3://bucket/x {wanted}"


def test_without_credentials_nothing_is_asked(s3: S3Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    before = len(s3.log)
    assert refusal("s3://bucket/x").startswith(
        "--cache: s3://bucket/x: no credentials in the environment; wanted AWS_ACCESS_KEY_ID and "
    )
    assert len(s3.log) == before


def test_half_of_the_credentials_is_refused(s3: S3Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    assert refusal("s3://bucket/x") == "--cache: s3://bucket/x: Missing SecretAccessKey"


def test_wrong_credentials_are_refused_in_the_servers_words(s3: S3Server) -> None:
    with s3.checking_keys():
        line = refusal("s3://bucket/x")
    assert line.startswith(
        "--cache: s3://bucket/x: access denied: The AWS Access Key Id you provided does not"
    )
    assert "secret" not in line


def test_a_missing_bucket_is_refused(s3: S3Server) -> None:
    assert refusal("s3://no-bucket/x") == "--cache: s3://no-bucket/x: there is no such bucket"


def test_plain_http_must_be_allowed(s3: S3Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AWS_ALLOW_HTTP")
    assert refusal("s3://bucket/x").endswith("http needs AWS_ALLOW_HTTP=true")


def test_a_server_that_is_not_there_is_named(object_store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(object_store, "OPENING_RETRIES", 0)
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    line = refusal("s3://bucket/x")
    assert line.startswith(
        "--cache: s3://bucket/x: Error performing GET http://127.0.0.1:9/bucket/x/cache.json"
    )


def test_access_that_ends_while_a_cache_is_in_use_is_an_os_error_with_the_place(s3: S3Server) -> None:
    store = open_store(s3.place())
    store.put("a", [b"1"])
    s3.faults[:] = [refused("403 Forbidden", "ExpiredToken")]
    with pytest.raises(PermissionError) as caught:
        store.read("a")
    assert caught.value.filename == f"{store}/a"
    assert caught.value.strerror == "access denied: ExpiredToken, says the test (ExpiredToken)"
