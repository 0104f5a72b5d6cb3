"""The text form of graphs: `print_graph` and `parse`, with ``parse(print_graph(g)) == g``.

The grammar stands at the head of `graphc.ir`. Its literals::

    literal := INT | FLOAT | nan | inf | -inf | true | false | none | STRING | DTYPE | "(" literal,* ")" | graph
             | type "(" scalar,* ")"         an array, element by element, where that is exact and short
             | type "(" STRING ")"           an array, its little-endian bytes in base64

NAME and FILE are bare where they have plain characters only, and JSON strings otherwise. White space separates.

Graph text is part of artifacts, which may come from anywhere: the parser evaluates nothing, takes linear time, bounds
nesting and rank, and reports every defect as GC0550. It checks syntax only; `graphc.verify` checks the rest.
"""

from __future__ import annotations

import base64
import binascii
import json
import re
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np

from graphc.dtype import DTYPES, DType, TensorType
from graphc.errors import GraphcError, Loc, error
from graphc.ir import Graph, Literal, Node, Value, attrs

__all__ = ["number_values", "parse", "print_graph", "print_node"]

MAX_DEPTH = 32  # of graphs and tuples inside each other
MAX_RANK = 32
SHORT = 8  # arrays up to this size are printed element by element

BARE_NAME = re.compile(r"[A-Za-z_][\w.]*", re.ASCII)
BARE_FILE = re.compile(r"[\w./~+-]+", re.ASCII)


# Printing ------------------------------------------------------------------------------------------------------------


def print_graph(graph: Graph, *, brief: bool = False) -> str:
    """The text of ``graph``; lossless. ``brief`` is for people: bodies of regions and long constants are left out."""
    names = number_values(graph)
    lines = [f"graph {quote(graph.name, BARE_NAME)} {{"]
    for node in graph.nodes:
        lines.append("  " + print_node(node, names, brief=brief).replace("\n", "\n  "))
    lines.append(f"  return {print_pairs(graph.outputs, names)} update {print_pairs(graph.updates, names)}")
    return "\n".join([*lines, "}"])


def number_values(graph: Graph) -> dict[Value, str]:
    """The names of values in the text form: %0, %1 … in order of definition."""
    values = [v for node in graph.nodes for v in node.outs]
    return {v: f"%{i}" for i, v in enumerate(values)}


def print_node(node: Node, names: dict[Value, str], *, brief: bool = False) -> str:
    """One node as text; values without a name (in a broken graph) are printed as ``%?``."""
    results = ", ".join(names.get(v, "%?") for v in node.outs)
    operands = ", ".join(names.get(v, "%?") for v in node.inputs)
    settings = ", ".join(f"{k}={print_literal(v, brief)}" for k, v in node.attrs.items())
    text = f"{results} = {node.op}({operands})"
    if settings:
        text += f" {{{settings}}}"
    text += " : " + ", ".join(map(str, node.types))
    return text if node.loc is None else f"{text} @ {quote(node.loc.file, BARE_FILE)}:{node.loc.line}"


def print_pairs(pairs: Iterable[tuple[str, Value]], names: dict[Value, str]) -> str:
    return "(" + ", ".join(f"{quote(k, BARE_NAME)}={names.get(v, '%?')}" for k, v in pairs) + ")"


def quote(text: str, bare: re.Pattern[str]) -> str:
    return text if bare.fullmatch(text) else json.dumps(text)


def print_literal(value: Any, brief: bool) -> str:
    match value:
        case None:
            return "none"
        case bool():
            return "true" if value else "false"
        case int():
            return str(int(value))
        case float():
            return repr(float(value))  # a NumPy scalar is a float, too, with a repr of its own
        case str():
            return json.dumps(value)
        case DType():
            return value.name
        case tuple():
            inner = ", ".join(print_literal(v, brief) for v in value)
            return f"({inner},)" if len(value) == 1 else f"({inner})"
        case Literal():
            return print_array(value, brief)
        case Graph():
            return f"graph {quote(value.name, BARE_NAME)} {{…}}" if brief else print_graph(value)
    raise TypeError(f"an attribute cannot hold a {type(value).__name__}")


def print_array(value: Literal, brief: bool) -> str:
    t = TensorType(value.dtype, value.shape)
    if t.size <= SHORT:
        # str of a NumPy scalar is the shortest decimal that its own type reads back.
        items = [str(v.item() if value.dtype.kind != "f" else v) for v in value.array.ravel()]
        decimal = [item.lower() if value.dtype.kind == "b" else item for item in items]
        if from_scalars(t, [READ[value.dtype.kind](item) for item in decimal]) == value.data:
            return f"{t}({', '.join(decimal)})"
    return f"{t}(…)" if brief else f'{t}("{base64.b64encode(value.data).decode()}")'


READ: dict[str, Callable[[str], Any]] = {"f": float, "i": int, "u": int, "b": lambda word: word == "true"}


def from_scalars(t: TensorType, items: list[Any]) -> bytes:
    """The bytes of an array of type ``t`` with these elements. Raises OverflowError where an integer does not fit."""
    with np.errstate(all="ignore"):
        return np.array(items, t.dtype.numpy).tobytes()


# Parsing -------------------------------------------------------------------------------------------------------------


def parse(text: str) -> Graph:
    """The graph that ``text`` describes. Raises GC0550 with the number of the line that is wrong."""
    scanner = Scanner(text)
    try:
        graph = parse_graph(scanner, 0)
    except (ValueError, OverflowError) as e:  # a number or string that is well formed but has no value
        raise scanner.wrong(str(e)) from None
    if not scanner.done():
        raise scanner.fail("expected the end of the text")
    return graph


class Scanner:
    """The text and how far it has been read. Patterns are tried at the position only, so that each is read once."""

    SPACE = re.compile(r"\s*+")
    NAME = BARE_NAME
    FILE = BARE_FILE
    STRING = re.compile(r'"(?:[^"\\\n]++|\\.)*+"')
    VALUE = re.compile(r"%(\d+)", re.ASCII)
    BOOL = re.compile(r"(?:true|false)\b")
    INT = re.compile(r"-?\d+(?![\d.eE])", re.ASCII)
    NUMBER = re.compile(r"-?(?:inf|nan|\d++(?:\.\d*+)?+(?:[eE][+-]?\d++)?+)(?!\w)", re.ASCII)

    def __init__(self, text: str):
        self.text, self.at, self.last = text, 0, 0
        self.skip()

    def skip(self) -> None:
        found = self.SPACE.match(self.text, self.at)
        assert found is not None
        self.at = found.end()

    def done(self) -> bool:
        return self.at == len(self.text)

    def fail(self, why: str) -> GraphcError:
        """The error for what stands here."""
        return self.defect(self.at, why)

    def wrong(self, why: str) -> GraphcError:
        """The error for what was read last."""
        return self.defect(self.last, why)

    def defect(self, at: int, why: str) -> GraphcError:
        line = self.text.count("\n", 0, at) + 1
        found = self.text[at : at + 40].split("\n")[0]
        return error("GC0550", f"line {line} of the graph text: {why}", hint=f"near: {found or 'the end'}")

    def take(self, pattern: re.Pattern[str]) -> str | None:
        """What ``pattern`` matches here, or None."""
        found = pattern.match(self.text, self.at)
        if found is None:
            return None
        self.last, self.at = self.at, found.end()
        self.skip()
        return found.group()

    def need(self, pattern: re.Pattern[str], what: str) -> str:
        found = self.take(pattern)
        if found is None:
            raise self.fail(f"expected {what}")
        return found

    def accept(self, mark: str) -> bool:
        if not self.text.startswith(mark, self.at):
            return False
        self.last, self.at = self.at, self.at + len(mark)
        self.skip()
        return True

    def expect(self, mark: str) -> None:
        if not self.accept(mark):
            raise self.fail(f"expected {mark!r}")

    def word(self, *words: str) -> None:
        if self.need(self.NAME, words[0]) not in words:
            raise self.wrong(f"expected {words[0]!r}")

    def string(self) -> str | None:
        found = self.take(self.STRING)
        return None if found is None else str(json.loads(found))

    def quoted(self, bare: re.Pattern[str], what: str) -> str:
        found = self.string()
        return self.need(bare, what) if found is None else found

    def list(self, close: str, item: Callable[[], None]) -> None:
        """Items separated by commas (one may end the list), up to and with ``close``."""
        while not self.accept(close):
            item()
            if not self.accept(","):
                self.expect(close)
                return


def parse_graph(s: Scanner, depth: int) -> Graph:
    if depth > MAX_DEPTH:
        raise s.fail(f"more than {MAX_DEPTH} graphs or tuples inside each other")
    s.word("graph")
    return parse_body(s, depth)


def parse_body(s: Scanner, depth: int) -> Graph:
    """A graph after its first word."""
    name = s.quoted(s.NAME, "a name")
    s.expect("{")
    values: dict[str, Value] = {}
    nodes: list[Node] = []
    while s.text.startswith("%", s.at):
        nodes.append(parse_node(s, values, depth))
    s.word("return")
    outputs = parse_pairs(s, values)
    s.word("update")
    updates = parse_pairs(s, values)
    s.expect("}")
    inputs = tuple(node.out() for node in nodes if node.op == "input")
    return Graph(name, tuple(nodes), inputs, outputs, updates)


def parse_node(s: Scanner, values: dict[str, Value], depth: int) -> Node:
    names = [s.need(s.VALUE, "a value")]
    while s.accept(","):
        names.append(s.need(s.VALUE, "a value"))
    s.expect("=")
    op = s.need(s.NAME, "an operation")
    operands: list[Value] = []
    s.expect("(")
    s.list(")", lambda: operands.append(parse_use(s, values)))
    settings: dict[str, Any] = {}
    if s.accept("{"):
        s.list("}", lambda: parse_setting(s, settings, depth))
    s.expect(":")
    types = [parse_type(s)]
    while s.accept(","):
        types.append(parse_type(s))
    loc = parse_loc(s) if s.accept("@") else None
    node = Node(op, tuple(operands), attrs(**settings), tuple(types), loc)
    if len(names) != len(types):
        raise s.wrong(f"{op} has {len(names)} results and {len(types)} types")
    for name, value in zip(names, node.outs, strict=True):
        if name in values:
            raise s.wrong(f"{name} is defined twice")
        values[name] = value
    return node


def parse_use(s: Scanner, values: dict[str, Value]) -> Value:
    name = s.need(s.VALUE, "a value")
    if name not in values:
        raise s.wrong(f"{name} is not defined before this")
    return values[name]


def parse_pairs(s: Scanner, values: dict[str, Value]) -> tuple[tuple[str, Value], ...]:
    pairs: list[tuple[str, Value]] = []

    def pair() -> None:
        name = s.quoted(s.NAME, "a name")
        s.expect("=")
        pairs.append((name, parse_use(s, values)))

    s.expect("(")
    s.list(")", pair)
    return tuple(pairs)


def parse_setting(s: Scanner, settings: dict[str, Any], depth: int) -> None:
    key = s.need(s.NAME, "the name of an attribute")
    if key in settings:
        raise s.wrong(f"attribute {key} occurs twice")
    s.expect("=")
    settings[key] = parse_literal(s, depth + 1)


def parse_type(s: Scanner) -> TensorType:
    name = s.need(s.NAME, "a dtype")
    if name not in DTYPES:
        raise s.wrong(f"{name} is no dtype")
    return parse_shape(s, DTYPES[name])


def parse_shape(s: Scanner, dt: DType) -> TensorType:
    """A type after its dtype."""
    dims: list[int] = []

    def dim() -> None:
        dims.append(int(s.need(s.INT, "a dimension")))
        if not 0 <= dims[-1] < 2**63 or len(dims) > MAX_RANK:
            raise s.wrong(f"a shape has at most {MAX_RANK} dimensions, from 0 to 2**63 - 1")

    s.expect("[")
    s.list("]", dim)
    return TensorType(dt, tuple(dims))


def parse_loc(s: Scanner) -> Loc:
    file = s.quoted(s.FILE, "a file")
    s.expect(":")
    return Loc(file, int(s.need(s.INT, "a line number")))


WORDS: dict[str, Any] = {"none": None, "true": True, "false": False}


def parse_literal(s: Scanner, depth: int) -> Any:
    if depth > MAX_DEPTH:
        raise s.fail(f"more than {MAX_DEPTH} graphs or tuples inside each other")
    if s.accept("("):
        items: list[Any] = []
        s.list(")", lambda: items.append(parse_literal(s, depth + 1)))
        return tuple(items)
    string = s.string()
    if string is not None:
        return string
    integer = s.take(s.INT)
    if integer is not None:
        return int(integer)
    number = s.take(s.NUMBER)
    if number is not None:
        return float(number)
    word = s.need(s.NAME, "a literal")
    if word == "graph":
        return parse_body(s, depth)
    if word in DTYPES:
        dt = DTYPES[word]
        return parse_array(s, parse_shape(s, dt)) if s.text.startswith("[", s.at) else dt
    if word not in WORDS:
        raise s.wrong(f"{word} is no literal")
    return WORDS[word]


def parse_array(s: Scanner, t: TensorType) -> Literal:
    s.expect("(")
    encoded = s.string()
    if encoded is not None:
        s.expect(")")
        data = decode(s, encoded)
    else:
        data = parse_scalars(s, t)
    if len(data) != t.nbytes:
        raise s.wrong(f"{t} has {t.nbytes} bytes, and the text {len(data)}")
    return Literal(t.dtype, t.shape, data)


def decode(s: Scanner, encoded: str) -> bytes:
    try:
        return base64.b64decode(encoded, validate=True)
    except binascii.Error as e:
        raise s.wrong(f"bad base64: {e}") from None


def parse_scalars(s: Scanner, t: TensorType) -> bytes:
    pattern = {"f": s.NUMBER, "b": s.BOOL}.get(t.dtype.kind, s.INT)
    items: list[Any] = []
    s.list(")", lambda: items.append(READ[t.dtype.kind](s.need(pattern, f"an element of {t.dtype}"))))
    return from_scalars(t, items)
