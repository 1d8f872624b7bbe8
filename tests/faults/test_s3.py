"""A cache on S3: real processes race for its parts, and nothing of the credentials gets anywhere."""

import re
import subprocess
import sys
from collections import Counter
from pathlib import Path
from urllib.request import Request, urlopen

import click
import pytest

from data_tools.cache import check
from data_tools.cache.manifest import Cache
from data_tools.cache.store import open_store
from data_tools.cli import cli
from data_tools.errors import DataFault, UserError
from precompute.cli import precompute
from tests.data_tools.caches import COLUMNS
from tests.faults.damage import read, same
from tests.faults.processes import ROOT, start
from tests.faults.writer import FORMATS, PART_SIZE, fill
from tests.s3 import BUCKET, S3Server, refused
from train.decoder import train_decoder
from train.prior import train_prior

SAMPLES = 6
PATIENCE = 120.0
SECRETS = {
    "AWS_ACCESS_KEY_ID": "AKIAVERYOWNKEYOFATEST",
    "AWS_SECRET_ACCESS_KEY": "wJalrXUtnFEMIsecretofatest",
    "AWS_SESSION_TOKEN": "FwoGZXIvYXdzEtokenofatest",
}


@pytest.fixture
def secrets(s3: S3Server, monkeypatch: pytest.MonkeyPatch) -> S3Server:
    """The server, with credentials in the environment that are easy to recognise."""
    for name, value in SECRETS.items():
        monkeypatch.setenv(name, value)
    return s3


def holds_a_secret(text: str | bytes) -> bool:
    data = text.encode() if isinstance(text, str) else text
    return any(value.encode().lower() in data.lower() for value in SECRETS.values())


@pytest.mark.parametrize("format", FORMATS)
def test_two_processes_that_race_make_the_cache_of_one(s3: S3Server, tmp_path: Path, format: str) -> None:
    place = s3.place()
    pair = [
        start(tmp_path / f"{number}.txt", "tests.faults.writer", place, format, str(SAMPLES))
        for number in range(2)
    ]
    printed = Counter(line for process in pair for line in process.wait(PATIENCE).splitlines())
    assert len(printed) == len(COLUMNS) * SAMPLES // PART_SIZE + 2
    assert set(printed.values()) == {1}, "a part was committed twice"
    fill(tmp_path / "alone", format, SAMPLES)
    assert same(read(place), read(tmp_path / "alone"))
    verified = check.verify(Cache.open(open_store(place)), full=True)
    assert verified == check.verify(Cache.open(open_store(tmp_path / "alone")), full=True)
    assert verified.faults == []


def test_no_byte_of_a_cache_holds_a_credential(secrets: S3Server) -> None:
    before, start_of_log = set(secrets.objects()), len(secrets.log)
    fill(place := secrets.place(), "zarr", SAMPLES)
    read(place)
    written = sorted(set(secrets.objects()) - before)
    assert len(written) > 100
    for key in written:
        signed = Request(f"{secrets.endpoint}/{BUCKET}/{key}", headers={"Authorization": "AWS anyone:x"})
        with urlopen(signed) as answer:
            assert not holds_a_secret(answer.read() + str(answer.headers).encode() + key.encode()), key
    assert not any(holds_a_secret(line) for line in secrets.log[start_of_log:]), "nothing in a URL"


def test_no_line_of_an_error_holds_a_credential(secrets: S3Server, monkeypatch: pytest.MonkeyPatch) -> None:
    fill(place := secrets.place(), "zarr", 2)
    lines = []

    def fails(*commands: str) -> None:
        line = [sys.executable, "-m", "data_tools", *commands]
        done = subprocess.run(line, cwd=ROOT, capture_output=True, text=True)
        assert done.returncode in (1, 2)
        lines.append(done.stdout + done.stderr)

    fails("inspect", secrets.place())
    fails("inspect", "s3://no-such-bucket/x")
    open_store(place).put("columns/text/column.json", [b"damaged"])
    fails("verify", "--full", place)
    for status, code in (("403 Forbidden", "ExpiredToken"), ("403 Forbidden", "SignatureDoesNotMatch")):
        secrets.faults[:] = [refused(status, code)]
        fails("inspect", place)
    with secrets.checking_keys():
        fails("verify", place)
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    with pytest.raises((UserError, DataFault, OSError)) as caught:
        open_store_hastily(place, monkeypatch)
    lines.append(str(caught.value))
    assert all(lines)
    assert not [text for text in lines if holds_a_secret(text)]


def open_store_hastily(place: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from data_tools.cache import object_store

    monkeypatch.setattr(object_store, "OPENING_RETRIES", 0)
    open_store(place)


def test_credentials_in_a_url_are_refused_and_not_repeated(secrets: S3Server) -> None:
    key, secret, _ = SECRETS.values()
    start_of_log = len(secrets.log)
    for place in (f"s3://{key}:{secret}@{BUCKET}/x", f"s3://{BUCKET}/x?AWS_SECRET_ACCESS_KEY={secret}"):
        with pytest.raises(UserError, match=r"^--cache: .* credentials .* environment") as caught:
            open_store(place)
        assert not holds_a_secret(str(caught.value))
        assert "\n" not in str(caught.value)
    assert len(secrets.log) == start_of_log, "nothing was asked"


def test_credentials_in_files_are_not_read(
    s3: S3Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / ".aws").mkdir()
    lines = "\n".join(f"{name.lower()} = {value}" for name, value in SECRETS.items())
    (tmp_path / ".aws" / "credentials").write_text(f"[default]\n{lines}\n")
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in SECRETS:
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(UserError, match=r"no credentials in the environment; wanted AWS_ACCESS_KEY_ID"):
        open_store(s3.place())


def test_no_command_has_a_flag_for_credentials() -> None:
    commands: list[click.Command] = [precompute, train_prior, train_decoder, *cli.commands.values()]
    flags = [flag for command in commands for parameter in command.params for flag in parameter.opts]
    assert len(flags) > 50
    found = [flag for flag in flags if re.search("key|secret|token|credential|profile|endpoint", flag)]
    assert set(found) == {
        "--hub-token"
    }  # the reference's own, of another place; a login or HF_TOKEN does too
