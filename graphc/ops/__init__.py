"""The ops: each one frozen object in one place. `OPS` is the whole language of the graph."""

from __future__ import annotations

from graphc.ops.along import ALONG
from graphc.ops.base import apply, apply_node, at_loc, get_op, install
from graphc.ops.binary import BINARY
from graphc.ops.contract import CONTRACT
from graphc.ops.control import CONTROL
from graphc.ops.conv import CONV
from graphc.ops.index import INDEX
from graphc.ops.movement import MOVEMENT
from graphc.ops.order import ORDER
from graphc.ops.reduce import REDUCE
from graphc.ops.region import REGION
from graphc.ops.source import SOURCE
from graphc.ops.unary import UNARY
from graphc.ops.windows import WINDOWS

__all__ = ["OPS", "apply", "apply_node", "at_loc", "get_op"]

OPS = (
    *SOURCE, *UNARY, *BINARY, *REDUCE, *CONTRACT, *MOVEMENT, *WINDOWS, *CONV, *ORDER, *INDEX, *ALONG, *REGION,
    *CONTROL,
)  # fmt: skip

install(OPS)
