"""A cache on S3, or on a store that speaks its protocol, through `obstore` (extra `s3`).

A PUT and the end of a multipart upload are atomic there, and `create` is a PUT with `If-None-Match: *`.
An upload that dies half-way stays invisible but is paid for: let the bucket's lifecycle abort incomplete
multipart uploads. Do not fork after a store has been opened (its connections live in threads).

Everything comes from the environment, as obstore reads it: AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY,
AWS_SESSION_TOKEN, AWS_REGION, AWS_ENDPOINT_URL, AWS_ALLOW_HTTP, AWS_TIMEOUT, … Profiles in ~/.aws are not
read, and a machine's metadata service is asked only if AWS_METADATA_ENDPOINT names it.
"""

import errno
import os
import re
import secrets
from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from itertools import chain
from typing import TYPE_CHECKING

import obstore
from obstore.exceptions import (
    AlreadyExistsError,
    BaseError,
    GenericError,
    PermissionDeniedError,
    UnauthenticatedError,
)
from obstore.store import S3Store

from data_tools.cache.store import TEMPORARY, Buffer, Listed, checked_name
from data_tools.errors import DataFault, UserError

if TYPE_CHECKING:
    from obstore.store import ObjectStore as Backend

PART_BYTES = 8 << 20
"Objects up to this size are one PUT; larger ones are uploaded and read in pieces of it."
UPLOADS = 4
"Pieces of one object that are on their way at once; what `put` holds in memory."
PAGE = 1000
"Objects in an answer of a listing, and most in a request to delete."
CONFLICTS = 10
"Times that `create` asks again after S3's 409."
OPENING_RETRIES = 4
"Of the first request (about a second): a wrong endpoint should not take obstore's three minutes to tell."
CREDENTIALS = (
    "AWS_ACCESS_KEY_ID",
    "AWS_WEB_IDENTITY_TOKEN_FILE",
    "AWS_CONTAINER_CREDENTIALS_RELATIVE_URI",
    "AWS_CONTAINER_CREDENTIALS_FULL_URI",
    "AWS_METADATA_ENDPOINT",
    "AWS_SKIP_SIGNATURE",
)
"At least one of them must be in the environment."
TOKEN = "attempt"
"Metadata of a created object: whose `create` made it."


class ObjectStore:
    """Objects below a prefix of a bucket; see `data_tools.cache.store.Store`."""

    concurrency = 32
    coalesce_bytes = 1 << 20

    def __init__(self, backend: "Backend", url: str) -> None:
        self.url = url
        self._backend, self._create_is_exclusive = backend, False

    def __str__(self) -> str:
        return self.url

    def put(self, name: str, chunks: Iterable[bytes | memoryview]) -> None:
        """See `Store.put`."""
        # bytes: a view's memory may be the caller's to reuse while its upload is still under way
        pieces = (chunk if isinstance(chunk, bytes) else bytes(chunk) for chunk in chunks)
        head, size = [], 0
        with self._at(name):
            for piece in pieces:
                head.append(piece)
                size += len(piece)
                if size > PART_BYTES:
                    break
            if size <= PART_BYTES:
                obstore.put(self._backend, name, b"".join(head), use_multipart=False)
                return
            whole = filter(len, chain(head, pieces))
            obstore.put(self._backend, name, whole, chunk_size=PART_BYTES, max_concurrency=UPLOADS)

    def create(self, name: str, data: bytes) -> bool:
        """See `Store.create`. Raises `UserError` for a store that ignores `If-None-Match`."""
        token = secrets.token_hex(8)
        for _ in range(CONFLICTS):
            if self._put_if_none(name, data, token):
                if not self._create_is_exclusive and self._put_if_none(name, data, token):
                    raise UserError(
                        f"{self.url}: this store ignores `If-None-Match`, so two workers could both commit "
                        "one part; wanted S3 or another store with conditional PUT"
                    )
                self._create_is_exclusive = True
                return True
            holder = self._token(name)
            if holder is not None:  # an answer lost on the way makes obstore ask again, and find our own
                return holder == token
        raise OSError(errno.EIO, "the store keeps refusing a conditional PUT (409)", self._where(name))

    def read(self, name: str) -> bytes:
        """Raises `FileNotFoundError`."""
        pieces = [self._range(name, 0, PART_BYTES)]
        while len(pieces[-1]) == PART_BYTES:
            pieces.append(self._range(name, len(pieces) * PART_BYTES, PART_BYTES))
        return b"".join(pieces)

    def read_into(self, name: str, offset: int, buffers: Sequence[Buffer]) -> int:
        """See `Store.read_into`. One request."""
        views = [memoryview(buffer).cast("B") for buffer in buffers if memoryview(buffer).nbytes]
        data = self._range(name, offset, sum(map(len, views)))
        done = 0
        for view in views:
            piece = data[done : done + len(view)]
            view[: len(piece)] = piece
            done += len(piece)
        return done

    def size(self, name: str) -> int | None:
        """See `Store.size`."""
        try:
            with self._at(name):
                return obstore.head(self._backend, name)["size"]
        except FileNotFoundError:
            return None

    def remove(self, name: str) -> None:
        """Raises `FileNotFoundError`."""
        if self.size(name) is None:  # S3 deletes what is not there without a word
            raise FileNotFoundError(errno.ENOENT, "no such object", self._where(name))
        with self._at(name):
            obstore.delete(self._backend, name)

    def names(self, folder: str) -> list[str]:
        """See `Store.names`."""
        with self._at(folder) if folder else _as_os_errors(self.url):
            listed = obstore.list_with_delimiter(self._backend, folder or None)
        paths = [*(item["path"] for item in listed["objects"]), *listed["common_prefixes"]]
        below = f"{folder}/" if folder else ""
        names = {path.removeprefix(below).strip("/") for path in paths if path.startswith(below)}
        return sorted(name for name in names - {""} if not name.startswith(TEMPORARY))  # a copied folder's

    def listed(self, folder: str = "") -> Iterator[Listed]:
        """See `Store.listed`. One request a thousand objects, each when it is needed."""
        with self._at(folder) if folder else _as_os_errors(self.url):
            for page in obstore.list(self._backend, folder or None, chunk_size=PAGE):
                for item in page:
                    yield Listed(item["path"], item["size"], item["last_modified"].timestamp())

    def remove_many(self, names: Sequence[str]) -> None:
        """See `Store.remove_many`. One request a thousand objects."""
        for name in names:
            checked_name(name, self.url)
        with _as_os_errors(self.url):
            for start in range(0, len(names), PAGE):
                obstore.delete(self._backend, names[start : start + PAGE])

    def close(self) -> None:
        """Nothing to do: idle connections close by themselves."""

    def _put_if_none(self, name: str, data: bytes, token: str) -> bool:
        """One conditional PUT; False if the store says that there is an object, or (409) may be."""
        with self._at(name):
            try:
                obstore.put(
                    self._backend, name, data, mode="create", use_multipart=False, attributes={TOKEN: token}
                )
            except AlreadyExistsError:
                return False
            return True

    def _token(self, name: str) -> str | None:
        """Which `create` made an object ('': none did); None if there is no object."""
        try:
            with self._at(name):
                attributes = obstore.get(self._backend, name, options={"head": True}).attributes
        except FileNotFoundError:
            return None
        return next((str(value) for key, value in attributes.items() if key == TOKEN), "")

    def _range(self, name: str, offset: int, length: int) -> memoryview:
        """As many of these bytes as there are. Raises `FileNotFoundError`."""
        if not length:
            return memoryview(b"")
        with self._at(name):
            try:
                return memoryview(obstore.get_range(self._backend, name, start=offset, length=length))
            except GenericError as err:  # HTTP 416 (S3: "Range Not Satisfiable"): does the object end before?
                if "range" not in str(err).lower() or (self.size(name) or 0) > offset:
                    raise
                return memoryview(b"")

    def _at(self, name: str) -> AbstractContextManager[None]:
        """Errors of obstore as those of a file system, with the object's whole place."""
        return _as_os_errors(self._where(name))

    def _where(self, name: str) -> str:
        return f"{self.url}/{checked_name(name, self.url)}"


def open_s3(url: str, *, flag: str) -> ObjectStore:
    """The store at `s3://bucket/prefix`, asked once whether it answers.

    Raises `UserError` without credentials or with some in the URL, and where the bucket is missing, out of
    reach or closed to us.
    """
    bucket, _, prefix = url.removeprefix("s3://").rstrip("/").partition("/")
    if re.search("[@:]", bucket) or "?" in url:  # may hold a key, so it is not repeated
        raise UserError(
            f"{flag}: found a URL with a user, a port or a query, wanted s3://bucket/prefix; "
            "credentials and endpoint come from the environment"
        )
    try:
        checked_name(f"{bucket}/{prefix}" if prefix else bucket, url)
    except DataFault:
        raise UserError(f"{flag}: found {url}, wanted s3://bucket/prefix") from None
    if not any(os.environ.get(name) for name in CREDENTIALS):
        raise UserError(
            f"{flag}: {url}: no credentials in the environment; wanted AWS_ACCESS_KEY_ID and "
            "AWS_SECRET_ACCESS_KEY (profiles in ~/.aws are not read)"
        )
    endpoint = os.environ.get("AWS_ENDPOINT_URL", os.environ.get("AWS_ENDPOINT", ""))
    if endpoint.startswith("http://") and os.environ.get("AWS_ALLOW_HTTP", "").lower() not in ("true", "1"):
        raise UserError(f"{flag}: {url}: AWS_ENDPOINT_URL is {endpoint}; http needs AWS_ALLOW_HTTP=true")
    place = "s3://" + "/".join([bucket, *([prefix] if prefix else [])])
    try:
        with _as_os_errors(place):
            hasty = S3Store(bucket, prefix=prefix or None, retry_config={"max_retries": OPENING_RETRIES})
            backend = S3Store(bucket, prefix=prefix or None)
        ObjectStore(hasty, place).read("cache.json")
    except FileNotFoundError:
        pass
    except OSError as err:
        raise UserError(f"{flag}: {place}: {err.strerror}") from None
    return ObjectStore(backend, place)


@contextmanager
def _as_os_errors(where: str) -> Iterator[None]:
    try:
        yield
    except FileNotFoundError as err:
        if err.errno is not None:  # not obstore's
            raise
        if "<Code>NoSuchBucket</Code>" in str(err):
            raise OSError(errno.EIO, "there is no such bucket", where) from None
        raise FileNotFoundError(errno.ENOENT, "no such object", where) from None
    except (PermissionDeniedError, UnauthenticatedError) as err:
        raise PermissionError(errno.EACCES, f"access denied: {_reason(err)}", where) from None
    except BaseError as err:
        raise OSError(errno.EIO, _reason(err), where) from None


def _reason(err: BaseError) -> str:
    """One line: S3's own message if the answer holds one, else obstore's."""
    text = str(err).partition("\n\nDebug source")[0]
    code, message = (re.search(f"<{tag}>(.*?)</{tag}>", text, re.DOTALL) for tag in ("Code", "Message"))
    if code and message:
        return " ".join(f"{message[1]} ({code[1]})".split())
    return " ".join(text.split()).removeprefix("Generic S3 error: ")
