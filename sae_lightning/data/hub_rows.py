"""Data sets of the Hugging Face hub, and folders in its layout."""

import contextlib
import os
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from sae_lightning.errors import InputError
from sae_lightning.transformers.fingerprint import fingerprint
from sae_lightning.transformers.hub import first_line, is_local, reachable


class HubRows:
    """`config` and `split` choose a part of a data set, `column` what is read of a row.

    `streaming` reads it over the network as it goes; otherwise it is fetched and kept first. A data set may change on the hub:
    `revision` (a commit) pins it.
    """

    def __init__(self, name: str, config: str | None, split: str, column: str, streaming: bool, revision: str | None):
        self.local = is_local(name)
        self.path = str(Path(name).expanduser()) if self.local else name
        self.name = folder_name(Path(name).name)
        self.config, self.split, self.column = config, split, column
        self.streaming, self.revision = streaming, revision

    def where(self) -> dict[str, Any]:
        """What determines the rows, but for the part that is read. Errors: InputError for a folder that does not exist."""
        if not self.local:
            return {"name": self.path, "revision": self.revision}
        self._refuse_missing_folder()
        files = sorted(file for file in Path(self.path).rglob("*") if file.is_file() and not file.name.startswith("."))
        return {"files": [[file.relative_to(self.path).as_posix(), fingerprint(file)] for file in files]}

    def open(self) -> Any:
        """The data set of `datasets`. Errors: InputError without a network, where one is needed; and whatever `datasets` raises."""
        kept = not self.streaming and "HF_HUB_OFFLINE" in os.environ
        if not self.local and not kept and not reachable():
            raise InputError(
                f"the hub cannot be reached for data set '{self.path}': connect to the network, {self.instead},"
                " or set HF_HUB_OFFLINE=1 and streaming=false where it was fetched before"
            )
        self._refuse_missing_folder()
        from datasets import load_dataset

        return load_dataset(self.path, self.config, split=self.split, streaming=self.streaming, revision=self.revision)

    instead: str = "set data=text and name local files"
    """What to do without a network."""

    def values(self, rows: Iterable[Any]) -> Iterator[Any]:
        """What the column holds, row by row. Errors: InputError where there is none of the name."""
        for row in rows:
            self.check_column(row)
            yield row[self.column]

    def check_column(self, names: Iterable[str]) -> None:
        """Errors: InputError where the column is not among these."""
        if self.column not in names:
            raise InputError(f"data set '{self.path}' has no column '{self.column}': it has {', '.join(names)}")

    def _refuse_missing_folder(self) -> None:
        if self.local and not Path(self.path).is_dir():
            raise InputError(f"no data set in folder '{self.path}': it does not exist")


def folder_name(name: str) -> str:
    """What can stand in a folder's name on every system."""
    return re.sub(r"[^A-Za-z0-9._]+", "-", name).strip("-.").lower() or "text"


@contextlib.contextmanager
def one_line(what: str) -> Iterator[None]:
    """Turns what other libraries raise into one line."""
    try:
        yield
    except InputError:
        raise
    except Exception as error:  # of any of half a dozen libraries
        raise InputError(f"cannot read {what}: {first_line(error)}") from error
