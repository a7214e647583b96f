"""The house in order: lint, format, types and the import rule, run with everything else."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
CHECKS = {
    "ruff": ["ruff", "check", "."],
    "format": ["ruff", "format", "--check", "."],
    "mypy": ["mypy"],
    "import-linter": ["lint-imports"],
}


@pytest.mark.parametrize("name", CHECKS)
def test_the_house_is_in_order(name: str) -> None:
    program, *arguments = CHECKS[name]
    path = shutil.which(program, path=str(Path(sys.executable).parent)) or shutil.which(program)
    assert path, f"{program} is missing: pip install -e '.[test]'"
    done = subprocess.run([path, *arguments], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_nothing_names_a_registry_or_an_absolute_home() -> None:
    files = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=False).stdout.split()
    words = ["pypi" + ".org", "files.python" + "hosted", "/root" + "/", "/home" + "/"]
    for name in files:
        path = ROOT / name
        if path.suffix in {".py", ".md", ".yaml", ".toml", ".j2", ""} and path.is_file():
            text = path.read_text(errors="ignore")
            assert not [word for word in words if word in text], name


def test_files_are_short() -> None:
    for path in [*ROOT.glob("guard/**/*.py"), *ROOT.glob("plugins/**/*.py")]:
        assert len(path.read_text().splitlines()) <= 300, f"{path.relative_to(ROOT)}: is there a second idea in it?"
