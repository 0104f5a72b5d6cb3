"""Tests run against the installed package (editable or not): ./graphc alone lacks graphc.passes, graphc.kernels and
graphc.models, which stand at the top of the repository."""

from __future__ import annotations

import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent
sys.path[:] = [p for p in sys.path if Path(p or ".").resolve() != ROOT]
