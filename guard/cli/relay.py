"""What guard and its plugins log, said on the command line."""

import logging
from collections.abc import Callable


def relay(modules: set[str], say: Callable[[str], None]) -> None:
    """Say what guard and its plugins log: which activations were replaced, that a head is new."""

    class Relay(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            say(record.getMessage())

    for name in (*modules, "guard"):
        logger = logging.getLogger(name)
        logger.handlers, logger.propagate = [Relay(logging.INFO)], False
        logger.setLevel(logging.INFO)
