"""Crafting: run an attack on one batch and check what it returns. Nothing is exempt."""

import traceback
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from guard.attack import Attack
from guard.errors import ContractError, GuardError, InputError, NotApplicable
from guard.goal import Goal
from guard.rng import Rng
from guard.threat import ThreatModel, amount
from guard.victim import Victim, held

_HINT = "End perturb() with threat.project(adversarial, images)."


@dataclass(frozen=True)
class Crafted:
    """What an attack returned for a batch, checked, and what each image cost."""

    adversarial: Tensor
    forwards: Tensor
    backwards: Tensor


def applicable(attack: Attack, threat: ThreatModel) -> None:
    """Raise NotApplicable where an attack does not work in the threat's norm."""
    if threat.norm not in attack.norms:
        known = ", ".join(sorted(attack.norms))
        raise NotApplicable(f"attack '{attack.name}' works in {known}, not in {threat.norm}. Use one of its norms")


def craft(
    attack: Attack,
    model: torch.nn.Module,
    victim: Victim,
    images: Tensor,
    goal: Goal,
    threat: ThreatModel,
    rng: Rng,
    who: str,
) -> Crafted:
    """Let an attack perturb one batch of a victim over `model`. `who` names the attack and its provider in errors.

    Raises ContractError where it crashes or what it returns breaks the contract.
    """
    devices = [images.device] if images.device.type == "cuda" else []
    try:
        with held(model), torch.random.fork_rng(devices=devices):
            adversarial = attack.perturb(victim, images.clone(), goal, threat, rng)
    except (InputError, NotApplicable):
        raise
    except GuardError as error:
        raise ContractError(f"{who}: {error}") from error
    except Exception as error:
        frame = traceback.extract_tb(error.__traceback__)[-1]
        text = " ".join(str(error).split())
        place = f"{Path(frame.filename).name}:{frame.lineno}"
        raise ContractError(f"{who} raised {type(error).__name__}: {text} ({place})") from error
    check(adversarial, images, threat, who)
    broken = int(victim.counts.broken.sum())
    if broken:
        raise ContractError(f"{who} met gradients with NaN or infinity for {broken} of {len(images)} images")
    return Crafted(adversarial.detach(), victim.counts.forwards, victim.counts.backwards)


def check(adversarial: object, images: Tensor, threat: ThreatModel, who: str) -> None:
    """Raise ContractError unless these are finite images of the right shape in [0, 1] inside the ball."""
    if not isinstance(adversarial, Tensor):
        raise ContractError(f"{who} returned {type(adversarial).__name__}, not a tensor. Return adversarial images")
    if adversarial.shape != images.shape:
        raise ContractError(f"{who} returned shape {tuple(adversarial.shape)} for images of {tuple(images.shape)}")
    if adversarial.dtype != images.dtype:
        raise ContractError(f"{who} returned {adversarial.dtype} for images of {images.dtype}")
    finite = adversarial.isfinite().flatten(1).all(1)
    if not finite.all():
        raise ContractError(f"{who} returned NaN or infinity in {int((~finite).sum())} of {len(images)} images")
    low, high = float(adversarial.min()), float(adversarial.max())
    if low < 0 or high > 1:
        raise ContractError(
            f"{who} left the pixel range [0, 1]: its images reach from {low:.4g} to {high:.4g}. {_HINT}"
        )
    if not threat.contains(adversarial, images).all():
        moved = float(threat.distance(adversarial, images).max())
        how = f"moved a pixel by {moved:.4f} ({moved * 255:.3g}/255)" if threat.norm == "linf" else f"moved {moved:.4f}"
        budget = f"{threat.epsilon:.4f} ({amount(threat.epsilon)})" if threat.norm == "linf" else f"{threat.epsilon:g}"
        raise ContractError(f"{who} {how}; the {threat.norm} budget is {budget}. {_HINT}")
