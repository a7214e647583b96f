"""Image files in folders, one for each class, or in a list; read when they are needed."""

import csv
from collections.abc import Iterable, Iterator
from pathlib import Path

from guard import DatasetSource, InputError, Split, hookimpl
from guard_plugins.datasets.image_files import ImageFiles
from guard_plugins.datasets.labels import Classes, sorted_names, whole_numbers

_SUFFIXES = (".bmp", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp")
_SPLITS: dict[Split, tuple[str, ...]] = {"train": ("train",), "test": ("test", "val")}
_COLUMNS = ("path", "label")


class ImageFolder(ImageFiles):
    """Image files in one folder for each class.

    Where `path` holds no other folders than train, test and val, the classes are in those: train is the training split,
    test, or val where there is no test, the test split. Otherwise its folders are the classes of the test split.
    Images may lie deeper inside a class's folder; what begins with a dot is left out. Without `classes` the outputs are
    the folders in alphabetical order, or the names themselves where all are whole numbers.
    """

    name = "folder"

    path: str
    """The folder."""

    def _names(self) -> list[str]:
        return sorted({folder.name for root in self._roots().values() for folder in _folders(root)})

    def _numbered(self, names: list[str]) -> Classes:
        return whole_numbers(names) if all(name.isdecimal() for name in names) else sorted_names(names)

    def _listed(self, split: Split) -> Iterator[tuple[Path, str]]:
        roots = self._roots()
        if split not in roots:
            raise InputError(f"'{self.path}' has no {split} images. Put its classes into {self.path}/{split}")
        folders = _folders(roots[split])
        if not folders:
            raise InputError(f"'{roots[split]}' has no folders. Give each class its own there, or use image-list")
        for folder in folders:
            files = sorted(file for file in folder.rglob("*") if file.suffix.lower() in _SUFFIXES and file.is_file())
            files = [file for file in files if not any(part[0] == "." for part in file.relative_to(folder).parts)]
            if not files:
                raise InputError(f"class folder '{folder}' holds no images ({', '.join(_SUFFIXES)}). Take it away")
            yield from ((file, folder.name) for file in files)

    def _roots(self) -> dict[Split, Path]:
        """The folder of each split."""
        path = Path(self.path).expanduser()
        if not path.is_dir():
            raise InputError(f"dataset 'folder' finds no folder '{self.path}'. Give path: FOLDER")
        inside = {folder.name for folder in _folders(path)}
        if not inside or not inside.issubset(name for names in _SPLITS.values() for name in names):
            return {"test": path}
        found = {split: [path / name for name in names if name in inside] for split, names in _SPLITS.items()}
        return {split: folders[0] for split, folders in found.items() if folders}


class ImageList(ImageFiles):
    """Image files listed in a csv with a header and the columns path and label; others are left out of account.

    Paths are relative to the csv. Labels are whole numbers, the outputs of the model, unless `classes` says which
    output each label is.
    """

    name = "image-list"

    path: str
    """The csv of the test split."""
    train_path: str | None = None
    """The csv of the training split, where something is to be trained."""

    def _names(self) -> list[str]:
        splits: list[Split] = ["test"] if self.train_path is None else ["train", "test"]
        return sorted({label for split in splits for _, _, label in self._rows(split)})

    def _numbered(self, names: list[str]) -> Classes:
        return whole_numbers(names)

    def _listed(self, split: Split) -> Iterator[tuple[Path, str]]:
        file, rows = self._file(split), list(self._rows(split))
        if not rows:
            raise InputError(f"'{file}' lists no images. Add lines below path,label")
        for line, path, label in rows:
            if not _is_file(file.parent / path):
                raise InputError(
                    f"'{file}', line {line}: there is no file '{file.parent / path}'. Write paths relative to the csv"
                )
            yield file.parent / path, label

    def _rows(self, split: Split) -> Iterator[tuple[int, str, str]]:
        """Line, path and label."""
        file = self._file(split)
        try:
            with file.open(newline="", encoding="utf-8-sig") as lines:
                table = csv.DictReader(lines)
                header = table.fieldnames or ()
                if not set(_COLUMNS) <= set(header):
                    raise InputError(
                        f"'{file}' has the columns {', '.join(header) or '(none)'}. Its first line must name path and "
                        f"label"
                    )
                for row in table:
                    if not row["path"] or not row["label"]:
                        raise InputError(f"'{file}', line {table.line_num}: path or label is missing. Write both")
                    yield table.line_num, row["path"].strip(), row["label"].strip()
        except (OSError, UnicodeDecodeError, csv.Error) as error:
            raise InputError(f"'{file}' cannot be read: {error}. Give a csv with the columns path,label") from error

    def _file(self, split: Split) -> Path:
        name = self.path if split == "test" else self.train_path
        if name is None:
            raise InputError("dataset 'image-list' has no training images. Give train_path: FILE.csv")
        return Path(name).expanduser()


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except OSError:  # a name too long
        return False


def _folders(path: Path) -> list[Path]:
    """The folders in a folder, sorted by name."""
    found = [item for item in path.iterdir() if item.is_dir() and not item.name.startswith(".")]
    return sorted(found, key=lambda folder: folder.name)


@hookimpl
def guard_datasets() -> Iterable[type[DatasetSource]]:
    """The data sets of this plugin."""
    return [ImageFolder, ImageList]
