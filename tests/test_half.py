"""16-bit floats: promotion, every op in float16 and bfloat16 by the interpreter and as kernels, models, files."""

from __future__ import annotations

from itertools import product
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from fuzzing import in_loops, problem
from loop_interp import run_plan
from random_graphs import random_case

import graphc as gc
from graphc import nn, optim
from graphc.cli_run import as_declared, read_array
from graphc.dtype import DTYPES, DType, TensorType, array_of, bfloat16, dtype, finfo, float16, float32, iinfo, promote
from graphc.errors import GraphcError
from graphc.interp import interpret
from graphc.ir import Graph, Value
from graphc.kernels.cpu.target import BASELINES
from graphc.kernels.lower import lower
from graphc.models import gpt2
from graphc.ops import OPS, apply, apply_node
from graphc.ops.base import Control, Op, Region, Sample
from graphc.passes import pipeline
from graphc.runtime import Program
from graphc.tensor import apply as node
from graphc.text import parse, print_graph
from graphc.tracing import trace_entries
from graphc.verify import verify

HALVES = [pytest.param(d, id=d.name) for d in (float16, bfloat16)]

# Promotion -----------------------------------------------------------------------------------------------------------

NAMES = ("bool", "uint8", "int8", "int16", "int32", "uint32", "int64", "float16", "bfloat16", "float32", "float64")
# jax.numpy.promote_types with 64-bit types enabled; rows and columns in the order of NAMES.
PROMOTED = """
    bool     uint8    int8     int16    int32    uint32   int64    float16  bfloat16 float32  float64
    uint8    uint8    int16    int16    int32    uint32   int64    float16  bfloat16 float32  float64
    int8     int16    int8     int16    int32    int64    int64    float16  bfloat16 float32  float64
    int16    int16    int16    int16    int32    int64    int64    float16  bfloat16 float32  float64
    int32    int32    int32    int32    int32    int64    int64    float16  bfloat16 float32  float64
    uint32   uint32   int64    int64    int64    uint32   int64    float16  bfloat16 float32  float64
    int64    int64    int64    int64    int64    int64    int64    float16  bfloat16 float32  float64
    float16  float16  float16  float16  float16  float16  float16  float16  float32  float32  float64
    bfloat16 bfloat16 bfloat16 bfloat16 bfloat16 bfloat16 bfloat16 float32  bfloat16 float32  float64
    float32  float32  float32  float32  float32  float32  float32  float32  float32  float32  float64
    float64  float64  float64  float64  float64  float64  float64  float64  float64  float64  float64
"""


def test_promotion_is_jaxs() -> None:
    rows = [line.split() for line in PROMOTED.split("\n") if line.strip()]
    assert set(NAMES) == set(DTYPES)
    for (i, a), (j, b) in product(enumerate(NAMES), repeat=2):
        assert promote(dtype(a), dtype(b)).name == rows[i][j], f"{a} + {b}"


def test_promotion_is_numpys_within_integers_and_within_floats() -> None:
    for a, b in product(DTYPES.values(), repeat=2):
        if bfloat16 not in (a, b) and a.is_float == b.is_float:
            assert promote(a, b).numpy == np.result_type(a.numpy, b.numpy)


@pytest.mark.parametrize("name", [n for n in NAMES if n != "bool"])
def test_limits(name: str) -> None:
    if "float" in name:
        ours, theirs = finfo(name), ml_dtypes.finfo(dtype(name).numpy)
        keys = ("bits", "eps", "max", "min", "smallest_normal")
    else:
        ours, theirs = iinfo(name), np.iinfo(name)  # type: ignore[assignment]
        keys = ("bits", "max", "min")
    assert [float(getattr(ours, k)) for k in keys] == [float(getattr(theirs, k)) for k in keys]


def test_python_numbers_take_the_tensors_type() -> None:
    @gc.entry(h=gc.spec((2,), "bfloat16"), f=gc.spec((2,), "float16"), i=gc.spec((2,), "int32"))
    def types(h, f, i):
        return {"a": h * 2.5, "b": 1 + f, "c": h + i, "d": h + f, "e": h + np.float32(1), "f": h / 3, "g": h**2}

    (traced,) = trace_entries(types)
    found = {name: v.dtype.name for name, v in traced.graph.outputs}
    half, wide = "bfloat16", "float32"
    assert found == {"a": half, "b": "float16", "c": half, "d": wide, "e": wide, "f": half, "g": half}


# Every op ------------------------------------------------------------------------------------------------------------


def halved(x: np.ndarray, to: DType) -> np.ndarray:
    return x.astype(to.numpy) if x.dtype.kind == "f" else x


CASES = [
    pytest.param(op, s, id=f"{op.name}-{i}")
    for op in OPS
    for i, s in enumerate(op.samples())
    if not isinstance(op.lower, Region | Control) and op.name != "const"
    if any(a.dtype.kind == "f" for a in s.arrays)
]


def single(op: Op, sample: Sample, to: DType) -> tuple[Graph, list[np.ndarray]]:
    """The graph of one node of ``op``, and the sample's arrays, both in 16 bits."""
    arrays = [halved(a, to) for a in sample.arrays]
    inputs: list[Value] = [
        apply("input", name=f"x{i}", dtype=dtype(a.dtype), shape=a.shape) for i, a in enumerate(arrays)
    ]
    node = apply_node(op.name, *inputs, **sample.attrs)
    return Graph.build(op.name, inputs, [(f"y{i}", v) for i, v in enumerate(node.outs)]), arrays


def close(got: np.ndarray, want: np.ndarray, steps: float = 1.0) -> None:
    """Equal to ``steps`` units in the last place, relative to each element."""
    assert got.dtype == want.dtype
    d = dtype(want.dtype)
    if not d.is_float:
        np.testing.assert_array_equal(got, want)
        return
    limits = finfo(d)
    a, b = got.astype(np.float64), want.astype(np.float64)
    np.testing.assert_allclose(a, b, rtol=steps * limits.eps, atol=steps * limits.eps * limits.smallest_normal)


@pytest.mark.parametrize("to", HALVES)
@pytest.mark.parametrize(("op", "sample"), CASES)
def test_every_op_computes_in_float32_and_rounds_once(op: Op, sample: Sample, to: DType) -> None:
    graph, arrays = single(op, sample, to)
    verify(graph)
    assert print_graph(parse(print_graph(graph))) == print_graph(graph)
    inputs = {f"x{i}": a for i, a in enumerate(arrays)}
    got = list(interpret(graph, inputs)[0].values())
    with np.errstate(all="ignore"):
        wide = op.eval([a.astype(np.float32) if dtype(a.dtype).is_half else a for a in arrays], sample.attrs)
        for g, w, (_, v) in zip(got, wide, graph.outputs, strict=True):
            np.testing.assert_array_equal(g, w.astype(v.dtype.numpy))


@pytest.mark.parametrize("to", HALVES)
@pytest.mark.parametrize(("op", "sample"), CASES)
def test_every_op_as_kernels(op: Op, sample: Sample, to: DType) -> None:
    graph, arrays = single(op, sample, to)
    inputs = {f"x{i}": a for i, a in enumerate(arrays)}
    plan = lower(pipeline.run(graph, check=True), BASELINES["x86-64-v4"])
    got = run_plan(plan, inputs)
    assert not got.pop("flags").any()
    for name, want in interpret(graph, inputs)[0].items():
        close(got[name], want)


@pytest.mark.parametrize("to", HALVES)
def test_elementwise_ops_as_native_code(to: DType) -> None:
    """All in one kernel, on numbers of many sizes, NaN, infinities, zeros and subnormal numbers."""
    x = np.concatenate([np.linspace(-8, 8, 97), [np.nan, np.inf, -np.inf, -0.0, 0.0, 60000, -1e-7, 3e-5]])
    a, b = x.astype(to.numpy), np.roll(x, 5).astype(to.numpy)
    unary = ("neg", "abs", "exp", "log", "sqrt", "rsqrt", "tanh", "erf", "sin", "cos", "sigmoid", "floor", "ceil",
             "round", "sign")  # fmt: skip
    binary = ("add", "sub", "mul", "div", "pow", "maximum", "minimum", "equal", "less", "greater_equal")

    @gc.entry(a=gc.spec(a.shape, to), b=gc.spec(b.shape, to))
    def every(a, b):
        one = {name: node(name, a) for name in unary}
        return (
            one
            | {name: node(name, a, b) for name in binary}
            | {
                "where": gc.where(a < b, a, b),
                "mod": a % (abs(b) + 1),
            }
        )

    got = gc.compile(every).every(a=a, b=b)
    (traced,) = trace_entries(every)
    want, _ = interpret(traced.graph, {"a": a, "b": b})
    for name in want:
        close(got[name], want[name])


@pytest.mark.parametrize("to", HALVES)
def test_random_graphs_in_16_bits(to: DType) -> None:
    """Forward and backward, through all passes and lowered."""
    for seed in range(16):
        assert problem(random_case(seed, dt=to.name), in_loops) is None


# Models --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("to", HALVES)
def test_functions_of_several_steps_round_once(to: DType) -> None:
    """As close to the result in float64 as a result of 16 bits can be, by one step."""
    x = (np.random.default_rng(5).standard_normal((4, 48)) * 2).astype(to.numpy)
    functions = {
        "gelu": gc.gelu, "silu": gc.silu, "softmax": gc.softmax, "log_softmax": gc.log_softmax, "softplus": gc.softplus,
        "expm1": gc.expm1, "mish": gc.mish, "layer_norm": lambda v: gc.layer_norm(v, 48), "mean": gc.mean,
        "std": gc.std, "rms_norm": lambda v: gc.rms_norm(v, 48), "norm": gc.norm,
        "logsumexp": lambda v: gc.logsumexp(v, -1), "pool": lambda v: gc.avg_pool1d(v, 5, 3, 2),
        "adaptive": lambda v: gc.adaptive_avg_pool1d(v, 7), "arange": lambda v: gc.arange(1, 9, 0.03, dtype=v.dtype),
        "linspace": lambda v: gc.linspace(-1, 3, 300, dtype=v.dtype),
    }  # fmt: skip

    def entry(d: DType):
        @gc.entry(x=gc.spec(x.shape, d))
        def run(x):
            return {name: fn(x) for name, fn in functions.items()}

        (traced,) = trace_entries(run)
        return interpret(traced.graph, {"x": x.astype(d.numpy)})[0]

    exact = entry(dtype("float64"))
    for name, got in entry(to).items():
        close(got, exact[name].astype(to.numpy))


def test_keys_and_values_of_a_cache_in_16_bits() -> None:
    """A decoder of float32 reads half the bytes, and rounds the keys and values of each position once."""
    rng = np.random.default_rng(6)
    inputs = {name: rng.standard_normal((1, 2, 1, 4), np.float32) for name in "qkv"}
    results = []
    for to in ("float32", "bfloat16"):
        cache = nn.KVCache(1, 2, 5, 4, dtype=to)

        @gc.entry(**{name: gc.spec(x.shape) for name, x in inputs.items()})
        def step(q, k, v, cache=cache):
            return {"y": cache.step().attend(0, q, k, v)}

        (traced,) = trace_entries(step)
        state = traced.initial
        for _ in range(3):
            outputs, state = interpret(traced.graph, inputs, state)
        results.append(outputs["y"])
        assert {a.dtype.name for a in state.values()} == {to, "int32"}
    assert results[1].dtype == np.float32
    np.testing.assert_allclose(results[1], results[0], atol=0.02)


def test_losses_of_16_bits_are_float32() -> None:
    @gc.entry(x=gc.spec((3, 4), "float16"), y=gc.spec((3,), "int32"))
    def losses(x, y):
        return {"ce": gc.cross_entropy(x, y), "mse": gc.mse_loss(x, 0.0), "n": gc.cross_entropy(x, y, reduction="none")}

    (traced,) = trace_entries(losses)
    assert {v.dtype for _, v in traced.graph.outputs} == {float32}


TOKENS = np.tile(np.arange(9, dtype=np.int32) % 5, (2, 1))
CONFIG = gpt2.Config(vocab_size=11, n_positions=8, n_layer=1, n_head=2, n_embd=16)


def trained(to: str, steps: int = 40) -> tuple[Program, list[float]]:
    """GPT-2 with parameters of type ``to`` on a text that repeats itself, and its losses."""
    gc.seed(3)
    net = gpt2.Model(CONFIG).to(to)
    opt = optim.AdamW(net.parameters(), lr=1e-2)

    @gc.entry(tokens=gc.spec(TOKENS.shape, "int32"))
    def train(tokens):
        logits = net(tokens[:, :-1])
        loss = gc.cross_entropy(logits, tokens[:, 1:])
        opt.update(optim.clip_by_global_norm(gc.grad(loss, net.parameters()), 1.0))
        return {"loss": loss, "logits": logits}

    program = gc.compile(train)
    return program, [float(program.train(tokens=TOKENS)["loss"]) for _ in range(steps)]


def test_a_model_of_bfloat16_trains_like_one_of_float32(tmp_path: Path) -> None:
    program, losses = trained("bfloat16")
    _, wide = trained("float32")
    assert losses[-1] < 0.1
    np.testing.assert_allclose(losses, wide, atol=0.1)
    for name, array in program.state.items():
        slot = name.startswith("optim.") and array.dtype.kind != "i"
        assert array.dtype.name == ("float32" if slot else "int32" if array.dtype.kind == "i" else "bfloat16")
    # the file has the same bits, and so has the next step
    program.save(tmp_path / "net.gcx")
    program.save_state(tmp_path / "state.safetensors")
    again = gc.load(tmp_path / "net.gcx")
    again.load_state(tmp_path / "state.safetensors")
    for name in program.state:
        np.testing.assert_array_equal(again.state[name], program.state[name])
    a, b = (p.train(tokens=TOKENS) for p in (program, again))
    for name in a:
        assert a[name].tobytes() == b[name].tobytes()


def test_weights_are_cast_where_they_are_loaded() -> None:
    """From any float type to the parameter's, as in torch."""
    narrow, wide = nn.Linear(4, 3, dtype="bfloat16"), nn.Linear(4, 3)
    narrow.load_state_dict(wide.state_dict())
    for name, array in narrow.state_dict().items():
        np.testing.assert_array_equal(array, wide.state_dict()[name].astype(bfloat16.numpy))
    wide.load_state_dict(narrow.state_dict())
    assert wide.weight.dtype is float32
    assert wide.to("float16").weight.dtype is float16
    with pytest.raises(GraphcError, match="GC0802"):
        narrow.load_state_dict(wide.state_dict() | {"bias": np.zeros(3, np.int32)})


def test_files_of_arguments(tmp_path: Path) -> None:
    """NumPy writes bfloat16 as two bytes without a type; the entry knows it."""
    x = np.array([1.5, -2], bfloat16.numpy)
    np.save(tmp_path / "x.npy", x)
    found = as_declared(read_array(str(tmp_path / "x.npy")), TensorType(bfloat16, (2,)))
    assert found.dtype == x.dtype
    np.testing.assert_array_equal(found, x)


class Foreign:
    """What PyTorch's tensors of bfloat16 have in common with this: NumPy does not take them."""

    dtype = "torch.bfloat16"

    def __array__(self, *args: object, **kwargs: object) -> np.ndarray:
        raise TypeError("Got unsupported ScalarType BFloat16")

    def float(self) -> np.ndarray:
        return np.float32([1.5, 2])


def test_arguments_of_bfloat16() -> None:
    @gc.entry(x=gc.spec((2,), "bfloat16"))
    def double(x):
        return {"y": x + x}

    program = gc.compile(double)
    for given in ([1.5, 2], np.array([1.5, 2], ml_dtypes.bfloat16), Foreign()):
        np.testing.assert_array_equal(program.double(x=given)["y"].astype(np.float32), [3, 4])
    np.testing.assert_array_equal(array_of(Foreign()).astype(np.float32), [1.5, 2])
    with pytest.raises(GraphcError, match="GC0402"):
        program.double(x=np.zeros(2, np.float32))


def test_activations_lie_in_memory_in_16_bits() -> None:
    """What both passes compute with in float32 is kept in bfloat16, and widened in each kernel that reads it."""
    w = [nn.Parameter(np.zeros(shape, bfloat16.numpy), name=f"w{shape[0]}") for shape in ((24, 40), (40, 7))]

    @gc.entry(x=gc.spec((9, 24), "bfloat16"), y=gc.spec((9,), "int32"))
    def train(x, y):
        h = gc.gelu(x @ w[0])
        first, second = gc.grad(gc.cross_entropy(h @ w[1], y), w)
        return {"first": first, "second": second}

    (traced,) = trace_entries(train)
    stored = {v.type for node in pipeline.run(traced.graph) if node.op == "call" for v in node.outs}
    assert {t.dtype for t in stored if t.shape == (9, 40)} == {bfloat16}


# Precision -----------------------------------------------------------------------------------------------------------


class Mixed(nn.Module):
    def __init__(self) -> None:
        self.conv = nn.Conv2d(2, 4, 3, padding=1)
        self.hidden = nn.Linear(64, 32)
        self.out = nn.Linear(32, 3)

    def forward(self, x):
        h = gc.relu(self.conv(x)).reshape(x.shape[0], 64)
        return self.out(gc.checkpoint(lambda v: gc.gelu(self.hidden(v)))(h))


def mixed(precision: str):
    gc.seed(0)
    net = Mixed()
    opt = optim.SGD(net.parameters(), lr=0.1)

    @gc.entry(x=gc.spec((6, 2, 4, 4)), y=gc.spec((6,), "int32"))
    def train(x, y):
        loss = gc.cross_entropy(net(x), y)
        grads = gc.grad(loss, net.parameters())
        opt.update(grads)
        return {"loss": loss, **{f"g{i}": g for i, g in enumerate(grads)}}

    return gc.compile(train, precision=precision)


def test_precision_rounds_the_factors_of_products_only() -> None:
    rng = np.random.default_rng(1)
    inputs = {"x": rng.standard_normal((6, 2, 4, 4), np.float32), "y": rng.integers(0, 3, 6, np.int32)}
    program = mixed("bf16")
    graph = parse(program.train.graph)
    assert print_graph(graph).count("factors=bfloat16") == 3
    assert {s.dtype.name for s in program.state.values()} == {"float32", "int32"}
    want, _ = interpret(pipeline.run(graph, stop_after="differentiate"), inputs, dict(program.state))
    wide, _ = interpret(
        pipeline.run(parse(mixed("float32").train.graph), stop_after="differentiate"), inputs, dict(program.state)
    )
    got = program.train(**inputs)
    for name in want:
        scale = np.abs(want[name]).max()
        # Sums in another order may tip a factor over to the next of its 256 values: few do, and by little.
        assert np.abs(got[name] - want[name]).max() <= 2e-3 * scale
        assert np.abs(wide[name] - want[name]).max() <= 3e-2 * scale
    assert any(not np.array_equal(wide[name], want[name]) for name in want)


def test_precision_of_attention() -> None:
    rng = np.random.default_rng(4)
    inputs = {name: rng.standard_normal((1, 2, 20, 8), np.float32) for name in "qkv"}

    @gc.entry(**{name: gc.spec(x.shape) for name, x in inputs.items()})
    def attend(q, k, v):
        return {"y": gc.scaled_dot_product_attention(q, k, v, is_causal=True)}

    program = gc.compile(attend, precision="bf16")
    (want,) = interpret(parse(program.attend.graph), inputs)[0].values()
    (wide,) = interpret(trace_entries(attend)[0].graph, inputs)[0].values()
    got = program.attend(**inputs)["y"]
    assert got.dtype == np.float32
    close(got.astype(bfloat16.numpy), want.astype(bfloat16.numpy))
    assert 0 < np.abs(got - wide).max() < 0.05


def test_precision_rounds_what_is_attended_as_its_product_makes_it() -> None:
    """Queries, keys and values are parts of one product: it is rounded once, whole, and its gradient is joined."""
    rng = np.random.default_rng(5)
    inputs = {"x": rng.standard_normal((1, 32, 16), np.float32), "w": rng.standard_normal((16, 48), np.float32)}

    @gc.entry(**inputs)
    def train(x, w):
        parts = (gc.permute_dims(gc.reshape(p, (1, 32, 2, 8)), (0, 2, 1, 3)) for p in gc.split(x @ w, 3, axis=-1))
        y = gc.scaled_dot_product_attention(*parts)
        return {"y": y, "dw": gc.grad(gc.sum(y * y), [w])[0]}

    program = gc.compile(train, precision="bf16")
    text = print_graph(parse(program.train.graph))
    assert text.count(" = split(") == 1
    assert not [k.name for k in program.train.kernels if k.name.startswith("map") and k.name.endswith("32x48")]
    got, wide = program.train(**inputs), gc.compile(train).train(**inputs)
    for name in ("y", "dw"):
        assert 0 < np.abs(got[name] - wide[name]).max() <= 3e-2 * np.abs(wide[name]).max()


@pytest.mark.parametrize("factors", ["bfloat16", "float16"])
def test_precision_of_convolutions_without_a_unit(factors: str) -> None:
    """16 channels are too few for tile registers: the factors are widened, and filtered as those of float32 are."""
    rng = np.random.default_rng(6)
    inputs = {
        "x": rng.standard_normal((2, 16, 32, 32), np.float32),
        "w": rng.standard_normal((16, 16, 3, 3), np.float32),
    }

    @gc.entry(**inputs)
    def train(x, w):
        y = gc.conv2d(x, w, padding=1)
        dx, dw = gc.grad(gc.sum(y * y), [x, w])
        return {"y": y, "dx": dx, "dw": dw}

    program, usual = gc.compile(train, precision=factors), gc.compile(train)
    names = [k.name for k in program.train.kernels]
    assert any(n.startswith("widen") for n in names)
    assert sum("filter" in n for n in names) == sum("filter" in k.name for k in usual.train.kernels) > 0
    got, wide = program.train(**inputs), usual.train(**inputs)
    for name, want in wide.items():
        assert 0 < np.abs(got[name] - want).max() <= 2e-2 * np.abs(want).max()


def test_precision_is_checked() -> None:
    with pytest.raises(GraphcError, match=r"GC0607.*'half'"):
        mixed("half")
