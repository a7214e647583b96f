"""The files of a report: results.json, results.csv, report.md and report.html."""

import csv
import io
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from guard.errors import InputError
from guard.evaluation.result import Cell, Results
from guard.report.html import page
from guard.report.markdown import document


def save(report: Results, folder: Path) -> Path:
    """Write the four files into a folder, made where it is missing, each in one piece; return the page's path.

    Raises InputError where the folder cannot be written.
    """
    texts = {
        "results.json": report.to_json(),
        "results.csv": table(report),
        "report.md": document(report),
        "report.html": page(report),
    }
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, text in texts.items():
            _write(folder / name, text)
    except OSError as error:
        raise InputError(
            f"the folder '{folder}' for the report cannot be written: {error.strerror}. Give another folder"
        ) from error
    return folder / "report.html"


def table(report: Results) -> str:
    """results.csv: one row for each cell. Parameters and candidates are JSON; the interval is two columns."""
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, [name for field in Cell.model_fields for name in _columns(field)])
    writer.writeheader()
    writer.writerows(dict(_flat(cell)) for cell in report.cells)
    return text.getvalue()


def _columns(field: str) -> tuple[str, ...]:
    return (f"{field}_low", f"{field}_high") if field == "robust_accuracy_interval" else (field,)


def _flat(cell: Cell) -> Iterator[tuple[str, Any]]:
    for field, value in cell.model_dump(mode="json").items():
        if field == "robust_accuracy_interval":
            yield from zip(_columns(field), value or (None, None), strict=True)
        else:
            yield field, json.dumps(value) if isinstance(value, dict | list) else value


def _write(path: Path, text: str) -> None:
    """In one piece: a reader sees the old file or the new one, never half of it."""
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        partial.write_text(text, encoding="utf-8", newline="")
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)
