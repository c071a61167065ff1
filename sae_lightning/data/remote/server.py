"""Bytes of files that lie elsewhere, through fsspec: a deadline for each request, further attempts, and errors in one line."""

import logging
import random
import time
from collections.abc import Iterator
from typing import Any, NamedTuple

from fsspec.asyn import AsyncFileSystem, sync
from fsspec.core import url_to_fs

from sae_lightning.errors import InputError

PIECE = 8 * 2**20
"""Bytes of one request: what a dropped connection costs."""
PACKAGES = {"s3": "sae_lightning[s3]", "s3a": "sae_lightning[s3]", "gs": "gcsfs", "gcs": "gcsfs", "hf": "sae_lightning[text]"}
"""What brings a protocol, where it is not there with fsspec itself."""
MISSING, FORBIDDEN, LATER = (404, 410), (401, 403), (408, 425, 429)
"""Status of a file that is not there, of one that may not be read, and of one that may be asked for again later."""
MISTAKES = (InputError, ImportError, TypeError, AttributeError, NotImplementedError, AssertionError)
log = logging.getLogger(__name__)


class Patience(NamedTuple):
    """`deadline`: seconds that a request may take. `waits`: seconds before each further attempt, less up to a half by chance."""

    deadline: float
    waits: tuple[float, ...]


OPENING = Patience(10, (0.5, 1))
"""For the manifest: somebody sits there and waits, and without a network the first answer comes at once."""
READING = Patience(60, (1, 2, 4, 8, 16, 32, 64))
"""For all else: a server that restarts, or a network that changes, is back within two minutes, and a run waits for it. A piece that is
not there within a minute comes at less than 140 kB/s, which is a stalled connection rather than a slow one."""


class Server:
    """A folder at a URL of any protocol that fsspec knows. May be used by several threads.

    The deadline holds where fsspec's file system is asynchronous (http, s3, gcs); other libraries (hf) have their own.
    Errors: InputError for a protocol that is not known or needs a package that is not installed.
    """

    def __init__(self, url: str, patience: Patience = READING, opening: Patience = OPENING):
        self.url, self.patience, self.opening = url.rstrip("/"), patience, opening
        self._system, root = _opened(self.url)
        self._root = root.rstrip("/")

    def small_file(self, name: str) -> bytes:
        """A whole file, with the patience of the opening. Errors: as `pieces`."""
        return self._asked(name, None, self.opening)

    def read(self, name: str, start: int, stop: int) -> bytes:
        """Bytes start … stop − 1 of a file. Errors: as `pieces`."""
        return b"".join(self.pieces(name, start, stop))

    def pieces(self, name: str, start: int, stop: int) -> Iterator[bytes]:
        """The same, some at a time. One that stalls, breaks off, is short, or that the server fails to give is asked for again.

        Errors: InputError, which names the URL: at once for a file that is not there or may not be read, after the last attempt for all else.
        """
        for first in range(start, stop, PIECE):
            yield self._asked(name, (first, min(first + PIECE, stop)), self.patience)

    def _asked(self, name: str, span: tuple[int, int] | None, patience: Patience) -> bytes:
        where, waits = f"{self.url}/{name}", iter(patience.waits)
        while True:
            try:
                return self._ask(name, span, patience.deadline)
            except MISTAKES:
                raise
            except Exception as error:  # each protocol has its own kinds
                if refused := _refusal(error):
                    raise InputError(f"{where} {refused}") from error
                said = _said(error, patience)
                wait = next(waits, None)
                if wait is None:
                    raise InputError(
                        f"{where} was asked for {len(patience.waits) + 1} times, the last time: {said}; "
                        "check the network and the server, then start again (a run goes on with resume=FOLDER)"
                    ) from error
                if patience is self.patience:
                    log.warning("%s: %s; asking again", where, said)
                time.sleep(wait * random.SystemRandom().uniform(0.5, 1))

    def _ask(self, name: str, span: tuple[int, int] | None, deadline: float) -> bytes:
        path, (start, stop) = f"{self._root}/{name}", span or (None, None)
        if isinstance(self._system, AsyncFileSystem) and self._system.async_impl:
            found: Any = sync(self._system.loop, self._system._cat_file, path, start=start, end=stop, timeout=deadline)
        else:
            found = self._system.cat_file(path, start=start, end=stop)
        if span is not None and len(found) > span[1] - span[0]:
            raise InputError(
                f"{self.url} gives whole files where a part is asked for: use a server that knows byte ranges, or copy the store"
            )
        if span is not None and len(found) < span[1] - span[0]:
            raise EOFError(f"{len(found)} bytes came instead of {span[1] - span[0]}")
        return found


def _opened(url: str) -> tuple[Any, str]:
    """The file system of a URL, and the folder in it."""
    try:
        return url_to_fs(url)
    except ImportError as error:
        package = PACKAGES.get(url.split("://")[0])
        remedy = f"pip install '{package}'" if package else "install it"
        raise InputError(f"data.store={url} needs a package that is not there ({_first_line(error)}): {remedy}") from error
    except Exception as error:  # each protocol has its own kinds
        raise InputError(f"data.store={url} cannot be opened ({_first_line(error)}): check the URL and the credentials") from error


def _refusal(error: Exception) -> str | None:
    """What is wrong where asking again is of no use. What caused it does not count: a broken body has a status of 400 inside aiohttp."""
    status = _status(error)
    if isinstance(error, FileNotFoundError) or status in MISSING:
        return "is not there: check data.store, and that the whole store was copied"
    if isinstance(error, PermissionError) or status in FORBIDDEN or "Credential" in type(error).__name__:
        return f"may not be read ({_first_line(error)}): check the credentials of this machine"
    if status is not None and 400 <= status < 500 and status not in LATER:
        return f"is refused by the server ({_first_line(error)}): check data.store"
    return None


def _status(error: BaseException) -> int | None:
    """Of HTTP, where an error has one."""
    for holder in (error, getattr(error, "response", None)):
        for name in ("status", "status_code", "code"):
            if isinstance(status := getattr(holder, name, None), int):
                return status
    return None


def _said(error: Exception, patience: Patience) -> str:
    return f"no answer within {patience.deadline:g} s" if isinstance(error, TimeoutError) else _first_line(error)


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
