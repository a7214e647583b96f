import csv
import io
import json
from pathlib import Path

import pytest

from guard import Report
from guard.errors import InputError
from guard.evaluation.result import Cell
from guard.report import files


def test_save_writes_the_four_files_and_nothing_else(report: Report, tmp_path: Path) -> None:
    folder = tmp_path / "new" / "run"
    assert report.save(folder) == folder / "report.html"
    assert {path.name for path in folder.iterdir()} == {"results.json", "results.csv", "report.md", "report.html"}
    assert Report.model_validate_json((folder / "results.json").read_text()).cells == report.cells


def test_csv_round_trips(report: Report) -> None:
    rows = list(csv.DictReader(io.StringIO(files.table(report), newline="")))
    found = []
    for row in rows:
        low, high = row.pop("robust_accuracy_interval_low"), row.pop("robust_accuracy_interval_high")
        values: dict[str, object] = {key: text for key, text in row.items() if text != ""}
        values |= {key: json.loads(row[key]) for key in ("attack_parameters", "candidates", "parts", "curve")}
        found.append(Cell.model_validate(values | {"robust_accuracy_interval": (low, high) if low else None}))
    assert found == report.cells


def test_unbounded_epsilon_survives_the_files(report: Report) -> None:
    cells = [report.cells[0].model_copy(update={"norm": "l2", "epsilon": float("inf")})]
    endless = report.model_copy(update={"cells": cells})
    assert Report.model_validate_json(endless.to_json()).cells == cells


def test_a_folder_that_cannot_be_written_is_named(report: Report, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(
        InputError, match=r"the folder '.*file/run' for the report cannot be written: .*\. Give"
    ) as raised:
        report.save(tmp_path / "file" / "run")
    assert "\n" not in str(raised.value)


def test_the_old_file_stays_where_writing_fails(
    report: Report, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    report.save(tmp_path)
    before = (tmp_path / "results.json").read_text()

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(files.os, "replace", full)
    with pytest.raises(InputError, match="No space left on device"):
        report.model_copy(update={"cells": []}).save(tmp_path)
    assert (tmp_path / "results.json").read_text() == before
    assert len(list(tmp_path.iterdir())) == 4
