"""What a run shows in the terminal: a line about each artifact, and below the last one a live bar of what is being made.

Where nobody looks (no terminal) there is no bar, but a line every 30 s of a step that is longer.
"""

from __future__ import annotations

from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, TaskID, TaskProgressColumn, TextColumn
from rich.progress import Progress as Bars

from tasks.progress import Progress, Seldom

LINE_SECONDS = 30.0
WIDE_COLUMNS = 125  # a narrower terminal has no room for a bar


class Terminal:
    """A listener (`line`) and a watcher (`progress`) of a run. Within `with`, so that no bar outlives an error."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self.seldom = Seldom(LINE_SECONDS)
        self.is_wide = console.width >= WIDE_COLUMNS
        bar = [BarColumn(24)] if self.is_wide else []
        columns = (TextColumn("{task.description}"), *bar, TaskProgressColumn(), TextColumn("{task.fields[detail]}", style="dim"))
        # refreshed with each progress, so that no thread of its own is needed
        self.bars = Bars(*columns, console=console, transient=True, auto_refresh=False)
        self.bar: TaskID | None = None

    def __enter__(self) -> Terminal:
        return self

    def __exit__(self, *_: object) -> None:
        self.clear()

    def line(self, text: str) -> None:
        self.clear()
        self.console.print(escape(text), style="bold" if text.startswith("stage ") else None)

    def progress(self, progress: Progress) -> None:
        if not self.console.is_terminal:
            if self.seldom(progress):
                self.console.print(escape(str(progress)))
            return
        shown: dict[str, Any] = {
            "description": escape(f"{progress.step:<15} {progress.name:<32}" if self.is_wide else f"{progress.step} {progress.name}"),
            "detail": escape(progress.detail(short=not self.is_wide)),
            "completed": progress.share,
        }
        if self.bar is None:
            self.bar = self.bars.add_task(total=1.0, **shown)
            self.bars.start()
        else:
            self.bars.update(self.bar, **shown, refresh=True)

    def clear(self) -> None:
        if self.bar is not None:
            self.bars.remove_task(self.bar)
            self.bars.stop()
            self.bar = None
