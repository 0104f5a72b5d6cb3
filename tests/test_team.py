"""The native thread team: order, barriers, times, shutdown, several teams, more threads than processors."""

from __future__ import annotations

import ctypes
import os
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from native import Loaded, aligned, load_objects

from graphc.dtype import int64
from graphc.kernels.cpu.build import compile_kernels, team_object
from graphc.kernels.cpu.target import host
from graphc.loop import Affine, Kernel, Load, Loop, Param, Role, Store, Var, call

CHAIN = 7  # launches in a job
SIZE = 61


def shifted_sum() -> Kernel:
    """y[i] = x[i] + x[SIZE - 1 - i]: every thread reads what the others wrote in the launch before."""
    i = Var("i")
    mirrored = Load("x", Affine.of(i, -1, SIZE - 1), int64)
    value = call("add", Load("x", Affine.of(i), int64), mirrored)
    loop = Loop(i, SIZE, (Store("y", Affine.of(i), value),), Role.PARALLEL)
    return Kernel("shifted_sum", (Param("x", int64), Param("y", int64, written=True)), (loop,))


@pytest.fixture(scope="module")
def code(tmp_path_factory: pytest.TempPathFactory) -> tuple[Loaded, str]:
    kernel = compile_kernels([shifted_sum()], host(), Path(tmp_path_factory.mktemp("cache")))[0]
    return load_objects([team_object(host()), kernel.object]), kernel.symbol


class Team:
    """A team as the runtime makes it: workers in Python threads, a job of CHAIN dependent launches."""

    def __init__(self, code: tuple[Loaded, str], nthreads: int):
        native, kernel = code
        self.nthreads, self.ctl = nthreads, aligned(64, np.int64)
        self.buffers = [aligned(SIZE, np.int64) for _ in range(CHAIN + 1)]
        self.args = np.array(
            [[a.ctypes.data, b.ctypes.data] for a, b in zip(self.buffers, self.buffers[1:], strict=False)]
        )
        address = native.address(kernel)
        self.launches = np.array([[address, a.ctypes.data, 1, 0] for a in self.args])
        self.run_ = native.function("gc_run", 8)
        self.stop_ = native.function("gc_stop", 1)
        worker = native.function("gc_worker", 2)
        self.threads = [threading.Thread(target=worker, args=(self.ctl.ctypes.data, t)) for t in range(1, nthreads)]
        for thread in self.threads:
            thread.start()

    def run(self, seed: int, times: np.ndarray | None = None) -> None:
        self.buffers[0][:] = np.arange(SIZE) * (seed + 1)
        clock = 0 if times is None else times.ctypes.data
        self.run_(self.ctl.ctypes.data, self.launches.ctypes.data, CHAIN, self.nthreads, 0, 0, 0, clock)
        want = self.buffers[0].copy()
        for _ in range(CHAIN):
            want = want + want[::-1]
        np.testing.assert_array_equal(self.buffers[-1], want)

    def stop(self) -> None:
        self.stop_(self.ctl.ctypes.data)
        for thread in self.threads:
            thread.join(timeout=10)
            assert not thread.is_alive()


@contextmanager
def team(code: tuple[Loaded, str], nthreads: int) -> Iterator[Team]:
    it = Team(code, nthreads)
    try:
        yield it
    finally:
        it.stop()


@pytest.mark.parametrize(("nthreads", "runs"), [(1, 500), (2, 2000), (3, 200), (8, 50)])
def test_dependent_launches(code: tuple[Loaded, str], nthreads: int, runs: int) -> None:
    with team(code, nthreads) as it:
        for seed in range(runs):
            it.run(seed)


def test_one_thread_leaves_ctl_alone(code: tuple[Loaded, str]) -> None:
    with team(code, 1) as it:
        it.run(1)
        assert not it.ctl.any()


def test_idle_workers_wake_up(code: tuple[Loaded, str]) -> None:
    with team(code, 2) as it:
        for pause in (0.0, 0.0005, 0.02):  # spinning, yielding, asleep
            it.run(1)
            threading.Event().wait(pause)
            it.run(2)


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere the system alone places threads")
def test_a_worker_leaves_the_processor_of_the_caller(code: tuple[Loaded, str]) -> None:
    allowed = os.sched_getaffinity(0)
    if len(allowed) < 2:
        pytest.skip("needs two processors")
    ours = min(allowed)
    with team(code, 2) as it:
        worker = it.threads[0].native_id
        assert worker is not None
        try:
            for thread in (0, worker):
                os.sched_setaffinity(thread, {ours})
            it.run(1)  # there is nowhere to go: both stay
            os.sched_setaffinity(worker, allowed)
            it.run(2)
            it.run(3)
            assert int(Path(f"/proc/self/task/{worker}/stat").read_text().split()[38]) != ours
            assert os.sched_getaffinity(worker) == allowed
        finally:
            os.sched_setaffinity(0, allowed)


def test_times_add_up(code: tuple[Loaded, str]) -> None:
    with team(code, 2) as it:
        times = np.zeros(CHAIN, np.int64)
        it.run(3, times)
        once = times.copy()
        assert (once > 0).all()
        it.run(3, times)
        assert (times > once).all()
        assert times.sum() < 10_000_000_000


def test_two_teams_side_by_side(code: tuple[Loaded, str]) -> None:
    failures: list[BaseException] = []

    def work(it: Team) -> None:
        try:
            for seed in range(300):
                it.run(seed)
        except BaseException as problem:
            failures.append(problem)

    with team(code, 2) as one, team(code, 2) as other:
        threads = [threading.Thread(target=work, args=(it,)) for it in (one, other)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(timeout=60)
    assert not failures


def test_stop_without_a_job(code: tuple[Loaded, str]) -> None:
    with team(code, 4):
        pass


def test_team_object_is_small_and_stable() -> None:
    again = team_object(host())
    assert again == team_object(host())
    assert len(again) < 8192
    assert ctypes.sizeof(ctypes.c_int64) == 8
