"""A server on loopback that answers like the Hugging Face Hub, for models and datasets.

    with hub_server.serve({"owner/name": Repository({COMMIT: folder})}) as hub:
        environment = hub.environment(tmp_path)   # HF_ENDPOINT, HF_HOME and so on
        subprocess.run([...], env=environment)
        hub.requests                              # what was asked, in order

A repository is a folder for each commit. Large files (by suffix, as .gitattributes has it on
the Hub) are answered with a redirect to another address, as the Hub does; both carry ranges.
"""

import contextlib
import hashlib
import json
import os
import threading
import urllib.parse
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

LARGE = {".safetensors", ".parquet", ".bin", ".arrow", ".zip", ".gz"}
PAGE = 3  # entries of one page of a listing: small, so that paging is always exercised


@dataclass
class Repository:
    """Folders by commit (40 hex digits); branches point to commits, main to the last one."""

    commits: Mapping[str, Path]
    kind: str = "model"  # or "dataset"
    branches: dict[str, str] = field(default_factory=dict)

    def resolve(self, revision: str) -> str | None:
        revision = urllib.parse.unquote(revision)
        known = {"main": list(self.commits)[-1], **self.branches}
        return known.get(revision, revision if revision in self.commits else None)


@dataclass
class Request:
    method: str
    path: str
    range: str | None
    user_agent: str
    sent: int = 0  # bytes of body


class Hub:
    """What the server holds, what it was asked, and how it is to fail."""

    def __init__(self, repositories: Mapping[str, Repository]):
        self.repositories = dict(repositories)
        self.requests: list[Request] = []
        self.url = ""
        self._cuts: dict[str, list[int]] = {}
        self._stalls: dict[str, tuple[int, threading.Event]] = {}
        self.down = False  # True: every request is answered 503
        self._digests: dict[tuple, tuple[str, str]] = {}

    def cut(self, filename: str, after: int, times: int = 1) -> None:
        """Break the connection after so many bytes of a file, the next `times` times."""
        self._cuts[filename] = [after] * times

    def stall(self, filename: str, after: int) -> threading.Event:
        """Stop sending a file after so many bytes, until the event is set; once.

        Returns the event; `stalled` is set when a client hangs there.
        """
        release = threading.Event()
        self.stalled = threading.Event()
        self._stalls[filename] = (after, release)
        return release

    def files(self) -> list[Request]:
        """The requests that carried a file's content."""
        return [request for request in self.requests if request.sent and
                ("/resolve/" in request.path or request.path.startswith("/cdn/"))]

    def environment(self, home: Path) -> dict[str, str]:
        """The environment of a client that knows this Hub only and keeps its files in `home`."""
        kept = {k: v for k, v in os.environ.items() if not k.startswith("HF_")
                and k.lower() not in ("http_proxy", "https_proxy", "all_proxy")}
        return kept | {
            "HF_ENDPOINT": self.url, "HF_HOME": str(home), "HF_HUB_DISABLE_XET": "1",
            "HF_HUB_DISABLE_TELEMETRY": "1", "HF_HUB_DISABLE_PROGRESS_BARS": "1",
            "HF_DATASETS_CACHE": str(home / "datasets"), "OMP_NUM_THREADS": "1",
            "NO_PROXY": "127.0.0.1,localhost"}

    def digests(self, path: Path) -> tuple[str, str]:
        """The git id and the sha256 of a file."""
        stat = path.stat()
        key = (path, stat.st_size, stat.st_mtime_ns)
        if key not in self._digests:
            content = path.read_bytes()
            blob = b"blob %d\0" % len(content)
            self._digests[key] = (hashlib.sha1(blob + content).hexdigest(),
                                  hashlib.sha256(content).hexdigest())
        return self._digests[key]


@contextlib.contextmanager
def serve(repositories: Mapping[str, Repository]) -> Iterator[Hub]:
    """Run a Hub on a free port of loopback until the block ends."""
    hub = Hub(repositories)
    handler = type("Handler", (_Handler,), {"hub": hub})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.daemon_threads = True
    hub.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05},
                              daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        for _, release in hub._stalls.values():
            release.set()
        server.shutdown()
        server.server_close()


class _Handler(BaseHTTPRequestHandler):
    hub: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        pass

    def do_HEAD(self):
        self._route()

    def do_GET(self):
        self._route()

    def do_POST(self):
        self._route()

    def _route(self) -> None:
        hub = self.hub
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        self._request = Request(self.command, self.path, self.headers.get("Range"),
                                self.headers.get("User-Agent", ""))
        hub.requests.append(self._request)
        path, _, query = self.path.partition("?")
        query = dict(urllib.parse.parse_qsl(query))
        parts = [p for p in path.split("/") if p]
        if hub.down:
            return self._json({"error": "Service Unavailable"}, 503)
        if parts[:1] == ["cdn"]:
            return self._large(*parts[1:])
        if parts[:1] == ["api"] and parts[1:2] in (["models"], ["datasets"]):
            return self._api(parts[1][:-1], parts[2:], query, body)
        kind = "dataset" if parts[:1] == ["datasets"] else "model"
        parts = parts[1:] if kind == "dataset" else parts
        if "resolve" in parts[:3]:
            at = parts.index("resolve")
            return self._file(kind, "/".join(parts[:at]), parts[at + 1], parts[at + 2:])
        self._json({"error": "Not Found"}, 404)

    def _repository(self, kind: str, name: str, revision: str):
        """The folder and commit asked for, or None where the answer (an error) was given."""
        repository = self.hub.repositories.get(name)
        if repository is None or repository.kind != kind:
            # To someone unknown the Hub does not say whether a repository exists.
            return self._json({"error": "Invalid username or password."}, 401, {
                "X-Error-Message": "Invalid username or password."})
        commit = repository.resolve(revision)
        if commit is None:
            return self._json({"error": f"Invalid rev id: {revision}"}, 404, {
                "X-Error-Code": "RevisionNotFound",
                "X-Error-Message": f"Invalid rev id: {revision}"})
        return Path(repository.commits[commit]), commit

    def _api(self, kind: str, parts: list[str], query: dict, body: bytes) -> None:
        verbs = {"revision", "tree", "paths-info", "refs"}
        at = next((i for i, part in enumerate(parts[:3]) if part in verbs), len(parts))
        name, verb, *rest = "/".join(parts[:at]), *(parts[at:] or ["revision"])
        found = self._repository(kind, name, rest[0] if rest else "main")
        if found is None:
            return None
        folder, commit = found
        entries = self._entries(folder)
        if verb == "refs":
            repository = self.hub.repositories[name]
            names = {"main": repository.resolve("main"), **repository.branches}
            return self._json({"tags": [], "converts": [], "branches": [
                {"name": n, "ref": f"refs/heads/{n}", "targetCommit": c}
                for n, c in names.items()]})
        if verb == "paths-info":
            asked = urllib.parse.parse_qs(body.decode()).get("paths", [])
            return self._json([e for e in entries if e["path"] in asked])
        if verb == "tree":
            return self._tree(entries, rest[1:], query)
        return self._json({
            "_id": "0" * 24, "id": name, "author": name.split("/")[0], "sha": commit,
            "private": False, "gated": False, "disabled": False, "tags": [], "downloads": 0,
            "likes": 0, "lastModified": "2024-01-01T00:00:00.000Z",
            "createdAt": "2024-01-01T00:00:00.000Z",
            "siblings": [{"rfilename": e["path"]} for e in entries if e["type"] == "file"]})

    def _entries(self, folder: Path) -> list[dict]:
        entries = []
        for path in sorted(folder.rglob("*")):
            name = path.relative_to(folder).as_posix()
            if path.is_dir():
                entries.append({"type": "directory", "path": name, "size": 0,
                                "oid": hashlib.sha1(name.encode()).hexdigest()})
                continue
            oid, sha256 = self.hub.digests(path)
            entry = {"type": "file", "path": name, "size": path.stat().st_size, "oid": oid}
            if path.suffix in LARGE:
                entry["lfs"] = {"oid": sha256, "size": entry["size"], "pointerSize": 134}
            entries.append(entry)
        return entries

    def _tree(self, entries: list[dict], inside: list[str], query: dict) -> None:
        prefix = urllib.parse.unquote("/".join(inside))
        if prefix:
            if not any(e["path"].startswith(prefix + "/") for e in entries):
                return self._json({"error": f"{prefix} does not exist"}, 404, {
                    "X-Error-Code": "EntryNotFound"})
            entries = [e for e in entries if e["path"].startswith(prefix + "/")]
        if query.get("recursive", "false").lower() != "true":
            depth = prefix.count("/") + 1 if prefix else 0
            entries = [e for e in entries if e["path"].count("/") == depth]
        start = int(query.get("cursor", 0))
        headers = {}
        if start + PAGE < len(entries):
            after = urllib.parse.urlencode({**query, "cursor": start + PAGE})
            headers["Link"] = f'<{self.hub.url}{self.path.partition("?")[0]}?{after}>; rel="next"'
        self._json(entries[start:start + PAGE], headers=headers)

    def _file(self, kind: str, name: str, revision: str, parts: list[str]) -> None:
        found = self._repository(kind, name, revision)
        if found is None:
            return None
        folder, commit = found
        filename = urllib.parse.unquote("/".join(parts))
        path = folder / filename
        if not path.is_file() or ".." in filename.split("/"):
            return self._json({"error": "Entry not found"}, 404, {
                "X-Error-Code": "EntryNotFound", "X-Error-Message": "Entry not found",
                "X-Repo-Commit": commit})
        oid, sha256 = self.hub.digests(path)
        headers = {"X-Repo-Commit": commit, "Accept-Ranges": "bytes"}
        if path.suffix in LARGE:
            elsewhere = self.hub.url.replace("127.0.0.1", "localhost")  # clients stop at a host
            return self._send(302, b"", headers | {
                "Location": f"{elsewhere}/cdn/{sha256}/{urllib.parse.quote(path.name)}",
                "ETag": f'"{oid}"', "X-Linked-ETag": f'"{sha256}"',
                "X-Linked-Size": str(path.stat().st_size)})
        return self._content(path, headers | {"ETag": f'"{oid}"'})

    def _large(self, sha256: str, name: str) -> None:
        for path, (_, digest) in ((k[0], v) for k, v in list(self.hub._digests.items())):
            if digest == sha256 and path.name == urllib.parse.unquote(name):
                return self._content(path, {"ETag": f'"{sha256}"', "Accept-Ranges": "bytes"})
        return self._json({"error": "Not Found"}, 404)

    def _content(self, path: Path, headers: dict) -> None:
        size = path.stat().st_size
        first, last, status = 0, size - 1, 200
        if asked := self.headers.get("Range", "").removeprefix("bytes="):
            low, _, high = asked.partition("-")
            first = int(low) if low else size - int(high)
            last = min(int(high), size - 1) if low and high else size - 1
            if first >= size:
                return self._send(416, b"", headers | {"Content-Range": f"bytes */{size}"})
            status, headers = 206, headers | {"Content-Range": f"bytes {first}-{last}/{size}"}
        with path.open("rb") as file:
            file.seek(first)
            self._send(status, file.read(last - first + 1), headers, path.name)

    def _json(self, content, status: int = 200, headers: Mapping[str, str] = {}) -> None:
        self._send(status, json.dumps(content).encode(),
                   {"Content-Type": "application/json", **headers})

    def _send(self, status: int, content: bytes, headers: Mapping[str, str],
              name: str = "") -> None:
        self.send_response(status)
        for key, value in headers.items():
            self.send_header(key, value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command == "HEAD":
            return
        cuts, stall = self.hub._cuts.get(name), self.hub._stalls.pop(name, None)
        whole = content
        if cuts:
            content = content[:cuts.pop(0)]
        with contextlib.suppress(OSError):  # the client may be gone
            if stall:
                self._request.sent = stall[0]
                self.wfile.write(content[:stall[0]])
                self.wfile.flush()
                self.hub.stalled.set()
                stall[1].wait(60)
                content = content[stall[0]:]
            self.wfile.write(content)
            self.wfile.flush()
            self._request.sent += len(content)
        self.close_connection = self.close_connection or len(content) < len(whole)
