"""Options and fixtures that tests share."""

from __future__ import annotations

import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--bless", action="store_true", help="rewrite the expected texts of the golden tests")
    parser.addoption("--graphs", type=int, default=40, help="how many random graphs to compile (a long run: 2000)")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "graph_seed" in metafunc.fixturenames:
        metafunc.parametrize("graph_seed", range(metafunc.config.getoption("--graphs")))


@pytest.fixture
def bless(request: pytest.FixtureRequest) -> bool:
    return bool(request.config.getoption("--bless"))
