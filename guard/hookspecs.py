"""The hooks a plugin can implement. Each returns classes; a name that two plugins provide is an error."""

from collections.abc import Iterable

import pluggy

from guard.attack import Attack
from guard.defense import Defense
from guard.source import DatasetSource, ModelSource

hookspec = pluggy.HookspecMarker("guard")
hookimpl = pluggy.HookimplMarker("guard")
"""Marks a function of a plugin as the implementation of the hook of the same name."""


@hookspec
def guard_attacks() -> Iterable[type[Attack]]:  # type: ignore[empty-body]
    """The attacks a plugin provides.

    @hookimpl
    def guard_attacks():
        return [Corner]
    """


@hookspec
def guard_defenses() -> Iterable[type[Defense]]:  # type: ignore[empty-body]
    """The defenses a plugin provides."""


@hookspec
def guard_models() -> Iterable[type[ModelSource]]:  # type: ignore[empty-body]
    """The model sources a plugin provides."""


@hookspec
def guard_datasets() -> Iterable[type[DatasetSource]]:  # type: ignore[empty-body]
    """The data set sources a plugin provides."""
