"""What plugins may import, and when."""

import ast
from pathlib import Path

import guard


def test_plugins_use_only_guards_public_names() -> None:
    """What ships comes by the same door as a third party's."""
    root = Path(__file__).parents[2] / "plugins"
    files = sorted(root.rglob("*.py"))
    assert len(files) > 5
    wrong = []
    for file in files:
        for node in ast.walk(ast.parse(file.read_text())):
            where = f"{file.relative_to(root)}:{getattr(node, 'lineno', 0)}"
            if isinstance(node, ast.ImportFrom):
                package = (node.module or "").split(".")[0]
                names = {alias.name for alias in node.names}
                if node.level or (package == "guard" and (node.module != "guard" or not names <= set(guard.__all__))):
                    wrong.append(f"{where} from {node.module} import {', '.join(sorted(names))}")
                if package == "guard_plugins" and any(name.startswith("_") for name in names):
                    wrong.append(f"{where} imports a private name")
            elif isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "guard":
                wrong += [] if node.attr in guard.__all__ else [f"{where} guard.{node.attr}"]
            elif isinstance(node, ast.Import):
                wrong += [f"{where} import {alias.name}" for alias in node.names if alias.name.startswith("guard.")]
    assert wrong == []


def test_plugins_load_without_what_is_slow_to_import() -> None:
    """torchvision, scipy, scikit-learn, kornia and matplotlib belong inside functions."""
    slow = {"torchvision", "scipy", "sklearn", "kornia", "matplotlib"}
    root = Path(__file__).parents[2] / "plugins"
    wrong = []
    for file in sorted(root.rglob("*.py")):
        for node in ast.parse(file.read_text()).body:
            modules = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            modules += [node.module or ""] if isinstance(node, ast.ImportFrom) and not node.level else []
            wrong += [f"{file.relative_to(root)}: {name}" for name in modules if name.split(".")[0] in slow]
    assert wrong == []
