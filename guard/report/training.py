"""What is shown of a training: a page, and a table for other programs."""

import io
from csv import writer
from functools import cache
from typing import TYPE_CHECKING

import yaml

from guard.report.text import percent, seconds
from guard.report.training_curves import pictures
from guard.report.training_words import came, measured, standing, title, where
from guard.training.record import Record

if TYPE_CHECKING:
    from jinja2 import Template

_COLUMNS = ("epoch", "lr", "loss", "clean", "fgsm", "pgd", "seconds")


def page(record: Record) -> str:
    """A whole HTML document that refers to nothing outside itself; sensible while the training still runs, too."""
    return _template().render(
        record=record,
        title=title(record),
        came=came(record),
        where=where(record),
        standing=standing(record),
        measured=measured(record),
        pictures=pictures(record),
        alarms=[epoch for epoch in record.epochs if epoch.events],
        config=yaml.safe_dump(record.config, sort_keys=False, allow_unicode=True),
        light=(),
        dark=(),
    )


def csv(record: Record) -> str:
    """One row for each epoch; accuracies are fractions, empty where there is none."""
    text = io.StringIO(newline="")
    table = writer(text)
    table.writerow(_COLUMNS)
    table.writerows([getattr(epoch, column) for column in _COLUMNS] for epoch in record.epochs)
    return text.getvalue()


@cache
def _template() -> "Template":
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("guard", "report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"percent": percent, "seconds": seconds}
    return environment.get_template("training.html.j2")
