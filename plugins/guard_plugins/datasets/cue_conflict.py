"""Photographs with the shapes of one class and the texture of another, in a folder."""

import csv
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Literal

from torch import Tensor

from guard import Data, DatasetSource, InputError, Split, hookimpl
from guard_plugins.datasets.image_files import ImageFiles
from guard_plugins.datasets.labels import Classes, whole_numbers

_CUES, _SETTINGS = "cues.csv", "cues.json"
_COLUMNS, _PHOTOS = ("file", "shape", "texture"), ("shape_photo", "texture_photo")


class CueConflict(ImageFiles):
    """Images whose shapes and textures are of different classes, in the manner of Geirhos et al.; only to test on.

    `root` holds cues.csv with a header and the columns file, shape and texture, and maybe shape_photo and
    texture_photo, the photographs that an image was made of. Files are relative to the folder. The classes of both cues
    are whole numbers, the outputs of the model, unless `classes` says which output each is. Labels are the shapes';
    `textures` gives the other cue. A decision counts for its very class, where Geirhos et al. join ImageNet's into 16
    categories. `guard.explaining.conflict_set.build` makes such a folder of photographs.
    """

    name = "cue-conflict"
    paper = (
        "Geirhos, Rubisch, Michaelis, Bethge, Wichmann, Brendel: ImageNet-trained CNNs are biased towards texture, "
        "ICLR 2019"
    )

    split: Literal["test"] = "test"
    """There is no other."""
    root: str
    """The folder."""

    def textures(self, split: Split) -> Tensor:
        """The class of each image's texture, int64 (N,), numbered like the shapes."""
        return self.outputs(self._column(split, "texture"))

    def photos(self, split: Split) -> tuple[Data, Data] | None:
        """The photographs of each image's shapes and of its texture, with their classes; None where no such are listed.

        Raises InputError for what cannot be read, and for photographs of mixed sizes.
        """
        if not all(column in row for _, row in self._rows(split) for column in _PHOTOS):
            return None
        shapes, textures = (
            self.read(self._files(split, f"{cue}_photo"), self._column(split, cue)) for cue in ("shape", "texture")
        )
        return shapes, textures

    def _names(self) -> list[str]:
        return sorted({*self._column("test", "shape"), *self._column("test", "texture")})

    def _numbered(self, names: list[str]) -> Classes:
        return whole_numbers(names)

    def _listed(self, split: Split) -> Iterator[tuple[Path, str]]:
        yield from zip(self._files(split, "file"), self._column(split, "shape"), strict=True)

    def _column(self, split: Split, column: str) -> list[str]:
        return [row[column] for _, row in self._rows(split)]

    def _files(self, split: Split, column: str) -> list[Path]:
        return [self._file(line, row[column]) for line, row in self._rows(split)]

    def _file(self, line: int, name: str) -> Path:
        file = self._folder() / name
        if not file.is_file():
            raise InputError(f"'{self._folder() / _CUES}', line {line}: there is no file '{file}'. Copy it there")
        return file

    def _rows(self, split: Split) -> list[tuple[int, dict[str, str]]]:
        """Line, and what stands there by column; at least one."""
        if split != "test":
            raise InputError(f"dataset 'cue-conflict' has no {split} images, only a test split. Train on photographs")
        file = self._folder() / _CUES
        if not file.exists():
            half = (self._folder() / _SETTINGS).exists()
            what, then = ("is half built", "Build it again") if half else ("holds no cues.csv", "Give root: FOLDER")
            raise InputError(f"'{self.root}' {what}. {then}, or see guard.explaining.conflict_set.build")
        try:
            with file.open(newline="", encoding="utf-8-sig") as lines:
                table = csv.DictReader(lines)
                header = table.fieldnames or ()
                if not set(_COLUMNS) <= set(header):
                    have = ", ".join(header) or "(none)"
                    raise InputError(f"'{file}' has the columns {have}. Its first line must name {', '.join(_COLUMNS)}")
                known = [column for column in (*_COLUMNS, *_PHOTOS) if column in header]
                rows = [(table.line_num, {column: (row[column] or "").strip() for column in known}) for row in table]
        except (OSError, UnicodeDecodeError, csv.Error) as error:
            raise InputError(f"'{file}' cannot be read: {error}. Give a csv with {', '.join(_COLUMNS)}") from error
        for line, row in rows:
            missing = [column for column, text in row.items() if not text]
            if missing:
                raise InputError(f"'{file}', line {line}: {missing[0]} is missing. Write it")
        if not rows:
            raise InputError(f"'{file}' lists no images. Add lines below {','.join(_COLUMNS)}")
        return rows

    def _folder(self) -> Path:
        return Path(self.root).expanduser()


@hookimpl
def guard_datasets() -> Iterable[type[DatasetSource]]:
    """The data sets of this plugin."""
    return [CueConflict]
