"""Golden tests: tests/golden/<pass>/<name>.txt holds a graph, a separator and what the pass makes of it.

``pytest --bless`` rewrites what stands below the separators. Beside the text, the results must be the same under the
interpreter, on random inputs.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from graphc.dtype import TensorType
from graphc.errors import GraphcError
from graphc.interp import interpret
from graphc.ir import Graph, Node, Value
from graphc.ops.build import Array
from graphc.passes import pipeline
from graphc.passes.cse import cse
from graphc.passes.dce import dce
from graphc.passes.differentiate import differentiate
from graphc.passes.fold import fold
from graphc.passes.inline import inline
from graphc.passes.loops import loops
from graphc.passes.outline import outline
from graphc.passes.rewrite import Rule, op, rewrite, rule, var
from graphc.passes.simplify import RULES, simplify
from graphc.text import parse, print_graph
from graphc.verify import verify

GOLDEN = Path(__file__).parent / "golden"
PASSES: dict[str, Callable[[Graph], Graph]] = {
    "outline": outline,
    "differentiate": differentiate,
    "simplify": simplify,
    "fold": fold,
    "cse": cse,
    "dce": dce,
    "inline": inline,
    "loops": loops,
}
SEPARATOR = "\n-------- after {} --------\n"
CASES = [f"{name}/{file.stem}" for name in PASSES for file in sorted((GOLDEN / name).glob("*.txt"))]


@pytest.mark.parametrize("case", CASES)
def test_golden(case: str, bless: bool) -> None:
    name = case.split("/")[0]
    file, separator = GOLDEN / f"{case}.txt", SEPARATOR.format(name)
    source, _, expected = file.read_text().partition(separator)
    before = parse(source)
    after = PASSES[name](before)
    verify(after)
    if bless:
        file.write_text(print_graph(before) + separator + print_graph(after) + "\n")
    else:
        assert print_graph(after) + "\n" == expected
    if name != "differentiate":  # `grad` has no value; tests/test_differentiate.py checks gradients
        assert_same_results(before, after)


@pytest.mark.parametrize("name", PASSES)
def test_a_pass_has_nothing_to_do_on_its_own_result(name: str) -> None:
    for file in sorted((GOLDEN / name).glob("*.txt")):
        once = PASSES[name](parse(file.read_text().partition(SEPARATOR.format(name))[0]))
        assert PASSES[name](once) == once, file.name


def test_every_rule_has_a_golden_case(monkeypatch: pytest.MonkeyPatch) -> None:
    used: set[int] = set()
    apply = Rule.apply

    def watched(self: Rule, node: Node) -> tuple[Value, ...] | None:
        made = apply(self, node)
        if made is not None:
            used.add(id(self))
        return made

    monkeypatch.setattr(Rule, "apply", watched)
    for file in sorted((GOLDEN / "simplify").glob("*.txt")):
        simplify(parse(file.read_text().partition(SEPARATOR.format("simplify"))[0]))
    unused = [r for r in RULES if id(r) not in used]
    assert not [f"{sorted(r.pattern.ops)} {r.build.__name__} {r.pattern.args}" for r in unused]


def assert_same_results(before: Graph, after: Graph, tolerance: float = 2e-6) -> None:
    """Equal outputs and updates, NaN where NaN was."""
    rng = np.random.default_rng(3)
    inputs = {v.node.attrs["name"]: random_array(v.type, rng) for v in before.inputs}
    state = {n.attrs["name"]: random_array(n.types[0], rng) for n in before if n.op == "state"}
    for want, got in zip(interpret(before, inputs, state), interpret(after, inputs, state), strict=True):
        assert list(want) == list(got)
        for key, array in want.items():
            assert array.dtype == got[key].dtype
            np.testing.assert_allclose(got[key], array, rtol=tolerance, atol=tolerance, err_msg=key)


def random_array(t: TensorType, rng: np.random.Generator) -> Array:
    return np.asarray(rng.integers(0, 2, t.shape) if not t.dtype.is_float else rng.normal(size=t.shape), t.dtype.numpy)


# The pipeline --------------------------------------------------------------------------------------------------------


def test_pipeline_keeps_its_order() -> None:
    pipeline.check_order(pipeline.PIPELINE, pipeline.ORDER)
    assert all(p.does.endswith(".") for p in pipeline.PIPELINE)
    assert all(c.reason for c in pipeline.ORDER)


@pytest.mark.parametrize("constraint", pipeline.ORDER, ids=lambda c: f"{c.before}-{c.after}")
def test_order_violation_is_found(constraint: pipeline.Constraint) -> None:
    swap = {constraint.before: constraint.after, constraint.after: constraint.before}
    by_name = {p.name: p for p in pipeline.PIPELINE}
    wrong = [by_name[swap.get(p.name, p.name)] for p in pipeline.PIPELINE]
    with pytest.raises(ValueError, match=f"{constraint.before} must run before {constraint.after}"):
        pipeline.check_order(wrong, [constraint])


def test_a_pass_has_one_row() -> None:
    with pytest.raises(ValueError, match="named twice"):
        pipeline.check_order([*pipeline.PIPELINE, pipeline.PIPELINE[0]], pipeline.ORDER)


def test_order_names_passes_that_exist() -> None:
    with pytest.raises(ValueError, match="no such pass"):
        pipeline.check_order(pipeline.PIPELINE, [pipeline.Constraint("simplify", "simplfiy", "a typo")])


def test_run_stops_and_reports() -> None:
    graph = parse((GOLDEN / "differentiate/linear.txt").read_text().partition("\n-----")[0])
    seen: list[str] = []

    def observe(name: str, before: Graph, after: Graph, seconds: float) -> None:
        assert seconds >= 0
        assert len(after.nodes) > 0
        seen.append(name)

    stopped = pipeline.run(graph, stop_after="fold", observe=observe, check=True)
    names = [p.name for p in pipeline.PIPELINE]
    assert seen == names[: names.index("fold") + 1]
    assert not any(n.op == "grad" for n in stopped)
    with pytest.raises(ValueError, match="no pass is named"):
        pipeline.run(graph, stop_after="optimise")


# The pattern language ------------------------------------------------------------------------------------------------

X = """graph t {
  %0 = input() {dtype=float32, name="x", shape=(3,)} : float32[3] @ net.py:1
  %1 = exp(%0) : float32[3] @ net.py:2
  return (r=%1) update ()
}"""


def test_rules_that_undo_each_other_are_found() -> None:
    x = var("x")
    rules = [rule(op("exp", x), lambda m: m.root.out()), rule(op("log", x), lambda m: None)]
    with pytest.raises(GraphcError, match="did not come to rest"):
        rewrite(parse(X), rules)


def test_a_rule_must_keep_the_type() -> None:
    from graphc.ops.build import reshape

    with pytest.raises(GraphcError, match=r"GC0001.*exp"):
        rewrite(parse(X), [rule(op("exp", var("x")), lambda m: reshape(m.x, (3, 1)))])
