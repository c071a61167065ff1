"""A folder on a real HTTP server that knows byte ranges and fails as real ones do."""

import threading
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import NamedTuple


class Request(NamedTuple):
    """Bytes start … stop − 1 of a file; all of it where they are None."""

    name: str
    start: int | None
    stop: int | None


class Web(ThreadingHTTPServer):
    """Serves `folder` at `url`. `faults` are what happens to the next requests for shards, the last one for good where `is_for_good`:

    `stall` (no answer), `drop` (the connection ends within the body), `half` (as if the file ended there), `flip` (a bit is another), or a
    status. `requests` are kept in their order. `with_ranges`: otherwise the whole file comes whatever is asked for.
    """

    daemon_threads = True

    def __init__(self, folder: Path):
        super().__init__(("127.0.0.1", 0), _Handler)
        self.folder, self.url = folder, f"http://127.0.0.1:{self.server_port}/store"
        self.faults: deque[str | int] = deque()
        self.is_for_good, self.with_ranges = False, True
        self.requests: list[Request] = []
        self.released = threading.Event()

    def fault(self, name: str) -> str | int | None:
        if not self.faults or not name.startswith("shard-"):
            return None
        return self.faults[0] if self.is_for_good else self.faults.popleft()

    def whole(self) -> list[str]:
        """The shards that were asked for as a whole."""
        return [
            request.name for request in self.requests if (request.start, request.stop) == (0, (self.folder / request.name).stat().st_size)
        ]

    def handle_error(self, request, client_address) -> None:
        """Clients that give up are what is tested."""


class _Handler(BaseHTTPRequestHandler):
    server: Web

    def do_GET(self) -> None:
        name = self.path.removeprefix("/store/")
        path = self.server.folder / name
        start = stop = None
        if self.headers["Range"] and self.server.with_ranges:
            start, last = map(int, self.headers["Range"].removeprefix("bytes=").split("-"))
            stop = last + 1
        self.server.requests.append(Request(name, start, stop))
        fault = self.server.fault(name)
        if isinstance(fault, int) or not path.exists():
            return self.send_error(fault or 404)
        if fault == "stall":
            self.server.released.wait(20)
            return None
        body = bytearray(path.read_bytes()[start:stop])
        if fault == "flip":
            body[len(body) // 2] ^= 4
        sent = body[: len(body) // 2] if fault in ("drop", "half") else body
        self.send_response(200 if start is None else 206)
        self.send_header("Content-Length", str(len(sent if fault == "half" else body)))
        self.end_headers()
        self.wfile.write(sent)
        return None

    def log_message(self, format: str, *args: object) -> None:
        pass


@contextmanager
def serving(folder: Path) -> Iterator[Web]:
    with Web(folder) as web:
        thread = threading.Thread(target=web.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
        thread.start()
        try:
            yield web
        finally:
            web.released.set()
            web.shutdown()
            thread.join()
