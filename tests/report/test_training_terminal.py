import io
from typing import Any

from rich.console import Console

from guard.report.training_terminal import line, show
from guard.training.record import Epoch, Record

THIRD = Epoch(epoch=3, lr=0.1, loss=0.41234, clean=0.971, fgsm=0.902, pgd=0.84, seconds=12.3)


def shown(width: int = 80, **changes: Any) -> str:
    given = {
        "config": {"dataset": {"name": "digits"}, "threat": {"norm": "linf", "epsilon": 0.2}},
        "label": "[red]x[/]",
        "model": "small-cnn",
        "num_classes": 10,
        "image_shape": (1, 8, 8),
        "images": 1_078,
        "held_out": 120,
        "data": "3f9a1c",
        "versions": {},
        "epochs": (THIRD, THIRD.model_copy(update={"epoch": 4, "pgd": 0.0, "events": ("epoch 4: [b]PGD fell[/b]",)})),
        "kept": 3,
        "finished": True,
    }
    console = Console(file=io.StringIO(), width=width)
    show(Record(**given | changes), console)
    return console.file.getvalue()  # type: ignore[attr-defined]


def test_a_line_for_an_epoch() -> None:
    assert line(THIRD, 10) == "epoch  3 of 10   loss 0.412   clean 97.1   FGSM 90.2   PGD 84.0   12 s"
    weak = THIRD.model_copy(update={"clean": 1.0, "pgd": 0.034, "seconds": 200.0})
    assert line(weak, 5) == "epoch 3 of 5   loss 0.412   clean 100.0   FGSM 90.2   PGD  3.4   3 min 20 s"


def test_a_line_leaves_out_what_was_not_measured() -> None:
    assert (
        line(THIRD.model_copy(update={"fgsm": None}), 3) == "epoch 3 of 3   loss 0.412   clean 97.1   PGD 84.0   12 s"
    )
    nothing = THIRD.model_copy(update={"clean": None, "fgsm": None, "pgd": None})
    assert line(nothing, 3) == "epoch 3 of 3   loss 0.412   12 s"
    zero = THIRD.model_copy(update={"pgd": 0.0})
    assert "PGD  0.0" in line(zero, 3)


def test_events_stand_on_lines_of_their_own() -> None:
    alarmed = THIRD.model_copy(update={"events": ("PGD fell", "a step back")})
    assert line(alarmed, 10).split("\n") == [line(THIRD, 10), "    PGD fell", "    a step back"]


def test_the_table_shows_the_kept_epoch_and_the_last() -> None:
    rows = [text.split() for text in shown().splitlines()]
    assert ["accuracy", "in", "%", "clean", "FGSM", "PGD"] in rows
    assert ["epoch", "3,", "kept", "97.1", "90.2", "84.0"] in rows
    assert ["epoch", "4,", "the", "last", "97.1", "90.2", "0.0"] in rows
    assert "the last" not in shown(epochs=(THIRD,))


def test_what_was_trained_on_which_images_and_alarms_stand_around_it_as_they_are() -> None:
    text = shown()
    assert "small-cnn trained with [red]x[/] on digits, linf 0.2" in text
    assert "Accuracies are of 120 held-out training images, never of the test split." in text
    assert "\nepoch 4: [b]PGD fell[/b]\n" in text
    assert "2 of 2 epochs; 1,078 images learned on, 25 s" in text


def test_without_held_out_images_or_epochs() -> None:
    nothing = THIRD.model_copy(update={"clean": None, "fgsm": None, "pgd": None})
    text = shown(epochs=(nothing,), held_out=0)
    assert "epoch 3, kept" in text
    assert "No training image was held out" in text
    assert "%" not in text
    assert "0 of 0 epochs, not finished" in shown(epochs=(), kept=None, finished=False)


def test_a_narrow_window_keeps_the_figures() -> None:
    assert all(figure in shown(width=40) for figure in ("97.1", "90.2", "84.0"))
