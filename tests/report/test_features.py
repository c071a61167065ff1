"""What the page shows of each latent, against slow computations."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch.testing import assert_close

from tests.evaluation.conftest import rows, sae  # noqa: F401 (fixtures)
from tests.evaluation.words import EMBEDDED, Words

D, LATENTS, CONTEXT, SEQUENCES = 16, 40, 30, 25


@pytest.fixture
def transformer():
    return Words([f"w{i}" for i in range(50)])


@pytest.fixture
def data(rows, transformer):  # noqa: F811
    """Sequences whose first token is special, as is another one in their midst."""
    g = torch.Generator().manual_seed(0)
    ids = torch.randint(2, 52, (SEQUENCES, CONTEXT), generator=g)
    ids[:, 0] = ids[5, 7] = 0
    x = torch.randn(SEQUENCES * CONTEXT - SEQUENCES - 1, D, generator=g)
    return rows(x, transformer=transformer, hook=EMBEDDED, tokens=ids, special=ids == 0)


@pytest.fixture
def some(sae):  # noqa: F811
    """Latent 3 never fires; the others do in half of the rows or fewer."""
    g = torch.Generator().manual_seed(1)
    made = sae(torch.randn(LATENTS, D, generator=g), torch.randn(LATENTS, D, generator=g))
    made.b_enc[:] = -torch.rand(LATENTS, generator=g)
    made.b_enc[3] = -1e4
    return made


def test_all_that_is_active_by_latent(data, some):
    from sae_lightning.report import features

    found = features.active(some, data, 300)
    dense = some.encode(data.x[:300]).dense()
    assert found.rows == 300
    for latent in range(LATENTS):
        start, stop = found.starts[latent], found.starts[latent + 1]
        expected = dense[:, latent].nonzero()[:, 0]
        assert_close(torch.from_numpy(found.row[start:stop]).long(), expected)
        assert_close(torch.from_numpy(found.value[start:stop]), dense[expected, latent])
    assert found.starts[3] == found.starts[4]
    largest = dense.amax(0).numpy()
    histograms = features.histograms(found, np.where(largest > 0, largest, 1))
    assert_close(torch.from_numpy(histograms.sum(1)), (dense > 0).sum(0))
    assert histograms[0, -1] == int((dense[:, 0] >= 0.95 * dense[:, 0].max()).sum())


@pytest.mark.parametrize("form", ["top_k", "dense"])
def test_active_of_every_form(some, data, form):
    latents = some.encode(data.x[:50])
    if form == "top_k":
        some.k = 5
        latents = some.encode(data.x[:50])
    row, latent, value = latents.active()
    dense = torch.zeros(50, LATENTS).index_put((row, latent), value)
    assert_close(dense, latents.dense())
    assert bool((value > 0).all())


def test_contexts_are_the_tokens_around_and_how_active_the_latent_is_at_each(data, some):
    from sae_lightning.report import features

    where, found = features.places(data, 600), features.active(some, data, 600)
    assert where is not None
    latents = np.array([0, 7, 11])
    made = features.contexts(found, where, latents)
    dense = some.encode(data.x[:600]).dense().numpy()
    of_position = np.full((SEQUENCES, CONTEXT), -1)
    of_position[(data.tokens != 0).numpy()] = np.arange(len(data.x))
    for i, latent in enumerate(latents):
        own = slice(made.starts[i], made.starts[i + 1])
        kinds, values = made.kind[own], made.value[own]
        ordered = np.sort(dense[:, latent][dense[:, latent] > 0])[::-1]
        np.testing.assert_array_equal(values[kinds == 0], ordered[: features.TOP])
        rest = np.array_split(ordered[features.TOP :][::-1], features.QUARTILES)
        for quarter in range(features.QUARTILES):
            drawn = values[kinds == quarter + 1]
            assert len(drawn) == features.PER_QUARTILE
            assert rest[quarter].min() <= drawn[-1] <= drawn[0] <= rest[quarter].max()
        for e in range(own.start, own.stop):
            s, p = made.sequence[e], made.position[e]
            assert dense[of_position[s, p], latent] == made.value[e] == made.active[e, features.BEFORE]
            for k, at in enumerate(range(p - features.BEFORE, p + features.AFTER + 1)):
                token = int(data.tokens[s, at]) if 0 <= at < CONTEXT else -1
                row = of_position[s, at] if token > 0 else -1
                assert made.ids[e, k] == token
                assert made.active[e, k] == (dense[row, latent] if 0 <= row < 600 else 0)


def test_a_latent_with_few_activations_has_what_there_is(data, sae):  # noqa: F811
    from sae_lightning.report import features

    data.x[:, 0] = -1
    data.x[[4, 9, 30], 0] = torch.tensor([1.0, 3.0, 2.0])
    only = sae(torch.eye(D)[:1])
    found, where = features.active(only, data, 10_000), features.places(data, 10_000)
    assert where is not None
    made = features.contexts(found, where, np.array([0]))
    assert made.value.tolist() == [3, 2, 1]
    assert made.kind.tolist() == [0, 0, 0]
    assert features.peaks(made).tolist() == [[int(data.tokens[data.tokens != 0][row]) for row in (9, 30, 4)]]


def test_neighbours_and_effects(some, transformer):
    from sae_lightning.report import features

    latents = torch.tensor([0, 2, 5, 6, 9, 11, 30])
    near, cosines = features.neighbours(some, latents)
    unit = F.normalize(some.W_dec[latents], dim=1)
    expected = (unit @ unit.T).fill_diagonal_(-2).topk(features.NEIGHBOURS, dim=1)
    assert_close(torch.from_numpy(cosines), expected.values)
    assert_close(torch.from_numpy(near), latents[expected.indices])

    model = transformer.load()
    with torch.no_grad():
        model.model.norm.weight.copy_(torch.linspace(0.5, 2, D))
        logits = (some.W_dec[latents] * model.model.norm.weight) @ model.lm_head.weight.T
    found = features.effects(some, model, latents)
    assert found is not None
    logits -= logits.mean(1, keepdim=True)
    assert_close(torch.from_numpy(found.up), logits.topk(features.TOKENS).values, rtol=1e-4, atol=1e-5)
    assert_close(torch.from_numpy(found.suppressed), logits.topk(features.TOKENS, largest=False).indices)


def test_no_effects_of_a_place_that_the_unembedding_does_not_read(sae, transformer):  # noqa: F811
    from sae_lightning.report import features

    assert features.effects(sae(torch.eye(8)), transformer.load(), torch.arange(4)) is None


def test_of_many_latents_some(some):
    from sae_lightning.report import features

    density = np.arange(LATENTS) % 2
    assert features.shown(density, 100).tolist() == list(range(1, LATENTS, 2))
    few = features.shown(density, 5)
    assert len(few) == 5
    assert set(few) <= set(range(1, LATENTS, 2))
