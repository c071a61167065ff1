import pytest
import torch
from torch.testing import assert_close


@pytest.fixture
def data(rows):
    return rows(torch.randn(400, 16, generator=torch.Generator().manual_seed(0)))


def test_the_same_latents_in_another_order_are_found_again(data, sae, tmp_path):
    """Seven of eight latents of the other are ours, the eighth points elsewhere: (7 · 1 + 0)/8."""
    from sae_lightning.evaluation.stability import Stability

    own, other = sae(torch.eye(16)[:8]), torch.eye(16)[:8].flip(0)
    other[3] = torch.eye(16)[12]
    folder = sae(3 * other).save(tmp_path / "other")
    values = Stability(str(folder))(own, data)
    assert_close(values["stability_mean_cosine"], 7 / 8)
    assert_close(values["stability_above_0.7"], 7 / 8)
    assert values["stability_chance"] < 0.5


def test_other_directions_are_at_chance(data, sae, tmp_path):
    from sae_lightning.evaluation.stability import Stability

    g = torch.Generator().manual_seed(1)
    own, other = sae(torch.randn(64, 16, generator=g)), sae(torch.randn(64, 16, generator=g))
    values = Stability([str(other.save(tmp_path / "other"))])(own, data)
    assert abs(values["stability_mean_cosine"] - values["stability_chance"]) < 0.03


def test_means_over_the_others_without_itself(data, sae, tmp_path):
    from sae_lightning.evaluation.stability import Stability

    own = sae(torch.eye(16)[:8])
    paths = [
        own.save(tmp_path / "own"),
        sae(torch.eye(16)[:8].flip(0)).save(tmp_path / "same"),
        sae(torch.eye(16)[8:]).save(tmp_path / "no"),
    ]
    assert_close(Stability([str(path) for path in paths])(own, data)["stability_above_0.7"], 0.5)
    assert Stability([str(paths[0])])(own, data) == {}
    assert Stability()(own, data) == {}


def test_dead_latents_do_not_count(data, sae, tmp_path):
    from sae_lightning.evaluation.stability import Stability

    other = sae(torch.cat([torch.eye(16)[:4], torch.eye(16)[8:12]]))
    other.threshold[4:] = 1e9
    own = sae(torch.eye(16)[:12])
    values = Stability(str(other.save(tmp_path / "other")))(own, data)
    assert_close(values["stability_above_0.7"], 4 / 12)


def test_a_sample_of_many_latents(data, sae, tmp_path):
    from sae_lightning.evaluation.stability import Stability

    other = sae(torch.eye(16).flip(0)).save(tmp_path / "other")
    assert_close(Stability(str(other), latents=5)(sae(torch.eye(16)), data)["stability_mean_cosine"], 1.0)


def test_what_cannot_be_compared_is_refused(data, sae, tmp_path):
    from sae_lightning.errors import InputError
    from sae_lightning.evaluation.stability import Stability

    with pytest.raises(InputError, match="is not a folder"):
        Stability(str(tmp_path / "none"))(sae(torch.eye(16)), data)
    narrow = sae(torch.eye(8)).save(tmp_path / "narrow")
    with pytest.raises(InputError, match="rows of width 8, this SAE of 16"):
        Stability(str(narrow))(sae(torch.eye(16)), data)
    with pytest.raises(InputError, match="must be positive"):
        Stability(latents=0)
