"""Keys: a hash of everything that decides a result, so that nothing is computed twice and nothing stale is reused."""

import ast
import hashlib
import importlib.util
import platform
import sys
import sysconfig
import types
import warnings
from collections.abc import Iterable
from contextlib import suppress
from functools import cache, cached_property
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from guard.component import Component
from guard.environment import libraries
from guard.source import Data

_FRAMEWORK = ("", "evaluation")  # packages of guard whose source decides an outcome
_FACE = {"__init__", "__main__", "api", "claiming", "config", "configfile", "configparts", "inputs", "loading"}
_FACE |= {"progress", "recipe", "registry", "trainingconfig", "wording"}  # and what does not

_COVERED = {"guard", "pydantic", "builtins", "abc"}  # by the environment's key
_MACHINERY = {"_abc_impl"}  # of Python's in a class; and whatever is called __so__ and is no function


class UnkeyableError(Exception):
    """Something without a content to hash; its result is computed and not kept."""


def key(*parts: object) -> str:
    """A short hash of the content of `parts`. Raises UnkeyableError.

    Tensors count by content, code by its bytecode and by what it refers to, objects by class and state. Classes and
    functions of installed distributions count by name and version.
    """
    return _Walk().digest(parts).hex()[:24]


def data_key(data: Data) -> str:
    """A key of images, labels and their places in the split; streamed images are read, 256 at a time."""
    return key(*(key(part.pixels(), part.labels, part.index) for part in data.batches(256)))


def component_key(component: Component) -> str:
    """A key of a component: its parameters, the files it reads, its class as it is loaded, and the source of the
    modules that define it and of those they import, at any remove. Raises UnkeyableError."""
    found = type(component)
    inner = [component_key(item) for item in _inner(component)]
    walk = _Walk(state=False)
    code = walk.digest(found)  # the source alone would miss that a module was loaded again
    homes = {base.__module__ for base in found.__mro__ if base.__module__.split(".")[0] not in _COVERED}
    source = [_source(name).digest for name in _reached(homes | walk.met, found.__module__.split(".")[0])]
    return key(component.model_dump_json(), component.fingerprint(), code, source, inner)


def environment_key(device: torch.device, precision: str) -> str:
    """A key of what else decides an outcome: guard's own source, libraries, Python, the kind of device, precision."""
    kind = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.machine()
    return key(framework_source(*_FRAMEWORK), libraries(), sys.version_info[:2], device.type, kind, precision)


@cache
def framework_source(*packages: str) -> str:
    """A hash of the source of guard's nouns and of the named packages of guard."""
    root = Path(__file__).resolve().parents[0]
    digest = hashlib.blake2b(digest_size=16)
    for package in packages:
        for file in sorted((root / package).glob("*.py")):
            if file.stem not in _FACE:
                digest.update(file.read_bytes())
    return digest.hexdigest()


def _inner(component: Component) -> list[Component]:
    found: list[Component] = []
    for name in type(component).model_fields:
        value = getattr(component, name)
        found += [item for item in (value if isinstance(value, tuple) else (value,)) if isinstance(item, Component)]
    return found


class _Source(NamedTuple):
    digest: str
    imports: frozenset[str]
    """Names that it imports, also where it does so late: of modules, and of what only looks like one."""


_READ: dict[str, tuple[ModuleSpec | None, _Source]] = {}  # with the spec it was read for: a reload brings a new one


def _source(name: str) -> _Source:
    spec, file = _spec(name), _file(name)
    if file is None:
        return _Source(name, frozenset())
    if name not in _READ or _READ[name][0] is not spec:
        package = getattr(sys.modules.get(name), "__package__", None) or (spec.parent if spec else None) or ""
        try:
            content = Path(file).read_bytes()
        except OSError as error:
            raise UnkeyableError(f"the source of {name}: {error}") from error
        digest = hashlib.blake2b(content, digest_size=16).hexdigest()
        _READ[name] = spec, _Source(digest, _imports(content, package))
    return _READ[name][1]


def _imports(content: bytes, package: str) -> frozenset[str]:
    found: set[str] = set()
    with warnings.catch_warnings(action="ignore"), suppress(SyntaxError, ValueError):  # a binary has none to show
        for node in ast.walk(ast.parse(content)):
            if isinstance(node, ast.Import):
                parts = [alias.name.split(".") for alias in node.names]
                found.update(".".join(part[: end + 1]) for part in parts for end in range(len(part)))
            elif isinstance(node, ast.ImportFrom):
                with suppress(ImportError):
                    base = importlib.util.resolve_name("." * node.level + (node.module or ""), package)
                    found.update([base, *(f"{base}.{alias.name}" for alias in node.names)])
    return frozenset(found)


def _reached(names: Iterable[str], home: str) -> list[str]:
    """These modules and all they import, but for what is installed outside the package `home`."""
    found, todo = set(names), list(names)
    while todo:
        for name in _source(todo.pop()).imports - found:
            top = name.split(".")[0]
            own = top == home or not (_installed(top) or _installed(name))
            if top not in _COVERED and own and _file(name) is not None:
                found.add(name)
                todo.append(name)
    return sorted(found)


def _spec(name: str) -> ModuleSpec | None:
    """Found without importing anything, so that a key is the same before and after a late import."""
    if name in sys.modules:
        return getattr(sys.modules[name], "__spec__", None)
    parent = name.rpartition(".")[0]
    if not parent:
        return importlib.util.find_spec(name)
    places = getattr(_spec(parent), "submodule_search_locations", None)
    return PathFinder.find_spec(name, places) if places else None


def _file(name: str) -> str | None:
    if name in sys.modules:
        return getattr(sys.modules[name], "__file__", None)
    spec = _spec(name)
    return spec.origin if spec and spec.has_location else None


@cache
def _installed(name: str) -> str | None:
    """For a module of guard, the standard library or an installed distribution its name and version, else None."""
    if name == "__main__":
        return None
    if name.split(".")[0] == "guard" or name in sys.builtin_module_names:
        return name
    file = _file(name)
    if file is None:  # a folder, a module that was made up or is frozen
        return name if getattr(_spec(name), "origin", "") == "frozen" else None
    parts = Path(file).parts
    if not {"site-packages", "dist-packages"}.intersection(parts):
        return name if Path(file).is_relative_to(sysconfig.get_path("stdlib")) else None
    version = getattr(sys.modules.get(name.split(".")[0]), "__version__", None)
    return f"{name} {version or _source(name).digest}"


_CODE = (types.FunctionType, property, classmethod, staticmethod)
_FIXED = (types.FunctionType, types.ModuleType, type, bool, int, float, str, bytes)


class _Walk:
    """Digests objects recursively. A digest does not depend on which parts are shared, only on what they hold.

    Without `state` the variables that functions refer to are left out, such as a cache that fills while they run, save
    where no file tells what they start as. `met` are the modules, none of them installed, of what was digested.
    """

    def __init__(self, state: bool = True) -> None:
        self._state = state
        self.met: set[str] = set()
        self._done: dict[int, bytes] = {}
        self._open: dict[int, int] = {}  # id -> depth, of what is being digested: a cycle
        self._alive: list[object] = []  # so that no id is used twice

    def digest(self, item: Any) -> bytes:
        if item is None or isinstance(item, bool | int | float | complex | str | bytes | type(...)):
            return _hash(type(item).__name__.encode(), repr(item).encode())
        if id(item) in self._done:
            return self._done[id(item)]
        if id(item) in self._open:
            return _hash(b"cycle", str(len(self._open) - self._open[id(item)]).encode())
        self._alive.append(item)
        self._open[id(item)] = len(self._open)
        try:
            result = self._content(item)
        finally:
            del self._open[id(item)]
        self._done[id(item)] = result
        return result

    def _content(self, item: Any) -> bytes:
        if isinstance(item, torch.Tensor):
            if item.layout != torch.strided:
                raise UnkeyableError("a sparse tensor")
            values = item.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy()
            return _hash(b"tensor", f"{item.dtype} {tuple(item.shape)}".encode(), values.tobytes())
        if isinstance(item, np.ndarray) and item.dtype != object:
            return _hash(b"array", f"{item.dtype} {item.shape}".encode(), item.tobytes())
        if isinstance(item, list | tuple) and type(item) in (list, tuple):
            return _hash(type(item).__name__.encode(), *map(self.digest, item))
        if isinstance(item, dict) and type(item) is dict:
            return _hash(b"dict", *(self.digest(part) for pair in item.items() for part in pair))
        if isinstance(item, set | frozenset):
            return _hash(b"set", *sorted(map(self.digest, item)))
        if isinstance(item, types.ModuleType):
            installed = _installed(item.__name__)
            if not installed:
                self.met.add(item.__name__)
            return _hash(b"module", (installed or _source(item.__name__).digest).encode())
        if isinstance(item, type):
            return self._class(item)
        if isinstance(item, types.FunctionType):
            return self._function(item)
        if isinstance(item, types.CodeType):
            return _hash(b"code", item.co_code, *map(self.digest, item.co_consts), repr(item.co_names).encode())
        if isinstance(item, types.MethodType):
            return _hash(b"method", self.digest(item.__func__), self.digest(item.__self__))
        return self._object(item)

    def _class(self, item: type) -> bytes:
        installed = _installed(item.__module__)
        name = f"{item.__module__}.{item.__qualname__}".encode()
        if installed:
            return _hash(b"class", name, installed.encode())
        self.met.add(item.__module__)
        members = {
            name: value
            for name, value in vars(item).items()
            if isinstance(value, _CODE) or not (name.startswith("__") or name in _MACHINERY)
        }
        return _hash(b"class", item.__qualname__.encode(), self.digest(members), *map(self.digest, item.__bases__))

    def _function(self, item: types.FunctionType) -> bytes:
        installed = _installed(item.__module__ or "")
        if installed and not item.__closure__:
            return _hash(b"function", item.__qualname__.encode(), installed.encode())
        if item.__module__ and not installed:
            self.met.add(item.__module__)
        found = {name: item.__globals__[name] for name in sorted(_names(item.__code__)) if name in item.__globals__}
        state = self._state or not (installed or _file(item.__globals__.get("__name__") or ""))
        used = {name: value for name, value in found.items() if state or isinstance(value, _FIXED)}
        closure = [cell.cell_contents for cell in item.__closure__ or ()]
        parts = (item.__code__, closure, item.__defaults__, item.__kwdefaults__, used)
        return _hash(b"function", item.__qualname__.encode(), *map(self.digest, parts))

    def _object(self, item: Any) -> bytes:
        if isinstance(item, cached_property):
            return _hash(b"cached", self.digest(item.func))
        if isinstance(item, property):
            return _hash(b"property", self.digest([item.fget, item.fset]))
        if isinstance(item, classmethod | staticmethod):
            return _hash(b"wrapped", self.digest(item.__func__))
        if hasattr(item, "__wrapped__"):  # functools.cache reduces to a name only
            return _hash(b"wrapper", self.digest(type(item)), self.digest(item.__wrapped__))
        try:
            reduced = item.__reduce_ex__(4)
        except Exception as error:
            raise UnkeyableError(f"a {type(item).__name__}: {error}") from error
        if isinstance(reduced, str):
            return _hash(b"global", reduced.encode())
        first, arguments, *rest = reduced
        state = [list(part) if hasattr(part, "__next__") else part for part in rest]
        return _hash(
            b"object", self.digest(type(item)), self.digest(first), self.digest(list(arguments)), self.digest(state)
        )


def _names(code: types.CodeType) -> set[str]:
    """The global names that code and the code inside it refer to."""
    found = set(code.co_names)
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            found |= _names(constant)
    return found


def _hash(*parts: bytes) -> bytes:
    digest = hashlib.blake2b(digest_size=16)
    for part in parts:
        digest.update(len(part).to_bytes(8, "little"))
        digest.update(part)
    return digest.digest()
