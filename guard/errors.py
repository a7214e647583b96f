"""What guard raises. A message has three parts: what is wrong, whose it is, what to type instead.

GuardError
├── InputError             bad input: a value, a file, a config (exit code 2)
│   └── UnknownName        a name that nothing registered carries
├── PluginError            a plugin did not load, or two plugins collide (exit code 2)
├── ContractError          an attack, a defense or a model broke its contract: its cell is INVALID
└── NotApplicable          a norm, an access or a knowledge that does not apply here
"""

import traceback
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from difflib import get_close_matches
from pathlib import Path

_MANY, _FEW = 30, 5


class GuardError(Exception):
    """Base of everything guard raises on purpose; its text is one line for the user."""


class InputError(GuardError, ValueError):
    """A value, file or config that cannot be used."""


class UnknownName(InputError, LookupError):
    """A name that nothing registered carries."""


class PluginError(GuardError):
    """A plugin that did not load, offers something that is no component, or collides with another."""


class ContractError(GuardError):
    """A component or a model that broke its contract while it ran."""


class NotApplicable(GuardError):
    """A combination that has no meaning: a norm, an access or a knowledge that does not apply."""


def suggestion(word: str, known: Iterable[str]) -> str:
    """The sentence that names the nearest known word, or lists what is known: of many the first."""
    known = sorted(known)
    near = get_close_matches(word, known, n=1)
    if near:
        return f"Did you mean '{near[0]}'?"
    if len(known) > _MANY:
        return f"Known are {len(known)}, such as {', '.join(known[:_FEW])}"
    return f"Known: {', '.join(known)}" if known else "None is known"


@contextmanager
def blamed(who: str) -> Iterator[None]:
    """Turn a crash of somebody else's code into a ContractError of `who`, with its place."""
    try:
        yield
    except GuardError:
        raise
    except Exception as error:
        frame = traceback.extract_tb(error.__traceback__)[-1]
        place = f"{Path(frame.filename).name}:{frame.lineno}"
        raise ContractError(f"{who} raised {described(error)} ({place})") from error


def described(error: BaseException) -> str:
    """The kind and the text of an error in one line."""
    return " ".join(f"{type(error).__name__}: {error}".split())


def one_line(error: BaseException) -> str:
    """The text of an error without its line breaks."""
    return " ".join(str(error).split())
