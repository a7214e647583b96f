"""A plugin whose attack has the name of one that ships."""

from guard import Attack, hookimpl


class MyPGD(Attack):
    """Another pgd."""

    name = "pgd"

    def perturb(self, victim, images, goal, threat, rng):
        return images


@hookimpl
def guard_attacks():
    return [MyPGD]
