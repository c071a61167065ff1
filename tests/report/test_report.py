import io

import matplotlib
import numpy as np
import torch
from matplotlib.lines import Line2D
from rich.console import Console


def heights(axes) -> list[float]:
    return [patch.get_height() for patch in axes.patches]


def at(line: Line2D) -> float:
    """Where an upright line stands."""
    return float(np.asarray(line.get_xdata())[0])


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


def test_l0_counts_are_rows_with_0_1_and_more_active_latents():
    from sae_lightning.report import plots

    (axes,) = plots.l0_counts(torch.tensor([0, 0, 0, 1, 2, 0, 0, 1, 0])).axes  # one row with 3, two with 4, one with 7
    assert heights(axes) == [1, 2, 0, 0, 1]
    assert at(axes.lines[0]) == 4.5  # (3 + 4 + 4 + 7) / 4


def test_density_against_activation_has_a_point_for_each_latent_that_fired():
    from sae_lightning.report import plots

    density, activation = torch.tensor([0.1, 0.0, 0.01]), torch.tensor([10.0, 0.0, 1.0])
    (axes,) = plots.density_against_activation(density, activation).axes
    assert axes.lines[0].get_xydata().tolist() == [[-1.0, 1.0], [-2.0, 0.0]]
    assert axes.get_legend_handles_labels()[1] == ["2 that fired", "1 that never did"]
    many = torch.rand(25_001).add(0.1)
    (axes,) = plots.density_against_activation(many, many).axes
    assert len(axes.lines[0].get_xydata()) == 8334  # 25 001 / 3, rounded up
    assert axes.get_legend_handles_labels()[1][0] == "25001 that fired (1 in 3 drawn)"


def test_cosines_and_norms_are_histograms_with_their_medians():
    from sae_lightning.report import plots

    (axes,) = plots.decoder_encoder_cosine(torch.tensor([-1.0, 0.5, 0.5, 1.0, torch.nan])).axes
    values, edges, _ = axes.patches[0].get_data()
    assert (edges[0], edges[-1], values.sum()) == (-1, 1, 4)
    # 60 bins from −1 to 1: ½ is where the bin number 45 begins.
    assert {i: int(values[i]) for i in values.nonzero()[0]} == {0: 1, 45: 2, 59: 1}
    assert axes.get_legend_handles_labels()[1] == ["median 0.5"]
    (axes,) = plots.latent_norms(torch.tensor([1.0, 2.0, 4.0]), torch.ones(3)).axes
    assert len(axes.patches) == 1  # 3 in one bin would dwarf the others
    assert axes.get_legend_handles_labels()[1] == ["encoder, median 2", "decoder, all 1"]
    (axes,) = plots.latent_norms(torch.ones(3), torch.ones(3)).axes
    assert [patch.get_data()[0].tolist() for patch in axes.patches] == [[0] * 30 + [3] + [0] * 30] * 2


def test_figures_are_written_whatever_the_numbers_are(tmp_path):
    from sae_lightning.report import plots

    nothing, wild = torch.zeros(4), torch.tensor([torch.nan, torch.inf, -torch.inf, 1e30])
    for i, values in enumerate([nothing, wild, wild[:3]]):
        plots.write(plots.density_against_activation(values.nan_to_num(posinf=1.0).clamp(0, 1), values), tmp_path / f"activation{i}.png")
        plots.write(plots.decoder_encoder_cosine(values), tmp_path / f"cosine{i}.png")
        plots.write(plots.latent_norms(values, torch.zeros_like(values)), tmp_path / f"norms{i}.png")
    assert len(list(tmp_path.iterdir())) == 9
