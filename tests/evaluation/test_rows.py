"""What a run keeps of what its attacks learned."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor, nn

import guard
from guard import Goal, LearnedAttack, Report, Rng, Step, ThreatModel, Victim
from guard.errors import GuardError

SHAPE = (3, 4, 5)


class Added(nn.Module):
    """A perturbation to be added."""

    def __init__(self) -> None:
        super().__init__()
        self.values = nn.Parameter(torch.zeros(SHAPE))


class Written(LearnedAttack):
    """Learns fixed numbers: -0.1 at first, rising to 0.05 in steps of the same size."""

    name = "written"
    size: float = 0.05
    shown: bool = True
    breaks: bool = False

    def unfitted(self, num_classes: int, image_shape: tuple[int, int, int]) -> Added:
        return Added()

    def objective(self, step: Step, victim: Victim, goal: Goal) -> Tensor:
        raise NotImplementedError

    def update(self, step: Step, victim: Victim, goal: Goal, proceed: Callable[[], Tensor]) -> Tensor:
        module = step.model
        assert isinstance(module, Added)
        with torch.no_grad():
            module.values.copy_(torch.linspace(-2 * self.size, self.size, module.values.numel()).view(SHAPE))
        return torch.zeros(())

    def craft(self, module: nn.Module, images: Tensor, goal: Goal, threat: ThreatModel, rng: Rng) -> Tensor:
        assert isinstance(module, Added)
        return images + module.values

    def picture(self, module: nn.Module) -> Tensor | None:
        if self.breaks:
            raise ValueError("no picture")
        assert isinstance(module, Added)
        return module.values if self.shown else None


def evaluated(out: Path, *attacks: Any, **settings: Any) -> Report:
    """On the classes of dark and bright images."""
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(40, *SHAPE, generator=generator)
    labels = (images.flatten(1).mean(1) > 0.5).long()

    class Bright(nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            score = images.flatten(1).mean(1) - 0.5
            return torch.stack([-score, score], 1)

    return guard.evaluate(
        Bright(),
        (images[:20], labels[:20]),
        attacks=list(attacks),
        **{"threat": {"norm": "linf", "epsilon": 0.2}} | settings,
        train_data=(images[20:], labels[20:]),
        out=out,
    )


@pytest.mark.parametrize("size", [0.05, 0.0])
def test_a_perturbation_is_kept_as_numbers_and_written_in_8_bits(tmp_path: Path, size: float) -> None:
    attacks = [{"name": "pgd", "steps": 1}, Written(epochs=1, size=size)]
    report = evaluated(tmp_path, *attacks, defenses=["none", "bit-depth"])
    pgd, first, _, second = (report.pictures[cell.key].learned for cell in report.cells)
    values = np.linspace(-2 * size, size, 60, dtype=np.float32).reshape(SHAPE)
    assert pgd is None
    for found in (first, second):
        assert found is not None
        np.testing.assert_allclose(found, values, atol=1e-7)
    folder = tmp_path / "attacks"
    assert sorted(path.name for path in folder.iterdir()) == ["written.png", "written.safetensors"]
    kept = load_file(folder / "written.safetensors")["values"].numpy()
    image = np.asarray(Image.open(folder / "written.png"))
    assert (image.dtype, image.shape) == (np.uint8, (4, 5, 3))
    reach = 2 * size or 1.0
    assert np.array_equal(image, np.round(127.5 + 127.5 * kept / reach).transpose(1, 2, 0))
    assert (image[0, 0, 0], image.max()) == ((0, 191) if size else (128, 128))
    assert "learned" not in json.loads((tmp_path / "results.json").read_text()).get("pictures", {})


def test_each_of_several_lessons_has_its_picture_beside_its_weights(tmp_path: Path) -> None:
    threats = [{"norm": "linf", "epsilon": epsilon} for epsilon in (0.1, 0.2)]
    report = evaluated(tmp_path, Written(epochs=1), threat=threats)
    for cell in report.cells:
        names = sorted(path.name for path in (tmp_path / "attacks" / cell.key).iterdir())
        assert names == ["written.png", "written.safetensors"]


def test_an_attack_without_a_picture_has_none(tmp_path: Path) -> None:
    report = evaluated(tmp_path, Written(epochs=1, shown=False))
    assert [found.learned for found in report.pictures.values()] == [None]
    assert [path.name for path in (tmp_path / "attacks").iterdir()] == ["written.safetensors"]


def test_a_crash_of_its_picture_is_its_own(tmp_path: Path) -> None:
    with pytest.raises(GuardError, match=r"attack 'written' raised ValueError: no picture \(test_rows.py:\d+\)"):
        evaluated(tmp_path, Written(epochs=1, breaks=True))
