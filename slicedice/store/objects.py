"""Paths of objects in a bucket of Google Cloud Storage, `gs://BUCKET/NAME`, with those methods of paths a store needs.

A bucket has no folders, only names with slashes: what lies "in" a folder is whatever begins with its name. An object is
written whole or not at all, cannot be appended to, and is made by one of several that try if they ask for that. The
service answers with the newest there is, listings included; so nothing may be cached here.
"""

import contextlib
import errno
import fnmatch
import functools
import os
import re
import secrets
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from io import BytesIO
from pathlib import Path
from typing import Any

from etils.epath.gpath import PosixGPath

from slicedice.store.files import NO_ROOM, BucketError

CONNECT_SECONDS, SILENT_SECONDS = 10, 30
"""After which a connection, or an answer that does not go on, is given up; then gcsfs tries again, five times."""

AT_ONCE = 32
"""Requests at the same time, where there are many to make."""

PASSING = ("408", "410", "412", "429")
"""Answers to a request that may be answered otherwise in a while; 410 is of an upload, which has to begin anew."""


@functools.cache
def service() -> Any:
    """The file system of all buckets.

    Raises:
      BucketError: gcsfs is not installed.
    """
    # For Orbax, which comes to gcsfs by etils and fsspec. etils would else use TensorFlow, where that is installed;
    # gcsfs ask by gRPC what kind of bucket it is, which takes a right of its own; and listings be remembered.
    os.environ.setdefault("EPATH_USE_TF", "false")
    os.environ.setdefault("GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT", "false")
    try:
        import aiohttp
        from fsspec.config import conf
        from gcsfs.core import GCSFileSystem  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise BucketError(errno.ENOPKG, f"gs:// takes gcsfs ({error}): pip install 'slicedice[gcs]'") from error
    patience = aiohttp.ClientTimeout(None, sock_connect=CONNECT_SECONDS, sock_read=SILENT_SECONDS)
    settings = {"use_listings_cache": False, "requests_timeout": patience}
    conf.setdefault("gs", {}).update(settings)
    return GCSFileSystem(**settings)


class ObjectPath(PosixGPath):
    """The path of an object, or of what begins with its name. Methods raise `BucketError` or `FileNotFoundError`."""

    @property
    def bucket(self) -> str:
        """The name of the bucket."""
        return self.parts[2]

    @property
    def key(self) -> str:
        """The name of the object in it."""
        return "/".join(self.parts[3:])

    def absolute(self) -> "ObjectPath":
        """Itself."""
        return self

    resolve = absolute  # pyright: ignore[reportAssignmentType]

    def read_bytes(self) -> bytes:
        """The content of the object."""
        return self._call("GET", "b/{}/o/{}", self.bucket, self.key, alt="media")[1]

    def read_text(self, encoding: str | None = "utf-8", errors: str = "strict") -> str:
        """The content of the object as text."""
        return self.read_bytes().decode(encoding or "utf-8", errors)

    def read_end(self, size: int) -> bytes:
        """The last bytes of the object, all there are if it has no more."""
        where = {"Range": f"bytes=-{size}"}
        try:
            return self._call("GET", "b/{}/o/{}", self.bucket, self.key, alt="media", headers=where)[1]
        except BucketError as error:
            if getattr(error.__cause__, "code", None) != 416:  # of an object of no bytes, there are no last ones
                raise
            return b""

    def open(self, mode: str = "r", **_: Any) -> Any:
        """The content of the object, read at once, as a file of bytes."""
        if mode != "rb":
            raise ValueError(f"{self} is an object: it is read as rb, and written whole")
        return BytesIO(self.read_bytes())

    def download(self, place: Path) -> None:
        """Copies the object, which may be large, to a file."""
        with _told(self, of_object=True):
            service().get_file(str(self), str(place))

    def upload(self, place: Path) -> None:
        """Makes the object a copy of a file, which may be large."""
        with _told(self):
            service().put_file(str(place), str(self))

    def write_bytes(self, data: bytes) -> int:
        """Makes or replaces the object."""
        with _told(self):
            service().pipe_file(str(self), data)
        return len(data)

    def create(self, content: bytes) -> bool:
        """Makes the object unless it is there; returns whether it was made. Of several that try, one is told so."""
        maker = secrets.token_hex(8)
        try:
            with _told(self):
                service().pipe_file(str(self), content, mode="create", metadata={"maker": maker})
        except FileExistsError:
            # It may have been made, the answer lost, and gcsfs have asked again. Others may try the same content.
            return self._resource().get("metadata", {}).get("maker") == maker
        return True

    def exists(self) -> bool:
        """Whether there is an object of the name; folders, which do not exist, are asked for by `is_dir`."""
        try:
            self._resource()
        except FileNotFoundError:
            return False
        return True

    is_file = exists

    def is_dir(self) -> bool:
        """Whether anything lies below."""
        return any(self._names("", most=1))

    def size(self) -> int:
        """Bytes of the object, or of all that lies below."""
        return sum(size for _, size in self._names("")) or sum(
            size for name, size in self.parent._names("/") if name == self.key
        )

    def iterdir(self) -> Iterator["ObjectPath"]:
        """All that lies in the folder, by name; folders in it as well."""
        for name, _ in sorted(self._names("/")):
            yield self._new(f"gs://{self.bucket}/{name.rstrip('/')}")

    def glob(self, pattern: str) -> Iterator["ObjectPath"]:
        """What lies in a folder below, named literally, and fits a pattern by its own name; hidden files as well."""
        *folders, last = pattern.split("/")
        return (path for path in self.joinpath(*folders).iterdir() if fnmatch.fnmatchcase(path.name, last))

    def rglob(self, pattern: str) -> Iterator["ObjectPath"]:
        """All objects below that fit a pattern by their own name."""
        for name, _ in self._names(""):
            if fnmatch.fnmatchcase(name.rpartition("/")[2], pattern):
                yield self._new(f"gs://{self.bucket}/{name}")

    def mkdir(self, *_: Any, **__: Any) -> None:
        """Nothing: a folder is there with the first object in it."""

    def unlink(self, missing_ok: bool = False) -> None:
        """Removes the object."""
        try:
            self._call("DELETE", "b/{}/o/{}", self.bucket, self.key)
        except FileNotFoundError:
            if not missing_ok:
                raise

    def rmdir(self) -> None:
        """Nothing; see `mkdir`."""

    def rmtree(self, missing_ok: bool = False) -> None:
        """Removes all objects below."""
        paths = [self._new(f"gs://{self.bucket}/{name}") for name, _ in self._names("")]
        if not paths and not missing_ok:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(self))
        with ThreadPoolExecutor(AT_ONCE) as pool:
            list(pool.map(lambda path: path.unlink(missing_ok=True), paths))

    def versions(self, pattern: str) -> dict[str, str]:
        """Objects below by their names from here on that fit a pattern, each with what changes whenever it is written.

        Args:
          pattern: of names; `*` stands for anything but a slash.
        """
        prefix = self.key + "/" if self.key else ""
        fits = re.compile("[^/]*".join(map(re.escape, pattern.split("*"))))
        # The service picks names by the pattern, if nothing in the folder's own name would be read as one.
        glob = None if re.search(r"[][{}*?!\\]", prefix) else prefix + pattern
        pages = self._pages(prefix, matchGlob=glob, fields="items(name,generation),nextPageToken")
        found = {item["name"][len(prefix) :]: item["generation"] for page in pages for item in page.get("items", [])}
        return {name: version for name, version in found.items() if fits.fullmatch(name)}

    def _names(self, delimiter: str, most: int | None = None) -> Iterator[tuple[str, int]]:
        """Names of what lies below with their sizes; up to the next `delimiter`, if there is one, names of folders."""
        prefix, fields = self.key + "/" if self.key else "", "items(name,size),prefixes,nextPageToken"
        for page in self._pages(prefix, delimiter=delimiter or None, maxResults=most, fields=fields):
            yield from ((name, 0) for name in page.get("prefixes", []))
            yield from ((item["name"], int(item["size"])) for item in page.get("items", []) if item["name"] != prefix)
            if most:
                return

    def _pages(self, prefix: str, **query: Any) -> Iterator[dict[str, Any]]:
        """The pages of a listing of names that begin so."""
        token = None
        while True:
            query |= {"prefix": prefix or None, "pageToken": token}
            page: Any = self._call("GET", "b/{}/o", self.bucket, json_out=True, **query)
            yield page
            token = page.get("nextPageToken")
            if token is None:
                return

    def _resource(self) -> dict[str, Any]:
        """What the service says of the object."""
        return self._call("GET", "b/{}/o/{}", self.bucket, self.key, json_out=True)

    def _call(self, method: str, path: str, *arguments: str, **options: Any) -> Any:
        with _told(self, of_object=len(arguments) > 1):
            return service().call(method, path, *arguments, **options)


@contextlib.contextmanager
def _told(path: ObjectPath, *, of_object: bool = False) -> Iterator[None]:
    """Gives the errors of gcsfs, which has tried again by then, and of what it uses, the shape of the system's.

    of_object: whether what is not found is the object; else it is the bucket.
    """
    try:
        yield
    except (BucketError, FileExistsError):
        raise
    except FileNotFoundError as error:
        if not of_object:
            raise BucketError(errno.ENXIO, f"there is no bucket {path.bucket!r}", str(path)) from error
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(path)) from error
    except Exception as error:
        if isinstance(error, OSError) and error.errno in NO_ROOM:  # of this machine, to which an object is copied
            raise
        raise BucketError(_number(error), f"{type(error).__name__}: {error}".strip(": "), str(path)) from error


def _number(error: Any) -> int:
    """The system's number of what an error of gcsfs means; EIO if it may be otherwise in a while."""
    from gcsfs.retry import NonRetryableError  # pyright: ignore[reportMissingImports]
    from google.auth import exceptions  # pyright: ignore[reportMissingImports]

    status = str(getattr(error, "code", ""))
    if str(error).startswith("Forbidden") or status in ("401", "403"):
        return errno.EACCES
    if isinstance(error, exceptions.GoogleAuthError):
        # Where the network is gone, google-auth does not say that asking again may help.
        lost = isinstance(error, exceptions.TransportError | exceptions.TimeoutError)
        return errno.EIO if lost or error.retryable else errno.EACCES
    # gcsfs has a bare ValueError for what the service finds invalid, and for buckets whose requester pays.
    refused = re.fullmatch("4[0-9][0-9]", status) and status not in PASSING
    return errno.EINVAL if refused or type(error) is ValueError or isinstance(error, NonRetryableError) else errno.EIO
