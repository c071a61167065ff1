import pytest
import torch
from torch.testing import assert_close

from tests.evaluation.words import BOS, EMBEDDED, Words

SEQUENCES = [[BOS, 2, 3, 4], [5], [BOS, 4, 4, 3, 2, 5, BOS, 2], [BOS], []]


@pytest.fixture
def transformer():
    return Words(["a", "b", "c", "d"])


@pytest.mark.parametrize("batch_tokens", [1, 16, 1000])
@pytest.mark.parametrize("hook", [EMBEDDED, "model.layers.1"])
def test_rows_are_those_of_each_sequence_alone_without_its_special_tokens(rows, transformer, batch_tokens, hook):
    from sae_lightning.evaluation.texts import rows_of
    from sae_lightning.transformers.hooks import read

    data = rows(torch.ones(3, 16), transformer=transformer, hook=hook)
    found = list(rows_of(data, SEQUENCES, batch_tokens, torch.device("cpu")))
    assert [len(own) for own in found] == [3, 1, 6, 0, 0]
    for ids, own in zip(SEQUENCES[:3], found, strict=False):
        alone = read(transformer.load(), [hook], torch.tensor([ids]))[hook][0]
        assert_close(own, alone[torch.tensor(ids) != BOS], rtol=1e-5, atol=1e-5)
    assert list(rows_of(data, [], 10, torch.device("cpu"))) == []


def test_hook_points_stand_side_by_side_and_long_sequences_are_cut(rows, transformer):
    from sae_lightning.data.batch import Hooks
    from sae_lightning.evaluation.texts import rows_of

    class Stacked(type(rows(torch.ones(1, 16)))):
        hooks = Hooks(("model.layers.0", EMBEDDED), ("model.layers.0", EMBEDDED))  # pyright: ignore[reportAssignmentType]

    data = Stacked(torch.ones(3, 32), transformer=transformer)
    (own,) = rows_of(data, [[2, 3] * 20], 10, torch.device("cpu"))
    assert own.shape == (32, 32)
    assert_close(own[:, 16:], transformer.embeddings()[torch.tensor([2, 3] * 16)])


def test_what_begins_with_bos(rows, transformer):
    from sae_lightning.evaluation.texts import beginning

    ids = torch.tensor([[BOS, 2, 3], [BOS, 3, 3]])

    def of(tokens):
        return beginning(rows(torch.ones(1, 16), transformer=transformer, tokens=tokens, special=tokens == BOS))

    assert of(ids) == [BOS]
    assert of(ids[:, 1:]) == []
    assert of(torch.cat([ids, torch.tensor([[2, BOS, 3]])])) == []
