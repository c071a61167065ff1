"""The benchmark of a training step: it takes every architecture, and what it shows is what was kept."""

import re

import pytest
import torch
import torch.nn.functional as F

from benchmarks.peers.client import LIBRARIES, ROOT, Peer
from benchmarks.peers.readers import OTHERS
from benchmarks.steps import table
from benchmarks.steps.ours import AUXK, Work, make, rows, trained

SMALL = Work(16, 64, 64, 4)


@pytest.mark.parametrize("name", [*trained(), f"topk{AUXK}"])
def test_every_architecture_can_be_timed_at_the_sparsity_of_its_later_training(name: str) -> None:
    g = torch.Generator().manual_seed(0)
    x = rows(SMALL, g, F.normalize(torch.randn(SMALL.latents, SMALL.d, generator=g), dim=1))
    step = make(name, SMALL, x, True)
    step(x)
    assert step.l0 == pytest.approx(SMALL.k, rel=0.2)
    assert bool(step.sae.dictionary.dead.any()) == name.endswith(AUXK)


@pytest.mark.parametrize("name", table.SHOWN_IN)
def test_the_table_shows_the_kept_figures(name: str) -> None:
    assert table.between((ROOT / name).read_text()) == table.markdown(table.kept())


def test_a_cell_holds_the_works_in_order_and_a_dash_where_a_library_has_nothing() -> None:
    figures = [
        ("topk", "ours", "A", 0.27),
        ("topk", "ours", "B", 0.24),
        ("topk", "sparsify", "A", 0.74),
        ("topk", "sparsify", "B", 0.456),
        ("p_anneal", "ours", "A", 0.3),
    ]
    kept = {
        "about": {"torch": "2", "python": "3", "threads": 1, "cores": 2, "cpu": "x", "steps": 5},
        "versions": {"sparsify": "1.3.3"},
        "rows": [{"name": name, "side": side, "work": work, "cpu": cpu} for name, side, work, cpu in figures],
    }
    kept["rows"][0]["memory"] = 1.25
    lines = table.markdown(kept).splitlines()
    assert lines[0] == "| CPU time of a step, A / B | ours | sparsify 1.3.3 | ours, peak memory |"
    assert lines[2:4] == ["| p_anneal | 0.30 / – | – | – |", "| topk | 0.27 / 0.24 | 0.74 / 0.46 | 1.25 / – |"]


def test_peers_have_pins_with_the_torch_that_ours_are_tested_with() -> None:
    torch_pin = re.search(r"^torch==[\d.]+", (ROOT / "constraints.txt").read_text(), re.M)
    assert torch_pin is not None
    pins = {path.stem: path.read_text().splitlines() for path in (ROOT / "benchmarks" / "peers").glob("*.txt")}
    assert set(pins) == {*LIBRARIES, *(environment for _, environment, _ in OTHERS), "sae_bench"}
    for lines in pins.values():
        assert torch_pin[0] in lines
        assert all("==" in line or line.startswith("#") for line in lines)


def test_a_peer_without_its_environment_says_how_to_make_it() -> None:
    with pytest.raises(RuntimeError, match="run `make peers`"):
        Peer("nothing")
