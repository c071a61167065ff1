import json
import math
import struct
from pathlib import Path

import pytest
import torch

from tests.runs import compose

NULLS = {"sae", "pca", "random_dictionary", "identity"}


def correlated(n: int, d: int) -> torch.Tensor:
    g = torch.Generator().manual_seed(0)
    return torch.randn(n, d, generator=g) @ torch.diag(torch.linspace(0.1, 3, d))


def test_scores_of_everything_and_files(rows, sae, tmp_path: Path):
    from sae_lightning.evaluation.reconstruction import Reconstruction
    from sae_lightning.evaluation.recovery import Recovery
    from sae_lightning.evaluation.run import evaluate
    from sae_lightning.metrics.reconstruction_error import ReconstructionError
    from sae_lightning.metrics.sparsity import Sparsity

    data = rows(correlated(300, 8), directions=torch.eye(8))
    evaluations = {
        "reconstruction": Reconstruction({"error": ReconstructionError(), "sparsity": Sparsity()}),
        "recovery": Recovery(),
        "made_up": lambda sae, data: {"nothing": math.nan, "latents": float(sae.d_sae)},
    }
    own = sae(torch.eye(8), k=3)
    scores = evaluate(own, data, evaluations, tmp_path)
    assert scores.keys() == NULLS
    assert scores["sae"]["latents"] == 8
    assert scores["pca"]["latents"] == 6  # 3 components, both signs
    assert scores["pca"]["l0"] == 3
    assert 2.6 < scores["random_dictionary"]["l0"] <= 3  # of 8 directions now and then fewer than 3 are positive
    assert scores["sae"]["recovery"] == 1 > scores["random_dictionary"]["recovery"]
    assert scores["pca"]["explained_variance"] > scores["random_dictionary"]["explained_variance"]
    assert scores["random_dictionary"]["explained_variance"] > 0
    written = json.loads((tmp_path / "scores.json").read_text())
    assert written["schema"] == "sae_lightning.scores/1"
    assert written["scores"]["sae"]["nothing"] is None
    assert written["scores"]["pca"] == {**scores["pca"], "nothing": None}
    assert written["units"]["explained_variance"] == "share"
    assert written["units"]["nothing"] is None
    assert written["versions"]["torch"] == torch.__version__
    assert written["evaluations"]["recovery"]["rows"]["pca"][0] == "recovery"
    for name in ("density.png", "l0.png"):
        content = (tmp_path / name).read_bytes()
        assert content.startswith(b"\x89PNG")
        assert struct.unpack(">II", content[16:24]) == (720, 480)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["density.png", "density.safetensors", "l0.png", "scores.json"]


def test_no_nulls_where_they_are_not_wanted_or_where_y_is_not_x(rows, sae):
    from sae_lightning.evaluation.run import evaluate

    x = correlated(30, 4)
    evaluations = {"count": lambda sae, data: {"latents": 1.0}}
    assert evaluate(sae(torch.eye(4)), rows(x), evaluations, nulls=False).keys() == {"sae"}
    assert evaluate(sae(torch.eye(4)), rows(x, x.flip(0)), evaluations).keys() == {"sae"}
    assert evaluate(sae(torch.eye(4), torch.ones(4, 2)), rows(x, x[:, :2].contiguous()), evaluations).keys() == {"sae"}


def test_a_trained_sae_on_known_directions(tmp_path: Path):
    """The way that train.py goes at its end: the default evaluations on synthetic rows."""
    from hydra import compose, initialize_config_dir
    from hydra.utils import instantiate

    from sae_lightning.data.synthetic import SyntheticDataModule
    from sae_lightning.evaluation.run import evaluate
    from sae_lightning.inference import InferenceSAE

    data = SyntheticDataModule(d=16, n_directions=24, l0=2.0, batch_size=256, rows_held_out=2048)
    directions = data.directions
    weights = {"W_enc": directions, "W_dec": directions, "b_enc": torch.zeros(24), "b_dec": torch.zeros(16)}
    with initialize_config_dir(str(Path(__file__).parents[2] / "conf"), version_base="1.3"):
        config = compose(overrides=["+evaluate=default"]).evaluate
    scores = evaluate(InferenceSAE(weights, subtract=True, k=2), data, {name: instantiate(config[name]) for name in config}, tmp_path)
    assert scores["sae"]["recovery"] == 1
    assert scores["sae"]["rows"] == 2048
    assert scores["sae"]["explained_variance"] > scores["pca"]["explained_variance"]
    assert "ce_sae" not in scores["sae"]


class Counted:
    """An evaluation that says how often it ran."""

    def __init__(self, name: str = "number"):
        self.name, self.calls = name, 0

    def __call__(self, sae, data) -> dict[str, float]:
        self.calls += 1
        return {self.name: float(self.calls), "nothing": math.nan}


def test_resume_computes_what_is_missing_and_nothing_else(rows, sae, tmp_path: Path):
    from sae_lightning.evaluation.run import evaluate

    data, own = rows(correlated(300, 8)), sae(torch.eye(8), k=3)
    one, two, three = Counted("one"), Counted("two"), Counted("three")
    settings = {"one": {"rows": 5}, "two": {"rows": 5}}
    first = evaluate(own, data, {"one": one, "two": two}, tmp_path, settings=settings)
    assert one.calls == 4  # and the null models
    again = evaluate(own, data, {"one": one, "two": two}, tmp_path, settings=settings, resume=True)
    assert one.calls == two.calls == 4
    assert again.keys() == first.keys()
    assert again["pca"]["one"] == first["pca"]["one"]
    assert math.isnan(again["pca"]["nothing"])
    content = (tmp_path / "scores.json").read_bytes()

    evaluate(own, data, {"three": three}, tmp_path, settings={"three": None}, resume=True, nulls=False)
    assert (one.calls, three.calls) == (4, 1)
    written = json.loads((tmp_path / "scores.json").read_text())
    assert written["scores"]["sae"]["three"] == 1
    assert written["scores"]["pca"]["two"] == first["pca"]["two"]  # what was there stays

    evaluate(own, data, {"one": one, "two": two}, tmp_path, settings=settings | {"two": {"rows": 6}}, resume=True)
    assert (one.calls, two.calls) == (4, 8)  # other settings: another number
    evaluate(sae(2 * torch.eye(8), k=3), data, {"one": one}, tmp_path, settings={"one": {"rows": 5}}, resume=True)
    assert one.calls == 8  # another SAE
    evaluate(sae(2 * torch.eye(8), k=3), rows(1 + correlated(300, 8)), {"one": one}, tmp_path, settings={"one": {"rows": 5}}, resume=True)
    assert one.calls == 12  # other rows
    evaluate(own, data, {"one": Counted("one"), "two": Counted("two")}, tmp_path, settings=settings)
    assert (tmp_path / "scores.json").read_bytes() == content  # without resume: all of it anew


def test_what_was_found_before_a_kill_is_not_lost(rows, sae, tmp_path: Path):
    from sae_lightning.evaluation.run import evaluate

    data, own = rows(correlated(300, 8)), sae(torch.eye(8), k=3)
    one, settings = Counted("one"), {"one": None, "two": None}

    def killed(sae, data):
        raise KeyboardInterrupt

    evaluate(own, data, {"one": Counted("one")}, tmp_path, settings={"one": None})
    whole = (tmp_path / "scores.json").read_bytes()
    with pytest.raises(KeyboardInterrupt):
        evaluate(own, data, {"one": one, "two": killed}, tmp_path, settings=settings)
    assert (tmp_path / "scores.json").read_bytes() == whole
    two = Counted("two")
    scores = evaluate(own, data, {"one": one, "two": two}, tmp_path, settings=settings, resume=True)
    assert (one.calls, two.calls) == (1, 4)  # its row of `one` is kept, and the null rows of the earlier scores
    assert scores["sae"]["two"] == 1
    assert not (tmp_path / "scores.partial.json").exists()


def test_a_row_of_other_data(rows, sae, tmp_path: Path):
    """As of an SAE on a transformer with random weights."""
    from sae_lightning.evaluation.run import evaluate

    own, other = rows(correlated(30, 4)), rows(torch.full((30, 4), 2.0))
    evaluations = {"mean": lambda sae, data: {"mean": float(data.x.mean())}}
    scores = evaluate(sae(torch.eye(4)), own, evaluations, tmp_path, nulls=False, others={"random_transformer": (sae(torch.eye(4)), other)})
    assert scores["random_transformer"] == {"mean": 2.0}
    assert scores["sae"]["mean"] != 2.0


def test_what_an_evaluation_refuses_is_refused_before_the_training(tmp_path: Path):
    from hydra.errors import InstantiationException

    from sae_lightning.run.build import build

    with pytest.raises(InstantiationException, match=r"evaluate.probing.paths: cannot read nowhere.csv"):
        build(compose("evaluate=[default,probing] evaluate.probing.paths=[nowhere.csv]", tmp_path))
