"""From documents to sequences of exactly `context_length` token ids."""

import itertools
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple, cast

from sae_lightning.errors import InputError
from sae_lightning.transformers.base import Transformer

Document = str | list[int]
"""A text, or one that is tokenised already."""

AT_ONCE = 2**20
"""Characters that go to the tokenizer together."""


class Place(NamedTuple):
    """Where a sequence begins: at which document, counted from 0, and at which of its token ids, the EOS behind it among them."""

    document: int
    offset: int


BEGINNING = Place(0, 0)


def packed(documents: Iterable[Document], transformer: Transformer, context_length: int, prepend_bos: bool | None) -> Iterator[list[int]]:
    """Documents one after another, each followed by EOS where the tokenizer has one, cut into sequences; the remainder is dropped.

    With `prepend_bos` (None: as the tokenizer does by itself) each sequence starts with BOS. A tokenised document of exactly
    `context_length` ids that meets no remainder of another one is a sequence as it is.
    Errors: InputError for token ids outside the vocabulary, a context that is too long, or no BOS where it is asked for.
    """
    return (sequence for _, sequence in located(documents, transformer, context_length, prepend_bos))


def located(
    documents: Iterable[Document], transformer: Transformer, context_length: int, prepend_bos: bool | None, place: Place = BEGINNING
) -> Iterator[tuple[Place, list[int]]]:
    """As `packed`, from the sequence on that begins at `place`, and where each begins. `documents`: from number `place.document` on."""
    check_context(transformer, context_length)
    start = bos(transformer, prepend_bos)
    tokenizer: Any = transformer.tokenizer()
    end = tokenizer.eos_token_id
    room = context_length - len(start)
    rest: list[int] = []
    begins, skipped = place, place.offset
    for document, (ids, was_tokenised) in enumerate(_tokenised(documents, transformer), place.document):
        if not rest and not skipped:
            begins = Place(document, 0)
            if was_tokenised and len(ids) == context_length:
                yield begins, ids
                continue
        before, skipped = len(rest) - skipped, 0
        rest += ids[-before:] if before < 0 else ids
        if end is not None and ids and ids[-1] != end:
            rest.append(end)
        whole = len(rest) // room * room
        for i in range(0, whole, room):
            yield begins, start + rest[i : i + room]
            begins = Place(document, i + room - before)
        del rest[:whole]


def bos(transformer: Transformer, prepend_bos: bool | None) -> list[int]:
    """What a sequence starts with: [BOS] or nothing. Errors: InputError when it is asked for and the tokenizer has none."""
    tokenizer: Any = transformer.tokenizer()
    if prepend_bos is None:
        first = tokenizer("a")["input_ids"][:1]
        prepend_bos = tokenizer.bos_token_id is not None and first == [tokenizer.bos_token_id]
    if not prepend_bos:
        return []
    if tokenizer.bos_token_id is None:
        raise InputError(f"prepend_bos=true, but the tokenizer of '{transformer.name}' has no BOS token: set prepend_bos=null")
    return [tokenizer.bos_token_id]


def check_context(transformer: Transformer, context_length: int) -> None:
    """Errors: InputError when sequences are too short to learn from or longer than the transformer's positions."""
    longest = transformer.max_context()
    if longest is not None and context_length > longest:
        raise InputError(
            f"context_length={context_length} is more than the {longest} positions of '{transformer.name}': choose {longest} or less"
        )
    if context_length < 2:
        raise InputError(f"context_length={context_length}: choose 2 or more")


def _tokenised(documents: Iterable[Document], transformer: Transformer) -> Iterator[tuple[list[int], bool]]:
    tokenizer: Any = transformer.tokenizer()
    vocabulary = transformer.config().get_text_config().vocab_size
    for is_text, group in itertools.groupby(documents, lambda document: isinstance(document, str)):
        if is_text:
            for texts in _portions(group):
                ids = tokenizer(texts, add_special_tokens=False, return_attention_mask=False, verbose=False)["input_ids"]
                yield from ((document, False) for document in ids)
            continue
        for document in cast("Iterator[list[int]]", group):
            if document and not 0 <= min(document) <= max(document) < vocabulary:
                raise InputError(
                    f"the text holds token id {max(document)}, but the vocabulary of '{transformer.name}' ends at {vocabulary - 1}:"
                    " it was tokenised for another transformer"
                )
            yield document, True


def _portions(texts: Iterable[Any]) -> Iterator[list[str]]:
    portion: list[str] = []
    characters = 0
    for text in texts:
        portion.append(text)
        characters += len(text)
        if characters >= AT_ONCE or len(portion) >= 1000:
            yield portion
            portion, characters = [], 0
    if portion:
        yield portion
