"""Who is trained, on what, from where; and what is refused."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import guard
from guard import Defense, InputError, Report, ThreatModel
from guard.progress import Progress

ONE = {"epochs": 1, "batch_size": 64, "lr": 0.05}
SOURCE = """
import torch
def net(num_classes):
    made = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(16, num_classes))
    {load}
    return made
"""


class Learns(Defense):
    """Acts while the network is trained, by doing nothing."""

    name = "learns"

    def augment(self, images: Tensor, targets: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        return images, targets


class Explodes(Learns):
    """Its loss is not finite."""

    name = "explodes"

    def loss(self, model: nn.Module, images: Tensor, adversarial: Tensor, targets: Tensor, generator: Any) -> Tensor:
        return model(images).sum() * float("inf")


class Breaks(Defense):
    """Crashes where it should change the network."""

    name = "breaks"

    def modify(self, model: nn.Module, calibration: Tensor) -> nn.Module:
        raise ValueError("no such layer")


class Heard(Progress):
    """What was said."""

    def __init__(self) -> None:
        self.work: list[list[Any]] = []
        self.said: list[str] = []

    def say(self, text: str) -> None:
        self.said.append(text)

    def start(self, what: str, total: int) -> None:
        self.work.append([what, total, 0])

    def advance(self, units: int, what: str = "") -> None:
        self.work[-1][2] += units

    @property
    def trained(self) -> list[str]:
        return [what for what, _, _ in self.work if what.startswith("training")]


def evaluate(model: Any, images: Tensor, labels: Tensor, heard: Heard | None = None, **settings: Any) -> Report:
    keys: dict[str, Any] = {"attacks": ["fgsm"], "threat": ThreatModel(norm="linf", epsilon=0.02), "training": ONE}
    keys |= {"train_data": (images, labels), "progress": heard} | settings
    return guard.evaluate(model, (images[:50], labels[:50]), **keys)


def test_the_given_net_is_fine_tuned_as_a_copy(linear: nn.Module, images: Tensor, labels: Tensor) -> None:
    before, heard = linear.weight.detach().clone(), Heard()  # type: ignore[operator]
    linear.train()
    plain, tuned = evaluate(linear, images, labels, heard, defenses=["none", Learns()]).cells
    assert torch.equal(linear.weight, before)  # type: ignore[arg-type]
    assert linear.training
    assert heard.trained == ["training Linear + learns"]
    assert plain.clean_accuracy == 0.9
    assert tuned.clean_accuracy is not None
    assert tuned.clean_accuracy >= 0.8, "it did not start from the given weights"
    again = Heard()
    assert evaluate(linear, images, labels, again, defenses=[Learns()]).run["computed_shards"] == 0
    assert again.trained == []


@pytest.mark.parametrize("change", ["lr", "data", "weights", "seed"])
def test_what_decides_the_training_trains_again(change: str, linear: Any, images: Tensor, labels: Tensor) -> None:
    evaluate(linear, images, labels, defenses=[Learns()])
    heard, settings = Heard(), {}
    if change == "lr":
        settings = {"training": ONE | {"lr": 0.06}}
    elif change == "seed":
        settings = {"seed": 1}
    elif change == "data":
        labels = labels.clone()
        labels[299] = 1 - labels[299]
    else:
        linear.weight.data[0, 0, 0] += 1e-3
    evaluate(linear, images, labels, heard, defenses=[Learns()], **settings)
    assert len(heard.trained) == 1


def test_a_file_of_weights_that_a_function_loads_counts(
    tmp_path: Path, linear: nn.Module, images: Tensor, labels: Tensor
) -> None:
    weights, file = tmp_path / "w.pt", tmp_path / "net.py"
    file.write_text(SOURCE.format(load=f"made[1].load_state_dict(torch.load('{weights}', weights_only=True))"))
    for number in range(2):
        torch.save({"weight": torch.full((2, 16), 0.1 * number), "bias": torch.zeros(2)}, weights)
        heard = Heard()
        evaluate(f"{file}:net", images, labels, heard, defenses=[Learns()])
        assert heard.trained == ["training net.py:net + learns"]


def test_scratch_needs_fresh_weights(tmp_path: Path, linear: nn.Module, images: Tensor, labels: Tensor) -> None:
    file = tmp_path / "net.py"
    file.write_text(SOURCE.format(load=""))
    training = ONE | {"from": "scratch"}
    for model, name in ((linear, "Linear"), (f"{file}:net", "net.py:net")):
        with pytest.raises(InputError) as caught:
            evaluate(model, images, labels, defenses=[Learns()], training=training)
        assert str(caught.value) == (
            f"model '{name}' comes trained, and training from scratch needs a source that builds fresh weights. "
            f"Use training: {{from: weights}}"
        )
    fresh = {"name": f"{file}:net", "weights": "none"}
    heard = Heard()
    evaluate(fresh, images, labels, heard, defenses=[Learns()], training=training)
    assert heard.trained == ["training net.py:net + learns"]


def test_training_may_be_forbidden_and_needs_images(linear: nn.Module, images: Tensor, labels: Tensor) -> None:
    with pytest.raises(InputError) as caught:
        evaluate(linear, images, labels, defenses=[Learns()], no_train=True)
    assert str(caught.value) == (
        "Linear + learns must be trained, and --no-train forbids it. Give weights, or allow training"
    )
    with pytest.raises(InputError, match=r"model 'Linear' needs training images\. Give train_data=\(images, labels\)"):
        evaluate(linear, images, labels, defenses=[Learns()], train_data=None)
    heard = Heard()
    evaluate(linear, images, labels, heard, defenses=[Learns()])
    assert heard.said == ["to train first: Linear + learns (about 1 s)"]
    evaluate(linear, images, labels, defenses=[Learns()], no_train=True)  # it is trained by now


@pytest.mark.parametrize(
    ("defense", "text"),
    [
        (Explodes(), "training Linear + explodes: the loss became "),
        (Breaks(), "defense 'breaks' raised ValueError: no such layer (test_prepare.py:"),
    ],
    ids=["training", "modify"],
)
def test_a_defense_that_fails_is_invalid_and_the_others_go_on(
    defense: Defense, text: str, linear: nn.Module, images: Tensor, labels: Tensor
) -> None:
    fine, failed = evaluate(linear, images, labels, defenses=["none", defense]).cells
    assert (fine.status, failed.status) == ("VALID", "INVALID")
    assert failed.reason.startswith(text)
    assert failed.robust_accuracy is None


class Opaque:
    """Cannot be hashed, can be copied."""

    def __reduce_ex__(self, protocol: Any) -> Any:
        raise TypeError("opaque")

    def __deepcopy__(self, memo: Any) -> "Opaque":
        return self


def test_a_model_that_cannot_be_hashed_is_trained_in_every_run(linear: Any, images: Tensor, labels: Tensor) -> None:
    linear.opaque = Opaque()
    for _ in range(2):
        heard = Heard()
        report = evaluate(linear, images, labels, heard, defenses=[Learns()])
        assert len(heard.trained) == 1
        assert report.run["computed_shards"] == 1


def test_a_model_that_cannot_be_copied_is_refused(linear: Any, images: Tensor, labels: Tensor) -> None:
    linear.stream = (number for number in range(3))
    assert evaluate(linear, images, labels).cells[0].status == "VALID"
    with pytest.raises(InputError, match=r"Linear: the model cannot be copied \(cannot pickle 'generator' object\)"):
        evaluate(linear, images, labels, defenses=[Learns()])


def test_a_model_with_another_number_of_classes(images: Tensor, labels: Tensor, linear: nn.Module) -> None:
    other = nn.Sequential(nn.Flatten(), nn.Linear(16, 3))
    with pytest.raises(InputError) as caught:
        evaluate([linear, other], images, labels)
    text = "model 'Sequential' returns 3 logits for the 2 classes of the data set. Give a model with 2 outputs; "
    text += "image files take num_outputs: 3"
    assert str(caught.value) == text
    with pytest.raises(InputError, match="returns 3 logits for the 2 classes"):
        evaluate(linear, images, labels, knowledge={"transfer": _live(other)})


def _live(net: nn.Module) -> Any:
    from guard.live import LiveModel

    return LiveModel.of(guard.model(net), "Sequential")


def test_images_that_the_model_does_not_take(images: Tensor, labels: Tensor) -> None:
    with pytest.raises(InputError) as caught:
        evaluate(nn.Sequential(nn.Flatten(), nn.Linear(12, 2)), images, labels)
    text = str(caught.value)
    assert text.startswith("model 'Sequential' does not take float32 images of shape (1, 1, 4, 4) on cpu: ")
    assert "(1x16 and 12x2)" in text
    assert "\n" not in text
