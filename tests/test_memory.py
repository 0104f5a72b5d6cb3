"""The memory planner against brute force, its bound and an independent checker; the checker against bad plans."""

from __future__ import annotations

from dataclasses import replace
from itertools import combinations
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from graphc.errors import GraphcError
from graphc.kernels.plan import Arg, Buffer, Span
from graphc.kernels.sync import Touch, barriers
from graphc.passes.memory import ALIGN, Lifetime, largest_live_set, plan_memory
from graphc.passes.memory_check import Access, Branch, Loop, check_memory

lifetimes = st.lists(
    st.tuples(st.integers(0, 5000), st.integers(-1, 20), st.integers(0, 8)).map(lambda t: (t[0], t[1], t[1] + t[2])),
    max_size=40,
).map(lambda rows: [with_gap(Lifetime(f"t{i}", *row)) for i, row in enumerate(rows)])


def with_gap(life: Lifetime) -> Lifetime:
    """Some of the long ones are away for a while."""
    gap = ((life.start + 2, life.end - 1),) if life.nbytes % 3 == 0 and life.end - life.start > 3 else ()
    return replace(life, away=gap)


def alive(life: Lifetime, when: int) -> bool:
    return life.start <= when <= life.end and not any(first <= when <= last for first, last in life.away)


@settings(max_examples=60, deadline=None)
@given(lifetimes)
def test_tensors_alive_together_are_apart(lives: list[Lifetime]) -> None:
    plan = plan_memory(lives)
    for p in plan.placed:
        assert p.offset % ALIGN == 0
        assert 0 <= p.offset <= p.offset + p.life.nbytes <= plan.arena_bytes
    for a, b in combinations(plan.placed, 2):
        together = any(alive(a.life, t) and alive(b.life, t) for t in range(-1, 30))
        apart = a.offset + a.life.nbytes <= b.offset or b.offset + b.life.nbytes <= a.offset
        assert apart or not together or 0 in (a.life.nbytes, b.life.nbytes)


@settings(max_examples=60, deadline=None)
@given(lifetimes)
def test_lower_bound_is_the_fullest_launch(lives: list[Lifetime]) -> None:
    fullest = max((sum(e.nbytes for e in lives if alive(e, t)) for t in range(-1, 30)), default=0)
    assert largest_live_set(lives) == plan_memory(lives).lower_bound_bytes == fullest
    assert plan_memory(lives).arena_bytes >= fullest


def training_step(layers: int, seed: int) -> list[Lifetime]:
    """Lifetimes as a training step has them: activations kept for the backward pass in reverse, short-lived rest."""
    random = Random(seed)
    end = layers * 30
    lives: list[Lifetime] = []

    def add(nbytes: int, start: int, stop: int) -> None:
        lives.append(Lifetime(f"t{len(lives)}", nbytes, start, stop))

    for when in range(layers * 10):
        kept = when % 3 == 0
        add(random.choice((1, 3, 4)) * 196_608, when, end - 2 * when if kept else when + random.randint(1, 3))
    for when in range(layers * 10, end):
        add(random.choice((1, 3, 4)) * 196_608, when, min(end, when + random.randint(1, 3)))
    return lives


@pytest.mark.parametrize("layers", [2, 4, 12, 48])
def test_training_steps_are_within_two_percent_of_the_bound(layers: int) -> None:
    plan = plan_memory(training_step(layers, seed=layers))
    assert plan.arena_bytes <= 1.02 * plan.lower_bound_bytes


def test_same_lifetimes_same_plan() -> None:
    lives = training_step(6, seed=3)
    assert plan_memory(lives).offsets == plan_memory(lives).offsets


def test_freed_memory_is_used_again() -> None:
    plan = plan_memory([Lifetime("a", 64, 0, 1), Lifetime("b", 64, 1, 2), Lifetime("c", 64, 2, 3)])
    assert plan.arena_bytes == plan.lower_bound_bytes == 128
    assert plan.offsets["a"] == plan.offsets["c"] != plan.offsets["b"]


def test_the_table_shows_the_largest_first() -> None:
    text = str(plan_memory([Lifetime("small", 64, 0, 1), Lifetime("large", 4096, 1, 2)]))
    assert text.index("large") < text.index("small")
    assert text.startswith("arena 4,160 bytes, largest live set 4,160 (0.00% above)")


def test_no_tensors_no_arena() -> None:
    assert plan_memory([]).arena_bytes == 0


# The checker ---------------------------------------------------------------------------------------------------------

STEPS = [Access("first", ("x",), ("a",)), Access("second", ("a",), ("b",))]


def check(places: dict[str, tuple[int, int]], steps: list[Access] = STEPS, size: int = 192) -> None:
    check_memory(places, size, ["x"], steps, ["b"])


def test_checker_accepts_a_sound_plan() -> None:
    check({"x": (0, 64), "a": (64, 64), "b": (0, 64)})


@pytest.mark.parametrize(
    ("places", "steps", "why"),
    [
        ({"x": (0, 64), "a": (0, 64), "b": (64, 64)}, STEPS, "first uses a and x, which share memory"),
        ({"x": (0, 64), "a": (60, 64), "b": (128, 64)}, STEPS, "tensor a is at 60"),
        ({"x": (0, 64), "a": (64, 64), "b": (128, 128)}, STEPS, "tensor b is at 128"),
        ({"x": (0, 64), "a": (64, 64), "b": (128, 64)}, STEPS[1:], "second reads a, but nothing has written it"),
        ({"x": (0, 64), "a": (64, 64), "b": (128, 64)}, STEPS[:1], "the outputs reads b, but nothing"),
        (
            {"x": (0, 64), "a": (64, 128), "b": (128, 64), "c": (128, 64)},
            [STEPS[0], Access("middle", (), ("c",)), STEPS[1]],
            "reads a, but c has overwritten it|uses a and b",
        ),
    ],
)
def test_checker_refuses(places: dict[str, tuple[int, int]], steps: list[Access], why: str) -> None:
    with pytest.raises(GraphcError, match=why) as caught:
        check(places, steps)
    assert caught.value.code == "GC0008"


LOOPED = [
    Access("before", ("x",), ("c",)),
    Loop([], [Access("use", ("c",), ("t",)), Access("step", ("t",), ("c",))], True),
]


def test_checker_walks_loops_twice() -> None:
    check_memory({"x": (0, 64), "c": (64, 64), "t": (0, 64)}, 128, ["x"], LOOPED, ["c"])
    again = [LOOPED[0], Loop([], [Access("use", ("x", "c"), ()), Access("step", ("c",), ("t",))], True)]
    with pytest.raises(GraphcError, match="use reads x, but t has overwritten it"):
        check_memory({"x": (0, 64), "c": (64, 64), "t": (0, 64)}, 128, ["x"], again, ["c"])


def test_checker_knows_that_rows_add_up() -> None:
    """A temporary over the rows that earlier iterations have stacked."""
    body = [Access("make", (), ("t",)), Access("use", ("t",), ("c",)), Access("stack", ("c",), ("ys",))]
    loop = Loop([], body, True, frozenset(["ys"]))
    check_memory({"t": (0, 64), "c": (64, 64), "ys": (128, 64)}, 192, [], [loop], ["ys"])
    with pytest.raises(GraphcError, match="stack reads ys, but t has overwritten it"):
        check_memory({"t": (0, 64), "c": (64, 64), "ys": (0, 64)}, 128, [], [loop], ["ys"])


def test_checker_trusts_what_both_ways_have_written() -> None:
    places = {"x": (0, 64), "a": (64, 64), "b": (128, 64)}
    one, other = Access("one", ("x",), ("a",)), Access("other", ("x",), ("b",))
    check_memory(places, 192, ["x"], [Branch([one], [other, one])], ["a"])
    for steps in ([Branch([one], [other])], [Loop([other], [one], False)]):
        with pytest.raises(GraphcError, match="reads a, but not every way there has written it"):
            check_memory(places, 192, ["x"], steps, ["a"])


# Barriers ------------------------------------------------------------------------------------------------------------


def touch(start: int, stop: int, *, writes: bool = False, space: str = "arena") -> Touch:
    return Touch(space, start, stop, writes)


def test_barriers_separate_conflicts_only() -> None:
    write_a, read_a = touch(0, 64, writes=True), touch(0, 64)
    write_b = touch(64, 128, writes=True)
    assert barriers([[write_a], [write_b], [read_a], [read_a]]).launches == [
        False,
        False,
        True,
        False,
    ]  # read after write
    assert barriers([[read_a], [write_a]]).launches == [False, True]  # write after read
    assert barriers([[write_a], [write_a]]).launches == [False, True]  # write after write
    assert barriers([[write_a], [touch(0, 64, space="state")]]).launches == [False, False]


def test_a_barrier_clears_what_came_before() -> None:
    write_a, read_a = touch(0, 64, writes=True), touch(0, 64)
    write_b, read_b = touch(64, 128, writes=True), touch(64, 128)
    assert barriers([[write_a, write_b], [read_a], [read_b], [write_b]]).launches == [False, True, False, True]


TEST = Arg(Buffer("test", "arena", 1), reads=True)


def test_iterations_are_apart() -> None:
    write_a, read_a = touch(0, 64, writes=True), touch(0, 64)
    other = touch(64, 128, writes=True)
    repeat = Span("repeat", 1, 1, 3, 5)
    assert barriers([[other], [read_a], [other], [read_a]], [repeat], [None]).launches == [False, True, False, False]
    assert barriers([[other], [read_a], [write_a], [read_a]], [repeat], [None]).launches == [False, True, True, True]


def test_threads_decide_together() -> None:
    test, write = touch(0, 1), touch(0, 1, writes=True)
    other, read = touch(64, 128, writes=True), touch(64, 128)
    cond = Span("cond", 1, 2, 3, test=TEST)
    found = barriers([[write], [other], [], [read]], [cond], [test])
    assert (found.tests, found.launches) == ([True], [False, False, False, True])
    found = barriers([[], [other], [], [write]], [cond], [test])  # the test is read by some while others are behind
    assert (found.tests, found.launches) == ([False], [False, False, False, True])
    loop = Span("while", 0, 1, 2, test=TEST)
    found = barriers([[write], [other], [read]], [loop], [test])
    assert (found.tests, found.launches) == ([True], [True, False, False])


def test_a_branch_at_the_start_of_a_loop_is_its_barrier() -> None:
    inner, outer = Span("cond", 0, 1, 2, test=TEST), Span("repeat", 0, 0, 2, 3)
    found = barriers([[touch(0, 64, writes=True)], []], [inner, outer], [touch(64, 65), None])
    assert (found.tests, found.launches) == ([True, False], [False, False])
