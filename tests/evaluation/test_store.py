"""The store: one process makes what another waits for."""

import threading
import time
from pathlib import Path

from guard.evaluation.store import Store


def test_who_comes_second_waits_and_says_so(tmp_path: Path) -> None:
    store, said, order = Store(tmp_path), list[str](), list[str]()
    path = store.weights("abc")

    def second() -> None:
        with Store(tmp_path).alone(path, said.append):
            order.append("second")

    with store.alone(path, said.append):
        other = threading.Thread(target=second)
        other.start()
        for _ in range(500):
            if said:
                break
            time.sleep(0.01)
        order.append("first")
    other.join(30)
    assert order == ["first", "second"]
    assert said == ["waiting for another process, which is learning the same (abc)"]
    assert not list((tmp_path / "weights").iterdir())
