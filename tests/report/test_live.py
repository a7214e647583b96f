import io

from rich.console import Console

from guard.report.live import LiveProgress


def run(terminal: bool) -> str:
    console = Console(file=io.StringIO(), width=120, force_terminal=terminal)
    progress = LiveProgress(console)
    progress.say("training [small-cnn]")
    progress.start("evaluating", 4)
    progress.start("training", 2)
    progress.advance(2)
    progress.finish()
    progress.advance(1, "pgd [on] none")
    progress.say("half way")
    progress.advance(0)
    progress._bars.refresh()
    progress.finish()
    text: str = console.file.getvalue()  # type: ignore[attr-defined]
    return text


def test_without_a_terminal_only_what_is_said_is_printed() -> None:
    assert run(terminal=False) == "training [small-cnn]\nhalf way\n"


def test_a_terminal_shows_share_and_current_work() -> None:
    text = run(terminal=True)
    for shown in ("evaluating", "25%", "pgd [on] none", "half way", "left"):
        assert shown in text


def test_a_bar_can_be_shown_again_after_it_ended() -> None:
    console = Console(file=io.StringIO(), width=120, force_terminal=True)
    progress = LiveProgress(console)
    for what in ("first", "second"):
        progress.start(what, 1)
        progress.advance(1)
        progress.finish()
    assert "second" in console.file.getvalue()  # type: ignore[attr-defined]
