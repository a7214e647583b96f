"""The output folder of an evaluation: it belongs to one config."""

import json
import os
import shutil
from pathlib import Path
from typing import Any

from guard.configparts import Config
from guard.errors import InputError


def claim(out: Path, config: Config) -> None:
    """Make the folder this config's: write config.json and copies of the plugin files, before anything is computed.

    The written config can be evaluated again as it stands. Raises InputError where the folder belongs to another
    config or cannot be written.
    """
    resolved: dict[str, Any] = config.model_dump(mode="json", by_alias=True)
    names = [Path(file).name for file in config.plugins]
    twice = [name for name in names if names.count(name) > 1]
    if twice:
        raise InputError(f"two plugin files are called '{twice[0]}', and the output folder keeps a copy. Rename one")
    resolved["plugins"] = [f"plugins/{name}" for name in names]
    path = out / "config.json"
    try:
        if path.exists():
            _compare(out, path.read_text(encoding="utf-8"), resolved)
        out.mkdir(parents=True, exist_ok=True)
        for file, name in zip(config.plugins, names, strict=True):
            (out / "plugins").mkdir(exist_ok=True)
            if Path(file).resolve() != (out / "plugins" / name).resolve():
                shutil.copyfile(file, out / "plugins" / name)
        partial = out / f".config.json.{os.getpid()}"
        partial.write_text(json.dumps(resolved, indent=2) + "\n", encoding="utf-8")
        os.replace(partial, path)
    except OSError as error:
        raise InputError(
            f"output folder '{out}' cannot be written: {error.strerror}. Give another one (--out)"
        ) from error


def release(out: Path) -> None:
    """Give a claimed folder back where nothing was reported in it, so that a mended config may have it."""
    if not (out / "results.json").exists():
        (out / "config.json").unlink(missing_ok=True)


def _compare(out: Path, text: str, resolved: dict[str, Any]) -> None:
    """Raise InputError unless a folder's config is this one; an edited plugin file is no other config."""
    try:
        found = json.loads(text)
        differing = [key for key in found.keys() | resolved.keys() if found.get(key) != resolved.get(key)]
    except (ValueError, AttributeError):
        differing = ["everything"]
    if differing:
        raise InputError(
            f"output folder '{out}' belongs to another config: its config.json differs in "
            f"{', '.join(sorted(differing))}. Give another one (--out), or remove it"
        )
