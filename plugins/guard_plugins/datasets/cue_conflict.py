"""Photographs with the shapes of one class and the texture of another, in a folder."""

import csv
from collections.abc import Iterable
from pathlib import Path
from typing import Literal

import torch
from pydantic import PositiveInt
from torch import Tensor

from guard import Data, DatasetSource, InputError, Split, hookimpl
from guard_plugins.datasets.labels import Classes, whole_numbers
from guard_plugins.datasets.photographs import Photographs, shape_of

_CUES, _SETTINGS = "cues.csv", "cues.json"
_COLUMNS, _PHOTOS = ("file", "shape", "texture"), ("shape_photo", "texture_photo")


class CueConflict(DatasetSource):
    """Images whose shapes and textures are of different classes, in the manner of Geirhos et al.; only to test on.

    `root` holds cues.csv with a header and the columns file, shape and texture, and maybe shape_photo and
    texture_photo, the photographs that an image was made of. Files are relative to the folder. The classes of both cues
    are whole numbers, the outputs of the model. Labels are the shapes'; `textures` gives the other cue.
    `guard.explaining.conflict_set.build` makes such a folder of photographs.
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
    resize: PositiveInt | None = None
    """The shorter side in pixels. Where crop is left out too, both are what the models ask for."""
    crop: PositiveInt | None = None
    """The side of the square in the centre, after resizing."""
    num_outputs: PositiveInt | None = None
    """How many outputs the model has, where that is not the last class plus 1."""

    @property
    def framing(self) -> tuple[int | None, int | None]:
        """As given."""
        return self.resize, self.crop

    @property
    def num_classes(self) -> int:
        """The outputs of the model."""
        return len(self._classes().titles)

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(3, H, W), of the first image. Raises InputError where that cannot be read."""
        line, row = self._rows("test")[0]
        return shape_of(self._file(line, row["file"]), self.resize, self.crop)

    def load(self, split: Split) -> Data:
        """See `DatasetSource.load`: every file's header is read, and its pixels when they are needed.

        Raises InputError for what is no such folder, images of mixed sizes and a class that is no number.
        """
        return self._data(split, "file", "shape")

    def textures(self, split: Split) -> Tensor:
        """The class of each image's texture, int64 (N,), numbered like the shapes."""
        return self._outputs(split, "texture")

    def photos(self, split: Split) -> tuple[Data, Data] | None:
        """The photographs of each image's shapes and of its texture, with their classes; None where no such are listed.

        Raises InputError for what cannot be read, and for photographs of mixed sizes.
        """
        if not all(column in row for _, row in self._rows(split) for column in _PHOTOS):
            return None
        return self._data(split, "shape_photo", "shape"), self._data(split, "texture_photo", "texture")

    def _data(self, split: Split, column: str, cue: str) -> Data:
        files = [self._file(line, row[column]) for line, row in self._rows(split)]
        photographs = Photographs.of(files, self.resize, self.crop)
        return Data.streamed(photographs, photographs.shape, self._outputs(split, cue))

    def _outputs(self, split: Split, cue: str) -> Tensor:
        outputs = self._classes().outputs
        return torch.tensor([outputs[row[cue]] for _, row in self._rows(split)])

    def _classes(self) -> Classes:
        names = sorted({row[cue] for _, row in self._rows("test") for cue in ("shape", "texture")})
        return whole_numbers(names).at(0, self.num_outputs, names)

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
