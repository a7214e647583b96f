"""A third party's plugin: one attack and one defense."""

from guard import Attack, Defense, hookimpl


class Corner(Attack):
    """One step to a random corner of the ball."""

    name = "corner"

    steps: int = 1

    def perturb(self, victim, images, goal, threat, rng):
        return threat.project(images + threat.epsilon * rng.signs(), images)


class Keep(Defense):
    """Does nothing."""

    name = "keep"


@hookimpl
def guard_attacks():
    return [Corner]


@hookimpl
def guard_defenses():
    return [Keep]
