"""Progress: what long work tells whoever watches; nothing by default."""


class Progress:
    """A base of no-ops. `start` and `finish` enclose a piece of work of `total` units."""

    def say(self, text: str) -> None:
        """One line of news."""

    def start(self, what: str, total: int) -> None:
        """A piece of work begins: training (unit: a weight update) or a whole evaluation (unit: an image of a cell)."""

    def advance(self, units: int, what: str = "") -> None:
        """Some of it is done; `what` names what is worked on now."""

    def finish(self) -> None:
        """It ended."""
