"""The command line: what it imports, what it prints where, and its exit codes."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import guard
from guard.cli import main
from guard.config import EvaluationConfig
from guard.errors import ContractError, InputError
from guard.evaluation.result import Cell, Results

CONFIG = "dataset: digits\nmodel: small-cnn\nthreat: {norm: linf, epsilon: 8/255}\nattacks: [fgsm]\n"
HEAVY = {"torch", "pydantic", "pluggy", "numpy", "yaml", "torchvision", "rich"}


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "120")
    (tmp_path / "x.yaml").write_text(CONFIG)
    return tmp_path


class Fake:
    """Stands in for the evaluation."""

    def __init__(self) -> None:
        self.calls: list[tuple[EvaluationConfig, dict[str, Any]]] = []
        self.error: BaseException | None = None
        self.status = "VALID"

    def run(self, config: EvaluationConfig, registry: Any, **settings: Any) -> Any:
        self.calls.append((config, settings))
        assert (settings["out"] / "config.json").exists(), "the folder is claimed before anything is computed"
        if self.error is not None:
            raise self.error
        place = {"dataset": "digits", "model": "small-cnn", "defense": "none", "goal": "untargeted", "seed": 0}
        game = {"norm": "linf", "epsilon": 0.1, "knowledge": "adaptive", "label": "fgsm", "attack": "fgsm"}
        figures = {"images": 3, "clean_accuracy": 0.9, "robust_accuracy": 0.5, "robust_accuracy_interval": (0.1, 0.9)}
        costs = {"forwards_per_image": 1.0, "backwards_per_image": 1.0, "seconds": 1.0, "max_distance": 0.1}
        rest = {"attack_success_rate": 0.4, "attack_success_denominator": 3, "attack_parameters": {}}
        cell = Cell.model_validate({"key": "1", "status": self.status} | place | game | figures | costs | rest)
        run = {"started": "now", "seconds": 1.0, "device": "cpu", "computed_shards": 1, "cached_shards": 0}
        return Results(run=run, config={}, versions={}, plugins={}, cells=[cell], worst_case=[])


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> Fake:
    stand_in = Fake()
    monkeypatch.setattr("guard.api.run", stand_in.run)
    monkeypatch.setattr("guard.report.terminal.show", lambda report, console: console.print("the table"))
    return stand_in


@pytest.fixture
def typed(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Any:
    def call(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["guard", *arguments])
        with pytest.raises(SystemExit) as caught:
            main()
        printed = capsys.readouterr()
        assert isinstance(caught.value.code, int)
        return caught.value.code, printed.out, printed.err

    return call


def test_help_imports_nothing_heavy() -> None:
    code = (
        "import sys; sys.argv = ['guard', '--help']\n"
        "from guard.cli import main\n"
        "try: main()\n"
        f"finally: print(sorted({HEAVY!r} & set(sys.modules)), file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stderr.strip() == "[]"
    for command in ("evaluate", "list", "describe", "schema"):
        assert f"\n  {command} " in done.stdout


def test_guard_alone_prints_its_help_and_its_version(typed: Any) -> None:
    code, out, _ = typed()
    assert (code, out.startswith("Usage: guard")) == (0, True)
    assert typed("--version") == (0, f"guard {guard.__version__}\n", "")


def test_evaluate_hands_on_what_was_typed(fake: Fake, typed: Any) -> None:
    code, out, err = typed("evaluate", "x.yaml", "--set", "seed=3", "--limit", "7", "--device", "cpu", "--keep-images")
    assert (code, out, err) == (0, "the table\nruns/x/report.html\n", "")
    config, settings = fake.calls[0]
    assert (config.seed, config.limit, config.device) == ((3,), 7, "cpu")
    assert settings.pop("progress")
    assert settings == {"out": Path("runs/x"), "keep_images": True, "no_train": False}


def test_quiet_prints_the_page_only(fake: Fake, typed: Any) -> None:
    assert typed("evaluate", "x.yaml", "--quiet", "--no-train", "--out", "there") == (0, "there/report.html\n", "")
    assert fake.calls[0][1]["no_train"] is True


def test_an_invalid_cell_is_exit_code_1(fake: Fake, typed: Any) -> None:
    fake.status = "INVALID"
    assert typed("evaluate", "x.yaml", "--quiet")[0] == 1


@pytest.mark.parametrize(
    ("error", "code", "message"),
    [
        (InputError("images are uint8. Give images.float() / 255"), 2, "images are uint8. Give images.float() / 255"),
        (ContractError("attack 'x' returned NaN"), 1, "attack 'x' returned NaN"),
        (RuntimeError("out of\nmemory"), 1, "RuntimeError: out of memory. Add --debug to see where"),
        (KeyboardInterrupt(), 130, "stopped; run the same command again to go on"),
    ],
)
def test_an_error_is_one_line(error: BaseException, code: int, message: str, fake: Fake, typed: Any) -> None:
    fake.error = error
    assert typed("evaluate", "x.yaml") == (code, "", f"{message}\n")


def test_debug_shows_the_traceback(fake: Fake, monkeypatch: pytest.MonkeyPatch) -> None:
    fake.error = InputError("no")
    monkeypatch.setattr(sys, "argv", ["guard", "evaluate", "x.yaml", "--debug"])
    with pytest.raises(InputError):
        main()


def test_bad_input_is_refused_before_anything_is_computed(fake: Fake, typed: Any) -> None:
    Path("results").write_text("a file")
    for arguments, message in [
        (["nope.yaml"], "config 'nope.yaml' cannot be read: No such file or directory. Give the path of a YAML file"),
        (["x.yaml", "--limit", "0"], "limit is 0 (x.yaml and the command line); it must be above 0"),
        (["x.yaml", "--out", "results/a"], "output folder 'results/a' cannot be written: Not a directory. "),
        (["x.yaml", "--plugin", "no.py"], "plugin file 'no.py' cannot be read: No such file or directory. "),
        (["x.yaml", "--lmit", "3"], "No such option: --lmit"),
        ([], "Missing argument 'CONFIG'. See guard evaluate --help"),
    ]:
        code, out, err = typed("evaluate", *arguments)
        assert (code, out) == (2, "")
        assert err.startswith(message)
        assert err.count("\n") == 1
    assert not fake.calls


def test_another_config_does_not_get_the_folder_of_a_report(fake: Fake, typed: Any) -> None:
    assert typed("evaluate", "x.yaml", "--quiet")[0] == 0
    assert typed("evaluate", "x.yaml", "--quiet")[0] == 0
    assert typed("evaluate", "x.yaml", "--quiet", "--limit", "3") == (
        2,
        "",
        "output folder 'runs/x' belongs to another config: its config.json differs in limit. "
        "Give another one (--out), or remove it\n",
    )
    assert len(fake.calls) == 2


def test_a_run_that_was_refused_does_not_keep_its_folder(fake: Fake, typed: Any) -> None:
    fake.error = InputError("no")
    assert typed("evaluate", "x.yaml")[0] == 2
    fake.error = None
    assert typed("evaluate", "x.yaml", "--limit", "3")[0] == 0


def test_list_names_everything_and_what_did_not_load(typed: Any) -> None:
    Path("mine.py").write_text(
        "from guard import Defense, hookimpl\n"
        "class Nothing(Defense):\n    '''Does nothing. At all.'''\n    name = 'nothing'\n"
        "@hookimpl\ndef guard_defenses(): return [Nothing]\n"
    )
    code, out, _ = typed("list", "--plugin", "mine.py")
    assert code == 0
    for name in ("fgsm", "adversarial-training", "small-cnn", "digits"):
        assert f"\n{name} " in out
    code, out, _ = typed("list", "defenses", "--plugin", "mine.py")
    (line,) = [line for line in out.splitlines() if line.startswith("nothing")]
    assert line.split("  ")[0] == "nothing"
    assert [part.strip() for part in line.split("  ") if part.strip()] == ["nothing", "Does nothing", "mine", "mine.py"]
    assert "mi-fgsm" not in out
    code, out, _ = typed("list", "plugins", "--plugin", "mine.py")
    assert any(line.split()[:2] == ["mine.py", "nothing"] for line in out.splitlines())


def test_list_tells_why_a_plugin_did_not_load(typed: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from guard import Registry

    registry = Registry(failures={"broken": "ImportError: no"})
    monkeypatch.setattr(Registry, "load", lambda files: registry)
    assert "plugin 'broken' did not load: ImportError: no\n" in typed("list", "attacks")[1]
    assert typed("describe", "tap") == (
        2,
        "",
        "no attack, defense, model or dataset is named 'tap'. None is known (plugins that did not load: broken)\n",
    )


def test_describe_tells_parameters_access_and_origin(typed: Any) -> None:
    code, out, _ = typed("describe", "pgd")
    assert code == 0
    lines = out.splitlines()
    assert lines[0] == "attack pgd"
    assert any(line.split()[:5] == ["steps", "whole", "number", "above", "0"] for line in lines)
    assert any(line.startswith("loss ") and "cross-entropy | margin | dlr" in line for line in lines)
    assert {"access: gradients", "norms: l1, l2, linf"} <= set(lines)
    assert lines[-1].startswith("plugin: 'pgd' (guard-robustness")
    assert "cost: at most 10 forwards and 10 backwards an image (10 classes)" in lines
    assert any(line.startswith("path ") and "required" in line for line in typed("describe", "saved")[1].splitlines())


def test_describe_tells_what_an_attack_costs(here: Path, typed: Any) -> None:
    (here / "mine.py").write_text(
        "from guard import Attack, Cost, hookimpl\n"
        "class Free(Attack):\n"
        "    name = 'free'\n"
        "    def perturb(self, victim, images, goal, threat, rng): return images\n"
        "class Dear(Free):\n"
        "    name = 'dear'\n"
        "    draws: int = 120\n"
        "    def cost(self, num_classes): return Cost(self.draws * num_classes, 1)\n"
        "class Needy(Dear):\n"
        "    name = 'needy'\n"
        "    draws: int\n"
        "@hookimpl\n"
        "def guard_attacks(): return [Free, Dear, Needy]\n"
    )

    def told(name: str) -> list[str]:
        return [line for line in typed("describe", name, "--plugin", "mine.py")[1].splitlines() if "cost" in line]

    assert told("free") == ["cost: not stated"]
    assert told("dear") == ["cost: at most 1,200 forwards and 1 backward an image (10 classes)"]
    assert told("needy") == ["cost: depends on its parameters"]
    assert told("none") == []


def test_describe_suggests(typed: Any) -> None:
    message = "no attack, defense, model or dataset is named 'pdg'. Did you mean 'pgd'?\n"
    assert typed("describe", "pdg") == (2, "", message)


def test_schema_is_json(typed: Any) -> None:
    code, out, err = typed("schema")
    assert (code, err) == (0, "")
    assert json.loads(out)["properties"]["attacks"]
    assert json.loads(typed("schema", "--claim")[1])["properties"]["expect"]


def test_what_a_plugin_logs_is_said(here: Path, typed: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GUARD_CACHE", str(here / "cache"))
    settings = ["--set", "defenses=[truncated-relu]", "--set", "training={epochs: 1}", "--set", "model=small-cnn"]
    code, _, err = typed("evaluate", "x.yaml", "--limit", "20", *settings)
    assert code == 0, err
    assert "truncated-relu: replaced net.1, net.4, net.8; kept none" in err
