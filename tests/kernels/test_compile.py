"""torch.compile sees every architecture's step as one graph, once, and its results are those of the step as it is."""

import json
import os
import subprocess
import sys
from collections.abc import Sequence

import pytest

from tests.architectures import MODELS
from tests.runs import ROOT

REVIVING = "topk model/revival=ghost_grads", "jumprelu model/revival=ghost_grads model.threshold_revival=0.1"


def compiled(backend: str, precision: str, models: Sequence[str]) -> list[dict]:
    """In a process of its own: the suite's type checker stands in the way of the compiler."""
    command = [sys.executable, "-W", "ignore", "tests/kernels/compile_steps.py", backend, precision, *models]
    done = subprocess.run(command, cwd=ROOT, env=os.environ | {"PYTHONPATH": str(ROOT)}, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    found = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    assert [one["name"] for one in found] == [f"{model}, {kind}" for kind in precision.split(",") for model in models]
    return found


# Slow: tracing forward and backward of every architecture, twice, in a process that imports torch anew.
@pytest.mark.slow
def test_every_architecture_is_one_graph_and_is_traced_once() -> None:
    for found in compiled("aot_eager", "fp32,bf16", [*MODELS, *REVIVING]):
        assert found["breaks"] == 0, found
        assert found["after_3"] == found["at_the_end"] == 1, found
        assert found["moved"] <= 2, found  # a whole number is traced once more, as one that may change
        limit = 1e-2 if found["name"].endswith("bf16") else 1e-5 if "revival" in found["name"] else 1e-6
        assert found["worst"] < limit, found


# Slow: the compiler builds C++ kernels.
@pytest.mark.slow
def test_generated_code_takes_any_number_of_entries() -> None:
    """The architecture whose number of entries depends on the data, with everything that it calls."""
    (found,) = compiled("inductor", "fp32", ["lagrangian"])
    assert found["after_3"] == found["at_the_end"] == 1, found
    assert found["worst"] < 1e-5, found
