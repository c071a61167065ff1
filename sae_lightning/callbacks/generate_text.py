"""What a transformer writes with the SAE in it."""

import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import lightning as L
from torch import Tensor, nn

from sae_lightning.callbacks.in_transformer import InTransformer
from sae_lightning.data.rows import RowsDataModule, generator
from sae_lightning.errors import InputError
from sae_lightning.evaluation.texts import beginning
from sae_lightning.files import write_text
from sae_lightning.inference import InferenceSAE
from sae_lightning.models.base import SAE
from sae_lightning.module import SAEModule
from sae_lightning.transformers.generation import Reader, Sampling, SplicedReader, continued

FILE = "generated_text.md"
TABLE = "generated_text"
SEQUENCES = 256
"""Held-out sequences that say at which first positions there are no rows."""


class Entry(NamedTuple):
    """A prompt with what follows it, by the transformer as it is and by the spliced one."""

    prompt: str
    clean: str
    spliced: str


class GenerateText(InTransformer):
    """Text that the transformer writes with reconstructions spliced in, beside what it writes without them.

    Of each prompt, `max_tokens` tokens at most: fewer where a special token ends the text, or the transformer's positions end. They are
    drawn as transformers draws them, from softmax(logits / temperature) and, with top_p below 1, of the likeliest tokens that together
    have that probability; temperature 0 takes the likeliest. Both texts are drawn with the same noise, at each validation anew: a
    perfect SAE gives the same text, and what changes from one validation to the next is the SAE.

    As in evaluation, special tokens are not spliced, nor are first positions of which no held-out sequence has a row (sinks that
    data.exclude_norm_above leaves out); a transcoder's reconstruction stands at y's hook point, a crosscoder's at all of its own. At
    every `every_n_validations`-th validation, by rank 0: <run>/generated_text.md, an entry for each step, and the table generated_text
    in W&B. Costs a forward pass for each token and two more.

    Errors: InputError for numbers out of their range, prompts that are none or too long, and rows without a transformer.
    """

    name = "generate_text"

    def __init__(self, prompts: str | list[str] = "Once upon a time", temperature: float = 1.0, top_p: float = 1.0, max_tokens: int = 50,
                 every_n_validations: int = 1, seed: int = 0):  # fmt: skip
        super().__init__(every_n_validations)
        self.prompts = [prompts] if isinstance(prompts, str) else list(prompts)
        if not self.prompts:
            raise InputError(
                "callbacks.generate_text.prompts is empty: give a prompt or several, callbacks.generate_text.prompts=[Once,The]"
            )
        if not (temperature >= 0 and math.isfinite(temperature)):
            raise InputError(f"callbacks.generate_text.temperature is {temperature}: give 0 (the likeliest token) or a positive number")
        if not 0 < top_p <= 1:
            raise InputError(f"callbacks.generate_text.top_p is {top_p}: give a share above 0, at most 1")
        if max_tokens < 1:
            raise InputError(f"callbacks.generate_text.max_tokens is {max_tokens}: give a positive number of tokens")
        self.sampling, self.seed = Sampling(temperature, top_p, max_tokens), seed
        self.data: RowsDataModule | None = None
        self.model: nn.Module | None = None
        self.ids: list[list[int]] = []
        self.clean: list[str] = []
        self.unspliced = 0

    def check(self, sae: SAE, data: RowsDataModule) -> None:
        super().check(sae, data)
        longest = data.transformer.max_context() or math.inf
        for prompt in self.prompts:
            if (tokens := len(_tokens(data, prompt)) + 1) >= longest:
                raise InputError(
                    f"callbacks.generate_text.prompts: {prompt[:20]!r}… has {tokens} tokens with BOS, and the transformer's texts end at "
                    f"{longest}: shorten it"
                )

    def begin(self, trainer: L.Trainer, data: RowsDataModule) -> None:
        first = beginning(data)
        self.ids = [first + _tokens(data, prompt) for prompt in self.prompts]
        if [] in self.ids:
            raise InputError("callbacks.generate_text.prompts: an empty prompt needs a text that begins with BOS: give it a word")
        if not trainer.is_global_zero:
            return
        self.data, self.model = data, data.transformer.load(trainer.strategy.root_device)
        has_no_row = data.tokens_held_out(SEQUENCES)[1].all(0)
        self.unspliced = int(has_no_row.int().cumprod(0).sum())
        self.clean = self._texts(lambda: Reader(self.model))  # type: ignore[arg-type]

    def look(self, trainer: L.Trainer, module: SAEModule) -> None:
        if not trainer.is_global_zero:
            return
        sae = module.inference()
        spliced = self._texts(lambda: self._spliced(sae))
        entries = [Entry(*texts) for texts in zip(self.prompts, self.clean, spliced, strict=True)]
        write(Path(trainer.default_root_dir) / FILE, trainer.global_step, entries)
        for logger in trainer.loggers:
            if hasattr(logger, "log_text"):
                rows = [[trainer.global_step, *entry] for entry in entries]
                logger.log_text(TABLE, columns=["step", *Entry._fields], data=rows, step=trainer.global_step)  # type: ignore[attr-defined]

    def _spliced(self, sae: InferenceSAE) -> SplicedReader:
        assert self.data is not None
        assert self.model is not None
        return SplicedReader(self.model, self.data.hooks, self.data.shape.y, sae, self.data.transformer.special_ids(), self.unspliced)

    def _texts(self, reader: Callable[[], Callable[[Tensor], Tensor]]) -> list[str]:
        """Of each prompt, read by a new reader: the prompt and what follows."""
        assert self.data is not None
        assert self.model is not None
        transformer, device = self.data.transformer, next(self.model.parameters()).device
        special, longest, texts = transformer.special_ids(), transformer.max_context() or math.inf, []
        for number, prompt in enumerate(self.ids):
            sampling = self.sampling._replace(max_tokens=int(min(self.sampling.max_tokens, longest - len(prompt))))
            ids = continued(reader(), prompt, sampling, special, generator(self.seed, self.name, number), device)
            texts.append(transformer.tokenizer().decode(ids, skip_special_tokens=True))
        return texts


def _tokens(data: RowsDataModule, prompt: str) -> list[int]:
    return data.transformer.tokenizer()(prompt, add_special_tokens=False)["input_ids"]


def write(path: Path, step: int, entries: list[Entry]) -> None:
    """Adds the entries of a step to the file at `path`, atomically; those of this step and of later ones, of a run that was killed
    behind its last checkpoint, go.
    """
    before = path.read_text(encoding="utf-8") if path.is_file() else ""
    title, *sections = re.split(r"^(?=## step \d+$)", before, flags=re.MULTILINE)
    kept = [section for section in sections if int(section.split(maxsplit=3)[2]) < step]
    new = f"## step {step}\n\n" + "".join(_lines(entry) for entry in entries)
    write_text(path, "".join([title or "# What the transformer writes, as it is and with the SAE in it\n\n", *kept, new]))


def _lines(entry: Entry) -> str:
    """Indented: whatever the text is, no line of it is one of the file's own."""
    parts = ("".join(f"    {line}\n" for line in text.splitlines() or [""]) for text in entry)
    return "".join(f"{name}:\n\n{part}\n" for name, part in zip(Entry._fields, parts, strict=True))
