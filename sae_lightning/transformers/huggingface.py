"""What the Hugging Face hub has, or a folder in its format: here any causal language model."""

import contextlib
import functools
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from sae_lightning.errors import InputError
from sae_lightning.transformers.base import DTYPES, Network, Transformer
from sae_lightning.transformers.fingerprint import fingerprint
from sae_lightning.transformers.hub import first_line, is_local, reachable

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedTokenizerBase

DETERMINING = (".json", ".safetensors", ".model", ".txt", ".py")
IRRELEVANT = ("generation_config.json", "LICENSE.txt", "requirements.txt")

_LOADED: "weakref.WeakValueDictionary[tuple[Any, ...], nn.Module]" = weakref.WeakValueDictionary()
"""A transformer that somebody still holds is not read from disk again."""


class FromHub(Network):
    """`name` is a hub id ("gpt2") or a folder with config.json and safetensors; `revision` a branch, tag or commit.

    Weights are read from safetensors only. `trust_remote_code` runs the model's own Python code: only for names that you trust.
    """

    unread: tuple[str, ...] = ()
    """Beginnings of the names of weights that no row depends on: they may be missing."""

    def __init__(
        self,
        name: str,
        hooks: list[str] | None = None,
        revision: str | None = None,
        dtype: str = "float32",
        trust_remote_code: bool = False,
        random_weights: int | None = None,
    ):
        super().__init__(hooks, dtype, random_weights)
        self.local = is_local(name)
        self.path = str(Path(name).expanduser().resolve()) if self.local else name
        self.name = Path(self.path).name.lower()
        self.revision = revision
        self.trust_remote_code = trust_remote_code

    def identity(self) -> dict[str, Any]:
        """A hub model is its id and commit; a folder is its files, wherever it lies. Errors: InputError, as `config`."""
        drawn = {} if self.random_weights is None else {"random_weights": self.random_weights}
        if not self.local:
            return {"loader": "huggingface", "name": self.path, "commit": self._commit, "dtype": self.dtype} | drawn
        self.config()
        files = sorted(file for file in Path(self.path).iterdir() if file.suffix in DETERMINING and file.name not in IRRELEVANT)
        return {"loader": "huggingface", "files": {file.name: fingerprint(file) for file in files}, "dtype": self.dtype} | drawn

    def config(self) -> "PreTrainedConfig":
        return self._config

    @functools.cached_property
    def _config(self) -> "PreTrainedConfig":
        from transformers import AutoConfig

        with self._one_line("configuration"):
            return AutoConfig.from_pretrained(self.path, **self._where())

    @functools.cached_property
    def _commit(self) -> str:
        from huggingface_hub import hf_hub_download

        with self._one_line("configuration"):
            file = hf_hub_download(self.path, "config.json", revision=self.revision, local_files_only=not reachable())
        return Path(file).parent.name  # <cache>/snapshots/<commit>/config.json

    def load(self, device: str | torch.device = "cpu") -> nn.Module:
        """Errors: InputError also where the file lacks weights that the model needs: they would be random numbers."""
        key = (*self._wanted(), str(device))
        model = _LOADED.get(key)
        if model is None:
            model = _LOADED[key] = self._load().to(device)
        return model

    def _wanted(self) -> tuple[Any, ...]:
        """What `_load` depends on."""
        return self.path, self.revision, self.dtype, self.random_weights

    def _load(self) -> nn.Module:
        if self.random_weights is not None:
            with self._one_line("code"), torch.random.fork_rng(devices=[]):
                torch.manual_seed(self.random_weights)
                made = self.made_by().from_config(self.config(), dtype=DTYPES[self.dtype], trust_remote_code=self.trust_remote_code)
            return made.eval().requires_grad_(False)
        with self._one_line("weights"), _no_progress_bar():
            loaded: Any = self.made_by().from_pretrained(
                self.path, dtype=DTYPES[self.dtype], use_safetensors=True, output_loading_info=True, **self._part(), **self._where()
            )
        model, info = loaded
        if missing := sorted(name for name in info["missing_keys"] if not name.startswith(self.unread)):
            raise InputError(
                f"transformer '{self.path}': its weights lack {len(missing)} tensors, {missing[0]} for one: fetch or export it anew"
            )
        return model.eval().requires_grad_(False)

    def _part(self) -> dict[str, Any]:
        """What from_pretrained must be told of it, where it is a part of what the folder holds."""
        return {}

    def _where(self) -> dict[str, Any]:
        where: dict[str, Any] = {"revision": self.revision, "trust_remote_code": self.trust_remote_code}
        return where if self.local else where | {"local_files_only": not reachable()}

    @contextlib.contextmanager
    def _one_line(self, what: str) -> Iterator[None]:
        """Turns what transformers raises into one line, and asks about the network before transformers does."""
        if self.local and not Path(self.path, "config.json").is_file():
            raise InputError(
                f"no transformer in folder '{self.path}': it has no config.json; set data.transformer.name to a folder or a hub id"
            )
        try:
            yield
        except Exception as error:  # of any of half a dozen libraries
            if not self.local and not reachable():
                raise InputError(
                    f"the hub cannot be reached for the {what} of transformer '{self.path}', and its cache does not hold it:"
                    " connect to the network, or set data.transformer.name to a local folder"
                ) from error
            raise InputError(f"cannot read the {what} of transformer '{self.path}': {first_line(error)}") from error


class HuggingFace(FromHub, Transformer):
    """A causal language model with its tokenizer: see `FromHub`."""

    def tokenizer(self) -> "PreTrainedTokenizerBase":
        return self._tokenizer

    @functools.cached_property
    def _tokenizer(self) -> "PreTrainedTokenizerBase":
        from transformers import AutoTokenizer

        with self._one_line("tokenizer"):
            return AutoTokenizer.from_pretrained(self.path, **self._where())


@contextlib.contextmanager
def _no_progress_bar() -> Iterator[None]:
    from transformers.utils import logging

    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()
