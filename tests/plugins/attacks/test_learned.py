"""What every attack that learns keeps: what it learned is a module that travels, and the seed decides it."""

import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import guard
from guard import ContractError, Goal, LearnedAttack, Registry, Rng, ThreatModel

pytestmark = pytest.mark.usefixtures("global_generator_untouched")

Digits = tuple[nn.Module, Tensor, Tensor]
REGISTRY = Registry.load()
LEARNED = {n: kind for n, kind in sorted(REGISTRY.classes["attack"].items()) if issubclass(kind, LearnedAttack)}
SMALL: dict[str, dict[str, Any]] = {"atn": {"hidden": 16}}
LINF = ThreatModel(norm="linf", epsilon=0.1)


@pytest.fixture(params=LEARNED)
def unlearned(request: pytest.FixtureRequest) -> LearnedAttack:
    return LEARNED[request.param](epochs=1, **SMALL.get(request.param, {}))  # type: ignore[return-value]


@pytest.fixture
def learned(unlearned: LearnedAttack, digits: Digits, fit: Callable[..., LearnedAttack]) -> LearnedAttack:
    model, images, _ = digits
    return fit(unlearned, model, images[:64], model(images[:64]).argmax(1), LINF)


def points(attack: LearnedAttack, images: Tensor) -> Tensor:
    goal = Goal(torch.zeros(len(images), dtype=torch.int64))
    return attack.perturb(None, images, goal, LINF, Rng(0, torch.arange(len(images)), (1, 8, 8)))  # type: ignore[arg-type]


def test_there_are_some() -> None:
    assert {"advgan", "atn", "uap"} <= set(LEARNED)


def test_it_pickles(learned: LearnedAttack, digits: Digits) -> None:
    again = pickle.loads(pickle.dumps(learned))
    assert torch.equal(points(again, digits[2]), points(learned, digits[2]))
    assert not torch.equal(points(again, digits[2]), digits[2])
    assert again.note == learned.note
    assert again.fingerprint() == learned.fingerprint()


def test_its_weights_are_all_that_it_learned(learned: LearnedAttack, unlearned: LearnedAttack, digits: Digits) -> None:
    """Loaded into a module that has seen no image."""
    with torch.random.fork_rng():
        fresh = unlearned.unfitted(10, (1, 8, 8))
    assert not torch.equal(points(unlearned.fitted(fresh), digits[2]), points(learned, digits[2]))
    fresh.load_state_dict(learned.module.state_dict())
    again = unlearned.fitted(fresh)
    assert torch.equal(points(again, digits[2]), points(learned, digits[2]))
    assert again.fingerprint() == learned.fingerprint() != unlearned.fingerprint()


def test_a_file_of_weights_is_as_good(
    learned: LearnedAttack, unlearned: LearnedAttack, digits: Digits, tmp_path: Path, fit: Callable[..., LearnedAttack]
) -> None:
    model, images, others = digits
    learned.save(tmp_path / "it.safetensors")
    given = unlearned.model_copy(update={"weights": str(tmp_path / "it.safetensors")})
    again = fit(given, model, images[:2], torch.zeros(2).long(), LINF)  # which it has no use for
    assert torch.equal(points(again, others), points(learned, others))
    assert again.note == learned.note
    made = guard.craft(given, model, others, model(others).argmax(1), LINF)
    torch.testing.assert_close(made, points(learned, others), atol=1e-6, rtol=0)


def test_the_seed_decides_what_it_learns(
    unlearned: LearnedAttack,
    digits: Digits,
    fit: Callable[..., LearnedAttack],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model, images, _ = digits
    made = []
    for number, seed in enumerate((0, 0, 1)):
        monkeypatch.setenv("GUARD_CACHE", str(tmp_path / str(number)))
        settings = {"batch_size": 16}  # their order counts too
        attack = unlearned.model_copy(update=settings)
        made.append(fit(attack, model, images[:64], model(images[:64]).argmax(1), LINF, seed=seed).fingerprint())
    assert made[0] == made[1] != made[2]


def test_before_it_has_learned_it_says_so(unlearned: LearnedAttack, digits: Digits) -> None:
    model, images, _ = digits
    assert not unlearned.learned
    with pytest.raises(
        ContractError, match=f"^attack '{unlearned.name}' from .*: it has learned nothing yet. "
    ) as caught:
        guard.craft(unlearned, model, images[:2], torch.zeros(2).long(), LINF)
    assert "\n" not in str(caught.value)


def test_craft_takes_what_has_learned(learned: LearnedAttack, digits: Digits) -> None:
    model, _, others = digits
    made = guard.craft(learned, model, others, model(others).argmax(1), LINF)
    assert LINF.contains(made, others).all()
    torch.testing.assert_close(made, points(learned, others), atol=1e-6, rtol=0)
