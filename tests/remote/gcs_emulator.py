"""Google Cloud Storage on this machine: as much of its JSON API as gcsfs, TensorStore and Orbax use, in memory.

Written from the API's reference. What tests rest on is its promises: an upload is there whole or not at all;
`ifGenerationMatch` is looked at and the object made in one step; listings show what was written before they began.
It can be slow, fail, or be out of reach, as the real one can.
"""

import base64
import contextlib
import datetime
import hashlib
import itertools
import json
import re
import secrets
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qsl, unquote, urlsplit

PAGE = 1000
"""Most names in a page of a listing, as there."""


UNHEARD, UNTOLD = -1, -2
"""Faults: the connection is closed before what was asked for is done, or after."""


class Refused(Exception):
    """An answer that is no success."""

    def __init__(self, status: int, message: str = ""):
        super().__init__(message)
        self.status = status


@dataclass(frozen=True)
class Blob:
    """One generation of an object."""

    name: str
    content: bytes
    generation: int
    kind: str = "application/octet-stream"
    metadata: dict[str, str] = field(default_factory=dict)
    made: str = field(default_factory=lambda: datetime.datetime.now(datetime.UTC).isoformat().replace("+00:00", "Z"))


class Bucket:
    """Objects by name."""

    def __init__(self, name: str):
        self.name = name
        self.blobs: dict[str, Blob] = {}
        self._lock = threading.Lock()
        self._generations = itertools.count(time.time_ns() // 1000)

    def put(
        self, name: str, content: bytes, kind: str, query: dict[str, str], metadata: dict[str, str] | None = None
    ) -> Blob:
        """Makes or replaces an object, if the query's conditions hold."""
        with self._lock:
            self._check(name, query)
            self.blobs[name] = Blob(name, content, next(self._generations), kind, metadata or {})
            return self.blobs[name]

    def get(self, name: str, query: dict[str, str]) -> Blob:
        """An object."""
        with self._lock:
            self._check(name, query)
            if name not in self.blobs:
                raise Refused(404, f"No such object: {self.name}/{name}")
            return self.blobs[name]

    def delete(self, name: str, query: dict[str, str]) -> None:
        """Removes an object."""
        with self._lock:
            self._check(name, query)
            if self.blobs.pop(name, None) is None:
                raise Refused(404, f"No such object: {self.name}/{name}")

    def _check(self, name: str, query: dict[str, str]) -> None:
        there = self.blobs[name].generation if name in self.blobs else 0
        if "ifGenerationMatch" in query and int(query["ifGenerationMatch"]) != there:
            raise Refused(412, "At least one of the pre-conditions you specified did not hold.")
        if "ifGenerationNotMatch" in query and int(query["ifGenerationNotMatch"]) == there:
            raise Refused(304)

    def list(self, query: dict[str, str]) -> dict[str, Any]:
        """A page of a listing; a page token is the last name of the page before."""
        prefix, delimiter = query.get("prefix", ""), query.get("delimiter", "")
        most = min(PAGE, int(query.get("maxResults", PAGE)))
        with self._lock:
            names = sorted(name for name in self.blobs if name.startswith(prefix))
            blobs = dict(self.blobs)
        entries: dict[str, Blob | None] = {}
        for name in names:
            if not query.get("startOffset", "") <= name or ("endOffset" in query and name >= query["endOffset"]):
                continue
            head, found, _ = name[len(prefix) :].partition(delimiter) if delimiter else (name, "", "")
            entry = prefix + head + delimiter if found else name
            entries.setdefault(entry, None if found else blobs[name])
        if "matchGlob" in query:  # as much of it as is asked for
            fits = re.compile("[^/]*".join(map(re.escape, query["matchGlob"].split("*"))))
            entries = {entry: blob for entry, blob in entries.items() if fits.fullmatch(entry)}
        left = [entry for entry in entries if entry > query.get("pageToken", "")]
        page: dict[str, Any] = {"kind": "storage#objects"}
        page["items"] = [self.describe(blob) for entry in left[:most] if (blob := entries[entry])]
        page["prefixes"] = [entry for entry in left[:most] if entries[entry] is None]
        if len(left) > most:
            page["nextPageToken"] = left[most - 1]
        return page

    def describe(self, blob: Blob) -> dict[str, Any]:
        """The resource of an object."""
        return {
            "kind": "storage#object",
            "id": f"{self.name}/{blob.name}/{blob.generation}",
            "name": blob.name,
            "bucket": self.name,
            "generation": str(blob.generation),
            "metageneration": "1",
            "contentType": blob.kind,
            "size": str(len(blob.content)),
            "metadata": blob.metadata,
            "md5Hash": base64.b64encode(hashlib.md5(blob.content).digest()).decode(),
            "storageClass": "STANDARD",
            "timeCreated": blob.made,
            "updated": blob.made,
            "etag": str(blob.generation),
        }


class Emulator:
    """Serves buckets at `address`; as a context, until it ends.

    latency: seconds that every answer takes. requests: how many there were, by method and kind of path.
    fault: asked about each request, by method and path; gives the status to fail with, 0 for none, UNHEARD or UNTOLD.
    """

    def __init__(self, *buckets: str):
        self.buckets = {name: Bucket(name) for name in buckets}
        self.latency = 0.0
        self.fault: Callable[[str, str], int] = lambda method, path: 0
        self.requests: Counter[str] = Counter()
        self.sessions: dict[str, tuple[Bucket, str, str, dict[str, str], bytearray]] = {}
        self._server = _Server(("127.0.0.1", 0), type("Handler", (_Handler,), {"emulator": self}))
        self.address = f"http://127.0.0.1:{self._server.server_address[1]}"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True)

    def __enter__(self) -> "Emulator":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    @property
    def environment(self) -> dict[str, str]:
        """Variables by which gcsfs and TensorStore find it."""
        return {"STORAGE_EMULATOR_HOST": self.address, "TENSORSTORE_GCS_HTTP_URL": self.address}

    def answer(self, method: str, target: str, headers: Any, body: bytes) -> tuple[int, dict[str, str], bytes]:
        """Status, headers and body of the answer to a request.

        Raises:
          Refused: it is no success.
        """
        path, query = urlsplit(target).path, dict(parse_qsl(urlsplit(target).query, keep_blank_values=True))
        if path.startswith("/batch/"):
            return self._batch(headers, body)
        if path.startswith("/upload/"):
            return self._upload(method, path, query, headers, body)
        match = re.fullmatch(r"(?:/download)?/storage/v1/b/([^/]+)(?:/o(?:/([^/]+)(/.+)?)?)?", path)
        if not match:
            raise Refused(404, f"no such path: {path}")
        bucket, rest = self._bucket(match[1]), match[3]
        if match[2] is None:
            return _json(bucket.list(query) if path.endswith("/o") else {"kind": "storage#bucket", "name": bucket.name})
        name = unquote(match[2])
        if rest:
            return _json(self._copy(bucket, name, rest, query, body))
        if method == "DELETE":
            bucket.delete(name, query)
            return 204, {}, b""
        blob = bucket.get(name, query)
        if query.get("alt") != "media":
            return _json(bucket.describe(blob))
        return _part(blob, headers.get("Range"))

    def _bucket(self, name: str) -> Bucket:
        if name not in self.buckets:
            raise Refused(404, "The specified bucket does not exist.")
        return self.buckets[name]

    def _copy(self, bucket: Bucket, name: str, rest: str, query: dict[str, str], body: bytes) -> dict[str, Any]:
        if rest == "/compose":
            parts = [bucket.get(part["name"], {}).content for part in json.loads(body)["sourceObjects"]]
            return bucket.describe(bucket.put(name, b"".join(parts), "application/octet-stream", query))
        match = re.fullmatch(r"/(copyTo|rewriteTo)/b/([^/]+)/o/([^/]+)", rest)
        if not match:
            raise Refused(404, f"no such method: {rest}")
        source, target = bucket.get(name, {}), self._bucket(match[2])
        made = target.describe(target.put(unquote(match[3]), source.content, source.kind, query))
        return made if match[1] == "copyTo" else {"kind": "storage#rewriteResponse", "done": True, "resource": made}

    def _upload(
        self, method: str, path: str, query: dict[str, str], headers: Any, body: bytes
    ) -> tuple[int, dict[str, str], bytes]:
        if "upload_id" in query:
            return self._continue(method, query["upload_id"], headers, body)
        bucket = self._bucket(path.split("/b/")[1].split("/")[0])
        if query["uploadType"] == "resumable":
            name, id_ = query.get("name") or json.loads(body)["name"], secrets.token_hex(8)
            kind = headers.get("X-Upload-Content-Type", "application/octet-stream")
            self.sessions[id_] = bucket, name, kind, query, bytearray()
            return 200, {"Location": f"{self.address}{path}?uploadType=resumable&upload_id={id_}"}, b""
        if query["uploadType"] == "media":
            blob = bucket.put(query["name"], body, headers.get("Content-Type", "application/octet-stream"), query)
            return _json(bucket.describe(blob))
        (_, text), (kind, content) = _parts(headers["Content-Type"], body)
        about = json.loads(text)
        return _json(bucket.describe(bucket.put(about["name"], content, kind, query, about.get("metadata"))))

    def _continue(self, method: str, id_: str, headers: Any, body: bytes) -> tuple[int, dict[str, str], bytes]:
        """A part of an upload in several: the object is there with the last of them."""
        if method == "DELETE":
            self.sessions.pop(id_, None)
            return 499, {}, b""
        bucket, name, kind, query, content = self.sessions[id_]
        begin, total = re.fullmatch(r"bytes (?:(\d+)-\d+|\*)/(\d+|\*)", headers["Content-Range"]).groups()  # pyright: ignore
        if begin is not None:
            content[int(begin) :] = body
        if total == "*" or len(content) < int(total):
            return 308, {"Range": f"bytes=0-{len(content) - 1}"} if content else {}, b""
        return _json(bucket.describe(bucket.put(name, bytes(content), kind, query)))

    def _batch(self, headers: Any, body: bytes) -> tuple[int, dict[str, str], bytes]:
        answers = []
        for number, (_, content) in enumerate(_parts(headers["Content-Type"], body)):
            method, target = content.decode().split()[:2]
            try:
                status, _, text = self.answer(method, target, {}, b"")
            except Refused as refused:
                status, text = refused.status, str(refused).encode()
            answers.append(
                f"--batch\r\nContent-Type: application/http\r\nContent-ID: <response-{number + 1}>\r\n\r\n"
                f"HTTP/1.1 {status} told\r\nContent-Length: {len(text)}\r\n\r\n{text.decode()}\r\n"
            )
        return 200, {"Content-Type": "multipart/mixed; boundary=batch"}, "".join([*answers, "--batch--"]).encode()


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 256

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Says nothing of clients that hang up, as those do that are killed."""
        if not isinstance(sys.exception(), ConnectionError):
            super().handle_error(request, client_address)


class _Handler(BaseHTTPRequestHandler):
    emulator: Emulator
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def _handle(self) -> None:
        body = self._body()
        emulator = self.emulator
        path = urlsplit(self.path).path
        kind = "list" if path.endswith("/o") and self.command == "GET" else path.split("/")[1]
        emulator.requests[f"{self.command} {kind}"] += 1
        time.sleep(emulator.latency)
        fault = emulator.fault(self.command, unquote(self.path))
        try:
            if fault > 0:
                raise Refused(fault, "as the test asked for")
            told = (0, {}, b"") if fault == UNHEARD else emulator.answer(self.command, self.path, self.headers, body)
            status, headers, content = told
        except Refused as refused:
            error = {"error": {"code": refused.status, "message": str(refused)}}
            status, headers, content = refused.status, {}, json.dumps(error).encode() if refused.status != 304 else b""
        if fault < 0:
            self.close_connection = True
            return
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        if status not in (204, 304):
            self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    do_GET = do_POST = do_PUT = do_DELETE = do_HEAD = do_PATCH = _handle

    def _body(self) -> bytes:
        if self.headers.get("Transfer-Encoding", "").lower() != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length", 0)))
        chunks = []
        while size := int(self.rfile.readline().split(b";")[0], 16):
            chunks.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(chunks)

    def handle(self) -> None:
        with contextlib.suppress(ConnectionError):  # of a client that was killed, or had enough
            super().handle()

    def log_message(self, format: str, *_: object) -> None:
        """Says nothing."""


def _json(content: Any) -> tuple[int, dict[str, str], bytes]:
    return 200, {"Content-Type": "application/json; charset=UTF-8"}, json.dumps(content).encode()


def _part(blob: Blob, wanted: str | None) -> tuple[int, dict[str, str], bytes]:
    """What is asked for of an object's content, by the header Range."""
    content, size = blob.content, len(blob.content)
    headers = {"Content-Type": blob.kind, "X-Goog-Generation": str(blob.generation), "ETag": str(blob.generation)}
    match = re.fullmatch(r"bytes=(\d*)-(\d*)", wanted or "")
    if not match:
        return 200, headers, content
    begin, end = match.groups()
    first = int(begin) if begin else max(0, size - int(end))
    last = min(size, int(end) + 1) if begin and end else size
    if first >= size:
        raise Refused(416, "The requested range cannot be satisfied.")
    return 206, {**headers, "Content-Range": f"bytes {first}-{last - 1}/{size}"}, content[first:last]


def _parts(kind: str, body: bytes) -> list[tuple[str, bytes]]:
    """Kinds and contents of the parts of a body of several."""
    boundary = re.search(r'boundary="?([^";]+)"?', kind)
    assert boundary, kind
    found = []
    for part in re.split(rb"(?:^|\r?\n)--" + re.escape(boundary[1].encode()), body)[1:-1]:
        head, content = re.split(rb"\r?\n\r?\n", re.sub(rb"^\r?\n", b"", part), maxsplit=1)
        named = re.search(rb"(?i)content-type: *([^\r\n]+)", head)
        found.append((named[1].decode() if named else "application/octet-stream", content))
    return found
