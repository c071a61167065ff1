import pytest
import torch
from torch.testing import assert_close


def firing_sae(sae, decoder, living):
    """On rows of ones, exactly the latents in `living` fire."""
    decoder = torch.as_tensor(decoder, dtype=torch.float32)
    encoder = torch.zeros_like(decoder)
    encoder[:, 0] = torch.where(torch.as_tensor(living), 1.0, -1.0)
    return sae(encoder, decoder)


def test_by_hand(rows, sae):
    from sae_lightning.evaluation.redundancy import Redundancy

    # Cosines: a·b = 0.6, b·c = 0.8, a·c = 0, d = −a: −1, −0.6, 0. The largest: a 0.6, b 0.8, c 0.8, d 0; their mean is 2.2/4.
    # The last one is a again, but never fires.
    decoder = [[1, 0], [0.6, 0.8], [0, 2], [-1, 0], [1, 0]]
    values = Redundancy()(firing_sae(sae, decoder, [True, True, True, True, False]), rows(torch.ones(9, 2)))
    assert values.keys() == {"redundancy_max_cosine", "redundancy_above_0.9"}
    assert_close(values["redundancy_max_cosine"], 0.55, rtol=0, atol=1e-6)
    assert values["redundancy_above_0.9"] == 0
    # With it, a and the last one have cosine 1: (1 + 0.8 + 0.8 + 0 + 1)/5, and 2 of 5.
    values = Redundancy()(firing_sae(sae, decoder, [True] * 5), rows(torch.ones(9, 2)))
    assert_close(values["redundancy_max_cosine"], 0.72, rtol=0, atol=1e-6)
    assert_close(values["redundancy_above_0.9"], 0.4)


def test_planted_copies_are_found_and_random_directions_are_not(rows, sae):
    """30 of 200 random directions stand there a second time, at another length and a little aside."""
    from sae_lightning.evaluation.redundancy import Redundancy

    g = torch.Generator().manual_seed(0)
    random = torch.randn(200, 64, generator=g)
    copies = 3 * random[:30] + 0.3 * torch.randn(30, 64, generator=g)
    data, evaluation = rows(torch.ones(9, 64)), Redundancy()
    assert evaluation(firing_sae(sae, random, [True] * 200), data)["redundancy_above_0.9"] == 0
    values = evaluation(firing_sae(sae, torch.cat([random, copies]), [True] * 230), data)
    assert_close(values["redundancy_above_0.9"], 60 / 230)


@pytest.mark.parametrize("entries", [1, 37 * 4, 37 * 12, 10**6])
def test_blocks_change_nothing(entries):
    from sae_lightning.evaluation.redundancy import nearest

    directions = torch.randn(37, 5, generator=torch.Generator().manual_seed(0))
    unit = directions / directions.norm(dim=1, keepdim=True)
    cosines = unit @ unit.T - 9 * torch.eye(37)
    assert_close(nearest(directions, entries), cosines.max(1).values)


def test_nothing_without_two_living_latents_and_one_line_without_rows(rows, sae):
    from sae_lightning.errors import InputError
    from sae_lightning.evaluation.redundancy import Redundancy

    assert Redundancy()(firing_sae(sae, [[1, 0], [1, 0]], [True, False]), rows(torch.ones(3, 2))) == {}
    with pytest.raises(InputError, match=r"evaluate.redundancy.rows is 0: give a positive number"):
        Redundancy(rows=0)
