import pytest
import torch
from torch.testing import assert_close


def test_golden_values(rows, sae):
    """Truths: four axes of R⁴. Decoder: axis 0, axis 0 again, axis 1 at cos 0.6, axis 2 of a latent that never fires.

    Living: three. Matched: axis 0 (cos 1), axis 1 (cos 0.6), and the second copy with a truth at cos 0: of the four truths one is
    found (recall ¼), of three living latents one is right (⅓), F1 = 2·1/(4 + 3), mean cosine (1 + 0.6 + 0 + 0)/4.
    """
    from sae_lightning.evaluation.recovery import Recovery

    decoder = torch.tensor([[1.0, 0, 0, 0], [3.0, 0, 0, 0], [0.8, 0.6, 0, 0], [0, 0, 1.0, 0]])
    encoder = torch.tensor([[1.0, 0, 0, 0], [1.0, 0, 0, 0], [0, 1.0, 0, 0], [0, 0, -1.0, 0]])
    values = Recovery()(sae(encoder, decoder), rows(torch.ones(10, 4), directions=torch.eye(4)))
    assert_close(values["recovery"], 1 / 4)
    assert_close(values["recovery_precision"], 1 / 3)
    assert_close(values["recovery_f1"], 2 / 7)
    assert_close(values["recovery_mean_cosine"], 1.6 / 4)


def test_the_assignment_is_one_to_one_and_the_best():
    """Taking the largest cosine first would give 1.0 + 0.0; the best pairing gives 0.9 + 0.9."""
    from sae_lightning.evaluation.recovery import matched

    truths = torch.tensor([[1.0, 0.0], [0.9, 0.43589]])
    decoder = torch.tensor([[0.9, -0.43589], [1.0, 0.0]])
    assert_close(matched(truths, decoder), torch.tensor([0.9, 0.9], dtype=torch.float64), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("d", [8, 64])
def test_all_directions_in_any_order_are_found_and_chance_is_far_below(rows, sae, d: int):
    from sae_lightning.evaluation.recovery import Recovery

    g = torch.Generator().manual_seed(d)
    directions = torch.nn.functional.normalize(torch.randn(2 * d, d, generator=g), dim=1)
    decoder = directions[torch.randperm(2 * d, generator=g)]
    values = Recovery()(sae(decoder), rows(torch.randn(500, d, generator=g), directions=directions))
    assert values["recovery"] == values["recovery_precision"] == values["recovery_f1"] == 1
    assert_close(values["recovery_mean_cosine"], 1.0, rtol=1e-6, atol=1e-6)
    assert values["recovery_chance_mean_cosine"] < 0.85
    assert values["recovery_chance"] < 0.4


def test_a_flipped_direction_is_not_found(rows, sae):
    from sae_lightning.evaluation.recovery import Recovery

    values = Recovery()(sae(-torch.eye(3)), rows(-torch.ones(9, 3), directions=torch.eye(3)))
    assert values["recovery"] == 0
    assert values["recovery_precision"] == 0


def test_nothing_where_the_directions_are_not_known_and_no_error_where_nothing_fires(rows, sae):
    from sae_lightning.evaluation.recovery import Recovery

    assert Recovery()(sae(torch.eye(3)), rows(torch.ones(9, 3))) == {}
    silent = Recovery()(sae(torch.eye(3), threshold=99.0), rows(torch.ones(9, 3), directions=torch.eye(3)))
    assert silent["recovery"] == silent["recovery_f1"] == silent["recovery_mean_cosine"] == 0
