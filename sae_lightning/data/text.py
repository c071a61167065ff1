"""Where token sequences come from."""

import abc
import ast
import glob
import itertools
import json
import platform
import sysconfig
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from sae_lightning.data.hub_rows import HubRows, folder_name, one_line
from sae_lightning.data.packing import Document, packed
from sae_lightning.errors import InputError
from sae_lightning.transformers.base import Transformer
from sae_lightning.transformers.fingerprint import fingerprint
from sae_lightning.transformers.hub import first_line

PIECE = 2**20
"""Characters after which a long .txt file is cut at the next line end."""


class Text(abc.ABC):
    """`name` is for folder names. `prepend_bos`: whether each sequence starts with BOS; None: as the tokenizer does by itself."""

    name: str

    def __init__(self, prepend_bos: bool | None = None):
        self.prepend_bos = prepend_bos

    @abc.abstractmethod
    def identity(self) -> dict[str, Any]:
        """JSON-able: all that determines the sequences, apart from the arguments of `sequences`. Errors: InputError, as `check`."""

    @abc.abstractmethod
    def check(self) -> None:
        """Looks at the text without reading it. Errors: InputError (no network, missing file, unknown column)."""

    @abc.abstractmethod
    def sequences(self, transformer: Transformer, context_length: int, start: int, seed: int) -> Iterator[list[int]]:
        """Sequences number `start`, start + 1, … of exactly `context_length` token ids, until the text ends, if it does.

        A pure function of its arguments. Errors: InputError.
        """

    def without_rows(self, context_length: int) -> str:
        """What is wrong when none of its sequences gives a row."""
        return (
            f"the text '{self.name}' gives no row in sequences of {context_length} tokens: give a longer text or lower data.context_length"
        )


class Documents(Text):
    """A text made of documents, in their own order: `seed` changes nothing."""

    @abc.abstractmethod
    def documents(self) -> Iterator[Document]:
        """All documents, from the first one on. Errors: InputError."""

    def numbered(self, first: int) -> Iterator[Document]:
        """Documents number `first`, `first` + 1, …; what is passed over is not tokenised. Errors: InputError."""
        return itertools.islice(self.documents(), first, None)

    def sequences(self, transformer: Transformer, context_length: int, start: int, seed: int) -> Iterator[list[int]]:
        return itertools.islice(packed(self.documents(), transformer, context_length, self.prepend_bos), start, None)


class LocalText(Documents):
    """Files on this machine: .txt (a document each), .jsonl (a document a line) and .parquet (a document a row).

    `paths` are files, folders (searched through) or globs. In .jsonl and .parquet the document is in `column`: a string, or a
    list of token ids.
    """

    def __init__(self, paths: list[str], column: str = "text", prepend_bos: bool | None = None):
        super().__init__(prepend_bos)
        self.paths = [paths] if isinstance(paths, str) else list(paths)
        self.column = column
        self.name = folder_name(Path(self.paths[0]).stem if self.paths else "text")

    def identity(self) -> dict[str, Any]:
        files = [[file.name, fingerprint(file)] for file in self.files()]
        return {"text": "local", "files": files, "column": self.column, "prepend_bos": self.prepend_bos}

    def check(self) -> None:
        for file in self.files():
            next(self._read(file), None)

    def documents(self) -> Iterator[Document]:
        return itertools.chain.from_iterable(self._read(file) for file in self.files())

    def files(self) -> list[Path]:
        """Errors: InputError when a path leads to no file that can be read as text."""
        if not self.paths:
            raise InputError("no text: name .txt, .jsonl or .parquet files in data.text.paths")
        files: list[Path] = []
        for path in self.paths:
            found = [Path(match) for match in sorted(glob.glob(str(Path(path).expanduser()), recursive=True))]
            inside = [file for folder in found if folder.is_dir() for file in sorted(folder.rglob("*")) if file.suffix in READERS]
            here = [file for file in found if file.is_file()] + inside
            if not here:
                raise InputError(f"no text at '{path}': give a .txt, .jsonl or .parquet file, a folder of them or a glob")
            files += here
        for file in files:
            if file.suffix not in READERS:
                raise InputError(f"cannot read '{file}' as text: its name must end in {', '.join(READERS)}")
        return files

    def _read(self, file: Path) -> Iterator[Document]:
        try:
            yield from READERS[file.suffix](file, self.column)
        except UnicodeDecodeError as error:
            raise InputError(f"'{file}' is not UTF-8 (byte {error.start}): convert it first") from error
        except OSError as error:
            raise InputError(f"cannot read '{file}': {first_line(error)}") from error


class HubText(HubRows, Documents):
    """A data set of the Hugging Face hub, or a folder of .parquet, .jsonl or .txt files in the hub's layout: see `HubRows`.

    `column` holds the document: a string, or with `is_tokenized` its token ids.
    """

    def __init__(
        self,
        name: str,
        config: str | None = None,
        split: str = "train",
        column: str = "text",
        is_tokenized: bool = False,
        streaming: bool = True,
        revision: str | None = None,
        prepend_bos: bool | None = None,
    ):
        Documents.__init__(self, prepend_bos)
        HubRows.__init__(self, name, config, split, column, streaming, revision)
        self.is_tokenized = is_tokenized

    def identity(self) -> dict[str, Any]:
        where = {"text": "hub", **self.where()}
        return where | {"config": self.config, "split": self.split, "column": self.column, "prepend_bos": self.prepend_bos}

    def check(self) -> None:
        """Opens the data set and looks at its first row."""
        if next(self.documents(), None) is None:
            raise InputError(f"data set '{self.path}' has no rows in split '{self.split}'")

    def documents(self) -> Iterator[Document]:
        """A row each; one without a document is an empty one."""
        return self.numbered(0)

    def numbered(self, first: int) -> Iterator[Document]:
        with one_line(f"data set '{self.path}'"):
            rows = self.open()
            for number, document in enumerate(self.values(rows.skip(first) if first else rows), first):
                if document is None:
                    document = [] if self.is_tokenized else ""
                if isinstance(document, str) == self.is_tokenized:
                    holds = "text: set is_tokenized=false" if self.is_tokenized else "no text: set is_tokenized=true if it holds token ids"
                    raise InputError(f"column '{self.column}' of data set '{self.path}' holds {holds} (row {number})")
                yield document


class PythonDocs(Documents):
    """Python's own documentation, which every CPython carries: `pydoc_data.topics`, then the standard library's docstrings.

    About 0.5 and 1.7 million characters of English prose about programming, one document for each topic and each module.
    """

    name = "python_docs"

    def identity(self) -> dict[str, Any]:
        return {"text": "python_docs", "python": platform.python_version(), "prepend_bos": self.prepend_bos}

    def check(self) -> None:
        try:
            import pydoc_data.topics  # noqa: F401
        except ImportError as error:
            raise InputError("this Python comes without pydoc_data.topics: install its standard library whole, or set data=text") from error

    def documents(self) -> Iterator[Document]:
        from pydoc_data.topics import topics

        yield from (topics[name] for name in sorted(topics))
        library = Path(sysconfig.get_path("stdlib"))
        for file in sorted(library.rglob("*.py")):
            if not UNDOCUMENTED & set(file.relative_to(library).parts) and (document := _docstrings(file)):
                yield document


UNDOCUMENTED = {"site-packages", "dist-packages", "test", "tests", "idlelib", "idle_test", "lib2to3", "turtledemo", "pydoc_data"}


def _docstrings(file: Path) -> str:
    try:
        tree = ast.parse(file.read_bytes())
    except (SyntaxError, ValueError):
        return ""
    documented = (node for node in ast.walk(tree) if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)))
    return "\n\n".join(docstring for node in documented if (docstring := ast.get_docstring(node)))


def _txt(file: Path, column: str) -> Iterator[Document]:
    with open(file, encoding="utf-8") as lines:
        while piece := lines.read(PIECE):
            yield piece + lines.readline()


def _jsonl(file: Path, column: str) -> Iterator[Document]:
    with open(file, encoding="utf-8") as lines:
        for number, line in enumerate(lines, 1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except json.JSONDecodeError as error:
                raise InputError(f"'{file}', line {number} is not JSON ({error.msg}): a .jsonl file holds one object a line") from error
            if not isinstance(row, dict) or column not in row:
                has = ", ".join(row) if isinstance(row, dict) else type(row).__name__
                raise InputError(f"'{file}', line {number} has no '{column}' but {has}: set data.text.column")
            if row[column] is not None:
                yield _checked(row[column], f"'{column}' of '{file}', line {number}")


def _parquet(file: Path, column: str) -> Iterator[Document]:
    import pyarrow
    from pyarrow import parquet

    try:
        table = parquet.ParquetFile(file)
    except pyarrow.ArrowException as error:
        raise InputError(f"cannot read '{file}': {first_line(error)}") from error
    with table:
        names = table.schema_arrow.names
        if column not in names:
            raise InputError(f"'{file}' has no column '{column}' but {', '.join(names)}: set data.text.column")
        for batch in table.iter_batches(batch_size=1024, columns=[column]):
            for value in batch.column(0).to_pylist():
                if value is not None:
                    yield _checked(value, f"column '{column}' of '{file}'")


def _checked(value: Any, where: str) -> Document:
    if isinstance(value, str) or (isinstance(value, list) and all(type(i) is int for i in value)):
        return value
    raise InputError(f"{where} is neither a string nor a list of token ids but {type(value).__name__}: set data.text.column")


READERS = {".txt": _txt, ".jsonl": _jsonl, ".parquet": _parquet}
