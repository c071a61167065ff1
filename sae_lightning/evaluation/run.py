"""All evaluations of one SAE, and of what it must beat."""

import hashlib
import logging
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from sae_lightning.data.rows import RowsDataModule
from sae_lightning.evaluation.null import identity, pca, random_dictionary
from sae_lightning.evaluation.scores import ScoreFile, Scores
from sae_lightning.evaluation.steps import firing
from sae_lightning.formats.density import write_density
from sae_lightning.inference import InferenceSAE
from sae_lightning.report import plots

Evaluation = Callable[[InferenceSAE, RowsDataModule], dict[str, float]]
"""Numbers by name; none where the data is not of the kind that it needs."""
Thing = tuple[Callable[[], InferenceSAE], RowsDataModule]
"""What is evaluated, made when it is wanted, and on which rows."""

FIRING_ROWS = 65_536
log = logging.getLogger(__name__)


def evaluate(sae: InferenceSAE, data: RowsDataModule, evaluations: Mapping[str, Evaluation], folder: str | Path | None = None,
             nulls: bool = True, *, settings: Mapping[str, Any] | None = None, resume: bool = False,
             others: Mapping[str, tuple[InferenceSAE, RowsDataModule]] | None = None) -> Scores:  # fmt: skip
    """Runs every evaluation on `sae` (row `sae`), with `nulls` on the null models at the same L0, for autoencoders, and on `others`.

    `data` is prepared (`prepare_data`, `setup`). Writes scores.json, density.safetensors, density.png and l0.png into `folder`, where
    one is given. `others`: rows of SAEs on data of their own. `settings`: of each evaluation, for the record; with `resume` what `folder`
    holds of this SAE on this data by the same settings is not computed again (`ScoreFile`).
    """
    fires = firing(sae, data, FIRING_ROWS)
    things: dict[str, Thing] = {"sae": (lambda: sae, data), **(_nulls(sae, data, float(fires.l0.mean())) if nulls else {})}
    things |= {row: (lambda thing=thing: thing, rows) for row, (thing, rows) in (others or {}).items()}
    told = {name: None if settings is None else settings[name] for name in evaluations}
    about = {"sae": dict(sae.about) | {"digest": digest(sae)}, "data": _about(data)}
    file = ScoreFile(None if folder is None else Path(folder), about, told, resume)
    for row, (make, rows) in things.items():
        missing = [name for name in evaluations if file.known(row, name) is None]
        thing = make() if missing else None
        for name in missing:
            assert thing is not None
            started = time.perf_counter()
            values = evaluations[name](thing, rows)
            file.add(row, name, values)
            if values:
                log.info("%s of %s: %d numbers in %.1f s", name, row, len(values), time.perf_counter() - started)
    scores = file.finish(list(things))
    if folder is not None:
        write_density(Path(folder), fires.density)
        plots.write(plots.density(fires.density), Path(folder) / "density.png")
        plots.write(plots.l0_per_row(fires.l0), Path(folder) / "l0.png")
    return scores


def _nulls(sae: InferenceSAE, data: RowsDataModule, l0: float) -> dict[str, Thing]:
    """The null models of as many active latents, where they are of the kind of the data."""
    if not _is_autoencoder(data):
        return {}
    k, device = min(max(1, round(l0)), sae.d_sae), sae.b_enc.device
    return {
        "pca": (lambda: pca(data, k).to(device), data),
        "random_dictionary": (lambda: random_dictionary(data, sae.d_sae, k).to(device), data),
        "identity": (lambda: identity(data, k).to(device), data),
    }


def digest(sae: InferenceSAE) -> str:
    """Of all that determines what it does."""
    made = hashlib.blake2b(repr((sae.subtract, sae.k, sae.cap)).encode(), digest_size=10)
    for name, weight in sorted(sae.named_buffers()):
        made.update(f"{name} {tuple(weight.shape)}".encode())
        made.update(weight.detach().float().cpu().contiguous().numpy().tobytes())
    return made.hexdigest()


def _about(data: RowsDataModule) -> dict[str, Any]:
    """What the held-out rows are: the source, and a digest of the first of them."""
    batch = next(iter(data.held_out()))
    first = hashlib.blake2b(batch.x.float().cpu().contiguous().numpy().tobytes(), digest_size=10)
    return dict(data.about) | {"hooks": [list(hooks) for hooks in data.hooks], "first_rows": first.hexdigest()}


def _is_autoencoder(data: RowsDataModule) -> bool:
    batch = next(iter(data.held_out()))
    return data.views == "one" and batch.y is batch.x
