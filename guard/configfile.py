"""Config files: YAML with `--set` on top, read into an EvaluationConfig or a TrainingConfig.

Paths are relative to the working directory, but for `plugins:`, which are relative to the config file.
"""

import os
from collections.abc import Hashable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import yaml

from guard.configparts import Config
from guard.errors import InputError
from guard.registry import Registry

C = TypeVar("C", bound=Config)

_COMMANDS = {"attacks": "evaluate", "defense": "train", "claim": "claim"}
"""Whose configs have that key, and no others."""


def read(
    kind: type[C], path: str | Path, overrides: Sequence[str] = (), plugins: Sequence[str | Path] = ()
) -> tuple[C, Registry]:
    """The config of a file, and the registry with its plugins and the ones given here.

    `overrides`: texts `key=value`, such as `threat.epsilon=0.1`; the value is YAML. Raises InputError and PluginError.
    """
    file = Path(path)
    data = _load(file)
    for key, command in _COMMANDS.items():
        if key in data and key not in kind.model_fields:
            raise InputError(f"'{path}' has '{key}', as configs of `guard {command}` do. Run guard {command} {path}")
    for text in overrides:
        _override(data, text)
    where = f"{path} and the command line" if overrides else str(path)
    data["plugins"] = [*_plugins(data.get("plugins", []), file.parent, where), *map(str, plugins)]
    registry = Registry.load(data["plugins"])
    return kind.of(data, registry.create, where), registry


class _Loader(yaml.SafeLoader):
    """YAML in which a key that stands twice is an error; plain YAML takes the last one without a word."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        seen: set[str] = set()
        for key in (key for key, _ in node.value if isinstance(key, yaml.ScalarNode)):
            if key.value in seen:
                raise yaml.constructor.ConstructorError(
                    None, None, f"the key '{key.value}' stands twice", key.start_mark
                )
            seen.add(key.value)
        return super().construct_mapping(node, deep)


def _load(file: Path) -> dict[str, Any]:
    try:
        data = yaml.load(file.read_text(encoding="utf-8"), _Loader)
    except OSError as error:
        raise InputError(f"config '{file}' cannot be read: {error.strerror}. Give the path of a YAML file") from error
    except UnicodeDecodeError as error:
        raise InputError(f"config '{file}' is no text in UTF-8. Give the path of a YAML file") from error
    except yaml.YAMLError as error:
        raise InputError(f"config '{file}' is no YAML: {_reason(error)}. Mend that line") from error
    if data is None:
        raise InputError(f"config '{file}' is empty. Write at least dataset, model and threat")
    if not isinstance(data, dict):
        raise InputError(f"config '{file}' holds a {_noun(data)}, not keys. Write dataset: ..., model: ..., and so on")
    return data


def _reason(error: yaml.YAMLError) -> str:
    """What YAML stumbled over, and in which line."""
    if not isinstance(error, yaml.MarkedYAMLError) or error.problem_mark is None:
        return " ".join(str(error).split())
    return f"line {error.problem_mark.line + 1}, column {error.problem_mark.column + 1}: {error.problem}"


def _noun(data: object) -> str:
    return "list" if isinstance(data, list) else "single value"


def _override(data: dict[str, Any], text: str) -> None:
    """Put one `key=value` into a config's mapping."""
    dotted, equals, written = text.partition("=")
    *parents, last = dotted.strip().split(".")
    if not equals or not all([*parents, last]):
        raise InputError(f"--set '{text}' is no key=value. Write --set threat.epsilon=0.1")
    try:
        value = yaml.load(written, _Loader)
    except yaml.YAMLError as error:
        raise InputError(f"--set '{text}' has no YAML value: {_reason(error)}. Quote it, or mend it") from error
    inner: Any = data
    for place, key in enumerate(parents):
        if inner.get(key) is None:
            inner[key] = {}
        inner = inner[key]
        if not isinstance(inner, dict):
            so_far = ".".join(parents[: place + 1])
            rest = ".".join([*parents[place + 1 :], last])
            raise InputError(
                f"--set '{text}' finds a {_noun(inner)} under {so_far}, which has no {rest}. "
                f"Set all of it: --set '{so_far}={{...}}'"
            )
    inner[last] = value


def _plugins(listed: Any, folder: Path, where: str) -> list[str]:
    """The plugin files of a config, relative to the config's folder."""
    files = [listed] if isinstance(listed, str) else listed
    if not isinstance(files, list) or not all(isinstance(file, str) for file in files):
        raise InputError(f"plugins is {listed!r} ({where}); it must be a list of files, such as [./mine.py]")
    return [os.path.normpath(folder / Path(file).expanduser()) for file in files]
