"""As much of the Hugging Face hub as downloads, streams and uploads take, on this machine, for `HF_ENDPOINT`.

    with HubServer() as hub:
        commit = hub.add("me/model", {"config.json": b"…", "model.safetensors": b"…"})
        hub.add("me/corpus", {"train.parquet": b"…"}, kind="datasets", ref="v1")
        hub.environment                # of a process that is to use it
        hub.asked, hub.ranges          # the paths and the `Range` headers of all requests so far
        hub.files("me/model")          # of its main branch, by name

Small files are answered at once; weights and parquet are redirected to a store by digest, as the hub does it, and so
are old names to new ones.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
import threading
from collections.abc import Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

LARGE = (".safetensors", ".parquet", ".bin")
NAME = r"[\w.-]+(?:/[\w.-]+)?"


class HubServer(ThreadingHTTPServer):
    """Repositories by (kind, name): their commits, and which commit a branch or tag is."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.address = f"http://127.0.0.1:{self.server_address[1]}"
        self.store_address = f"http://localhost:{self.server_address[1]}"  # the client follows it as to another host
        self.commits: dict[tuple[str, str], dict[str, dict[str, bytes]]] = {}
        self.refs: dict[tuple[str, str], dict[str, str]] = {}
        self.renamed: dict[str, str] = {}  # old names of models, whose requests are redirected
        self.store: dict[str, bytes] = {}
        self.asked: list[str] = []
        self.ranges: list[str] = []

    def __enter__(self) -> HubServer:
        threading.Thread(target=self.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *error: object) -> None:
        self.shutdown()
        self.server_close()

    @property
    def environment(self) -> dict[str, str]:
        """What makes a process use it; `HF_HOME`, where downloads go, is the caller's."""
        return {
            "HF_ENDPOINT": self.address, "HF_HUB_OFFLINE": "0", "HF_DATASETS_OFFLINE": "0",
            "HF_HUB_DISABLE_XET": "1", "HF_TOKEN": "hf_test",
        }  # fmt: skip

    def add(self, name: str, content: Mapping[str, bytes] | Path, kind: str = "models", ref: str = "main") -> str:
        """Commit these files, or those of a folder, and let a branch or tag be that commit; returns it."""
        if isinstance(content, Path):
            paths = [path for path in content.rglob("*") if path.is_file()]
            content = {path.relative_to(content).as_posix(): path.read_bytes() for path in paths}
        commit = hashlib.sha1(repr((kind, name, sorted(content.items()))).encode()).hexdigest()
        self.commits.setdefault((kind, name), {})[commit] = dict(content)
        self.refs.setdefault((kind, name), {})[ref] = commit
        self.store.update({hashlib.sha256(data).hexdigest(): data for data in content.values()})
        return commit

    def files(self, name: str, kind: str = "models") -> dict[str, bytes]:
        """The files of the main branch."""
        return self.commits[kind, name][self.refs[kind, name]["main"]]


class Handler(BaseHTTPRequestHandler):
    """One request."""

    server: HubServer
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # else a body waits 40 ms for the acknowledgement of its head

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        url = urlsplit(self.path)
        path = unquote(url.path)
        self.server.asked.append(path)
        if found := re.fullmatch(rf"(/|/api/models/)({'|'.join(self.server.renamed) or '(?!)'})(/.*)?", path):
            location = f"{found[1]}{self.server.renamed[found[2]]}{found[3] or ''}"
            self.answer_bytes(b"Moved", 307, {"Location": f"{location}?{url.query}" if url.query else location})
        elif found := re.fullmatch(rf"/api/(models|datasets)/({NAME}?)/tree/([^/]+)/?(.*)", path):
            kind, name, revision, folder = found.groups()
            recursive = parse_qs(url.query).get("recursive", ["false"])[0].lower() in ("true", "1")
            self.answer_tree(kind, name, revision, folder, recursive)
        elif found := re.fullmatch(rf"/api/(models|datasets)/({NAME}?)(?:/revision/([^/]+))?", path):
            self.answer_info(found[1], found[2], found[3] or "main")
        elif found := re.fullmatch(rf"/(datasets/)?({NAME}?)/resolve/([^/]+)/(.+)", path):
            self.answer_file("datasets" if found[1] else "models", found[2], found[3], found[4])
        elif found := re.fullmatch(r"/store/(\w+)", path):
            self.answer_bytes(self.server.store[found[1]])
        else:
            self.answer({}, 404 if path.startswith("/api/") else 200)

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        path = unquote(urlsplit(self.path).path)
        self.server.asked.append(path)
        if path == "/api/repos/create":
            asked = json.loads(body)
            name = f"{asked.get('organization') or 'me'}/{asked['name']}"
            if ("models", name) not in self.server.commits:
                self.server.add(name, {})
            self.answer({"url": f"{self.server.address}/{name}", "id": name})
        elif found := re.fullmatch(rf"/api/(models|datasets)/({NAME}?)/paths-info/([^/]+)", path):
            self.answer_paths(found[1], found[2], found[3], body.decode())
        elif "/preupload/" in path:
            asked = json.loads(body)["files"]
            self.answer({"files": [{"path": f["path"], "uploadMode": "regular", "shouldIgnore": False} for f in asked]})
        elif found := re.fullmatch(rf"/api/models/({NAME}?)/commit/main", path):
            content = dict(self.server.files(found[1]))
            for line in map(json.loads, body.splitlines()):
                if line["key"] == "file":
                    content[line["value"]["path"]] = base64.b64decode(line["value"]["content"])
            commit = self.server.add(found[1], content)
            url = f"{self.server.address}/{found[1]}/commit/{commit}"
            self.answer({"commitUrl": url, "commitOid": commit, "success": True})
        else:
            self.answer({"errors": [], "warnings": []})

    # What is asked for

    def find(self, kind: str, name: str, revision: str) -> tuple[str, dict[str, bytes]] | None:
        """(commit, its files); None when it has been answered that there is none."""
        repo = (kind, name)
        commit = self.server.refs.get(repo, {}).get(revision, revision)
        if repo not in self.server.commits:
            self.refuse("RepoNotFound", "Repository not found")
        elif commit not in self.server.commits[repo]:
            self.refuse("RevisionNotFound", f"Invalid rev id: {revision}")
        else:
            return commit, self.server.commits[repo][commit]
        return None

    def answer_info(self, kind: str, name: str, revision: str) -> None:
        if found := self.find(kind, name, revision):
            commit, content = found
            siblings = [{"rfilename": path} for path in content]
            self.answer({"id": name, "sha": commit, "private": False, "tags": [], "siblings": siblings})

    def answer_tree(self, kind: str, name: str, revision: str, folder: str, recursive: bool) -> None:
        if found := self.find(kind, name, revision):
            inside = {path: data for path, data in found[1].items() if path.startswith(f"{folder}/" if folder else "")}
            if folder and not inside:
                return self.refuse("EntryNotFound", f"{folder} does not exist")
            entries = {path: _entry(path, data) for path, data in inside.items()}
            for path in inside:
                for parent in list(Path(path).parents)[:-1]:
                    if parent.as_posix().startswith(f"{folder}/" if folder else ""):
                        entries[parent.as_posix()] = _entry(parent.as_posix(), None)
            depth = folder.count("/") + 1 if folder else 0
            self.answer([e for path, e in sorted(entries.items()) if recursive or path.count("/") == depth])

    def answer_paths(self, kind: str, name: str, revision: str, body: str) -> None:
        if found := self.find(kind, name, revision):
            asked = parse_qs(body).get("paths") or json.loads(body)["paths"]
            content = found[1]
            folders = {path for path in asked if any(name.startswith(f"{path}/") for name in content)}
            known = [path for path in asked if path in content or path in folders]
            self.answer([_entry(path, content.get(path)) for path in known])

    def answer_file(self, kind: str, name: str, revision: str, path: str) -> None:
        if not (found := self.find(kind, name, revision)):
            return
        commit, content = found
        if path not in content:
            return self.refuse("EntryNotFound", "Entry not found", {"X-Repo-Commit": commit})
        data = content[path]
        headers = {"ETag": f'"{_entry(path, data)["oid"]}"', "X-Repo-Commit": commit}
        if path.endswith(LARGE):
            digest = hashlib.sha256(data).hexdigest()
            elsewhere = {
                "Location": f"{self.server.store_address}/store/{digest}",
                "X-Linked-ETag": f'"{digest}"', "X-Linked-Size": str(len(data)),
            }  # fmt: skip
            self.answer_bytes(b"Found", 302, {**headers, **elsewhere})
        else:
            self.answer_bytes(data, 200, headers)

    # How it is answered

    def answer(self, value: Any, status: int = 200, headers: Mapping[str, str] = {}) -> None:
        self.answer_bytes(json.dumps(value).encode(), status, {"Content-Type": "application/json", **headers})

    def refuse(self, code: str, message: str, headers: Mapping[str, str] = {}) -> None:
        self.answer({"error": message}, 404, {"X-Error-Code": code, "X-Error-Message": message, **headers})

    def answer_bytes(self, data: bytes, status: int = 200, headers: Mapping[str, str] = {}) -> None:
        headers = {"Accept-Ranges": "bytes", **headers}
        if status == 200 and (asked := re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))):
            self.server.ranges.append(asked[0])
            first, last = int(asked[1]), min(int(asked[2] or len(data) - 1), len(data) - 1)
            headers["Content-Range"] = f"bytes {first}-{last}/{len(data)}"
            data, status = data[first : last + 1], 206
        self.send_response(status)
        for name, value in {"Content-Length": str(len(data)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def log_message(self, *arguments: object) -> None:
        pass


def _entry(path: str, data: bytes | None) -> dict[str, Any]:
    """A file or, without data, a folder, as the hub lists it."""
    if data is None:
        return {"type": "directory", "oid": hashlib.sha1(path.encode()).hexdigest(), "size": 0, "path": path}
    oid = hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()
    entry: dict[str, Any] = {"type": "file", "oid": oid, "size": len(data), "path": path}
    if path.endswith(LARGE):
        entry["lfs"] = {"oid": hashlib.sha256(data).hexdigest(), "size": len(data), "pointerSize": 130}
    return entry
