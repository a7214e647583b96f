"""The JSON schema of config files, with the components that are installed."""

from collections.abc import Mapping
from typing import Any

from guard.component import Component
from guard.config import EvaluationConfig
from guard.configparts import Config
from guard.registry import KINDS, Registry


def schema(registry: Registry, config: type[Config] = EvaluationConfig) -> dict[str, Any]:
    """The JSON schema of what `guard evaluate` reads, or of another config: editors complete and check it with that."""
    found = config.model_json_schema()
    definitions: dict[str, Any] = found.pop("$defs")
    for kind in KINDS:
        definitions |= _definitions(registry, kind, kind, {})
    for kind in ("attack", "defense"):
        definitions |= _definitions(registry, kind, f"labelled-{kind}", {"as": {"type": "string", "minLength": 1}})
    filled: dict[str, Any] = _filled(found | {"$defs": definitions})
    return {"$schema": "https://json-schema.org/draft/2020-12/schema"} | filled


def _definitions(registry: Registry, kind: str, place: str, more: dict[str, Any]) -> dict[str, Any]:
    """Each component of a kind, and under `place` what may stand where one is asked for: a name or a mapping."""
    known = registry.classes[kind]
    choices: list[dict[str, Any]] = [{"enum": sorted(known)}]
    found: dict[str, Any] = {}
    for name, item in sorted(known.items()):
        variant = item.model_json_schema(ref_template=f"#/$defs/{place}.{name}.{{model}}")
        found |= {f"{place}.{name}.{model}": part for model, part in variant.pop("$defs", {}).items()}
        found[f"{place}.{name}"] = _mapping(name, item, variant, more)
        choices += [_named(name, item)] if _has_variants(item) else []
        choices.append({"$ref": f"#/$defs/{place}.{name}"})
    if kind in ("model", "defense"):
        choices.append({"type": "string", "pattern": r"\.py:\w+$"})
        choices.append(
            {"type": "object", "properties": {"name": {"pattern": r"\.py:\w+$|^file$"}}, "required": ["name"]}
        )
    return found | {place: {"anyOf": choices}}


def _mapping(name: str, item: type[Component], variant: dict[str, Any], more: dict[str, Any]) -> dict[str, Any]:
    """A component's parameters and its name."""
    required = [key for key in variant.get("required", []) if key != "variant"]
    properties = {"name": _named(name, item)} | more | variant.get("properties", {})
    return variant | {"properties": properties, "required": ["name", *required]}


def _has_variants(item: type[Component]) -> bool:
    """Whether `torchvision:resnet18` names it too."""
    return "variant" in item.model_fields


def _named(name: str, item: type[Component]) -> dict[str, Any]:
    return {"type": "string", "pattern": f"^{name}(:.+)?$"} if _has_variants(item) else {"const": name}


def _filled(part: Any) -> Any:
    """A schema with a reference wherever a component left its placeholder."""
    if isinstance(part, list):
        return [_filled(value) for value in part]
    if not isinstance(part, Mapping):
        return part
    if isinstance(part.get("component"), str):
        return {"$ref": f"#/$defs/{'labelled-' if part.get('labelled') else ''}{part['component']}"}
    return {key: _filled(value) for key, value in part.items()}
