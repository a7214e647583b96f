"""A plugin with a misspelt hook."""

from guard import hookimpl


@hookimpl
def guard_attack():
    return []
