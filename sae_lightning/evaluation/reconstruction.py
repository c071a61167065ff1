"""What the metrics say on held-out rows."""

from collections.abc import Mapping

from torchmetrics import Metric, MetricCollection

from sae_lightning.data.rows import RowsDataModule
from sae_lightning.errors import InputError
from sae_lightning.evaluation.steps import steps
from sae_lightning.inference import InferenceSAE


class Reconstruction:
    """Every metric in `metrics` (by name), over the first `rows` held-out rows."""

    def __init__(self, metrics: Mapping[str, Metric], rows: int = 65_536):
        if rows < 1:
            raise InputError(f"evaluate.reconstruction.rows is {rows}: give a positive number of rows")
        self.metrics, self.rows = MetricCollection({name: metrics[name] for name in metrics}), rows

    def __call__(self, sae: InferenceSAE, data: RowsDataModule) -> dict[str, float]:
        metrics = self.metrics.clone().to(sae.b_enc.device)
        for batch, step in steps(sae, data, self.rows):
            metrics.update(batch, step)
        return {name: float(value) for name, value in metrics.compute().items()}
