"""Killed at any moment and run again, an evaluation goes on and ends with the same figures."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

SCRIPT = """
import json, sys
import torch
from torch import nn
import guard

torch.set_num_threads(1)
torch.manual_seed(0)
net = nn.Sequential(nn.Conv2d(1, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 36, 4))
images = torch.rand(1500, 1, 8, 8, generator=torch.Generator().manual_seed(1))
with torch.no_grad():
    labels = net(images).argmax(1)
threat = guard.ThreatModel(norm="linf", epsilon=0.01)
attacks = ["noise", {"name": "pgd", "steps": 40, "restarts": 3}]
report = guard.evaluate(net, (images, labels), attacks=attacks, threat=threat, batch_size=64)
cells = [cell.model_dump(exclude={"seconds", "candidates"}) for cell in report.cells]
print(json.dumps([report.run["computed_shards"], cells]))
"""


def start(script: Path, cache: Path) -> "subprocess.Popen[str]":
    environment = os.environ | {"GUARD_CACHE": str(cache)}
    return subprocess.Popen([sys.executable, str(script)], env=environment, stdout=subprocess.PIPE, text=True)


def finish(script: Path, cache: Path) -> tuple[int, Any]:
    process = start(script, cache)
    output, _ = process.communicate(timeout=120)
    assert process.returncode == 0
    computed, cells = json.loads(output)
    return computed, cells


def shards(cache: Path) -> int:
    return len(list(cache.glob("shards/*/*/[!p]*.npz")))


def test_kill_and_resume(tmp_path: Path) -> None:
    script = tmp_path / "run.py"
    script.write_text(SCRIPT)
    everything, undisturbed = finish(script, tmp_path / "whole")
    total = shards(tmp_path / "whole")
    assert everything == 12  # two attacks, six shards; the clean answers come on top
    chance = random.Random(0)
    for goal in (total // 4, total // 2, 3 * total // 4):
        process = start(script, tmp_path / "killed")
        while shards(tmp_path / "killed") < goal and process.poll() is None:
            time.sleep(0.002)
        time.sleep(chance.random() * 0.05)
        process.send_signal(signal.SIGKILL)
        process.communicate()
    computed, resumed = finish(script, tmp_path / "killed")
    assert resumed == undisturbed
    assert computed < everything, "it began from the start again"
