"""The loss of a small run of every architecture is what it was: a change of it is a decision, not an accident.

python -m tests.test_golden_curves      # writes the curves anew
"""

import json
import tempfile
from pathlib import Path

import pytest
from torch.testing import assert_close

from tests.runs import ROOT, WITH_CALLBACKS, fit

CURVES = Path(__file__).parent / "golden" / "losses.json"
FITTING = {"topk": "model.k=4", "relu": "model.sparsity=0.1", "lagrangian": "model.target_l0=4"}


def curve(model: str, folder: Path) -> list[float]:
    """The training loss at steps 10, 20, 30, 40."""
    fit(f"model={model} {FITTING.get(model, '')} {WITH_CALLBACKS}", folder)
    lines = (line.split(",") for line in (folder / "metrics.csv").read_text().splitlines()[1:])
    return [float(value) for _, metric, value in lines if metric == "train/loss"]


@pytest.mark.parametrize("model", sorted(path.stem for path in (ROOT / "conf" / "model").glob("*.yaml")))
def test_the_loss_is_what_it_was(model: str, tmp_path: Path) -> None:
    golden = json.loads(CURVES.read_text(encoding="utf-8"))
    assert model in golden, f"no curve of {model}: python -m tests.test_golden_curves"
    assert_close(curve(model, tmp_path), golden[model], rtol=1e-4, atol=0)


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as temporary:
        models = sorted(path.stem for path in (ROOT / "conf" / "model").glob("*.yaml"))
        CURVES.write_text(json.dumps({model: curve(model, Path(temporary) / model) for model in models}, indent=2) + "\n", encoding="utf-8")
