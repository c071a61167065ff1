"""Rows of texts that are not the data's own, by the data's transformer at its hook points."""

from collections.abc import Iterator, Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from sae_lightning.data.rows import RowsDataModule
from sae_lightning.transformers.hooks import read

LOOKED_AT = 8


def beginning(data: RowsDataModule) -> list[int]:
    """What sequences of the data start with: [BOS] or nothing. Errors: InputError for data without tokens."""
    bos = data.transformer.tokenizer().bos_token_id
    first = data.tokens_held_out(LOOKED_AT)[0][:, 0]
    return [bos] if bos is not None and bool((first == bos).all()) else []


def rows_of(
    data: RowsDataModule, sequences: Sequence[Sequence[int]], batch_tokens: int, device: torch.device
) -> Iterator[Float[Tensor, "tokens d_in"]]:
    """x at every token of each sequence of ids that is not special, in float32.

    Sequences are filled up on the right, which a causal transformer does not see, and cut where its positions end.
    """
    model, special = data.transformer.load(device), torch.tensor(sorted(data.transformer.special_ids()))
    longest = min(max(map(len, sequences), default=1), data.transformer.max_context() or batch_tokens)
    at_once = max(1, batch_tokens // longest)
    for start in range(0, len(sequences), at_once):
        batch = [list(sequence[:longest]) for sequence in sequences[start : start + at_once]]
        ids = torch.tensor([sequence + [0] * (longest - len(sequence)) for sequence in batch])
        is_there = torch.arange(longest) < torch.tensor([len(sequence) for sequence in batch])[:, None]
        activations = read(model, data.hooks.x, ids.to(device))
        rows = torch.cat([activations[hook].float() for hook in data.hooks.x], dim=2)
        for own, kept in zip(rows, is_there & ~torch.isin(ids, special), strict=True):
            yield own[kept.to(device)]
