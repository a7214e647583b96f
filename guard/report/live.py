"""LiveProgress: a bar in the terminal while something long runs."""

from rich.console import Console
from rich.progress import BarColumn, TaskID, TaskProgressColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.progress import Progress as Bars
from rich.table import Column
from rich.text import Text

from guard.progress import Progress


class LiveProgress(Progress):
    """A bar with the share that is done, the time it took and will take, and what is worked on now.

    Where the console is no terminal, only what is said is printed.
    """

    def __init__(self, console: Console | None = None) -> None:
        """`console`: standard error, where left out, so that output can be piped."""
        self._console = console or Console(stderr=True)
        self._bars = Bars(
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=24),
            TaskProgressColumn(),
            TimeElapsedColumn(),
            TextColumn("left", style="dim"),
            TimeRemainingColumn(),
            TextColumn("{task.fields[now]}", style="dim", markup=False, table_column=Column(no_wrap=True)),
            console=self._console,
            transient=True,
            disable=not self._console.is_terminal,
        )
        self._tasks: list[TaskID] = []

    def say(self, text: str) -> None:
        """A line above the bar."""
        self._console.print(Text(text), soft_wrap=True)

    def start(self, what: str, total: int) -> None:
        """Show a bar; inside another piece of work, below its bar."""
        self._tasks.append(self._bars.add_task(what, total=total, now=""))
        self._bars.start()

    def advance(self, units: int, what: str = "") -> None:
        """Move the bar of the innermost piece of work; `what` stays until another is named."""
        self._bars.advance(self._tasks[-1], units)
        if what:
            self._bars.update(self._tasks[-1], now=what)

    def finish(self) -> None:
        """Take the bar away."""
        self._bars.remove_task(self._tasks.pop())
        if not self._tasks:
            self._bars.stop()
