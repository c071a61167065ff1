"""What the metrics say on held-out rows."""

from collections.abc import Mapping

from torchmetrics import Metric, MetricCollection

from sae_lightning.data.batch import Batch
from sae_lightning.data.rows import RowsDataModule
from sae_lightning.errors import InputError
from sae_lightning.evaluation.steps import steps
from sae_lightning.inference import InferenceSAE
from sae_lightning.metrics.reconstruction_error import ReconstructionError


class Reconstruction:
    """Every metric in `metrics` (by name), over the first `rows` held-out rows.

    Of a crosscoder also explained_variance_at_<hook point> of each, where ȳ, y and ŷ are those at that hook point.
    """

    def __init__(self, metrics: Mapping[str, Metric], rows: int = 65_536):
        if rows < 1:
            raise InputError(f"evaluate.reconstruction.rows is {rows}: give a positive number of rows")
        self.metrics, self.rows = MetricCollection({name: metrics[name] for name in metrics}), rows

    def __call__(self, sae: InferenceSAE, data: RowsDataModule) -> dict[str, float]:
        metrics = self.metrics.clone().to(sae.b_enc.device)
        by_hook = [ReconstructionError().to(sae.b_enc.device) for _ in data.hooks.y] if data.views == "stack" else []
        for batch, step in steps(sae, data, self.rows):
            metrics.update(batch, step)
            y, y_hat = batch.y.split(data.shape.y, dim=1), step.reconstruction.split(data.shape.y, dim=1)
            for i, error in enumerate(by_hook):
                error.update(Batch(y[i], y[i]), step._replace(reconstruction=y_hat[i]))
        values = {name: float(value) for name, value in metrics.compute().items()}
        named = zip(data.hooks.y, by_hook, strict=False)
        return values | {f"explained_variance_at_{hook}": float(error.compute()["explained_variance"]) for hook, error in named}
