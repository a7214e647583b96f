"""A training in a terminal: a line for each epoch, and a table at the end."""

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from guard.report.text import percent, seconds
from guard.report.training_words import came, figures, measured, standing, title, where
from guard.training.record import Epoch, Record


def line(epoch: Epoch, of: int) -> str:
    """What an epoch of `of` came to, accuracies in percent, and below it its events, each on its own line."""
    number = f"epoch {epoch.epoch:>{len(str(of))}} of {of}"
    parts = [number, f"loss {epoch.loss:.3f}", *figures(epoch), seconds(epoch.seconds)]
    return "\n".join(["   ".join(parts), *(f"    {event}" for event in epoch.events)])


def show(record: Record, console: Console) -> None:
    """Print what was trained, how the epoch that was kept and the last one did on held-out images, and the alarms."""
    console.print(Text(f"\n{title(record)}", style="bold"))
    columns = measured(record)
    if columns and record.epochs:
        table = Table(box=SIMPLE_HEAD, show_edge=False, pad_edge=False)
        table.add_column("accuracy in %", overflow="fold")
        for _, name in columns:
            table.add_column(name, justify="right")
        for name, epoch in standing(record):
            style = "bold" if epoch.epoch == record.kept else ""
            table.add_row(Text(name), *(percent(getattr(epoch, field)) for field, _ in columns), style=style)
        console.print(table)
    elif record.kept is not None:
        console.print(Text(f"epoch {record.kept}, kept"))
    console.print(Text(where(record)))
    for epoch in record.epochs:
        for event in epoch.events:
            console.print(Text(event, style="yellow"))
    console.print(Text(came(record), style="dim"))
