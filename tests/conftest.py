"""Options and fixtures that tests share."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from graphc import runtime

GRAPHS = 50  # random graphs that are compiled as one program


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--bless", action="store_true", help="rewrite the expected texts of the golden tests")
    parser.addoption("--graphs", type=int, default=100, help="how many random graphs to compile (a long run: 2000)")
    parser.addoption(
        "--mutations", type=int, default=4000, help="how many damaged artifacts to read (a long run: 100000)"
    )
    parser.addoption("--target", default="cpu", help="what ops are compiled for in test_op_grid.py: cpu, or cuda")
    parser.addoption("--thorough", action="store_true", help="compile every op, dtype and shape, and keep no kernels")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "graph_seeds" in metafunc.fixturenames:
        count = metafunc.config.getoption("--graphs")
        batches = [range(first, min(first + GRAPHS, count)) for first in range(0, count, GRAPHS)]
        metafunc.parametrize("graph_seeds", batches, ids=lambda seeds: f"{seeds[0]}-{seeds[-1]}")


@pytest.fixture(scope="session", autouse=True)
def teams_for_small_programs() -> Iterator[None]:
    """Tests are small, and yet about all threads that a program is given."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(runtime, "ALONE", 0)
        yield


@pytest.fixture
def bless(request: pytest.FixtureRequest) -> bool:
    return bool(request.config.getoption("--bless"))


@pytest.fixture
def target(request: pytest.FixtureRequest) -> str:
    return str(request.config.getoption("--target"))


@pytest.fixture
def thorough(request: pytest.FixtureRequest) -> bool:
    return bool(request.config.getoption("--thorough"))
