"""Registry: loads plugins, knows who provides what, and turns names and mappings into components."""

import hashlib
import importlib.util
import inspect
import os
import re
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from types import ModuleType
from typing import Any

import pluggy
from pydantic import ValidationError

from guard import hookspecs
from guard.attack import Attack
from guard.component import Component
from guard.defense import Defense
from guard.errors import InputError, PluginError, UnknownName, described, suggestion
from guard.source import DatasetSource, ModelSource
from guard.wording import explain

KINDS: dict[str, type[Component]] = {
    "attack": Attack,
    "defense": Defense,
    "model": ModelSource,
    "dataset": DatasetSource,
}
_FUNCTION = re.compile(r"(?P<path>.+\.py):(?P<function>\w+)")
_HOOKS = {"attack": "guard_attacks", "defense": "guard_defenses", "model": "guard_models", "dataset": "guard_datasets"}


@dataclass(frozen=True)
class Origin:
    """Who provides a component."""

    plugin: str
    distribution: str
    """Name and version of the installed distribution, or the plugin file."""

    def __str__(self) -> str:
        return f"'{self.plugin}' ({self.distribution})"


@dataclass
class Registry:
    """The installed components, by kind and name.

    >>> registry = Registry.load(files=["./mine.py"])
    >>> registry.create("attack", {"name": "pgd", "steps": 40})
    """

    classes: dict[str, dict[str, type[Component]]] = field(default_factory=lambda: {kind: {} for kind in KINDS})
    origins: dict[type[Component], Origin] = field(default_factory=dict)
    plugins: dict[str, Origin] = field(default_factory=dict)
    failures: dict[str, str] = field(default_factory=dict)
    """Plugins that did not load, with the reason; the others still work."""

    @classmethod
    def load(cls, files: Iterable[str | Path] = (), *, disable: Iterable[str] = (), trace: bool = False) -> "Registry":
        """Load the installed plugins (entry points of the group `guard`) and plugin files.

        `disable` adds to GUARD_DISABLE_PLUGINS=a,b; `trace` or GUARD_TRACE_PLUGINS=1 prints every hook call.
        Raises PluginError where two plugins provide one name, and for a plugin file that does not load.
        """
        registry = cls()
        blocked = set(disable) | {name.strip() for name in os.environ.get("GUARD_DISABLE_PLUGINS", "").split(",")}
        manager = pluggy.PluginManager("guard")
        manager.add_hookspecs(hookspecs)
        if trace or os.environ.get("GUARD_TRACE_PLUGINS", "") not in ("", "0"):
            manager.add_hookcall_monitoring(_print_call, lambda *_: None)
        for point in sorted(entry_points(group="guard"), key=_own_first):
            if point.name not in blocked:
                registry._try(manager, point)
        for path in map(Path, files):
            if path.stem not in blocked:
                registry._add_file(manager, path)
        return registry

    def create(self, kind: str, spec: object, where: str = "") -> Any:
        """A component from an instance, a class, a name, or a mapping with a name and parameters.

        `where` is said in errors: a file and key. Raises UnknownName or InputError.
        """
        if isinstance(spec, KINDS[kind]):
            return spec
        if isinstance(spec, type) and issubclass(spec, KINDS[kind]):
            return self._build(spec, {}, where)
        if isinstance(spec, str):
            spec = {"name": spec}
        if not isinstance(spec, Mapping) or not isinstance(spec.get("name"), str):
            at = f" ({where})" if where else ""
            raise InputError(
                f"{_short(spec)} is no {kind}{at}. Write a name, or a mapping such as {{name: ..., key: value}}"
            )
        if kind == "model" and (Path(spec["name"]).expanduser() / _RUN).is_file():
            spec = {**spec, "name": "run", "path": spec["name"]}
        parameters = {key: value for key, value in spec.items() if key != "name"}
        found = self.find(kind, spec["name"], where)
        in_file = _FUNCTION.fullmatch(spec["name"])
        if in_file:
            parameters |= in_file.groupdict()
        elif ":" in spec["name"] and spec["name"] not in self.classes[kind]:
            parameters["variant"] = spec["name"].split(":", 1)[1]
        return self._build(found, parameters, where)

    def find(self, kind: str, name: str, where: str = "") -> type[Component]:
        """The class of that name; `torchvision:resnet18` finds `torchvision`, `mine.py:net` finds `file`.

        Raises UnknownName.
        """
        from guard.userfile import FROM_FILE  # which imports load_file

        if kind in FROM_FILE and (name == "file" or _FUNCTION.fullmatch(name)):
            return FROM_FILE[kind]
        known = self.classes[kind]
        if name in known:
            return known[name]
        if name.split(":", 1)[0] in known and "variant" in known[name.split(":", 1)[0]].model_fields:
            return known[name.split(":", 1)[0]]
        at = f" ({where})" if where else ""
        if kind == "model" and "/" in name:
            raise UnknownName(
                f"'{name}' is no folder of a training{at}, and no model is named so. Give a folder that guard train "
                f"wrote, or FILE.py:FUNCTION{self._broken()}"
            )
        raise UnknownName(f"no {kind} is named '{name}'{at}. {suggestion(name, known)}{self._broken()}")

    def origin(self, component: Component | type[Component]) -> Origin:
        """Who provides a component; an unregistered class is its own module's, a user's function its file's."""
        from guard.userfile import FROM_FILE  # which imports load_file

        found = component if isinstance(component, type) else type(component)
        if isinstance(component, tuple(FROM_FILE.values())):
            return Origin(component.function, component.path)  # type: ignore[union-attr]
        return self.origins.get(found, Origin(found.__module__, "not registered"))

    def __iter__(self) -> Iterator[type[Component]]:
        for known in self.classes.values():
            yield from known.values()

    def _build(self, found: type[Component], parameters: Mapping[str, object], where: str) -> Component:
        try:
            return found.model_validate(parameters, context={"lookup": self.create})
        except ValidationError as error:
            raise InputError(explain(error, found, where, data=parameters)) from error

    def _broken(self) -> str:
        """A short sentence about the plugins that did not load, since the missing name may be one of theirs."""
        if not self.failures:
            return ""
        (plugin, why), *others = self.failures.items()
        more = f", and {len(others)} more did not load" if others else ""
        return f" Plugin '{plugin}' did not load ({why}){more}"

    def _try(self, manager: pluggy.PluginManager, point: EntryPoint) -> None:
        """Load one entry point; what goes wrong is remembered and takes nobody else down."""
        distribution = f"{point.dist.name} {point.dist.version}" if point.dist else "unknown distribution"
        try:
            self._add(manager, point.name, point.load(), Origin(point.name, distribution))
        except _CollisionError:
            raise
        except (Exception, SystemExit) as error:
            self.failures[point.name] = str(error) if isinstance(error, PluginError) else described(error)

    def _add_file(self, manager: pluggy.PluginManager, path: Path) -> None:
        """Load one plugin file; the user asked for it, so that what goes wrong is raised."""
        module = load_file(path)
        if manager.is_registered(module):
            return
        try:
            self._add(manager, str(path), module, Origin(path.stem, str(path)))
        except PluginError:
            raise
        except Exception as error:
            raise PluginError(f"plugin file '{path}' did not load: {described(error)}. Mend the file") from error

    def _add(self, manager: pluggy.PluginManager, name: str, module: object, origin: Origin) -> None:
        for kind, classes in _offered(manager, name, module, origin).items():
            for item in classes:
                other = self.classes[kind].setdefault(item.name, item)
                if other is not item:
                    raise _CollisionError(kind, item.name, self.origins[other], origin)
                self.origins.setdefault(item, origin)
        self.plugins[name] = origin


_RUN = "training.json"  # a folder with it holds a trained model


class _CollisionError(PluginError):
    def __init__(self, kind: str, name: str, one: Origin, other: Origin) -> None:
        article = "an" if kind == "attack" else "a"
        super().__init__(
            f"two plugins provide {article} {kind} named '{name}': {one} and {other}. "
            f"Rename one, or set GUARD_DISABLE_PLUGINS={other.plugin}"
        )


def _own_first(point: EntryPoint) -> tuple[bool, str]:
    """Sort key: guard's own plugins, then the others, so that a collision names the newcomer second."""
    return point.dist is None or point.dist.name != "guard-robustness", point.name


def _offered(
    manager: pluggy.PluginManager, name: str, module: object, origin: Origin
) -> dict[str, list[type[Component]]]:
    """Register one plugin and ask it alone for its classes, by kind; all of them are checked."""
    _check_hooks(module, origin)
    try:
        manager.register(module, name=name)
        others = [plugin for plugin in manager.get_plugins() if plugin is not module]
        offered: dict[str, list[type[Component]]] = {}
        for kind, hook in _HOOKS.items():
            answers: Sequence[object] = manager.subset_hook_caller(hook, others)()
            offered[kind] = [item for answer in answers for item in _checked(answer, kind, origin)]
    except BaseException:
        if manager.has_plugin(name):
            manager.unregister(name=name)
        raise
    return offered


def _check_hooks(module: object, origin: Origin) -> None:
    """Misspelt and unmarked hooks, which would otherwise provide nothing and say nothing."""
    for key, value in vars(module).items():
        marked = inspect.isfunction(value) and hasattr(value, "guard_impl")
        if marked and key not in _HOOKS.values():
            hint = suggestion(key, _HOOKS.values())
            raise PluginError(f"plugin {origin} implements '{key}', which is no hook. {hint}")
        if key in _HOOKS.values() and not marked:
            raise PluginError(f"plugin {origin} has {key}() without its mark. Write @hookimpl above it")


def _checked(answer: object, kind: str, origin: Origin) -> list[type[Component]]:
    """What a plugin returned from a hook, or PluginError where that is no list of usable component classes."""
    base, hook = KINDS[kind], _HOOKS[kind]
    if not isinstance(answer, Iterable):
        raise PluginError(f"plugin {origin} returns {answer!r} from {hook}(), which is no list. Return [MyClass]")
    classes: list[type[Component]] = []
    for item in answer:
        if not (isinstance(item, type) and issubclass(item, base)):
            raise PluginError(
                f"plugin {origin} returns {item!r} from {hook}(), which is no {base.__name__} class. Return [MyClass]"
            )
        if not item.name:
            raise PluginError(f'plugin {origin} returns {item.__name__}, which has no name. Write name = "my-{kind}"')
        if inspect.isabstract(item):
            missing = ", ".join(sorted(item.__abstractmethods__))
            raise PluginError(f"plugin {origin} returns {item.__name__}, which lacks {missing}. Write it")
        if any(item.name == other.name for other in classes):
            raise PluginError(f"plugin {origin} returns two {kind}s named '{item.name}'. Rename one")
        classes.append(item)
    return classes


def load_file(path: Path) -> ModuleType:
    """Import a plugin file under a name with its hash, so that what it defines can be pickled. Raises PluginError."""
    try:
        content = path.read_bytes()
    except OSError as error:
        raise PluginError(
            f"plugin file '{path}' cannot be read: {error.strerror}. Give the path of a .py file"
        ) from error
    name = f"guard_file_{path.stem}_{hashlib.sha256(content).hexdigest()[:12]}"
    if name in sys.modules:
        return sys.modules[name]
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise PluginError(f"plugin file '{path}' is no Python file. Give the path of a .py file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:
        del sys.modules[name]
        raise PluginError(f"plugin file '{path}' did not load: {described(error)}. Mend the file") from error
    return module


def _print_call(hook: str, implementations: Sequence[Any], arguments: Mapping[str, object]) -> None:
    print(f"guard: {hook}() -> {', '.join(i.plugin_name for i in implementations) or 'nobody'}", file=sys.stderr)


def _short(spec: object) -> str:
    text = repr(spec)
    return text if len(text) <= 80 and "\n" not in text else f"a {type(spec).__name__}"
