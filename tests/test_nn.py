"""Functions and layers of neural networks against their formulas in NumPy, and modules against torch's conventions."""

from __future__ import annotations

import copy

import numpy as np
import pytest
from scipy import special
from tracing import Steps, nodes, run, step, trace

import graphc as gc
from graphc import nn, optim
from graphc.errors import GraphcError
from graphc.nn import init
from graphc.tracing import trace_entry

RNG = np.random.default_rng(5)
X = RNG.standard_normal((4, 6)).astype(np.float32)
W = RNG.standard_normal((3, 6)).astype(np.float32)
B = RNG.standard_normal(3).astype(np.float32)
LABELS = np.array([2, 0, 5, -100], np.int32)


def softmax(x):
    e = np.exp(x - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def standardised(x, eps=1e-5):
    return (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + eps)


FORMULAS = {
    "relu": (gc.relu, lambda x: np.maximum(x, 0)),
    "sigmoid": (gc.sigmoid, special.expit),
    "silu": (gc.silu, lambda x: x * special.expit(x)),
    "softplus": (gc.softplus, lambda x: np.log1p(np.exp(x))),
    "gelu": (gc.gelu, lambda x: x * special.ndtr(x)),
    "gelu tanh": (
        lambda x: gc.gelu(x, approximate="tanh"),
        lambda x: 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3))),
    ),
    "softmax": (gc.softmax, softmax),
    "softmax axis": (lambda x: gc.softmax(x, 0), lambda x: softmax(x.T).T),
    "softmax large": (lambda x: gc.softmax(x * 1e4), lambda x: softmax(x * 1e4)),
    "log_softmax": (gc.log_softmax, lambda x: np.log(softmax(x))),
    "logsumexp": (lambda x: gc.logsumexp(x * 100, axis=-1), lambda x: special.logsumexp(x * 100, axis=-1)),
    "logsumexp all": (lambda x: gc.logsumexp(x, keepdims=True), lambda x: special.logsumexp(x, keepdims=True)),
    "layer_norm": (lambda x: gc.layer_norm(x, 6, x[0], x[1]), lambda x: standardised(x) * x[0] + x[1]),
    "rms_norm": (lambda x: gc.rms_norm(x, (6,), x[0]), lambda x: x / np.sqrt((x**2).mean(-1, keepdims=True)) * x[0]),
    "linear": (lambda x: gc.linear(x, gc.asarray(W), gc.asarray(B)), lambda x: x @ W.T + B),
    "var": (lambda x: gc.var(x, axis=1, correction=1), lambda x: x.var(1, ddof=1)),
    "std": (lambda x: gc.std(x, keepdims=True), lambda x: x.std(keepdims=True)),
    "mean": (lambda x: gc.mean(x, axis=0), lambda x: x.mean(0)),
    "max": (lambda x: x.max(axis=(0, 1)), lambda x: x.max()),
    "min": (lambda x: gc.min(x, axis=-1, keepdims=True), lambda x: x.min(-1, keepdims=True)),
    "prod": (lambda x: gc.prod(x, axis=0), lambda x: x.prod(0)),
    "clip": (lambda x: gc.clip(x, -0.5, 0.5), lambda x: np.clip(x, -0.5, 0.5)),
    "where": (lambda x: gc.where(x > 0, x, -1), lambda x: np.where(x > 0, x, -1).astype(np.float32)),
    "any": (lambda x: gc.any(x > 1, axis=0), lambda x: (x > 1).any(0)),
    "all": (lambda x: gc.all(x > -1), lambda x: (x > -1).all()),
    "isfinite": (lambda x: gc.isfinite(x / gc.relu(x)), lambda x: x > 0),
    "tril": (gc.tril, np.tril),
    "triu": (lambda x: gc.triu(x, k=1), lambda x: np.triu(x, 1)),
    "stack": (lambda x: gc.stack([x, x + 1], axis=1), lambda x: np.stack([x, x + 1], 1)),
    "concat": (lambda x: gc.concat([x, x[:, :2]], axis=-1), lambda x: np.concatenate([x, x[:, :2]], 1)),
    "split": (lambda x: gc.split(x, 3)[1] + gc.split(x, [2, 4])[0], lambda x: x[:, 2:4] + x[:, :2]),
    "squeeze": (lambda x: gc.squeeze(gc.expand_dims(x, -1), -1).mT, lambda x: x.T),
    "arange": (lambda x: x[0] * gc.arange(6) + gc.arange(1, 13, 2), lambda x: x[0] * np.arange(6) + np.r_[1:13:2]),
    "take": (lambda x: gc.take(x, np.array([5, 1], np.int32), axis=1), lambda x: x[:, [5, 1]]),
    "scatter_add": (
        lambda x: gc.scatter_add(np.array([1, 0, 1, 1], np.int32), x, 3),
        lambda x: np.stack([x[1], x[0] + x[2] + x[3], 0 * x[0]]),
    ),
    "one_hot": (lambda x: gc.one_hot([1, 3], 4) * x[:2, :4], lambda x: np.eye(4)[[1, 3]] * x[:2, :4]),
    "einsum": (lambda x: gc.einsum("ij,kj->ki", x, x[:3]), lambda x: x[:3] @ x.T),
    "einsum sums": (lambda x: gc.einsum("ij,jk->k", x, x.T), lambda x: (x @ x.T).sum(0)),
}  # fmt: skip


@pytest.mark.parametrize("name", FORMULAS)
def test_functions_are_their_formulas(name):
    function, formula = FORMULAS[name]
    got, want = run(lambda x: function(x), x=X), formula(X.astype(np.float64))
    assert got.shape == np.shape(want)
    np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-5)


# Losses --------------------------------------------------------------------------------------------------------------


def nll(x, labels):
    keep = labels >= 0
    return np.where(keep, -np.log(softmax(x))[np.arange(len(x)), np.where(keep, labels, 0)], 0)


@pytest.mark.parametrize(
    ("reduction", "reduce"), [("mean", lambda v: v.sum() / 3), ("sum", np.sum), ("none", np.asarray)]
)
def test_cross_entropy_of_class_numbers(reduction, reduce):
    got = run(lambda x, y: gc.cross_entropy(x, y, reduction=reduction), x=X, y=LABELS)
    np.testing.assert_allclose(got, reduce(nll(X.astype(np.float64), LABELS)), rtol=1e-5)


def test_cross_entropy_gradient_is_softmax_minus_one_hot():
    out, _ = step(lambda x, y: {"g": gc.grad(gc.cross_entropy(x, y), x)}, x=X, y=LABELS)
    want = np.where(LABELS[:, None] >= 0, softmax(X) - np.eye(6)[LABELS % 6], 0) / 3
    np.testing.assert_allclose(out["g"], want, atol=1e-6)


def test_cross_entropy_takes_leading_dimensions_and_probabilities():
    cube, labels = X.reshape(2, 2, 6), np.array([[1, 2], [3, 4]], np.int64)
    got = run(lambda x, y: gc.cross_entropy(x, y), x=cube, y=labels)
    np.testing.assert_allclose(got, nll(X, labels.ravel()).mean(), rtol=1e-5)
    target = softmax(X[::-1].copy())
    got = run(lambda x, t: gc.cross_entropy(x, t), x=X, t=target)
    np.testing.assert_allclose(got, -(target * np.log(softmax(X))).sum(-1).mean(), rtol=1e-5)


def test_mse_loss():
    np.testing.assert_allclose(run(lambda x, y: gc.mse_loss(x, y), x=X, y=X[::-1].copy()), ((X - X[::-1]) ** 2).mean())


# Dropout -------------------------------------------------------------------------------------------------------------


class Drops(nn.Module):
    def __init__(self, p=0.25):
        self.a, self.b = nn.Dropout(p), nn.Dropout(p)


def test_dropout_keeps_the_mean_changes_each_step_and_differs_by_site():
    net, x = Drops(), np.ones((64, 64), np.float32)
    steps = Steps(trace(lambda x: {"a": net.a(x), "b": net.b(x)}, x=x), {"x": x})
    (first, state), (second, _) = next(steps), next(steps)
    assert state["rng.step"] == 1
    for out in (first["a"], first["b"], second["a"]):
        np.testing.assert_allclose(np.unique(out), [0, 1 / 0.75], rtol=1e-6)
        assert abs((out == 0).mean() - 0.25) < 0.03
    for other in (first["b"], second["a"]):  # independent masks agree at 0.75² + 0.25² of the places
        assert abs(((first["a"] == 0) == (other == 0)).mean() - 0.625) < 0.04


def test_dropout_is_replayed_in_the_gradient():
    net, x = Drops(), np.ones((8, 8), np.float32)

    def f(x):
        y = net.a(x)
        return {"y": y, "g": gc.grad(y.sum(), x)}

    out, _ = step(f, x=x)
    np.testing.assert_array_equal(out["y"], out["g"])


def test_dropout_inside_a_checkpoint():
    out, state = step(lambda x: {"y": gc.checkpoint(lambda a: gc.dropout(a, 0.5), x)}, x=np.ones((9, 9), np.float32))
    assert set(np.unique(out["y"])) == {0.0, 2.0}
    assert state["rng.step"] == 1


def test_seed_decides_masks_and_initial_values():
    def draw(n):
        gc.seed(n)
        layer = nn.Linear(3, 3)
        return layer.weight.initial, step(lambda x: {"y": gc.dropout(x)}, x=X)[0]["y"]

    try:
        (w0, y0), (w1, y1), (w2, y2) = draw(1), draw(1), draw(2)
    finally:
        gc.seed(0)
    assert (w0 == w1).all()
    assert (y0 == y1).all()
    assert (w0 != w2).any()
    assert (y0 != y2).any()


def test_eval_mode_has_no_randomness_and_lasts_for_one_entry():
    net = Drops()
    quiet = trace(lambda x: {"y": net.eval().a(x)}, x=X)
    assert quiet.states == ()
    assert net.a.training
    assert trace(lambda x: {"y": net.a(x)}, x=X).states
    assert not net.eval().a.training
    assert run(lambda x: gc.dropout(x, 1.0), x=X).sum() == 0


# Attention -----------------------------------------------------------------------------------------------------------


def heads(*shape):
    return [RNG.standard_normal(shape).astype(np.float32) for _ in range(3)]


def attend(q, k, v, mask=None):
    scores = q @ np.swapaxes(k, -1, -2) / np.sqrt(q.shape[-1])
    return softmax(scores if mask is None else np.where(mask, scores, -np.inf)) @ v


@pytest.mark.parametrize("shape", [(2, 3, 5, 4), (3, 5, 4), (5, 4), (2, 2, 3, 5, 4)])
@pytest.mark.parametrize("causal", [False, True])
def test_attention_is_one_region(shape, causal):
    q, k, v = heads(*shape)

    def f(q, k, v):
        return {"o": gc.scaled_dot_product_attention(q, k, v, is_causal=causal)}

    (call,) = nodes(trace(f, q=q, k=k, v=v).graph, "call")
    assert (call.attrs["hint"], call.attrs["is_causal"], call.attrs["dropout_p"]) == ("attention", causal, 0.0)
    want = attend(q, k, v, np.tri(5, dtype=bool) if causal else None)
    np.testing.assert_allclose(step(f, q=q, k=k, v=v)[0]["o"], want, rtol=1e-4, atol=1e-5)


def test_attention_with_masks():
    q, k, v = heads(2, 3, 5, 4)
    mask = RNG.random((5, 5)) > 0.5
    mask[:, 0] = True
    got = run(lambda q, k, v, m: gc.scaled_dot_product_attention(q, k, v, m), q=q, k=k, v=v, m=mask)
    np.testing.assert_allclose(got, attend(q, k, v, mask), rtol=1e-4, atol=1e-5)
    added = np.where(mask, 0, -1e9).astype(np.float32)
    got = run(lambda q, k, v, m: gc.scaled_dot_product_attention(q, k, v, m, is_causal=True), q=q, k=k, v=v, m=added)
    np.testing.assert_allclose(got, attend(q, k, v, mask & np.tri(5, dtype=bool)), rtol=1e-4, atol=1e-5)


def test_attention_gradients_equal_those_of_the_plain_formula():
    q, k, v = heads(1, 2, 5, 4)

    def f(q, k, v):
        def gradients(mask, causal):
            out = gc.scaled_dot_product_attention(q, k, v, mask, is_causal=causal)
            return gc.grad((out * out).sum(), [q, k, v])

        pairs = zip(gradients(None, True), gradients(gc.asarray(np.tri(5, dtype=bool)), False), strict=True)
        return {f"{name}{i}": g for name, pair in zip("qkv", pairs, strict=True) for i, g in enumerate(pair)}

    out, _ = step(f, q=q, k=k, v=v)
    for name in "qkv":
        np.testing.assert_allclose(out[f"{name}0"], out[f"{name}1"], rtol=1e-3, atol=1e-5)


def test_attention_with_a_mask_is_one_region_but_for_a_decoder():
    def hints(queries, mask):
        q, k, v = (np.zeros((2, 3, n, 4), np.float32) for n in (queries, 5, 5))
        traced = trace(lambda q, k, v, m: {"o": gc.scaled_dot_product_attention(q, k, v, m)}, q=q, k=k, v=v, m=mask)
        return [n.attrs["hint"] for n in nodes(traced.graph, "call")]

    assert hints(5, np.ones((2, 1, 1, 5), bool)) == hints(2, np.ones(5, bool)) == ["attention"]
    assert hints(1, np.ones(5, bool)) == hints(5, np.zeros(5, np.float32)) == []


def test_a_mask_that_does_not_fit():
    q, k, v = heads(2, 3, 5, 4)
    with pytest.raises(GraphcError, match=r"GC0101: a mask bool\[2,5\] of attention whose scores are \[2, 3, 5, 5\]"):
        run(lambda **x: gc.scaled_dot_product_attention(*x.values(), np.ones((2, 5), bool)), q=q, k=k, v=v)


def test_attention_dropout_keeps_the_mean():
    q, k = (np.zeros((1, 1, 64, 4), np.float32) for _ in range(2))
    v = np.ones((1, 1, 64, 4), np.float32)
    out, state = step(lambda q, k, v: {"o": gc.scaled_dot_product_attention(q, k, v, dropout_p=0.5)}, q=q, k=k, v=v)
    assert abs(out["o"].mean() - 1) < 0.05
    assert out["o"].std() > 0.01
    assert state["rng.step"] == 1


@pytest.mark.parametrize("batch_first", [False, True])
@pytest.mark.parametrize("self_attention", [False, True])
def test_multihead_attention(batch_first, self_attention):
    layer = nn.MultiheadAttention(8, 2, batch_first=batch_first)
    init.normal_(layer.in_proj_bias)
    init.normal_(layer.out_proj.bias)
    q, k, v = heads(3, 5, 8)
    if self_attention:
        k = v = q
    params = layer.state_dict()
    assert list(params) == ["in_proj_weight", "in_proj_bias", "out_proj.weight", "out_proj.bias"]
    padding = np.zeros((3, 5), bool)
    padding[1, 3:] = True

    def f(q, k, v, padding):
        k, v = (q, q) if self_attention else (k, v)
        out, none = layer(q, k, v)
        masked, weights = layer(q, k, v, key_padding_mask=padding, need_weights=True)
        assert none is None
        return {"out": out, "masked": masked, "weights": weights}

    def project(x, i):
        y = x @ params["in_proj_weight"][8 * i : 8 * i + 8].T + params["in_proj_bias"][8 * i : 8 * i + 8]
        return y.reshape(3, 5, 2, 4).swapaxes(1, 2)

    def reference(mask):
        o = attend(project(q, 0), project(k, 1), project(v, 2), mask)
        return o.swapaxes(1, 2).reshape(3, 5, 8) @ params["out_proj.weight"].T + params["out_proj.bias"]

    def placed(x):
        return x if batch_first else np.ascontiguousarray(x.swapaxes(0, 1))

    out, _ = step(f, q=placed(q), k=placed(k), v=placed(v), padding=padding)
    np.testing.assert_allclose(placed(out["out"]), reference(None), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(placed(out["masked"]), reference(~padding[:, None, None, :]), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(out["weights"].sum(-1), np.ones((3, 5)), rtol=1e-5)
    assert not out["weights"][1, :, 3:].any()


# Modules -------------------------------------------------------------------------------------------------------------


class Block(nn.Module):
    def __init__(self):
        self.norm = nn.LayerNorm(4)
        self.layers = nn.ModuleList([nn.Linear(4, 4), nn.Linear(4, 4, bias=False)])
        self.register_buffer("scale", np.float32(2))
        self.register_buffer("mask", np.ones(4, np.float32), persistent=False)

    def forward(self, x):
        for layer in self.layers:
            x = layer(x)
        return self.norm(x) * self.scale * self.mask


class Tied(nn.Module):
    def __init__(self):
        self.wte = nn.Embedding(7, 4)
        self.block = Block()
        self.head = nn.Linear(4, 7, bias=False)
        self.head.weight = self.wte.weight

    def forward(self, i):
        return self.head(self.block(self.wte(i)))


NAMES = [
    "wte.weight", "block.scale", "block.norm.weight", "block.norm.bias", "block.layers.0.weight", "block.layers.0.bias",
    "block.layers.1.weight", "head.weight",
]  # fmt: skip


def test_names_are_paths_and_a_tied_parameter_is_one_state():
    net = Tied()
    assert list(net.state_dict()) == NAMES
    assert [n for n, _ in net.named_parameters()] == [n for n in NAMES[:-1] if n != "block.scale"]
    traced = trace(lambda i: {"y": net(i)}, i=np.array([1, 2], np.int32))
    assert {s.name for s in traced.states} == {*NAMES[:-1], "block.mask"}
    assert set(traced.trainable) == {n for n, _ in net.named_parameters()}
    part = trace(lambda i: {"y": net.block.norm(net.wte(i))}, i=np.array([1, 2], np.int32))
    assert part.states[0].name == "wte.weight"  # named from the root, whoever calls


def test_state_dict_is_a_copy_and_loads_back():
    net, other = Tied(), Tied()
    values = net.state_dict()
    values["wte.weight"][:] += 1
    assert (net.wte.weight.initial != values["wte.weight"]).all()
    values["head.weight"] = values["wte.weight"]
    assert other.load_state_dict(values) == ([], [])
    for name, array in other.state_dict().items():
        np.testing.assert_array_equal(array, values[name])
    one_name = {k: v for k, v in values.items() if k != "wte.weight"}
    assert other.load_state_dict(one_name) == ([], [])  # either name of a tied parameter will do
    assert other.load_state_dict({"extra": B}, strict=False)[1] == ["extra"]


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"block.scale": None}, "GC0801: the names do not match: missing block.scale"),
        ({"more": B}, "GC0801: the names do not match: unexpected more"),
        ({"block.norm.bias": B}, "GC0802: block.norm.bias is float32[4], and the given array is float32[3]"),
        ({"block.scale": np.int32(2)}, "GC0802: block.scale is float32[], and the given array is int32[]"),
        ({"head.weight": np.ones((7, 4))}, "GC0802: head.weight is tied to another name, and the two values differ"),
    ],
)
def test_load_state_dict_refuses_and_changes_nothing(change, text):
    net = Tied()
    before = net.state_dict()
    given = {k: v for k, v in ({k: v + 1 for k, v in before.items()} | change).items() if v is not None}
    with pytest.raises(GraphcError) as caught:
        net.load_state_dict(given)
    assert str(caught.value).splitlines()[0] == text
    for name, array in net.state_dict().items():
        np.testing.assert_array_equal(array, before[name])


def test_modules_in_plain_lists_and_replaced_parameters_are_refused():
    class Hidden(nn.Module):
        def __init__(self):
            self.layers = [nn.Linear(2, 2)]

    with pytest.raises(GraphcError, match=r"GC0216: Hidden\.layers is a list of modules, which hides their parameters"):
        Hidden().parameters()
    with pytest.raises(GraphcError, match=r"GC0216: Linear\.weight is a Parameter and cannot become ndarray"):
        nn.Linear(2, 2).weight = np.zeros((2, 2))
    layer = nn.Linear(2, 2)
    layer.weight = nn.Parameter(np.eye(2, dtype=np.float32))
    np.testing.assert_array_equal(layer.state_dict()["weight"], np.eye(2))


def test_a_copy_of_a_module_is_another_model():
    net = Tied()
    other = copy.deepcopy(net).named("target")
    assert list(other.state_dict()) == NAMES
    assert other.head.weight is other.wte.weight
    traced = trace(lambda i: {"y": net(i) - other(i)}, i=np.array([1, 2], np.int32))
    assert {"wte.weight", "target.wte.weight", "target.block.norm.bias"} <= set(traced.initial)
    assert not step(lambda i: {"y": net(i) - other(i)}, i=np.array([1, 2], np.int32))[0]["y"].any()


def test_frozen_parameters_stay_in_the_state():
    layer = nn.Linear(2, 2)
    layer.bias.trainable = False
    assert layer.parameters() == [layer.weight]
    traced = trace(lambda x: {"y": layer(x)}, x=np.ones((1, 2), np.float32))
    assert traced.trainable == ("weight",)
    assert list(layer.state_dict()) == ["weight", "bias"]


def test_fine_tuning_a_head_leaves_the_frozen_body_alone():
    net = nn.Sequential(nn.Sequential(nn.Linear(2, 3), nn.GELU()), nn.Linear(3, 2))
    body, head = net
    body.requires_grad_(False)
    assert net.parameters() == head.parameters()
    opt = optim.AdamW(net.parameters(), lr=0.1)

    def train(x):
        loss = gc.mean(net(x) ** 2)
        opt.update(gc.grad(loss, head.parameters()))
        return {"loss": loss}

    x = np.ones((4, 2), np.float32)
    before = trace(train, x=x).initial
    _, after = step(train, x=x)
    changed = {name for name in before if not np.array_equal(before[name], after[name])}
    assert {n for n in changed if not n.startswith("optim")} == {"1.weight", "1.bias"}
    assert not any("optim.0." in name for name in after)
    body.requires_grad_()
    assert len(net.parameters()) == 4
    with pytest.raises(GraphcError, match=r"GC0307: .* not 0\.0\.weight"):
        trace(train, x=x)


def test_embedding_with_padding():
    layer = nn.Embedding(5, 3, padding_idx=-1)
    assert (layer.weight.initial[4] == 0).all()
    assert (layer.weight.initial[:4] != 0).any()
    i = np.array([[1, 4], [4, 0]], np.int32)
    slope = run(lambda i: gc.grad(gc.sum(layer(i) * 2), layer.weight), i=i)
    np.testing.assert_array_equal(slope, np.repeat([2, 2, 0, 0, 0], 3).reshape(5, 3))
    with pytest.raises(GraphcError, match="GC0217"):
        nn.Embedding(5, 3, 5)


def test_containers_and_activations():
    net = nn.Sequential(nn.Linear(6, 3), nn.ReLU(), nn.Identity(), nn.GELU("tanh"), nn.SiLU(), nn.Sigmoid(), nn.Tanh())
    assert [n for n, _ in net.named_parameters()] == ["0.weight", "0.bias"]
    assert (len(net), net[1]) == (7, list(net)[1])
    w, b = net.state_dict().values()
    h = np.maximum(X @ w.T + b, 0)
    h = 0.5 * h * (1 + np.tanh(np.sqrt(2 / np.pi) * (h + 0.044715 * h**3)))
    want = np.tanh(special.expit(h * special.expit(h)))
    np.testing.assert_allclose(run(lambda x: net(x), x=X), want, rtol=1e-5)
    assert repr(nn.Sequential(nn.ReLU())) == "Sequential(\n  (0): ReLU()\n)"


def test_layers_follow_torchs_initial_values():
    linear, embedding, norm = nn.Linear(400, 300), nn.Embedding(300, 50), nn.RMSNorm(5)
    assert linear.weight.shape == (300, 400)
    for p in linear.parameters():
        assert 0.045 < np.abs(p.initial).max() <= 0.05  # uniform within 1 / sqrt(in)
    assert abs(embedding.weight.initial.std() - 1) < 0.02
    assert (norm.weight.initial == 1).all()
    mha = nn.MultiheadAttention(64, 4)
    assert not mha.in_proj_bias.initial.any()
    assert np.abs(mha.in_proj_weight.initial).max() <= np.sqrt(6 / (64 * 4))
    values = init.trunc_normal_(nn.Parameter(np.zeros((100, 100), np.float32)), std=1.0, a=-1.0, b=1.0).initial
    assert (np.abs(values).max() <= 1, abs(values.std() - 0.54) < 0.02) == (True, True)


def test_a_module_of_float64_computes_in_float64():
    layer = nn.Linear(6, 3, dtype="float64")
    traced = trace_entry(gc.entry(x=gc.spec((4, 6), "float64"))(lambda x: {"y": gc.gelu(layer(x)) * 0.5}))
    assert traced.graph.outputs[0][1].dtype is gc.float64
