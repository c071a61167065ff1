"""The loss of a small run of every architecture is what it was: a change of it is a decision, not an accident.

python -m tests.test_golden_curves [MODEL …]      # writes the curves of these, or of all, anew
"""

import json
import sys
import tempfile
from pathlib import Path

import pytest
from torch.testing import assert_close

from tests.architectures import MODELS, fitting
from tests.runs import WITH_CALLBACKS, fit

CURVES = Path(__file__).parent / "golden"


def curve(model: str, folder: Path) -> list[float]:
    """The training loss at steps 10, 20, 30, 40."""
    fit(f"model={model} {fitting(model)} {WITH_CALLBACKS}", folder)
    lines = (line.split(",") for line in (folder / "metrics.csv").read_text().splitlines()[1:])
    return [float(value) for _, metric, value in lines if metric == "train/loss"]


@pytest.mark.parametrize("model", MODELS)
def test_the_loss_is_what_it_was(model: str, tmp_path: Path) -> None:
    golden = CURVES / f"{model}.json"
    assert golden.exists(), f"no curve of {model}: python -m tests.test_golden_curves {model}"
    assert_close(curve(model, tmp_path), json.loads(golden.read_text(encoding="utf-8")), rtol=1e-4, atol=0)


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as temporary:
        for name in sys.argv[1:] or MODELS:
            losses = curve(name, Path(temporary) / name)
            (CURVES / f"{name}.json").write_text(json.dumps(losses, indent=2) + "\n", encoding="utf-8")
