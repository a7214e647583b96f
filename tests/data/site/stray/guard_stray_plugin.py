"""A plugin that returns a name where a class is wanted."""

from guard import hookimpl


@hookimpl
def guard_attacks():
    return ["pgd"]
