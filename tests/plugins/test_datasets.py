"""The data sets that ship, read from tiny files."""

import os
import pickle
import re
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from guard_plugins.datasets.arrays import Arrays
from guard_plugins.datasets.digits import Digits
from guard_plugins.datasets.torchvision import Cifar10, FashionMnist, Mnist

from guard import DatasetSource, InputError

DRAW = np.random.default_rng(0)


def test_digits() -> None:
    from sklearn.datasets import load_digits

    source, raw = Digits(), load_digits()
    train, test = source.load("train"), source.load("test")
    assert (len(train), len(test)) == (1200, 597)
    assert test.images.shape == (597, *source.image_shape)
    assert test.images.dtype == torch.float32
    assert test.labels.dtype == torch.int64
    assert torch.equal(torch.cat([train.images, test.images])[:, 0] * 16, torch.from_numpy(raw.images).float())
    assert torch.equal(torch.cat([train.labels, test.labels]), torch.from_numpy(raw.target))
    assert source.num_classes == 10
    assert source.class_names == tuple("0123456789")


def write_idx(path: Path, array: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    header = struct.pack(">BBBB", 0, 0, 8, array.ndim) + struct.pack(f">{array.ndim}I", *array.shape)
    path.write_bytes(header + array.tobytes())


def write_mnist(root: Path, folder: str) -> dict[str, tuple[Any, Any]]:
    splits = {}
    for split, prefix, count in (("train", "train", 7), ("test", "t10k", 3)):
        images = DRAW.integers(0, 256, (count, 28, 28), dtype=np.uint8)
        labels = DRAW.integers(0, 10, count, dtype=np.uint8)
        write_idx(root / folder / "raw" / f"{prefix}-images-idx3-ubyte", images)
        write_idx(root / folder / "raw" / f"{prefix}-labels-idx1-ubyte", labels)
        splits[split] = images, labels
    return splits


@pytest.mark.parametrize(("source", "folder"), [(Mnist, "MNIST"), (FashionMnist, "FashionMNIST")])
def test_mnist_is_read_from_a_folder(
    source: type[DatasetSource], folder: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written = write_mnist(tmp_path, folder)
    monkeypatch.setenv("GUARD_DATA", str(tmp_path))
    for split in ("train", "test"):
        data = source().load(split)  # type: ignore[arg-type]
        images, labels = written[split]
        assert data.images.dtype == torch.uint8
        assert torch.equal(data.images, torch.from_numpy(images)[:, None])
        assert torch.equal(data.labels, torch.from_numpy(labels).long())


def test_root_goes_before_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_mnist(tmp_path, "MNIST")
    monkeypatch.setenv("GUARD_DATA", str(tmp_path / "elsewhere"))
    assert len(Mnist(root=str(tmp_path)).load("test")) == 3


@pytest.mark.parametrize(
    ("source", "looked"),
    [(Mnist, "MNIST/raw"), (FashionMnist, "FashionMNIST/raw"), (Cifar10, "cifar10/*.npz and cifar-10-batches-py")],
)
def test_a_missing_data_set_says_where_and_what_to_type(
    source: type[DatasetSource], looked: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GUARD_DATA", str(tmp_path))
    message = f"dataset '{source.name}' is not in '{tmp_path}' (looked for {looked}). Set GUARD_DATA or root:"
    with pytest.raises(InputError, match=re.escape(message)) as caught:
        source().load("test")
    assert "download=True" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert source().num_classes == 10  # known without the files
    assert len(set(source().class_names)) == 10
    monkeypatch.delenv("GUARD_DATA")
    with pytest.raises(InputError, match=f"dataset '{source.name}' needs a folder. Set GUARD_DATA or root:"):
        source().load("test")


def test_a_damaged_idx_file_is_refused(tmp_path: Path) -> None:
    write_mnist(tmp_path, "MNIST")
    path = tmp_path / "MNIST" / "raw" / "t10k-images-idx3-ubyte"
    path.write_bytes(path.read_bytes()[:-5])
    with pytest.raises(InputError, match=r"dataset 'mnist' in .* is damaged"):
        Mnist(root=str(tmp_path)).load("test")


def test_cifar10_from_npz_and_from_torchvisions_batches_is_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    images, labels = DRAW.integers(0, 256, (10, 32, 32, 3), dtype=np.uint8), np.arange(10)
    (tmp_path / "npz" / "cifar10").mkdir(parents=True)
    np.savez(tmp_path / "npz" / "cifar10" / "test.npz", images=images, labels=labels)
    batches = tmp_path / "batches" / "cifar-10-batches-py"
    batches.mkdir(parents=True)
    planes = images.transpose(0, 3, 1, 2).reshape(10, -1)
    (batches / "test_batch").write_bytes(pickle.dumps({"data": planes, "labels": labels.tolist()}))
    (batches / "batches.meta").write_bytes(pickle.dumps({"label_names": list(Cifar10().class_names)}))
    monkeypatch.setattr("torchvision.datasets.cifar.check_integrity", lambda *_: True)
    for folder in ("npz", "batches"):
        data = Cifar10(root=str(tmp_path / folder)).load("test")
        assert data.images.dtype == torch.uint8
        assert data.images.shape == (10, 3, 32, 32)
        assert np.array_equal(data.images.permute(0, 2, 3, 1).numpy(), images)
        assert data.labels.tolist() == list(range(10))


def test_a_damaged_cifar10_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "cifar10").mkdir()
    (tmp_path / "cifar10" / "test.npz").write_bytes(b"PK\x03\x04 half")
    with pytest.raises(InputError, match=r"test.npz' holds no images and labels"):
        Cifar10(root=str(tmp_path)).load("test")


IMAGES = DRAW.integers(0, 256, (6, 4, 5, 3), dtype=np.uint8)
LABELS = np.array([0, 1, 2, 0, 1, 2])


def write(path: Path, **arrays: Any) -> Path:
    if path.suffix == ".npz":
        np.savez_compressed(path, **arrays)
    else:
        safetensors.torch.save_file({k: torch.from_numpy(v).contiguous() for k, v in arrays.items()}, path)
    return path


@pytest.mark.parametrize("name", ["a.npz", "a.safetensors"])
@pytest.mark.parametrize("first", [True, False])
@pytest.mark.parametrize("kind", ["uint8", "float32", "float64", "float16"])
def test_arrays_are_read(name: str, first: bool, kind: str, tmp_path: Path) -> None:
    images = IMAGES if kind == "uint8" else (IMAGES / 255).astype(kind)
    stored = np.ascontiguousarray(images.transpose(0, 3, 1, 2)) if first else images
    source = Arrays(path=str(write(tmp_path / name, images=stored, labels=LABELS)))
    data = source.load("test")
    assert data.images.dtype == (torch.uint8 if kind == "uint8" else torch.float32)
    assert np.array_equal(data.images.permute(0, 2, 3, 1).numpy(), images.astype(data.images.numpy().dtype))
    assert data.labels.tolist() == LABELS.tolist()
    assert source.image_shape == (3, 4, 5)
    assert source.num_classes == 3
    assert source.class_names == ("0", "1", "2")


def test_arrays_under_other_names_and_with_a_training_file(tmp_path: Path) -> None:
    test = write(tmp_path / "test.npz", x=IMAGES, y=LABELS)
    train = write(tmp_path / "train.npz", x=IMAGES[:2], y=np.array([0, 4], dtype=np.uint16))
    source = Arrays(path=str(test), train_path=str(train), images="x", labels="y")
    assert source.num_classes == 5
    assert source.load("train").labels.tolist() == [0, 4]
    assert len(source.load("test")) == 6
    with pytest.raises(InputError, match=r"has no training images. Give train_path"):
        Arrays(path=str(test), images="x", labels="y").load("train")


def test_arrays_of_the_other_byte_order(tmp_path: Path) -> None:
    images = (IMAGES / 255).astype(np.float32)
    path = write(tmp_path / "a.npz", images=images.astype(">f4"), labels=LABELS.astype(">i8"))
    data = Arrays(path=str(path)).load("test")
    assert np.array_equal(data.images.permute(0, 2, 3, 1).numpy(), images)
    assert data.labels.tolist() == LABELS.tolist()


def test_the_layout_may_be_said(tmp_path: Path) -> None:
    path = str(write(tmp_path / "a.npz", images=np.zeros((2, 3, 8, 3), np.uint8), labels=LABELS[:2]))
    with pytest.raises(InputError, match="Give layout: nchw or nhwc"):
        Arrays(path=path).load("test")
    assert Arrays(path=path, layout="nchw").load("test").images.shape == (2, 3, 8, 3)
    assert Arrays(path=path, layout="nhwc").load("test").images.shape == (2, 3, 3, 8)
    assert Arrays(path=path, layout="nhwc").image_shape == (3, 3, 8)


@pytest.mark.parametrize(
    ("arrays", "keys", "message"),
    [
        ({"images": IMAGES / 127.5 - 1}, {}, "reach from -1 to 1. Save uint8, or float in [0, 1]"),
        ({"images": IMAGES.astype(np.float32)}, {}, "Save uint8, or float in [0, 1]"),
        ({"images": np.full((6, 4, 5, 3), np.nan)}, {}, "hold NaN or infinity"),
        ({"images": IMAGES.astype(np.int64)}, {}, "are int64. Save uint8"),
        ({"images": IMAGES[..., 0]}, {}, "have shape (6, 4, 5). Save them as (N, C, H, W)"),
        ({"images": np.concatenate([IMAGES] * 2, 3)}, {}, "where are the channels?"),
        ({"images": IMAGES[:5]}, {}, "holds 5 images and 6 labels"),
        ({"labels": LABELS - 1}, {}, "reach from -1 to 1"),
        ({"labels": LABELS}, {"classes": 2}, "reach from 0 to 2; there are 2 classes"),
        ({"labels": LABELS / 2}, {}, "labels in"),
        ({"labels": np.eye(6, dtype=np.int64)}, {}, "are int64 of shape (6, 6). Save whole numbers (N,)"),
        ({"labels": np.array(["cat"] * 6, dtype=object)}, {}, "cannot be read: Object arrays cannot be loaded"),
        ({}, {"labels": "y"}, "has no 'y'; it holds images, labels. Give images: and labels: their names"),
    ],
)
def test_arrays_that_are_no_data_set_are_refused(
    arrays: dict[str, Any], keys: dict[str, Any], message: str, tmp_path: Path
) -> None:
    path = write(tmp_path / "a.npz", **({"images": IMAGES, "labels": LABELS} | arrays))
    with pytest.raises(InputError, match=re.escape(message)) as caught:
        Arrays(path=str(path), **keys).load("test")
    assert "\n" not in str(caught.value)
    assert "a.npz" in str(caught.value)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("no.npz", "finds no file"),
        ("a.npy", "reads no"),
        ("half.npz", "cannot be read"),
        ("half.safetensors", "cannot be read"),
    ],
)
def test_files_that_cannot_be_read_are_refused(name: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "a.npy").touch()
    for half in (tmp_path / "half.npz", tmp_path / "half.safetensors"):
        content = write(half, images=IMAGES, labels=LABELS).read_bytes()
        half.write_bytes(content[: len(content) // 2])
    source = Arrays(path=str(tmp_path / name), classes=3)
    for read in (lambda: source.load("test"), lambda: source.image_shape):
        with pytest.raises(InputError, match=message):
            read()


def test_the_fingerprint_is_the_files_content(tmp_path: Path) -> None:
    source = Arrays(path=str(write(tmp_path / "a.npz", images=IMAGES, labels=LABELS)))
    before = source.fingerprint()
    write(tmp_path / "a.npz", images=IMAGES[::-1], labels=LABELS)
    assert source.fingerprint() != before


@pytest.mark.parametrize(
    ("source", "train", "count"), [(Mnist(), 60000, 980), (FashionMnist(), 60000, 1000), (Cifar10(), 50000, 1000)]
)
def test_real_data(source: DatasetSource, train: int, count: int) -> None:
    if "GUARD_DATA" not in os.environ:
        pytest.skip("GUARD_DATA is unset: no folder of real data")
    test = source.load("test")
    assert test.images.shape == (10000, *source.image_shape)
    assert (test.labels == 0).sum() == count  # published
    assert len(source.load("train")) == train
