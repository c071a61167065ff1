import io

import matplotlib
import torch
from rich.console import Console


def heights(axes) -> list[float]:
    return [patch.get_height() for patch in axes.patches]


def test_density_shows_what_fired_and_counts_what_did_not():
    from sae_lightning.report import plots

    figure = plots.density(torch.tensor([0.0, 0.0, 1e-3, 1e-2, 1e-2]))
    (axes,) = figure.axes
    assert sum(heights(axes)) == 3
    assert axes.get_legend_handles_labels()[1] == ["3 that fired", "2 that never did"]


def test_l0_has_a_bar_for_each_number_and_all_rows():
    from sae_lightning.report import plots

    (axes,) = plots.l0_per_row(torch.tensor([3.0, 4.0, 4.0, 7.0])).axes
    assert heights(axes) == [1, 2, 0, 0, 1]
    assert axes.patches[0].get_extents().x0 == axes.transData.transform((2.5, 0))[0]
    (axes,) = plots.l0_per_row(torch.tensor([0.0, 1000.0])).axes
    assert sum(heights(axes)) == 2
    assert len(axes.patches) <= 61


def test_figures_leave_no_global_state(tmp_path):
    from sae_lightning.report import plots

    backend = matplotlib.get_backend()
    plots.write(plots.density(torch.zeros(4)), tmp_path / "nothing_fired.png")
    plots.write(plots.l0_per_row(torch.full((9,), 5.0)), tmp_path / "constant.png")
    assert (tmp_path / "constant.png").stat().st_size > 1000
    assert matplotlib.get_backend() == backend
    assert len(list(tmp_path.iterdir())) == 2


def test_the_table_holds_the_headlines_that_are_there():
    from sae_lightning.report.table import number, table

    scores = {"sae": {"l0": 12.034567, "rows": 65536.0, "secret": 1.0}, "random_dictionary": {"l0": float("nan")}}
    out = io.StringIO()
    Console(file=out, width=100).print(table(scores, title="topk-k12"))
    lines = [line.split() for line in out.getvalue().splitlines()]
    text = out.getvalue()
    assert "random dictionary" in text
    assert "secret" not in text
    assert "recovery" not in text
    assert ["│", "l0", "│", "12.03", "│", "–", "│"] in lines
    assert ["│", "rows", "│", "65536", "│", "–", "│"] in lines
    assert [number(value) for value in (None, 0.5, 1234567.0, 1e-7, float("inf"))] == ["–", "0.5", "1234567", "1e-07", "inf"]
