"""The command `python app.py`."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

APP = Path(__file__).parents[1] / "app.py"


def run(*arguments: str) -> subprocess.CompletedProcess:
    command = [sys.executable, str(APP), *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=120)


def test_help_names_every_option():
    said = run("--help").stdout
    for option in ("--model", "--device", "--dtype", "--port", "--share"):
        assert option in said


def test_a_model_that_is_not_there_is_one_clear_message_and_exit_2(tmp_path):
    done = run("--model", str(tmp_path / "nowhere"))
    assert done.returncode == 2
    assert "nowhere" in done.stderr
    assert "Traceback" not in done.stderr
    assert len(done.stderr.strip().splitlines()) <= 3
