"""Labels: which output of a network stands for which class of a data set."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from guard import InputError

_WORDNET = re.compile(r"n\d{8}(?!\w)")
_IMAGENET = 1000
_MOST = 10**6


class Classes(NamedTuple):
    """Classes by their name in the data, and what reports call each output."""

    outputs: dict[str, int]
    titles: tuple[str, ...]

    def at(self, offset: int, total: int | None, present: Sequence[str]) -> "Classes":
        """The outputs of the classes that are present, all of them `offset` further, out of `total`.

        `total`: as many as there are classes, and `offset` more, where left out. Raises InputError for a class that is
        not known or has no output.
        """
        unknown = [name for name in present if name not in self.outputs]
        if unknown:
            more = f" and {len(unknown) - 1} more" if len(unknown) > 1 else ""
            raise InputError(f"classes: does not say which output '{unknown[0]}'{more} is. Add it, or take it away")
        total = len(self.titles) + offset if total is None else total
        if total > _MOST:
            raise InputError(
                f"there would be {total} outputs. Give classes:, label_offset: and num_outputs: below {_MOST}"
            )
        outputs = {name: self.outputs[name] + offset for name in present}
        for name, output in outputs.items():
            if not 0 <= output < total:
                shift = f" ({self.outputs[name]}, and label_offset: {offset})" if offset else ""
                raise InputError(
                    f"class '{name}' is output {output}{shift}; there are {total} outputs, counted from 0. "
                    f"Mend classes: or label_offset:, or give num_outputs:"
                )
        known = range(len(self.titles))
        titles = (self.titles[k - offset] if k - offset in known else str(k) for k in range(total))
        return Classes(outputs, tuple(titles))


def sorted_names(names: Sequence[str]) -> Classes:
    """Classes numbered in alphabetical order."""
    ordered = sorted(names)
    return Classes({name: number for number, name in enumerate(ordered)}, tuple(ordered))


def whole_numbers(labels: Sequence[str]) -> Classes:
    """Labels that say their output themselves. Raises InputError."""
    wrong = [label for label in labels if not re.fullmatch(r"-?\d{1,6}", label)]
    if wrong:
        raise InputError(
            f"label '{wrong[0][:40]}' is no whole number below a million. Give classes:, with the output of each label"
        )
    numbers = {label: int(label) for label in labels}
    return Classes(numbers, tuple(map(str, range(1 + max(numbers.values())))))


def read_classes(classes: str | Mapping[str, int], names: Sequence[str]) -> Classes:
    """What `classes:` says of the names in the data: imagenet, the path of a file, or a mapping. Raises InputError.

    A file is a mapping (.json, .yaml, .yml) or text with one name a line, in the order of the outputs; of a line that
    begins with a WordNet id the id is the name.
    """
    if isinstance(classes, Mapping):
        return _mapped(dict(classes))
    if classes == "imagenet":
        return _imagenet(names)
    try:
        text = Path(classes).expanduser().read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(
            f"classes: '{classes}' is no text file. Write imagenet, a file with one class a line in the order of the "
            f"outputs, or a mapping {{class: output}}"
        ) from error
    if Path(classes).suffix in (".json", ".yaml", ".yml"):
        return _mapped(_mapping(text, classes))
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    ids = [found[0] if (found := _WORDNET.match(line)) else line for line in lines]
    twice = [name for name in ids if ids.count(name) > 1] if len(set(ids)) < len(ids) else []
    if twice or not ids:
        what = f"names '{twice[0]}' twice" if twice else "is empty"
        raise InputError(f"classes: '{classes}' {what}. Write each class once, in the order of the outputs")
    return Classes({name: number for number, name in enumerate(ids)}, tuple(lines))


def _mapped(outputs: dict[str, int]) -> Classes:
    titles = {output: name for name, output in outputs.items()}
    return Classes(outputs, tuple(titles.get(k, str(k)) for k in range(1 + max(titles, default=-1))))


def _mapping(text: str, file: str) -> dict[str, int]:
    import yaml

    try:
        found: Any = yaml.safe_load(text)  # JSON is YAML
    except yaml.YAMLError:
        found = None
    if not isinstance(found, dict) or not all(type(value) is int and value >= 0 for value in found.values()):
        raise InputError(f"classes: '{file}' holds no mapping. Write CLASS: OUTPUT, a whole number from 0")
    return {str(name): output for name, output in found.items()}


def _imagenet(names: Sequence[str]) -> Classes:
    """ImageNet's classes by WordNet id, whose alphabetical order is that of the outputs, or by torchvision's names."""
    from torchvision.models import ResNet18_Weights

    titles = tuple(ResNet18_Weights.DEFAULT.meta["categories"])
    if names and all(map(_WORDNET.fullmatch, names)):
        if len(names) != _IMAGENET:
            raise InputError(
                f"classes: imagenet cannot tell which outputs the WordNet ids of {len(names)} classes are: only all "
                f"{_IMAGENET:,} in their order tell. Give classes: a file with all {_IMAGENET:,} ids, one a line in "
                f"their order, or a mapping {{{min(names)}: OUTPUT, ...}}"
            )
        return Classes(sorted_names(names).outputs, titles)
    known = {_plain(title): output for output, title in enumerate(titles) if titles.count(title) == 1}
    return Classes({name: known[_plain(name)] for name in names if _plain(name) in known}, titles)


def _plain(name: str) -> str:
    """Folders are often named great_white_shark."""
    return name.replace("_", " ").casefold()
