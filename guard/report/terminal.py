"""The report in a terminal: one table for each game, folded into blocks where the window is narrow."""

from collections.abc import Iterator, Sequence
from textwrap import wrap

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.markup import escape
from rich.table import Table as Grid
from rich.text import Text

from guard.evaluation.result import Results, Row
from guard.report.tables import Line, Table, tables
from guard.report.text import percent, score, work, worst

_STYLES = {"VALID": "", "SUSPECT": "yellow", "INVALID": "bold red", "NOT_APPLICABLE": "dim", "INCOMPLETE": "yellow"}
_GAP = 2  # blanks between columns, one of which the box draws
_NARROW = 20  # a longer defense's name folds before the table is cut in two
_WORST = "worst case"


def show(report: Results, console: Console) -> None:
    """Print the tables of a report, the reasons for marked figures, and what was computed."""
    setting = None
    for table in tables(report):
        if table.setting != setting:
            setting = table.setting
            console.print(Text(f"\n{setting}, {table.images:,} images", style="bold"))
        console.print(Text(f"{table.attacker} attacker; robust accuracy in %, an upper bound [95 % interval]"))
        for attacks in _blocks(table, console.width):
            console.print(_grid(table, attacks, console.width))
        for note in table.notes:
            console.print(Text(note, style="red" if note.startswith("INVALID") else "dim"))
    console.print(Text(f"\n{work(report)}", style="dim"))


def _grid(table: Table, attacks: Sequence[str], width: int) -> Grid:
    """One block: some of the attacks, and the worst case in the last block."""
    grid = Grid(box=SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, 0, 0, _GAP - 1))
    columns = [("clean", [percent(line.clean) for line in table.lines])]
    columns += [(table.heading(label), _scores(table, label)) for label in attacks]
    last = table.attacks[-1:] == tuple(attacks[-1:])
    columns += [(_WORST, [worst(line.worst) for line in table.lines])] if last else []
    widths = [_width(header, texts) for header, texts in columns]
    room = width - sum(widths) - _GAP * len(widths)
    grid.add_column("defense", width=min(_longest(table), room), overflow="fold")
    for (header, _), column in zip(columns, widths, strict=True):
        folded = "\n".join(wrap(header, column))  # at blanks and hyphens; rich folds at blanks alone
        grid.add_column(escape(folded), width=column, justify="right", overflow="fold")
    for number, line in enumerate(table.lines):
        rows = _rows(line, attacks, last)
        texts = [Text(column[number], style=_style(row)) for (_, column), row in zip(columns, rows, strict=True)]
        grid.add_row(Text(line.defense), *texts)
    return grid


def _rows(line: Line, attacks: Sequence[str], last: bool) -> Iterator[Row | None]:
    """What each column after the defense shows."""
    yield None
    yield from (line.cells.get(label) for label in attacks)
    if last:
        yield line.worst


def _style(row: Row | None) -> str:
    return _STYLES[row.status] if row else ""


def _longest(table: Table) -> int:
    return max(len("defense"), *(len(line.defense) for line in table.lines))


def _scores(table: Table, label: str) -> list[str]:
    return [score(line.cells[label]) if label in line.cells else "" for line in table.lines]


def _width(header: str, texts: Sequence[str]) -> int:
    """Wide enough for every figure and, folded, for the header."""
    return max(*map(len, texts), *map(len, wrap(header, 12, break_long_words=False)))


def _blocks(table: Table, width: int) -> list[Sequence[str]]:
    """The attacks, cut where one more would not fit beside the defenses, clean accuracy and worst case."""
    fixed = min(_longest(table), _NARROW)
    fixed += _GAP + _width("clean", [percent(line.clean) for line in table.lines])
    fixed += _GAP + _width(_WORST, [worst(line.worst) for line in table.lines])
    blocks: list[list[str]] = [[]]
    room = width - fixed
    for label in table.attacks:
        needed = _GAP + _width(table.heading(label), _scores(table, label))
        if blocks[-1] and needed > room:
            blocks.append([])
            room = width - fixed
        blocks[-1].append(label)
        room -= needed
    return [tuple(block) for block in blocks]
