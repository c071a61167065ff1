"""How far a long piece of work is."""

import time
from types import TracebackType


class Progress:
    """A bar with tokens done, rows per second and what remains: drawn on a terminal, silent elsewhere.

    `rows` is how many rows the tokens gave so far.
    """

    def __init__(self, title: str, tokens: int):
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
        from rich.progress import Progress as Bar

        console = Console(stderr=True)
        columns = (TextColumn(title), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[speed]}"), TimeRemainingColumn())
        self._bar = Bar(*columns, console=console, disable=not console.is_terminal, refresh_per_second=4)
        self._task = self._bar.add_task(title, total=tokens, speed="")
        self._started = time.monotonic()
        self.rows = 0

    def advance(self, tokens: int, rows: int) -> None:
        self.rows += rows
        self._bar.update(self._task, advance=tokens, speed=f"{self.rows_per_second:,.0f} rows/s")

    @property
    def rows_per_second(self) -> float:
        """Since the start."""
        return self.rows / max(time.monotonic() - self._started, 1e-9)

    def __enter__(self) -> "Progress":
        self._bar.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._bar.stop()
