"""What loggers are asked to do with a picture. MLflow and Comet are not installed here: Lightning's classes around a client that keeps it."""

import io
from typing import Any

import numpy as np
import torch
from lightning.pytorch.loggers import CometLogger, MLFlowLogger
from matplotlib.image import imread

from sae_lightning.callbacks.images import log_image
from sae_lightning.loggers.csv import CSV
from sae_lightning.report import plots


class Client:
    """Of both, as they want to be asked."""

    def __init__(self):
        self.got: list[tuple[Any, ...]] = []

    def log_image(self, *given: Any, **named: Any) -> None:
        self.got.append((*given, named))


class MLFlow(MLFlowLogger):
    experiment, run_id = Client(), "run"  # type: ignore[assignment]

    def __init__(self): ...


class Comet(CometLogger):
    experiment = Client()  # type: ignore[assignment]

    def __init__(self): ...


def test_mlflow_gets_pixels_and_comet_a_copy_of_the_file(tmp_path):
    picture = tmp_path / "l0.png"
    plots.write(plots.l0_per_row(torch.tensor([1.0, 2.0])), picture)
    data = picture.read_bytes()
    for logger in (MLFlow(), Comet()):
        log_image(logger, "plots/l0", picture, 20)
    picture.unlink()  # Comet sends when it likes
    ((run, pixels, named),) = MLFlow.experiment.got
    assert (run, pixels.shape, pixels.dtype, named) == ("run", (480, 720, 4), np.uint8, {"key": "plots/l0", "step": 20})
    assert (pixels == (255 * imread(io.BytesIO(data))).round()).all()
    ((file, named),) = Comet.experiment.got
    assert (file.read(), named) == (data, {"name": "plots/l0", "step": 20})


def test_a_logger_without_pictures_gets_none(tmp_path):
    logger = CSV(str(tmp_path / "metrics.csv"))
    log_image(logger, "plots/l0", tmp_path / "absent.png", 1)
    logger.save()
    assert "l0" not in "".join(path.read_text() for path in tmp_path.iterdir())
