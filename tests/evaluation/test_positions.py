import itertools

import pytest
import torch
from torch.testing import assert_close

from tests.data.tiny import BOS, HOOKS, LOUD, D, RandomText, TinyLlama, harvest


def test_by_hand(rows, sae):
    """Two sequences of BOS and three tokens, of which one position was excluded. There is a latent for the first coordinate alone."""
    from sae_lightning.evaluation.positions import Positions

    tokens = torch.tensor([[0, 5, 6, 6], [0, 7, 6, 5]])
    special = torch.tensor([[True, False, False, False], [True, False, True, False]])
    # position   1      2      3   |  1      3
    # token      5      6      6   |  7      5
    x = torch.tensor([[4.0, 0], [1, 1], [2, 0], [0, 2], [3, 2]])
    # ȳ = (2, 1); ‖y − ȳ‖²: 4 + 1, 1 + 0, 0 + 1, 4 + 1, 1 + 1; ‖e‖² = the second coordinate squared: 0, 1, 0, 4, 4; L0: 1, 1, 1, 0, 1.
    # Position 1: rows 0 and 3: 1 − 4/10. Positions 2–3: rows 1, 2, 4: 1 − 5/4. No row at position 0.
    # 7 stands once: rank 0 … 1 of 5, its middle is in the first quarter; 5 and 6 twice each: ranks 1 … 5, middle 3: the third quarter.
    # Rarest: row 3: 1 − 4/5. The others: 1 − 5/9.
    expected = {
        "explained_variance_at_position_00001": 0.6,
        "explained_variance_at_position_00002": -0.25,
        "explained_variance_of_token_quartile_1": 0.2,
        "explained_variance_of_token_quartile_3": 4 / 9,
        "l0_at_position_00001": 0.5,
        "l0_at_position_00002": 1.0,
        "l0_of_token_quartile_1": 0.0,
        "l0_of_token_quartile_3": 1.0,
    }
    values = Positions()(sae([[1, 0]]), rows(x, tokens=tokens, special=special))
    assert values.keys() == expected.keys()
    for name, value in expected.items():
        assert_close(values[name], value, rtol=0, atol=1e-12, msg=lambda text, name=name: f"{name}: {text}")
    # Of the first three rows: position 1 is row 0, positions 2–3 are rows 1 and 2; ȳ = (7/3, 1/3), ‖y − ȳ‖²: 26/9, 20/9, 2/9.
    first = Positions(rows=3)(sae([[1, 0]]), rows(x, tokens=tokens, special=special))
    assert_close(first["explained_variance_at_position_00001"], 1.0)
    assert_close(first["explained_variance_at_position_00002"], 1 - 9 / 22)
    assert "l0_of_token_quartile_1" not in first


def test_bins_of_positions_are_powers_of_two(rows, sae):
    from sae_lightning.evaluation.positions import Positions

    ids = torch.randint(0, 50, (3, 17), generator=torch.Generator().manual_seed(0))
    # Row p of a sequence has as many active latents as its position: the mean of a bin is that of its positions.
    x = (torch.arange(17)[:, None] > torch.arange(17)).float().repeat(3, 1)
    values = Positions()(sae(torch.eye(17)), rows(x, tokens=ids, special=torch.zeros_like(ids, dtype=torch.bool)))
    found = {name: value for name, value in values.items() if name.startswith("l0_at")}
    assert list(found) == sorted(found)
    assert list(found.values()) == [0, 1, 2.5, 5.5, 11.5, 16]


def test_quantiles_of_frequency():
    from sae_lightning.evaluation.positions import frequency_bins

    # 40 tokens that stand once, 20 twice, 10 four times, one 40 times: a quarter of 160 rows each, whatever their order.
    tokens = torch.cat([torch.arange(40), torch.arange(40, 60).repeat(2), torch.arange(60, 70).repeat(4), torch.full((40,), 70)])
    expected = torch.arange(4).repeat_interleave(40)
    order = torch.randperm(160, generator=torch.Generator().manual_seed(0))
    assert_close(frequency_bins(tokens[order], 4), expected[order])
    # One frequency: the middle of all ranks.
    assert frequency_bins(torch.arange(7), 4).tolist() == [2] * 7


def test_planted_faults_are_found_and_elsewhere_there_are_none(rows, sae):
    """The first position has a direction of its own, and so has every token that is rare; neither has a latent."""
    from sae_lightning.evaluation.positions import Positions

    g = torch.Generator().manual_seed(0)
    ids = torch.randint(0, 4, (64, 16), generator=g)
    rare = torch.rand(64, 16, generator=g) < 0.2
    ids[rare] = 100 + torch.arange(int(rare.sum()))
    x = torch.nn.functional.one_hot(ids.clamp(max=4), 6).float()
    good = x.clone()
    good[..., 4] = 0
    x[:, 0, 5] = 3
    none = torch.zeros_like(ids, dtype=torch.bool)
    own = sae(torch.eye(6)[:4])
    values = Positions()(own, rows(x.flatten(0, 1), tokens=ids, special=none))
    assert values["explained_variance_at_position_00000"] < 0.3
    assert values["explained_variance_of_token_quartile_1"] < 0.3
    assert min(values[f"explained_variance_at_position_{edge:05}"] for edge in (1, 2, 4, 8)) > 0.7
    assert min(values[f"explained_variance_of_token_quartile_{i}"] for i in (2, 3, 4) if f"l0_of_token_quartile_{i}" in values) > 0.5
    values = Positions()(own, rows(good.flatten(0, 1), tokens=ids, special=none))
    assert {value for name, value in values.items() if name.startswith("explained")} == {1.0}


@pytest.fixture(scope="module")
def sources(tmp_path_factory):
    """Sources of the rows of one transformer: a store where rows are missing now and then, two stores that are mixed, and none."""
    from sae_lightning.data.live import LiveDataModule
    from sae_lightning.data.sources import cached

    below = tmp_path_factory.mktemp("stores")
    spoilt = {"transformer": TinyLlama(spoilt=True), "text": RandomText(rare=LOUD), "exclude_norm_above": 10.0}
    paths = [str(harvest(below, **settings).ensure().path) for settings in (spoilt, {"text": RandomText(highest=30)})]
    made = {
        "store": (cached(paths[0], 64, hook=HOOKS[0], validation_rows=200), spoilt["transformer"]),
        "mixed": (cached(paths, 64, hook=HOOKS[0], validation_rows=300, weights=[2, 1]), spoilt["transformer"]),
        "live": (LiveDataModule(harvest(below), HOOKS[0], 64, validation_rows=200), TinyLlama()),
    }
    for data, _ in made.values():
        data.prepare_data()
        data.setup()
    return made


@pytest.mark.parametrize("name", ["store", "mixed", "live"])
def test_rows_of_every_source_are_those_of_their_tokens(sources, sae, name):
    """Against what the transformer gives when it reads the held-out sequences again, token by token."""
    from sae_lightning.evaluation.positions import Positions
    from sae_lightning.transformers.hooks import read

    data, transformer = sources[name]
    own = sae(torch.randn(24, D, generator=torch.Generator().manual_seed(0)), k=3)
    values = Positions()(own, data)
    ids, special = data.tokens_held_out(10**6)
    assert special[:, 1:].any() == (name != "live")  # some positions were excluded
    activations = read(transformer.load(), HOOKS[:1], ids)[HOOKS[0]]
    mean = activations[~special].mean(0)
    error, variance = torch.zeros(16), torch.zeros(16)
    for i, j in itertools.product(range(len(ids)), range(16)):
        if not special[i, j]:
            y = activations[i, j]
            error[j] += (y - own(y[None])[0]).square().sum()
            variance[j] += (y - mean).square().sum()
    assert (ids[:, 0] == BOS).all()
    assert "l0_at_position_00000" not in values
    for edge in (1, 2, 4, 8):
        expected = 1 - error[edge : 2 * edge].sum() / variance[edge : 2 * edge].sum()
        assert_close(values[f"explained_variance_at_position_{edge:05}"], float(expected), rtol=1e-4, atol=1e-4)


def test_nothing_without_tokens_and_one_line_without_rows(sae):
    from sae_lightning.data.synthetic import SyntheticDataModule
    from sae_lightning.errors import InputError
    from sae_lightning.evaluation.positions import Positions

    assert Positions()(sae(torch.eye(16)), SyntheticDataModule(d=16, n_directions=24, l0=2.0, batch_size=256, rows_held_out=512)) == {}
    with pytest.raises(InputError, match=r"evaluate.positions.rows is 0: give a positive number"):
        Positions(rows=0)
