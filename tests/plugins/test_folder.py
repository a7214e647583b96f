"""Image files in folders and lists: what is read, what is measured, and what is refused."""

import json
import re
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from guard_plugins.datasets.folder import ImageFolder, ImageList
from guard_plugins.datasets.photographs import Photographs
from PIL import Image

from guard import InputError, Registry


def draw(path: Path, height: int = 6, width: int = 6, mode: str = "RGB", seed: int = 0) -> Path:
    """An image of noise."""
    path.parent.mkdir(parents=True, exist_ok=True)
    channels = {"L": (), "RGB": (3,), "RGBA": (4,)}[mode]
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, *channels), dtype=np.uint8)
    Image.fromarray(pixels, mode).save(path)
    return path


@pytest.fixture
def animals(tmp_path: Path) -> Path:
    """Three classes with 2, 3 and 1 images, and what must be left out of account."""
    root = tmp_path / "animals"
    for place, name in enumerate(["cat/b.png", "cat/a.png", "dog/z.png", "dog/deeper/y.jpg", "dog/1.PNG", "ant/q.png"]):
        draw(root / name, seed=place)
    (root / "cat" / "notes.txt").write_text("no image")
    (root / "cat" / "._a.png").write_text("no image either")
    (root / ".cache").mkdir()
    return root


def folder(path: Path, **keys: Any) -> ImageFolder:
    return ImageFolder(path=str(path), **keys)


def write_list(path: Path, text: str) -> Path:
    path.write_text(text)
    return path


def refused(message: str, what: Any) -> None:
    with pytest.raises(InputError, match=re.escape(message)) as caught:
        what()
    assert "\n" not in str(caught.value)


def test_both_are_found_by_name(animals: Path) -> None:
    registry = Registry.load()
    assert registry.create("dataset", {"name": "folder", "path": str(animals)}) == folder(animals)
    listed = registry.create("dataset", {"name": "image-list", "path": "x.csv", "classes": {0: 3, "b": 1}})
    assert listed.classes == {"0": 3, "b": 1}


def test_a_folder_is_read_in_order_and_lazily(animals: Path) -> None:
    source = folder(animals)
    data = source.load("test")
    order = ["ant/q.png", "cat/a.png", "cat/b.png", "dog/1.PNG", "dog/deeper/y.jpg", "dog/z.png"]
    wanted = np.stack([np.asarray(Image.open(animals / name)) for name in order])
    assert (source.num_classes, source.class_names) == (3, ("ant", "cat", "dog"))
    assert source.image_shape == (3, 6, 6)
    assert not isinstance(data.images, torch.Tensor)
    assert (tuple(data.images.shape), data.images.dtype) == ((6, 3, 6, 6), torch.uint8)
    assert data.labels.tolist() == [0, 1, 1, 2, 2, 2]
    assert data.index.tolist() == list(range(6))
    assert data.on_grid
    assert np.array_equal(data.pixels().permute(0, 2, 3, 1).numpy(), wanted)
    some = data[torch.tensor([4, 1])][1:]
    assert (some.index.tolist(), some.labels.tolist()) == ([1], [1])
    assert np.array_equal(some.floats()[0].permute(1, 2, 0).numpy(), wanted[1].astype(np.float32) / 255)
    assert len(data[:0].pixels()) == 0
    assert torch.equal(data.loaded().pixels(), data.pixels())


def test_images_of_other_modes_become_rgb(tmp_path: Path) -> None:
    for mode in ("L", "RGBA"):
        file = draw(tmp_path / mode / "a.png", mode=mode)
        image = Photographs.of([file], None, None)(0)
        assert np.array_equal(image.permute(1, 2, 0).numpy(), np.asarray(Image.open(file).convert("RGB")))
    Image.fromarray(np.full((6, 6), 40_000, np.uint16)).save(tmp_path / "deep.png")
    text = f"image '{tmp_path / 'deep.png'}' has more than 8 bits per channel. Convert it to 8"
    refused(text, lambda: Photographs.of([tmp_path / "deep.png"], None, None))


@pytest.mark.parametrize("size", [(37, 50), (50, 37), (33, 33), (20, 91)])
@pytest.mark.parametrize(("resize", "crop"), [(24, 19), (24, 24), (24, None), (48, 32), (None, 15)])
def test_resize_and_crop_are_torchvisions(
    size: tuple[int, int], resize: int | None, crop: int | None, tmp_path: Path
) -> None:
    from torchvision.transforms import v2

    file = draw(tmp_path / "a.png", *size)
    image = Image.open(file)
    if resize is not None:
        image = v2.functional.resize(image, [resize], v2.InterpolationMode.BILINEAR)
    if crop is not None:
        image = v2.functional.center_crop(image, [crop])
    photographs = Photographs.of([file], resize, crop)
    assert np.array_equal(photographs(0).permute(1, 2, 0).numpy(), np.asarray(image))
    assert photographs.shape == tuple(photographs(0).shape)


def test_mixed_sizes_need_one(tmp_path: Path) -> None:
    one, other = draw(tmp_path / "a" / "a.png", 6, 6), draw(tmp_path / "b" / "b.png", 8, 12)
    text = f"images have different sizes: '{one}' is 6 x 6, '{other}' is 8 x 12"
    refused(f"{text}. Give resize: and crop:", lambda: folder(tmp_path).load("test"))
    text = f"images have different sizes: '{one}' is 4 x 4, '{other}' is 4 x 6 after resize"
    refused(f"{text}. Give crop:", lambda: folder(tmp_path, resize=4).load("test"))
    assert folder(tmp_path, resize=6, crop=5).load("test").pixels().shape == (2, 3, 5, 5)
    assert folder(tmp_path, crop=5).image_shape == (3, 5, 5)
    refused(f"crop is 7, and '{one}' is 6 x 6. Give resize: 7 or more", lambda: folder(tmp_path, crop=7).load("test"))
    text = f"crop is 7, and '{one}' is 6 x 6 after resize. Give resize: 7 or more"
    refused(text, lambda: folder(tmp_path, resize=6, crop=7).load("test"))


def test_splits_of_a_folder(tmp_path: Path) -> None:
    draw(tmp_path / "val" / "b" / "1.png")
    for name in ("a/1.png", "a/2.png", "b/3.png", "c/4.png"):
        draw(tmp_path / "train" / name)
    source = folder(tmp_path)
    assert source.load("train").labels.tolist() == [0, 0, 1, 2]
    assert source.load("test").labels.tolist() == [1]  # by the folders of both splits
    assert source.num_classes == 3
    draw(tmp_path / "test" / "c" / "1.png")
    assert source.load("test").labels.tolist() == [2]  # test goes before val
    draw(tmp_path / "tram" / "1.png")  # train, test, tram and val are classes now
    assert source.class_names == ("test", "train", "tram", "val")
    refused(f"'{tmp_path}' has no train images. Put its classes into", lambda: source.load("train"))
    draw(tmp_path / "only" / "train" / "a" / "1.png")
    text = f"'{tmp_path / 'only'}' has no test images. Put its classes into {tmp_path / 'only'}/test"
    refused(text, lambda: folder(tmp_path / "only").load("test"))


def test_what_is_no_folder_of_images_is_refused(animals: Path) -> None:
    refused("dataset 'folder' finds no folder", lambda: folder(animals / "none").load("test"))
    refused(f"'{animals / 'cat'}' has no folders", lambda: folder(animals / "cat").load("test"))
    (animals / "eel").mkdir()
    refused(f"class folder '{animals / 'eel'}' holds no images (.bmp, ", lambda: folder(animals).load("test"))
    broken = draw(animals / "eel" / "e.png")
    content = broken.read_bytes()
    broken.write_bytes(b"no image")
    refused(f"image '{broken}' cannot be read: ", lambda: folder(animals).load("test"))
    broken.write_bytes(content[:-30])  # the header is whole
    data = folder(animals).load("test")
    refused(f"image '{broken}' cannot be read: ", lambda: data.pixels())


@pytest.mark.parametrize("kind", ["mapping", "yaml", "json", "text", "synset"])
def test_classes_say_the_outputs(kind: str, animals: Path, tmp_path: Path) -> None:
    outputs = {"cat": 1, "dog": 4, "ant": 0}
    classes: Any = outputs
    if kind == "yaml":
        classes = str(write_list(tmp_path / "c.yaml", "cat: 1\ndog: 4\nant: 0\n"))
    if kind == "json":
        classes = str(write_list(tmp_path / "c.json", json.dumps(outputs)))
    if kind == "text":
        classes = str(write_list(tmp_path / "c.txt", "ant\ncat\n\nbee\neel\ndog\n"))
    if kind == "synset":
        for name, wordnet in (("ant", "n00000001"), ("cat", "n00000002"), ("dog", "n00000005")):
            (animals / name).rename(animals / wordnet)
        lines = "n00000001 ant\nn00000002 cat, felis\nn00000003 bee\nn00000004 eel\nn00000005 dog\n"
        classes = str(write_list(tmp_path / "c.txt", lines))
    source = folder(animals, classes=classes)
    assert source.load("test").labels.tolist() == [0, 1, 1, 4, 4, 4]
    assert source.num_classes == 5
    assert source.class_names[4].endswith("dog")
    shifted = folder(animals, classes=classes, label_offset=1)
    assert shifted.load("test").labels.tolist() == [1, 2, 2, 5, 5, 5]
    assert (shifted.num_classes, shifted.class_names[0]) == (6, "0")
    assert shifted.class_names[5].endswith("dog")
    assert folder(animals, classes=classes, num_outputs=9).num_classes == 9


def test_classes_that_do_not_fit_are_refused(animals: Path, tmp_path: Path) -> None:
    def loads(**keys: Any) -> Any:
        return lambda: folder(animals, **keys).load("test")

    refused("classes: does not say which output 'cat' and 1 more is. Add it, or", loads(classes={"ant": 0, "bee": 1}))
    refused("classes: 'no.txt' is no text file. Write imagenet,", loads(classes="no.txt"))
    refused("names 'ant' twice", loads(classes=str(write_list(tmp_path / "a.txt", "ant\ncat\nant\n"))))
    refused("is empty", loads(classes=str(write_list(tmp_path / "b.txt", "\n"))))
    index = write_list(tmp_path / "c.json", '{"0": ["n01440764", "tench"]}')
    refused("holds no mapping. Write CLASS: OUTPUT", loads(classes=str(index)))
    text = "class 'dog' is output 3 (2, and label_offset: 1); there are 3 outputs, counted from 0. Mend classes: or"
    refused(text, loads(label_offset=1, num_outputs=3))
    refused("class 'ant' is output -1 (0, and label_offset: -1)", loads(label_offset=-1))
    refused("classes", loads(classes={"ant": -1}))
    refused("classes", loads(classes={"ant": True}))


def test_classes_of_imagenet(tmp_path: Path) -> None:
    for name in ("great_white_shark", "Tench", "toilet tissue"):
        draw(tmp_path / "named" / name / "a.png")
    source = folder(tmp_path / "named", classes="imagenet", label_offset=1)
    assert source.load("test").labels.tolist() == [1, 3, 1000]
    assert source.num_classes == 1001
    assert (source.class_names[0], source.class_names[3]) == ("0", "great white shark")
    for number in range(1000):
        (tmp_path / "all" / f"n{number:08}").mkdir(parents=True)
        if number not in (3, 999):
            (tmp_path / "all" / f"n{number:08}" / "a.png").symlink_to(tmp_path / "named" / "Tench" / "a.png")
    every = folder(tmp_path / "all", classes="imagenet")
    assert (every.num_classes, every.class_names[2]) == (1000, "great white shark")
    draw(tmp_path / "all" / "n00000003" / "a.png")
    draw(tmp_path / "all" / "n00000999" / "a.png")
    assert every.load("test").labels.tolist() == list(range(1000))
    draw(tmp_path / "few" / "n01440764" / "a.png")
    refused(
        "classes: imagenet cannot tell which outputs the WordNet ids of 1 classes are: only all 1,000 in their order "
        "tell. Give classes: a file with all 1,000 ids",
        lambda: folder(tmp_path / "few", classes="imagenet").load("test"),
    )
    draw(tmp_path / "few" / "unicorn" / "a.png")
    text = "classes: does not say which output 'n01440764' and 1 more is"
    refused(text, lambda: folder(tmp_path / "few", classes="imagenet").load("test"))


def test_a_list(animals: Path, tmp_path: Path) -> None:
    rows = "label,author,path\n2,me,animals/dog/z.png\n\n0,you,animals/ant/q.png\n"
    source = ImageList(path=str(write_list(tmp_path / "a.csv", "\ufeff" + rows)))
    data = source.load("test")
    assert data.labels.tolist() == [2, 0]  # in the order of the csv
    assert np.array_equal(data.pixels()[1].permute(1, 2, 0).numpy(), np.asarray(Image.open(animals / "ant" / "q.png")))
    assert (source.num_classes, source.class_names) == (3, ("0", "1", "2"))
    assert ImageList(path=source.path, label_offset=-0, num_outputs=7).num_classes == 7
    refused("dataset 'image-list' has no training images. Give train_path: FILE.csv", lambda: source.load("train"))
    train = write_list(tmp_path / "t.csv", "path,label\nanimals/dog/z.png,5\n")
    both = ImageList(path=source.path, train_path=str(train))
    assert (both.load("train").labels.tolist(), both.num_classes) == ([5], 6)
    named = write_list(tmp_path / "n.csv", "path,label\nanimals/dog/z.png,dog\nanimals/ant/q.png,ant\n")
    assert ImageList(path=str(named), classes={"ant": 4, "dog": 1}).load("test").labels.tolist() == [1, 4]
    text = "label 'ant' is no whole number below a million. Give classes:, with the output of each label"
    refused(text, lambda: ImageList(path=str(named)).load("test"))


@pytest.mark.parametrize(
    ("text", "keys", "message"),
    [
        ("ImageId,TrueLabel\na,1\n", {}, "a.csv' has the columns ImageId, TrueLabel. Its first line must name path"),
        ("", {}, "a.csv' has the columns (none)"),
        ("path,label\n", {}, "a.csv' lists no images. Add lines below path,label"),
        ("path,label\ndog.png,1\n", {}, "a.csv', line 2: there is no file"),
        ("path,label\nanimals/dog/z.png\n", {}, "a.csv', line 2: path or label is missing. Write both"),
        ("path,label\nanimals/dog/z.png,7\n", {"num_outputs": 5}, "class '7' is output 7; there are 5 outputs"),
        ("path,label\nanimals/dog/z.png,-1\n", {}, "class '-1' is output -1; there are 0 outputs"),
        ("path,label\nanimals/dog/z.png,1.5\n", {}, "label '1.5' is no whole number"),
        ("path,label\nanimals/dog/z.png,bee\n", {"classes": {"ant": 1}}, "does not say which output 'bee' is"),
    ],
)
def test_lists_that_are_none_are_refused(
    text: str, keys: dict[str, Any], message: str, animals: Path, tmp_path: Path
) -> None:
    source = ImageList(path=str(write_list(tmp_path / "a.csv", text)), **keys)
    refused(message, lambda: source.load("test"))


def test_a_list_that_cannot_be_read_is_refused(tmp_path: Path) -> None:
    refused("none.csv' cannot be read: ", lambda: ImageList(path=str(tmp_path / "none.csv")).load("test"))
    (tmp_path / "a.csv").write_bytes(b"path,label\n\xff\xfe,1\n")
    refused("a.csv' cannot be read: ", lambda: ImageList(path=str(tmp_path / "a.csv")).load("test"))


def test_a_sample_is_balanced_and_follows_the_seed(tmp_path: Path) -> None:
    file = draw(tmp_path / "one.png")
    labels = [0] * 40 + [1] * 3 + [2] * 20
    rows = "".join(f"{file},{label}\n" for label in labels)
    source = ImageList(path=str(write_list(tmp_path / "a.csv", f"path,label\n{rows}")))
    data = source.load("test")
    first, again, other = (source.sample(data, 20, seed) for seed in (0, 0, 1))
    assert first.index.tolist() == again.index.tolist() != other.index.tolist()
    for some in (first, other):
        assert len(set(some.index.tolist())) == 20
        assert some.labels.tolist() == [labels[place] for place in some.index.tolist()]
        counts = Counter(some.labels.tolist())
        assert counts[1] == 3
        assert {counts[0], counts[2]} <= {8, 9}
    assert source.sample(data, 33, 0).index.tolist()[:20] == first.index.tolist()
    assert [sorted(source.sample(data, 3 * k, 0).labels.tolist()) for k in (1, 2)] == [[0, 1, 2], [0, 0, 1, 1, 2, 2]]
    assert source.sample(data, 63, 0).index.tolist() == list(range(63))
    drawn = Counter(label for seed in range(60) for label in source.sample(data, 1, seed).labels.tolist())
    assert min(drawn[label] for label in range(3)) > 0  # which class begins is drawn too


def test_folders_named_by_numbers_are_those_outputs(tmp_path: Path) -> None:
    for name in ("0", "2", "10"):
        draw(tmp_path / name / "a.png")
    source = folder(tmp_path)
    assert source.load("test").labels.tolist() == [0, 10, 2]  # in the order of the files
    assert source.num_classes == 11
