"""Crafting: run an attack on one batch and check what it returns. Nothing is exempt."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from guard.attack import Attack
from guard.cascade import Cascade
from guard.errors import ContractError, GuardError, InputError, NotApplicable, blamed
from guard.evaluation.memory import halving
from guard.evaluation.network import ATTACK, DEFENSE, Network, opaque
from guard.goal import Goal
from guard.layers import held
from guard.precision import full_precision
from guard.rng import Rng, seeded
from guard.threat import ThreatModel, amount
from guard.victim import ACCESS, Access, Victim

_HINT = "End perturb() with threat.project(adversarial, images)."


@dataclass(frozen=True)
class Part:
    """What one part of an attack did: what each image cost there, and which it brought to their goal."""

    name: str
    forwards: Tensor
    backwards: Tensor
    broke: Tensor
    tried: Tensor
    """Images that it was let at, bool (N,)."""


@dataclass(frozen=True)
class Crafted:
    """What an attack returned for a batch, checked, and what each image cost."""

    adversarial: Tensor
    forwards: Tensor
    backwards: Tensor
    parts: tuple[Part, ...] = ()
    """Of a cascade, in its order."""
    undecided: Tensor = field(default_factory=lambda: torch.zeros(0, dtype=torch.bool))
    """Images that the attack stopped at although they might still fall, bool (N,)."""

    @classmethod
    def joined(cls, pieces: Sequence["Crafted"]) -> "Crafted":
        """Pieces of a batch end to end. A part that a piece did without cost nothing there."""
        names = dict.fromkeys(part.name for piece in pieces for part in piece.parts)
        return cls(
            torch.cat([piece.adversarial for piece in pieces]),
            torch.cat([piece.forwards for piece in pieces]),
            torch.cat([piece.backwards for piece in pieces]),
            tuple(_joined(name, [piece.part(name) for piece in pieces]) for name in names),
            torch.cat([piece.undecided for piece in pieces]),
        )

    def part(self, name: str) -> Part:
        """The part of that name; an idle one where there is none."""
        nothing = torch.zeros_like(self.forwards)
        idle = Part(name, nothing, nothing, nothing.bool(), nothing.bool())
        return next((part for part in self.parts if part.name == name), idle)


def _joined(name: str, parts: Sequence[Part]) -> Part:
    values = [torch.cat([getattr(part, key) for part in parts]) for key in ("forwards", "backwards", "broke", "tried")]
    return Part(name, *values)


def applicable(attack: Attack, label: str, threat: ThreatModel, access: Access) -> None:
    """Raise NotApplicable where an attack does not work in the threat's norm, or asks for more than a model gives.

    An attack that is a parameter of this one has to do so, too.
    """
    if threat.norm not in attack.norms:
        known = ", ".join(sorted(attack.norms))
        raise NotApplicable(f"attack '{label}' works in {known}, not in {threat.norm}. Use one of its norms")
    for _, inner in attack:
        if isinstance(inner, Attack):
            applicable(inner, f"{label}: {inner.name}", threat, access)
    if isinstance(attack, Cascade):
        for name, member in attack.sequence(threat):
            applicable(member, f"{label}: {name}", threat, access)
    if ACCESS.index(attack.access) > ACCESS.index(access):
        raise NotApplicable(
            f"attack '{label}' needs {attack.access}, and the model gives {access} only. "
            f"Use an attack that asks for less"
        )


def craft(
    attack: Attack,
    network: Network,
    images: Tensor,
    goal: Goal,
    threat: ThreatModel,
    *,
    index: Tensor,
    seed: int,
    drop: bool,
    who: str,
    bf16: bool = False,
    max_queries: int | None = None,
    eot: int = 1,
) -> Crafted:
    """Let an attack perturb one batch; `index` int64 (N,) are the images' positions in their split.

    `who` names the attack and its provider in errors. `bf16`: whether an attack that allows it may search in bfloat16.
    A batch that does not fit memory is taken in halves. Raises ContractError where the attack crashes or what it
    returns breaks the contract.
    """

    def perturbed(rows: Tensor) -> Crafted:
        batch, shape = images[rows], tuple(images.shape[1:])
        rng, draws = Rng(seed, index[rows], shape, ATTACK), Rng(seed, index[rows], shape, DEFENSE)
        with held(network.model), full_precision(images.device), seeded(opaque(rng), images.device):
            victim = Victim(
                network.model,
                batch,
                draws,
                stages=network.stages,
                access=attack.access,
                drop=drop,
                eot=eot,
                search=network.search(batch) if max_queries is None else None,
                bf16=bf16 and attack.bf16,
                max_queries=max_queries,
            )
            with blamed(who):
                adversarial = _result(attack, victim, batch, goal[rows], threat, rng, who)
        check(adversarial, batch, threat, who)
        broken = int(victim.counts.broken.sum())
        if broken:
            raise ContractError(f"{who} met gradients with NaN or infinity for {broken} of {len(batch)} images")
        parts = (Part(name, it.forwards, it.backwards, it.broke, it.tried) for name, it in victim.counts.parts.items())
        counts = victim.counts
        return Crafted(adversarial.detach(), counts.forwards, counts.backwards, tuple(parts), counts.undecided)

    return Crafted.joined(halving(perturbed, torch.arange(len(images), device=images.device)))


def _result(
    attack: Attack, victim: Victim, images: Tensor, goal: Goal, threat: ThreatModel, rng: Rng, who: str
) -> Tensor:
    try:
        return attack.perturb(victim, images.clone(), goal, threat, rng)
    except InputError:
        raise
    except GuardError as error:
        raise ContractError(f"{who}: {error}") from error


def check(adversarial: object, images: Tensor, threat: ThreatModel, who: str) -> None:
    """Raise ContractError unless these are finite images of the right shape in [0, 1] inside the ball."""
    if not isinstance(adversarial, Tensor):
        raise ContractError(f"{who} returned {type(adversarial).__name__}, not a tensor. Return adversarial images")
    if adversarial.shape != images.shape:
        raise ContractError(f"{who} returned shape {tuple(adversarial.shape)} for images of {tuple(images.shape)}")
    if (adversarial.dtype, adversarial.device) != (images.dtype, images.device):
        given, wanted = (f"{item.dtype} on {item.device}" for item in (adversarial, images))
        raise ContractError(f"{who} returned {given} for images of {wanted}")
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
