"""All evaluations of one SAE, and of what it must beat."""

import logging
import math
import time
from collections.abc import Callable, Mapping
from pathlib import Path

from sae_lightning.data.rows import RowsDataModule
from sae_lightning.evaluation.null import identity, pca, random_dictionary
from sae_lightning.evaluation.steps import firing
from sae_lightning.files import write_json
from sae_lightning.inference import InferenceSAE
from sae_lightning.report import plots

Evaluation = Callable[[InferenceSAE, RowsDataModule], dict[str, float]]
"""Numbers by name; none where the data is not of the kind that it needs."""
Scores = dict[str, dict[str, float]]
"""Numbers by name, of each thing that was evaluated: `sae`, and beside it `pca`, `random_dictionary` and `identity`."""

FIRING_ROWS = 65_536
log = logging.getLogger(__name__)


def evaluate(sae: InferenceSAE, data: RowsDataModule, evaluations: Mapping[str, Evaluation], folder: str | Path | None = None,
             nulls: bool = True) -> Scores:  # fmt: skip
    """Runs every evaluation on `sae` (row `sae`), and with `nulls` on the null models at the same L0, for autoencoders.

    `data` is prepared (`prepare_data`, `setup`). Writes scores.json, density.png and l0.png into `folder`, where one is given; a number
    that is not finite is null there.
    """
    fires = firing(sae, data, FIRING_ROWS)
    k = min(max(1, round(float(fires.l0.mean()))), sae.d_sae)
    things: dict[str, Callable[[], InferenceSAE]] = {"sae": lambda: sae}
    if nulls and _is_autoencoder(data):
        device = sae.b_enc.device
        things["pca"] = lambda: pca(data, k).to(device)
        things["random_dictionary"] = lambda: random_dictionary(data, sae.d_sae, k).to(device)
        things["identity"] = lambda: identity(data, k).to(device)
    scores: Scores = {}
    for row, make in things.items():
        thing, scores[row] = make(), {}
        for name, evaluation in evaluations.items():
            started = time.perf_counter()
            values = evaluation(thing, data)
            scores[row] |= values
            if values:
                log.info("%s of %s: %d numbers in %.1f s", name, row, len(values), time.perf_counter() - started)
    if folder is not None:
        write_scores(Path(folder) / "scores.json", scores)
        plots.write(plots.density(fires.density), Path(folder) / "density.png")
        plots.write(plots.l0_per_row(fires.l0), Path(folder) / "l0.png")
    return scores


def write_scores(path: Path, scores: Scores) -> None:
    """Atomically; what is not finite becomes null."""
    write_json(
        path, {row: {name: value if math.isfinite(value) else None for name, value in values.items()} for row, values in scores.items()}
    )


def _is_autoencoder(data: RowsDataModule) -> bool:
    batch = next(iter(data.held_out()))
    return data.views == "one" and batch.y is batch.x
