"""The output folder: one config and program claim it, and it holds what is needed to run that again."""

import json
from pathlib import Path

import pytest

from guard.config import EvaluationConfig
from guard.configfile import read
from guard.errors import InputError
from guard.evaluation.folder import claim, release


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def resolved(**keys: str) -> EvaluationConfig:
    """x.yaml, with these keys instead."""
    given = {"dataset": "digits", "model": "small-cnn", "threat": "{norm: linf, epsilon: 8/255}", "attacks": "[fgsm]"}
    Path("x.yaml").write_text("".join(f"{key}: {value}\n" for key, value in (given | keys).items()))
    return read(EvaluationConfig, "x.yaml")[0]


def test_an_output_folder_that_cannot_be_written() -> None:
    settings = resolved()
    with pytest.raises(InputError) as caught:
        claim(Path("x.yaml/out"), settings)
    assert (
        str(caught.value) == "output folder 'x.yaml/out' cannot be written: Not a directory. Give another one (--out)"
    )


def test_an_output_folder_of_another_config() -> None:
    claim(Path("out"), resolved())
    claim(Path("out"), resolved())
    before = Path("out/config.json").read_text()
    with pytest.raises(InputError) as caught:
        claim(Path("out"), resolved(seed="1", limit="5"))
    assert str(caught.value) == (
        "output folder 'out' belongs to another config: its config.json differs in limit, seed. "
        "Give another one (--out), or remove it"
    )
    assert Path("out/config.json").read_text() == before


def test_an_output_folder_of_another_program() -> None:
    Path("out").mkdir()
    for text in ("[1, 2]", "no json"):
        Path("out/config.json").write_text(text)
        with pytest.raises(InputError, match=r"^output folder 'out' belongs to another config"):
            claim(Path("out"), resolved())


def test_a_folder_without_a_report_can_be_released() -> None:
    claim(Path("out"), resolved())
    release(Path("out"))
    claim(Path("out"), resolved(seed="1"))
    Path("out/results.json").write_text("{}")
    release(Path("out"))
    with pytest.raises(InputError):
        claim(Path("out"), resolved())


def test_the_folder_holds_a_config_and_plugins_that_can_be_run_again() -> None:
    code = "from guard import hookimpl\n@hookimpl\ndef guard_attacks():\n    return []\n"
    Path("mine.py").write_text(code)
    settings = resolved(plugins="[./mine.py]", threat="{norm: l2, epsilon: inf}")
    claim(Path("out"), settings)
    assert Path("out/plugins/mine.py").read_text() == code
    assert json.loads(Path("out/config.json").read_text())["plugins"] == ["plugins/mine.py"]
    again, _ = read(EvaluationConfig, "out/config.json")
    assert again == settings.model_copy(update={"plugins": ("out/plugins/mine.py",)})
    claim(Path("out"), again)
    Path("mine.py").write_text(code + "# edited\n")
    claim(Path("out"), settings)
    assert Path("out/plugins/mine.py").read_text() == code + "# edited\n"


def test_two_plugin_files_of_one_name() -> None:
    settings = resolved().model_copy(update={"plugins": ("a/mine.py", "b/mine.py")})
    with pytest.raises(InputError) as caught:
        claim(Path("out"), settings)
    assert str(caught.value) == (
        "two plugin files are called 'mine.py', and the output folder keeps a copy. Rename one"
    )
