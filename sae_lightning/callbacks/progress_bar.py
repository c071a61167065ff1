"""What one watches while an SAE is trained."""

import sys
import time
from collections import deque
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import ProgressBar as LightningProgressBar

from sae_lightning.data.rows import RowsDataModule

SECONDS_PER_REDRAW = 0.25
SECONDS_PER_LINE = 10.0
SHOWN = {"loss": "train/loss", "L0": "train/l0", "explained variance": "train/explained_variance", "dead": "train/dead"}


class ProgressBar(LightningProgressBar):
    """Step, loss, L0, explained variance, dead latents, rows/s and what remains, on stderr.

    On a terminal a bar that is redrawn at most 4 times a second; elsewhere a line every 10 seconds, and one at the end. The numbers
    are those of the last step that was logged: showing them never waits for the accelerator.
    """

    def __init__(self):
        super().__init__()
        self.enabled = True
        self.bar: Any = None
        self.drawn = 0.0
        self.recent: deque[tuple[float, int]] = deque(maxlen=10)

    def disable(self) -> None:
        self.enabled = False

    def enable(self) -> None:
        self.enabled = True

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.drawn = time.monotonic()
        self.recent.clear()
        self.recent.append((self.drawn, trainer.global_step))
        if self.enabled and sys.stderr.isatty():
            self.bar = _bar(trainer.max_steps, trainer.global_step)
            self.bar.start()

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int) -> None:
        period = SECONDS_PER_REDRAW if self.bar is not None else SECONDS_PER_LINE
        if self.enabled and time.monotonic() - self.drawn >= period:
            self._draw(trainer)

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if self.enabled:
            self._draw(trainer)
        self._stop()

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        self._stop()

    def print(self, *args: Any, **kwargs: Any) -> None:
        """Above the bar, where there is one."""
        if self.bar is not None:
            self.bar.console.print(*args)
        else:
            print(*args, **kwargs)

    def _draw(self, trainer: L.Trainer) -> None:
        self.drawn = time.monotonic()
        self.recent.append((self.drawn, trainer.global_step))
        text = self._text(trainer)
        if self.bar is None:
            print(f"step {trainer.global_step}/{trainer.max_steps}  {text}", file=sys.stderr, flush=True)
        else:
            self.bar.update(self.bar.task_ids[0], completed=trainer.global_step, text=text)
            self.bar.refresh()

    def _text(self, trainer: L.Trainer) -> str:
        values = trainer.callback_metrics
        parts = [f"{name} {float(values[key]):.4g}" for name, key in SHOWN.items() if key in values]
        (start, first), (now, last) = self.recent[0], self.recent[-1]
        if last > first and now > start:
            data: RowsDataModule = trainer.datamodule  # type: ignore[attr-defined]
            steps_per_second = (last - first) / (now - start)
            rows = data.batch_size * trainer.accumulate_grad_batches * steps_per_second
            left = round((trainer.max_steps - last) / steps_per_second)
            parts += [f"{rows:,.0f} rows/s", f"{left // 60}:{left % 60:02d} left"]
        return "  ".join(parts)

    def _stop(self) -> None:
        if self.bar is not None:
            self.bar.stop()
            self.bar = None


def _bar(steps: int, done: int) -> Any:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

    columns = (BarColumn(bar_width=20), MofNCompleteColumn(), TextColumn("{task.fields[text]}"))
    bar = Progress(*columns, console=Console(stderr=True), auto_refresh=False)
    bar.add_task("", total=steps, completed=done, text="")
    return bar
