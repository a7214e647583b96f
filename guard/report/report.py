"""Report: the results of an evaluation, with the ways to show them."""

from pathlib import Path
from typing import Self

from guard.evaluation.result import Results
from guard.report.files import save
from guard.report.html import fragment


class Report(Results):
    """What `guard.evaluate` returns: `cells` and `worst_case`, to look at, to keep and to compute with."""

    @classmethod
    def of(cls, results: Results) -> Self:
        """The report of an evaluation's results."""
        return cls(**dict(results))

    def save(self, folder: str | Path) -> Path:
        """Write results.json, results.csv, report.md and report.html into a folder; returns the page's path.

        Raises InputError where it cannot be written.
        """
        return save(self, Path(folder))

    def __repr__(self) -> str:
        return f"<Report of {len(self.cells)} cells: see .cells, .worst_case, .to_frame(), .save(folder)>"

    __str__ = __repr__

    def _repr_html_(self) -> str:
        return fragment(self)
