"""The handwritten digits that come with scikit-learn."""

from collections.abc import Iterable

import torch

from guard import Data, DatasetSource, Split, hookimpl

_TRAIN = 1200  # the first images; the last 597 are the test split, by other writers in part


class Digits(DatasetSource):
    """1,797 grey digits of 8 x 8 pixels with 17 levels; nothing is downloaded."""

    name = "digits"

    @property
    def num_classes(self) -> int:
        """0 to 9."""
        return 10

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """Grey."""
        return 1, 8, 8

    def load(self, split: Split) -> Data:
        """See `DatasetSource.load`."""
        from sklearn.datasets import load_digits

        digits = load_digits()
        rows = slice(_TRAIN) if split == "train" else slice(_TRAIN, None)
        images = torch.from_numpy(digits.images[rows]).float()[:, None] / 16
        return Data.of(images, torch.from_numpy(digits.target[rows]))


@hookimpl
def guard_datasets() -> Iterable[type[DatasetSource]]:
    """The data sets of this plugin."""
    return [Digits]
