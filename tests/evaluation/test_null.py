import torch
from torch.testing import assert_close


def test_pca_is_the_projection_on_the_first_components(rows):
    from sae_lightning.evaluation.null import pca

    g = torch.Generator().manual_seed(0)
    x = torch.randn(400, 6, generator=g) @ torch.randn(6, 6, generator=g) + 5
    null = pca(rows(x), 2)
    centred = (x - x.mean(0)).double()
    _, _, components = torch.linalg.svd(centred, full_matrices=False)
    assert_close(null(x).double(), centred @ components[:2].T @ components[:2] + x.double().mean(0), rtol=1e-4, atol=1e-4)
    assert_close(null.encode(x).l0_per_row(), torch.full((400,), 2))
    assert pca(rows(x), 99).d_sae == 12  # cut to the width of a row
    assert_close(pca(rows(x), 6)(x), x, rtol=1e-4, atol=1e-4)


def test_the_random_dictionary_has_the_l0_asked_for_and_the_best_length(rows):
    from sae_lightning.evaluation.null import random_dictionary

    x = torch.randn(500, 16, generator=torch.Generator().manual_seed(0)) + 2
    data = rows(x)
    null = random_dictionary(data, d_sae=64, k=5)
    assert_close(null.encode(x).l0_per_row(), torch.full((500,), 5))
    error = (null(x) - x).square().sum()
    for factor in (0.95, 1.05):
        other = type(null)({**dict(null.named_buffers()), "W_dec": null.W_dec * factor}, subtract=True, k=5)
        assert (other(x) - x).square().sum() > error
    assert error < (x - x.mean(0)).square().sum()  # better than the mean alone
    assert_close(random_dictionary(data, d_sae=64, k=5).W_enc, null.W_enc)  # the same one each time
