"""An iterative attack towards each wrong class in turn: what MultiTargeted and APGD-T share."""

from torch import Tensor

from guard import Cost, Goal, IterativeAttack, Rng, ThreatModel, Victim, attempts


def perturb_towards_each(
    attack: IterativeAttack,
    victim: Victim,
    images: Tensor,
    goal: Goal,
    threat: ThreatModel,
    rng: Rng,
    targets: int | None,
) -> Tensor:
    """Run the attack towards each of the `targets` likeliest wrong classes (all where None) of an untargeted goal.

    One forward of the clean images ranks the classes; each run works on the images that the ones before it left.
    """
    logits = victim.logits(images)
    wrong = logits.scatter(1, goal.labels[:, None], -float("inf")).argsort(dim=1, descending=True, stable=True)
    wrong = wrong[:, : logits.shape[1] - 1][:, :targets]

    def run(number: int, rows: Tensor) -> tuple[Tensor, Tensor]:
        aimed = goal[rows].aim(wrong[rows, number // attack.restarts])
        restart = number % attack.restarts
        return attack.run(victim[rows], images[rows], aimed, threat, rng[rows].fold(number), restart)

    return attempts(victim, images, goal, wrong.shape[1] * attack.restarts, run)


def cost_towards_each(attack: IterativeAttack, num_classes: int, targets: int | None) -> Cost:
    """What `perturb_towards_each` asks for at most."""
    runs = attack.restarts * min(targets or num_classes, num_classes - 1)
    return Cost(runs * attack.steps + runs, runs * attack.steps)
