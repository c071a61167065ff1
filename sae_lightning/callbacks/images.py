"""Pictures for loggers."""

import io
from pathlib import Path

from lightning.pytorch.loggers import CometLogger, Logger, MLFlowLogger, TensorBoardLogger


def log_image(logger: Logger, name: str, path: Path, step: int) -> None:
    """Hands a PNG to a logger that takes images, which may then be written anew; nothing happens with others. On rank 0 alone."""
    if isinstance(logger, CometLogger):
        logger.experiment.log_image(io.BytesIO(path.read_bytes()), name=name, step=step)  # it would read the file later
    elif isinstance(logger, MLFlowLogger | TensorBoardLogger):
        from matplotlib.image import imread

        pixels = (255 * imread(path)).round().astype("uint8")
        if isinstance(logger, MLFlowLogger):
            logger.experiment.log_image(logger.run_id, pixels, key=name, step=step)
        else:
            logger.experiment.add_image(name, pixels, step, dataformats="HWC")
    elif hasattr(logger, "log_image"):
        logger.log_image(key=name, images=[str(path)], step=step)  # type: ignore[attr-defined]
