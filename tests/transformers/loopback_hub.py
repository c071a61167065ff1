"""A Hugging Face hub on this machine, of the files in a folder: as much of its API as its clients ask for."""

import base64
import hashlib
import json
import threading
import urllib.parse
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

COMMIT = "0123456789abcdef0123456789abcdef01234567"


class LoopbackHub:
    """Serves <root>/models/<owner>/<name>/… and <root>/datasets/<owner>/<name>/… while open; `asked` collects the requests."""

    def __init__(self, root: Path):
        self.asked: list[str] = []
        hub = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_HEAD(self) -> None:
                hub.asked.append(self.path)
                answer(self, root)

            do_GET = do_HEAD

            def do_POST(self) -> None:
                hub.asked.append(self.path)
                body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
                answer(self, root, body) if (made := written(self.path, body, root, hub.url)) is None else send(
                    self, json.dumps(made).encode(), "application/json"
                )

            def log_message(self, *_: Any) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.server.server_port}"

    def __enter__(self) -> "LoopbackHub":
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.server.shutdown()
        self.server.server_close()


def written(path: str, body: bytes, root: Path, url: str) -> Any:
    """Of the questions by which a client makes a repository of a model and commits files to it, the answer; None of others."""
    parts = urllib.parse.unquote(urllib.parse.urlparse(path).path).strip("/").split("/")
    if parts[1:] == ["repos", "create"]:
        asked = json.loads(body)
        name = "/".join(filter(None, [asked.get("organization"), asked["name"]]))
        (root / "models" / name).mkdir(parents=True, exist_ok=True)
        return {"url": f"{url}/{name}", "name": name, "id": name}
    if parts[1:] == ["validate-yaml"]:
        return {"errors": [], "warnings": []}
    if parts[4:5] == ["preupload"]:
        return {"files": [{"path": file["path"], "uploadMode": "regular", "shouldIgnore": False} for file in json.loads(body)["files"]]}
    if parts[4:5] == ["commit"]:
        for line in map(json.loads, body.splitlines()):
            if line["key"] == "file":
                file = root / "models" / parts[2] / parts[3] / line["value"]["path"]
                file.parent.mkdir(parents=True, exist_ok=True)
                file.write_bytes(base64.b64decode(line["value"]["content"]))
        return {"commitUrl": f"{url}/{parts[2]}/{parts[3]}/commit/{COMMIT}", "commitOid": COMMIT, "success": True}
    return None


def answer(request: BaseHTTPRequestHandler, root: Path, body: bytes = b"") -> None:
    address = urllib.parse.urlparse(request.path)
    parts = urllib.parse.unquote(address.path).strip("/").split("/")
    if parts[0] == "api" and len(parts) >= 4 and parts[1] in ("models", "datasets"):
        folder = root / parts[1] / parts[2] / parts[3]
        is_tree = parts[4:5] == ["tree"]
        if folder.joinpath(*parts[6:] if is_tree else ()).is_dir():
            return send(
                request,
                json.dumps(describe(folder, "/".join(parts[2:4]), parts[4:], body, "recursive=true" in address.query)).encode(),
                "application/json",
            )
    elif "resolve" in parts:
        kind = parts.pop(0) if parts[0] == "datasets" else "models"
        file = root / kind / parts[0] / parts[1] / "/".join(parts[4:])
        if file.is_file():
            return send(request, file.read_bytes(), "application/octet-stream")
    return send(request, b"", "text/plain", status=200 if parts == [""] else 404, missing="EntryNotFound")


def describe(folder: Path, name: str, what: list[str], body: bytes, is_deep: bool) -> Any:
    entries = [entry(path, folder) for path in sorted(folder.rglob("*"))]
    if what[:1] == ["tree"]:
        return [entry(path, folder) for path in sorted(folder.joinpath(*what[2:]).glob("**/*" if is_deep else "*"))]
    if what[:1] == ["paths-info"]:
        form = urllib.parse.parse_qs(body.decode())
        wanted = form.get("paths") or (json.loads(body)["paths"] if body.startswith(b"{") else [])
        return [each for each in entries if each["path"] in wanted]
    return {
        "id": name,
        "sha": COMMIT,
        "private": False,
        "tags": [],
        "downloads": 0,
        "siblings": [{"rfilename": e["path"]} for e in entries],
    }


def entry(path: Path, folder: Path) -> dict[str, Any]:
    common = {"path": path.relative_to(folder).as_posix(), "oid": hashlib.sha256(path.as_posix().encode()).hexdigest()[:40]}
    return common | ({"type": "directory"} if path.is_dir() else {"type": "file", "size": path.stat().st_size})


def send(request: BaseHTTPRequestHandler, content: bytes, kind: str, status: int = 200, missing: str = "") -> None:
    total, span = len(content), request.headers.get("Range")
    if span and status == 200:
        first, _, last = span.removeprefix("bytes=").partition("-")
        start, stop = int(first), min(int(last or total - 1) + 1, total)
        content, status = content[start:stop], 206
    request.send_response(status)
    if status == 206:
        request.send_header("Content-Range", f"bytes {start}-{stop - 1}/{total}")
    if missing and status == 404:
        request.send_header("X-Error-Code", missing)
    request.send_header("X-Repo-Commit", COMMIT)
    request.send_header("ETag", f'"{hashlib.sha256(content).hexdigest()}"')
    request.send_header("Accept-Ranges", "bytes")
    request.send_header("Content-Type", kind)
    request.send_header("Content-Length", str(len(content)))
    request.end_headers()
    if request.command != "HEAD":
        request.wfile.write(content)
