"""A real S3 server on loopback (moto's), and what can go wrong with one. Its fixture is `s3`."""

import io
import logging
import os
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import count
from typing import Any
from urllib.request import Request, urlopen

import pytest

BUCKET = "bucket"
PAGE = 3
"Entries in one page of a listing (S3: 1,000), so that every test has several."
Call = Callable[[dict[str, Any], Callable[..., Any]], Iterable[bytes]]
Fault = Callable[[dict[str, Any], Callable[..., Any], Call], Iterable[bytes]]
"A request, the function that starts its answer, and the server that would answer it."


@dataclass
class S3Server:
    """Answers one request at a time: as in S3, and unlike in moto, conditional PUTs cannot overlap."""

    app: Call
    port: int = 0
    faults: list[Fault] = field(default_factory=list)
    "One for each coming request, first to last."
    log: list[str] = field(default_factory=list)
    "METHOD path?query of each request."
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _numbers: Iterator[int] = field(default_factory=count)

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def place(self) -> str:
        """An unused URL for a cache."""
        return f"s3://{BUCKET}/caches/{next(self._numbers)}"

    def request(self, method: str, path: str, data: bytes | None = None) -> bytes:
        """Past obstore; `path` begins with the bucket."""
        headers = {"Content-Type": "text/plain"}
        with urlopen(Request(f"{self.endpoint}/{path}", data, headers, method=method)) as answer:
            return bytes(answer.read())

    def objects(self) -> list[str]:
        """Keys of every object there is; the markers of pages are keys themselves."""
        keys: list[str] = []
        while True:
            after = f"&start-after={keys[-1]}" if keys else ""
            text = self.request("GET", f"{BUCKET}?list-type=2{after}").decode()
            found = [part.partition("</Key>")[0] for part in text.split("<Key>")[1:]]
            keys += found
            if not found:
                return keys

    @contextmanager
    def checking_keys(self) -> Iterator[None]:
        """Meanwhile only access keys that the server knows (it knows none) are let in."""
        self.request("POST", "moto-api/reset-auth", b"0")
        try:
            yield
        finally:
            self.request("POST", "moto-api/reset-auth", b"inf")

    def __call__(self, environ: dict[str, Any], start: Callable[..., Any]) -> Iterable[bytes]:
        with self._lock:
            query = f"?{environ['QUERY_STRING']}" if environ["QUERY_STRING"] else ""
            self.log.append(f"{environ['REQUEST_METHOD']} {environ['PATH_INFO']}{query}")
            if self.faults and "/moto-api/" not in environ["PATH_INFO"]:
                return list(self.faults.pop(0)(environ, start, self.app))
            return list(self.app(environ, start))


def refused(status: str, code: str) -> Fault:
    """The request is answered with an error and not carried out."""

    def fault(environ: dict[str, Any], start: Callable[..., Any], _: Call) -> Iterable[bytes]:
        environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))
        start(status, [("Content-Type", "application/xml")])
        return [f"<Error><Code>{code}</Code><Message>{code}, says the test</Message></Error>".encode()]

    return fault


def answer_lost(environ: dict[str, Any], start: Callable[..., Any], app: Call) -> Iterable[bytes]:
    """The request is carried out, but its client hears of an error."""
    list(app(environ, lambda *_: io.BytesIO().write))
    start("503 Service Unavailable", [])
    return [b""]


def unconditional(environ: dict[str, Any], start: Callable[..., Any], app: Call) -> Iterable[bytes]:
    """As from a server that has never heard of `If-None-Match`."""
    environ.pop("HTTP_IF_NONE_MATCH", None)
    return app(environ, start)


@pytest.fixture(scope="session")
def s3() -> Iterator[S3Server]:
    """Started for the first test that asks, stopped at the end; the environment points at it."""
    pytest.importorskip("obstore")
    pytest.importorskip("moto")
    from moto.server import DomainDispatcherApplication, create_backend_app
    from werkzeug.serving import make_server

    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    with pytest.MonkeyPatch.context() as patch:
        for name in [name for name in os.environ if name.startswith("AWS_")]:
            patch.delenv(name)
        patch.setenv("MOTO_S3_DEFAULT_MAX_KEYS", str(PAGE))
        server = S3Server(DomainDispatcherApplication(create_backend_app))
        listener = make_server("127.0.0.1", 0, server, threaded=True)  # listens from here on
        server.port = listener.server_port
        thread = threading.Thread(target=listener.serve_forever, daemon=True)
        thread.start()
        patch.setenv("AWS_ENDPOINT_URL", server.endpoint)
        patch.setenv("AWS_ALLOW_HTTP", "true")
        patch.setenv("AWS_ACCESS_KEY_ID", "someone")
        patch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
        for name in ("no_proxy", "NO_PROXY"):
            patch.setenv(name, "127.0.0.1")
        try:
            server.request("PUT", BUCKET)
            yield server
        finally:
            listener.shutdown()
            thread.join()
            listener.server_close()
