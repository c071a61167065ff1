import pytest
import torch
from torch.testing import assert_close


def test_held_out_rows_up_to_the_limit_in_the_order_given(rows, sae):
    from sae_lightning.evaluation.steps import steps

    data = rows(torch.arange(40.0).reshape(20, 2))
    seen = list(steps(sae(torch.eye(2)), data, 10))
    assert_close(torch.cat([batch.x for batch, _ in seen]), data.x[:10])
    assert all(batch.y is batch.x for batch, _ in seen)
    assert sum(len(batch.x) for batch, _ in steps(sae(torch.eye(2)), data, 100)) == 20


def test_rows_of_another_width_are_refused(rows, sae):
    from sae_lightning.errors import InputError
    from sae_lightning.evaluation.steps import steps

    with pytest.raises(InputError, match="rows of width 3 to 3, these rows are 2 and 2 wide"):
        next(steps(sae(torch.eye(3)), rows(torch.ones(5, 2)), 10))


def test_all_metrics_of_the_yaml_in_one_pass(rows, sae):
    from pathlib import Path

    from hydra import compose, initialize_config_dir
    from hydra.utils import instantiate

    with initialize_config_dir(str(Path(__file__).parents[2] / "conf"), version_base="1.3"):
        evaluation = instantiate(compose(overrides=["+evaluate=reconstruction", "evaluate.reconstruction.rows=15"]).evaluate.reconstruction)
    x = torch.randn(20, 4, generator=torch.Generator().manual_seed(0))
    # Only the first two of four coordinates pass, positive or negative: L0 is 2, e = the last two coordinates.
    half = torch.eye(4)[:2]
    values = evaluation(sae(torch.cat([half, -half])), rows(x))
    seen = x[:15].double()
    assert values["rows"] == 15
    assert values["l0"] == 2
    assert_close(values["mse_sum"], float(seen[:, 2:].square().sum(1).mean()))
    assert_close(values["fvu"], float(seen[:, 2:].square().sum() / (seen - seen.mean(0)).square().sum()))
    assert {"cosine", "dead_pct", "explained_variance_std", "below_1e-5", "mean_magnitude"} <= values.keys()
    assert evaluation(sae(torch.cat([half, -half])), rows(x)) == values  # nothing is left over from the first call


def test_of_a_crosscoder_by_hook_point(rows, sae):
    """The first two of four coordinates stand at one hook point and pass; of the other two nothing does."""
    from sae_lightning.data.batch import Hooks, Shape
    from sae_lightning.evaluation.reconstruction import Reconstruction

    x = torch.randn(20, 4, generator=torch.Generator().manual_seed(0))
    data, half = rows(x), torch.eye(4)[:2]
    both = ("layers.1", "layers.2")
    data.views, data.__class__ = "stack", type("Stacked", (type(data),), {"hooks": Hooks(both, both), "shape": Shape((2, 2), (2, 2))})
    values = Reconstruction({}, rows=15)(sae(torch.cat([half, -half])), data)
    seen = x[:15, 2:].double()
    assert values.keys() == {"explained_variance_at_layers.1", "explained_variance_at_layers.2"}
    assert_close(values["explained_variance_at_layers.1"], 1.0)
    lost = float(seen.square().sum() / (seen - seen.mean(0)).square().sum())
    assert_close(values["explained_variance_at_layers.2"], 1 - lost)


def test_firing(rows, sae):
    from sae_lightning.evaluation.steps import firing

    x = torch.tensor([[1.0, 1.0], [1.0, -1.0], [-1.0, -1.0], [1.0, -1.0]])
    density, l0 = firing(sae(torch.eye(2)), rows(x), 100)
    assert_close(density, torch.tensor([0.75, 0.25]))
    assert_close(l0, torch.tensor([2.0, 1.0, 0.0, 1.0]))
