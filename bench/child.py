"""Processes that measure: each holds one system (as `worker.py` does), and rests while another one has its turn."""

from __future__ import annotations

import json
import signal
import subprocess
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

LIMIT = 1800.0  # seconds until an answer is no longer waited for


class Failed(Exception):
    """A process did not do what it was asked; the message is the last line that it wrote."""


class Child:
    """A process that answers a line with a line of JSON. ``ready``: what it said first."""

    def __init__(self, command: Sequence[str], log: Path, env: Mapping[str, str]) -> None:
        """``log`` takes what it writes to standard error. Raises `Failed`."""
        self.log = log
        with log.open("w") as file:
            self.process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=file, text=True, env=env
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

    def kill(self) -> None:
        """At once, whatever it would still tidy up: some systems take seconds for that."""
        self.process.kill()
        self.process.wait()

    def close(self) -> None:
        """When it has written what it keeps."""
        self.process.send_signal(signal.SIGCONT)
        with suppress(BrokenPipeError):
            assert self.process.stdin is not None
            self.process.stdin.close()
        try:
            self.process.wait(timeout=60)
        except subprocess.TimeoutExpired:
            self.kill()


def last_line(text: str) -> str:
    """The last line of a traceback that says something."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    errors = [line for line in lines if line.split(":")[0].endswith(("Error", "Exception", "Interrupt"))]
    return (errors or lines or [""])[-1][:300]
