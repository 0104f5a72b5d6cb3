"""Processes that measure: each holds one system (`worker.py`), and rests while another one has its turn."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

from systems import HERE, environment
from workloads import Workload

LIMIT = 1800.0  # seconds until an answer is no longer waited for


class Failed(Exception):
    """A process did not do what it was asked; the message is the last line that it wrote."""


class Child:
    """``worker.py`` on one job. ``ready``: the seconds that it reported at its first step."""

    def __init__(
        self,
        system: str,
        workload: Workload,
        mode: str,
        files: Mapping[str, Path],
        threads: int,
        variant: Mapping[str, str],
    ) -> None:
        """``files``: ``weights``, ``model`` and the system's ``folder``."""
        job = {"system": system, "workload": asdict(workload), "mode": mode, "threads": threads}
        job |= {name: str(path.resolve()) for name, path in files.items()}
        self.log = files["folder"] / "worker.log"
        command = [sys.executable, str(HERE / "worker.py"), json.dumps(job)]
        with self.log.open("w") as log:
            self.process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                env=environment(files["folder"], threads, variant),
            )
        self.ready = self.read()

    def read(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        timer = threading.Timer(LIMIT, self.process.kill)
        timer.start()
        try:
            for line in self.process.stdout:
                if line.startswith("{"):
                    return dict(json.loads(line))
        finally:
            timer.cancel()
        code = self.process.wait()
        raise Failed(last_line(self.log.read_text(errors="replace")) or f"ended with code {code}")

    def ask(self, command: str) -> dict[str, Any]:
        assert self.process.stdin is not None
        with suppress(BrokenPipeError):  # `read` says why
            self.process.stdin.write(f"{command}\n")
            self.process.stdin.flush()
        return self.read()

    def rest(self) -> None:
        """Stop all threads, also those that wait in a loop."""
        self.process.send_signal(signal.SIGSTOP)

    @contextmanager
    def turn(self) -> Iterator[Child]:
        self.process.send_signal(signal.SIGCONT)
        try:
            yield self
        finally:
            self.rest()

    def close(self) -> None:
        self.process.send_signal(signal.SIGCONT)
        with suppress(BrokenPipeError):
            assert self.process.stdin is not None
            self.process.stdin.close()
        try:
            self.process.wait(timeout=60)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


def last_line(text: str) -> str:
    """The last line of a traceback that says something."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    errors = [line for line in lines if line.split(":")[0].endswith(("Error", "Exception", "Interrupt"))]
    return (errors or lines or [""])[-1][:300]
