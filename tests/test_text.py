"""The text form of graphs, forth and back; what the parser and the verifier refuse."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from graphc.dtype import DTYPES, TensorType, dtype, float32
from graphc.errors import GraphcError
from graphc.ir import Graph, Literal, Loc, Node, Value, attrs
from graphc.ops import OPS, apply, apply_node, at_loc
from graphc.text import parse, print_graph
from graphc.verify import verify

SAMPLES = [pytest.param(op, s, id=f"{op.name}-{i}") for op in OPS for i, s in enumerate(op.samples())]


def graph_of(op, sample) -> Graph:
    ins = [apply("input", name=f"x{i}", dtype=dtype(a.dtype), shape=a.shape) for i, a in enumerate(sample.arrays)]
    with at_loc(Loc("net.py", 12)):
        node = apply_node(op.name, *ins, **sample.attrs)
    return Graph.build("g", ins, [(f"y{i}", v) for i, v in enumerate(node.outs)])


def small() -> Graph:
    """One input, one state, one output, one update."""
    with at_loc(Loc("models/net.py", 7)):
        x = apply("input", name="x", dtype=float32, shape=(2, 3))
        w = apply("state", name="fc.weight", dtype=float32, shape=(2, 3), trainable=True)
    with at_loc(Loc("models/net.py", 9)):
        total = apply("add", x, w)
    return Graph.build("train", [x], [("loss", apply("sum", total, axes=(0, 1)))], [("fc.weight", total)])


SMALL = """\
graph train {
  %0 = input() {dtype=float32, name="x", shape=(2, 3)} : float32[2,3] @ models/net.py:7
  %1 = state() {dtype=float32, name="fc.weight", shape=(2, 3), trainable=true} : float32[2,3] @ models/net.py:7
  %2 = add(%0, %1) : float32[2,3] @ models/net.py:9
  %3 = sum(%2) {axes=(0, 1)} : float32[]
  return (loss=%3) update (fc.weight=%2)
}"""


# Forth and back ------------------------------------------------------------------------------------------------------


def test_the_text_is_what_people_read():
    assert print_graph(small()) == SMALL
    assert parse(SMALL) == small()


@pytest.mark.parametrize(("op", "sample"), SAMPLES)
def test_round_trip_of_every_op(op, sample):
    graph = graph_of(op, sample)
    text = print_graph(graph)
    again = parse(text)
    assert again == graph
    assert print_graph(again) == text
    assert [n.loc for n in again] == [n.loc for n in graph]
    verify(again)


def test_multiple_results_and_nested_graphs():
    p = apply("input", name="p", dtype=float32, shape=(4,))
    body = Graph.build("half", [p], zip("ab", apply_node("split", p, axis=0, sizes=(1, 3)).outs, strict=True))
    x = apply("input", name="x", dtype=float32, shape=(4,))
    node = apply_node("call", x, body=body, hint="map", vjp=None, scale=0.125, is_causal=True)
    graph = Graph.build("g", [x], [("b", node.out(1))])
    text = print_graph(graph)
    assert "%1, %2 = call(%0) {body=graph half {\n    %0 = input()" in text
    assert 'hint="map", is_causal=true, scale=0.125, vjp=none} : float32[1], float32[3]' in text
    assert parse(text) == graph
    assert "{…}" in print_graph(graph, brief=True)


scalars = st.one_of(
    st.none(), st.booleans(), st.integers(), st.text(), st.floats(allow_nan=False), st.sampled_from([*DTYPES.values()])
)
literals = st.recursive(scalars, lambda inner: st.lists(inner, max_size=4).map(tuple), max_leaves=8)


@settings(max_examples=200, deadline=None)
@given(literals, st.text(min_size=1), st.text(min_size=1))
def test_round_trip_of_any_attribute_and_name(value, name, file):
    node = Node("input", (), attrs(value=value), (TensorType(float32, (1,)),), Loc(file, 3))
    graph = Graph(name, (node,), (node.out(),), ((name, node.out()),), ((file, node.out()),))
    again = parse(print_graph(graph))
    assert again == graph
    assert repr(again.nodes[0].attrs["value"]) == repr(value), "1, 1.0 and True are equal, and not the same"


@settings(max_examples=200, deadline=None)
@given(st.sampled_from([*DTYPES.values()]), st.binary(max_size=96), st.booleans())
def test_round_trip_of_any_array(dt, data, column):
    if dt.kind == "b":
        data = bytes(b & 1 for b in data)
    data = data[: len(data) // dt.itemsize * dt.itemsize]
    size = len(data) // dt.itemsize
    literal = Literal(dt, (size, 1) if column else (size,), data)
    node = Node("const", (), attrs(value=literal), (TensorType(dt, literal.shape),))
    again = parse(print_graph(Graph("g", (node,), (), ())))
    assert again.nodes[0].attrs["value"] == literal


def test_arrays_are_short_where_that_is_exact():
    def text(array: np.ndarray) -> str:
        return print_graph(Graph("g", (apply("const", value=Literal.of(array)).node,), (), ())).split("\n")[1].strip()

    assert "{value=float32[](0.1)}" in text(np.float32(0.1).reshape(()))
    assert "{value=float64[4](nan, inf, -inf, -0.0)}" in text(np.array([np.nan, np.inf, -np.inf, -0.0]))
    assert "{value=bool[2](true, false)}" in text(np.array([True, False]))
    assert "{value=int64[1](-9223372036854775808)}" in text(np.array([-(2**63)]))
    assert '{value=float32[9]("AAAA' in text(np.zeros(9, np.float32))
    signalling = np.array([0x7F800001], np.uint32).view(np.float32)
    assert 'float32[1]("AQCAfw==")' in text(signalling), "the payload of a NaN is kept"


def test_white_space_does_not_matter():
    assert parse(SMALL.replace("\n", " \r\n\t ").replace(",", " , ")) == small()


# Refusals of the parser ----------------------------------------------------------------------------------------------


def with_value(text: str) -> str:
    return f"graph g {{\n  %0 = const() {{value={text}}} : int8[1]\n  return () update ()\n}}"


MALFORMED = [
    ("", 1, "expected graph"),
    ("grap g {}", 1, "expected 'graph'"),
    ("graph g {\n  return () update ()", 2, "expected '}'"),
    (SMALL + "\n%", 8, "expected the end"),
    (SMALL.replace("%2 = add", "%1 = add"), 4, "%1 is defined twice"),
    (SMALL.replace("add(%0, %1)", "add(%0, %7)"), 4, "%7 is not defined"),
    (SMALL.replace("(loss=%3)", "(loss=%9)"), 6, "%9 is not defined"),
    (SMALL.replace("%2 = add", "%2, %8 = add"), 4, "2 results and 1 types"),
    (SMALL.replace("axes=(0, 1)", "axes=(0, 1), axes=()"), 5, "attribute axes occurs twice"),
    (SMALL.replace("float32[2,3] @ models/net.py:9", "float8[2,3]"), 4, "float8 is no dtype"),
    (SMALL.replace("float32[2,3] @ models/net.py:9", "float32[2,-3]"), 4, "dimensions"),
    (SMALL.replace("float32[2,3] @ models/net.py:9", f"float32[{2**63}]"), 4, "dimensions"),
    (SMALL.replace("float32[2,3] @ models/net.py:9", "float32[" + "1," * 40 + "]"), 4, "at most 32 dimensions"),
    (SMALL.replace("net.py:9", "net.py:nine"), 4, "a line number"),
    (with_value("maybe"), 2, "maybe is no literal"),
    (with_value("__import__('os')"), 2, "__import__ is no literal"),
    (with_value('"\\q"'), 2, "escape"),
    (with_value('"no end'), 2, "a literal"),
    (with_value("1.2.3"), 2, "expected '}'"),
    (with_value("9" * 5000), 2, "integer string"),
    (with_value("(" * 10_000), 2, "inside each other"),
    (with_value("graph g { %0 = f() {a=" * 40), 2, "inside each other"),
    (with_value("int8[1](300)"), 2, "out of bounds"),
    (with_value("int8[2](3)"), 2, "has 2 bytes, and the text 1"),
    (with_value("int8[3](\"AAA\")"), 2, "bad base64"),
    (with_value("int8[3](\"A!AA\")"), 2, "bad base64"),
    (with_value("int8[4611686018427387904,4](\"AAAA\")"), 2, "and the text 3"),
    (with_value("bool[1](maybe)"), 2, "bool"),
]  # fmt: skip


@pytest.mark.parametrize(("text", "line", "says"), MALFORMED, ids=range(len(MALFORMED)))
def test_malformed_text_is_refused_with_its_line(text: str, line: int, says: str):
    with pytest.raises(GraphcError) as caught:
        parse(text)
    assert caught.value.code == "GC0550"
    assert f"line {line} " in caught.value.message
    assert says in caught.value.message
    assert len(str(caught.value)) < 400


@settings(max_examples=300, deadline=None)
@given(st.integers(0, len(SMALL)), st.integers(0, 12), st.text('%()[]{}=,:@"-.0123456789 \nabegnrt\x00é', max_size=6))
def test_damaged_text_gives_a_graph_or_an_error_of_graphc(at: int, cut: int, put: str):
    try:
        graph = parse(SMALL[:at] + put + SMALL[at + cut :])
        verify(graph)
    except GraphcError as e:
        assert e.code in ("GC0550", "GC0001")  # noqa: PT017


def test_long_constants_are_read():
    data = bytes(range(256)) * 16_000
    literal = Literal(dtype("uint8"), (len(data),), data)
    graph = Graph("g", (apply("const", value=literal).node,), (), ())
    assert parse(print_graph(graph)) == graph
    assert len(print_graph(graph, brief=True)) < 200


# Refusals of the verifier --------------------------------------------------------------------------------------------


def refused(graph: Graph) -> str:
    with pytest.raises(GraphcError) as caught:
        verify(graph)
    assert caught.value.code == "GC0001"
    assert len(str(caught.value).splitlines()) <= 15
    return str(caught.value)


def swap(graph: Graph, index: int, **changes) -> Graph:
    """``graph`` with node ``index`` changed and its uses left alone, so that later nodes hang in the air."""
    node = graph.nodes[index]
    new = Node(**{k: changes.get(k, getattr(node, k)) for k in ("op", "inputs", "attrs", "types", "loc")})
    return replace(graph, nodes=(*graph.nodes[:index], new, *graph.nodes[index + 1 :]))


def test_a_good_graph_passes():
    verify(small())


def test_the_error_shows_the_neighbouring_lines():
    says = refused(swap(small(), 2, types=(TensorType(float32, (2, 4)),)))
    assert "GC0001: graph train: the types should be float32[2,3]" in says
    assert "at models/net.py:9" in says
    assert "> %2 = add(%0, %1) : float32[2,4] @ models/net.py:9" in says
    assert "  %1 = state()" in says
    assert "  %3 = sum(%?)" in says


def test_defects_of_nodes():
    graph = small()
    assert "there is no operation frobnicate" in refused(swap(graph, 2, op="frobnicate"))
    assert "operand 0 is not defined" in refused(replace(graph, nodes=graph.nodes[::-1]))
    assert "the node stands twice" in refused(replace(graph, nodes=(*graph.nodes, graph.nodes[2])))
    assert "GC0104 axes (5,)" in refused(swap(graph, 3, attrs=attrs(axes=(5,))))
    assert "GC0109" in refused(swap(graph, 3, attrs=attrs()))
    assert "GC0111" in refused(swap(graph, 2, inputs=graph.nodes[2].inputs[:1]))


@pytest.mark.parametrize(
    ("literal", "says"),
    [
        (Literal(dtype("bool"), (2,), b"\x01\x02"), "bytes other than 0 and 1"),
        (Literal(dtype("int16"), (2,), b"\x01\x02"), "needs 4 bytes"),
    ],
)
def test_defects_of_constants(literal: Literal, says: str):
    with pytest.raises(GraphcError, match=f"GC0109.*{says}"):
        apply("const", value=literal)


def test_defects_of_the_border():
    graph = small()
    stray = apply("input", name="x", dtype=float32, shape=(1,))
    assert "inputs are not its input nodes" in refused(replace(graph, inputs=()))
    assert "inputs are not its input nodes" in refused(replace(graph, inputs=(*graph.inputs, stray)))
    assert "result y is not defined" in refused(replace(graph, outputs=(("y", stray),)))
    assert "output loss occurs twice" in refused(replace(graph, outputs=graph.outputs * 2))
    assert "update fc.weight occurs twice" in refused(replace(graph, updates=graph.updates * 2))
    assert "input x occurs twice" in refused(
        replace(graph, nodes=(stray.node, *graph.nodes), inputs=(stray, *graph.inputs))
    )


def test_defects_of_state():
    graph = small()
    loss: Value = graph.outputs[0][1]
    assert "state fc.weight is float32[2,3], and its update float32[]" in refused(
        replace(graph, updates=(("fc.weight", loss),))
    )
    other = apply("state", name="fc.weight", dtype=float32, shape=(9,), trainable=True)
    assert "is read as float32[9] and as float32[2,3]" in refused(replace(graph, nodes=(*graph.nodes, other.node)))


def test_defects_of_regions():
    p = apply("input", name="p", dtype=float32, shape=(4,))
    body = Graph.build("body", [p], [("o", apply("neg", p))])
    x = apply("input", name="x", dtype=float32, shape=(4,))
    call = apply("call", x, body=body, hint="map", vjp=None)
    graph = Graph.build("g", [x], [("y", call)])
    verify(graph)

    def with_body(body: Graph, **more) -> Graph:
        return swap(replace(graph, outputs=()), 1, attrs=attrs(body=body, hint="map", **more))

    assert "GC0110 region map takes (), and got (float32[4])" in refused(with_body(Graph.build("none", [], [])))
    assert "state" in refused(with_body(replace(body, updates=(("s", p),))))
    wide = apply("concat", p, p, axis=0)
    assert "should be float32[8]" in refused(with_body(Graph.build("wide", [p], [("o", wide)])))
    assert "graph body: the types should be" in refused(
        with_body(replace(swap(body, 1, types=(TensorType(float32, (4,)),) * 2), outputs=body.outputs))
    )
    assert "the gradient of region map takes (float32[4], float32[4], float32[4])" in refused(with_body(body, vjp=body))
