import pytest
import torch
from torch.testing import assert_close


def test_by_hand(rows, sae):
    """200 rows of four coordinates, each the value of a latent of its own: what a latent explains is its coordinate's share.

    Coordinate 0 is ±1 in turns and 1 fires in half of the rows; 1 is 2 in 10 rows (5 %); 2 is 3 in two rows (1 %, not above);
    3 is −1 in one row, for which there is no latent.
    """
    from sae_lightning.evaluation.dense_tail import DenseTail

    x = torch.zeros(200, 4)
    x[:, 0] = torch.tensor([1.0, -1.0]).repeat(100)
    x[:10, 1], x[:2, 2], x[7, 3] = 2, 3, -1
    # Σ(y − ȳ)²: 200 − 0;  40 − 20²/200 = 38;  18 − 6²/200 = 17.82;  1 − 1/200 = 0.995;  together 256.815.
    # The squared error of the whole: 100 (the negative half) + 1.  Without latent 0: 100 more; without latent 1, too: 40 more.
    # L0: 100 + 10 + 2 = 112 in 200 rows.
    values = DenseTail()(sae(torch.eye(4)), rows(x))
    expected = {
        "above_1e-2": 2.0,
        "above_1e-2_share_of_l0": 110 / 112,
        "above_1e-2_explained_variance": 140 / 256.815,
        "above_1e-1": 1.0,
        "above_1e-1_share_of_l0": 100 / 112,
        "above_1e-1_explained_variance": 100 / 256.815,
    }
    assert values.keys() == expected.keys()
    for name, value in expected.items():
        assert_close(values[name], value, rtol=1e-6, atol=0, msg=lambda text, name=name: f"{name}: {text}")


def test_names_and_numbers_of_the_metric_are_kept(rows, sae):
    from sae_lightning.evaluation.dense_tail import DenseTail
    from sae_lightning.evaluation.reconstruction import Reconstruction
    from sae_lightning.metrics.density import Density

    x = torch.randn(300, 8, generator=torch.Generator().manual_seed(0))
    own, data = sae(torch.eye(8), threshold=1.0), rows(x)
    tail, metric = DenseTail(rows=100)(own, data), Reconstruction({"density": Density()}, rows=100)(own, data)
    assert {name: tail[name] for name in tail.keys() & metric.keys()} == {
        name: metric[name] for name in metric if name.startswith("above_")
    }


@pytest.mark.parametrize("k", [None, 3])
def test_planted_dense_latents_are_found_and_sparse_ones_are_not_blamed(rows, sae, k):
    """A latent that always fires carries most of the variance; the other 199 fire in half a percent of the rows each."""
    from sae_lightning.evaluation.dense_tail import DenseTail

    g = torch.Generator().manual_seed(0)
    x = torch.zeros(4000, 200)
    x[torch.arange(4000), 1 + torch.arange(4000) % 199] = 3 + torch.rand(4000, generator=g)
    sparse = x.clone()
    x[:, 0] = 10 * torch.rand(4000, generator=g) + 1
    evaluation, own = DenseTail(), sae(torch.eye(200), k=k)
    values = evaluation(own, rows(x))
    assert (values["above_1e-2"], values["above_1e-1"]) == (1, 1)
    assert_close(values["above_1e-1_share_of_l0"], 0.5)
    assert values["above_1e-1_explained_variance"] > 0.5
    assert values["above_1e-2_explained_variance"] == values["above_1e-1_explained_variance"]
    values = evaluation(own, rows(sparse))
    assert set(values.values()) == {0.0}


def test_one_line_without_rows():
    from sae_lightning.errors import InputError
    from sae_lightning.evaluation.dense_tail import DenseTail

    with pytest.raises(InputError, match=r"evaluate.dense_tail.rows is 0: give a positive number"):
        DenseTail(rows=0)
