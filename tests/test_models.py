"""The models: names, configurations, data, and that what is compiled computes what the interpreter computes."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

import graphc as gc
from graphc import data
from graphc.errors import GraphcError
from graphc.interp import interpret
from graphc.models import convnet, gpt2, mlp
from graphc.tracing import trace_entries

# transformers 4.x, GPT2LMHeadModel(GPT2Config(n_layer=1, n_embd=8, n_head=2, n_positions=4, vocab_size=6)).state_dict()
GPT2_NAMES = {
    "transformer.wte.weight": (6, 8),
    "transformer.wpe.weight": (4, 8),
    "transformer.h.0.ln_1.weight": (8,),
    "transformer.h.0.ln_1.bias": (8,),
    "transformer.h.0.attn.c_attn.weight": (8, 24),
    "transformer.h.0.attn.c_attn.bias": (24,),
    "transformer.h.0.attn.c_proj.weight": (8, 8),
    "transformer.h.0.attn.c_proj.bias": (8,),
    "transformer.h.0.ln_2.weight": (8,),
    "transformer.h.0.ln_2.bias": (8,),
    "transformer.h.0.mlp.c_fc.weight": (8, 32),
    "transformer.h.0.mlp.c_fc.bias": (32,),
    "transformer.h.0.mlp.c_proj.weight": (32, 8),
    "transformer.h.0.mlp.c_proj.bias": (8,),
    "transformer.ln_f.weight": (8,),
    "transformer.ln_f.bias": (8,),
    "lm_head.weight": (6, 8),
}

TINY = {"n_layer": 1, "n_embd": 8, "n_head": 2, "n_positions": 4, "vocab_size": 6, "batch_size": 3}


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A text of 3000 characters over a small alphabet."""
    path = tmp_path_factory.mktemp("text") / "text.txt"
    path.write_text("the quick brown fox jumps over the lazy dog\n" * 69)
    return str(path)


# Names and sizes -----------------------------------------------------------------------------------------------------


def test_gpt2_names_are_those_of_transformers() -> None:
    model = gpt2.Model(gpt2.Config(**TINY))
    assert {name: a.shape for name, a in model.state_dict().items()} == GPT2_NAMES
    assert model.lm_head.weight is model.transformer.wte.weight


def test_gpt2_loads_weights_by_name() -> None:
    model = gpt2.Model(gpt2.Config(**TINY))
    rng = np.random.default_rng(0)
    weights = {name: rng.standard_normal(shape, np.float32) for name, shape in GPT2_NAMES.items()}
    weights["lm_head.weight"] = weights["transformer.wte.weight"]
    model.load_state_dict(weights)
    for name, array in model.state_dict().items():
        np.testing.assert_array_equal(array, weights[name])


def test_gpt2_loads_the_file_as_published() -> None:
    model = gpt2.Model(gpt2.Config(**TINY))
    rng = np.random.default_rng(0)
    weights = {name: rng.standard_normal(shape, np.float32) for name, shape in GPT2_NAMES.items() if "lm_" not in name}
    published = {name.removeprefix("transformer."): array for name, array in weights.items()}
    published["h.0.attn.bias"] = np.tri(4, dtype=np.float32)[None, None]
    model.load_state_dict(published)
    for name, array in weights.items():
        np.testing.assert_array_equal(model.state_dict()[name], array)
    np.testing.assert_array_equal(model.state_dict()["lm_head.weight"], weights["transformer.wte.weight"])


def test_presets() -> None:
    sizes = {name: gpt2.Config(preset=name, vocab_size=50257) for name in gpt2.PRESETS}
    nano, baby, small = sizes["nano"], sizes["baby"], sizes["small"]
    assert (nano.n_layer, nano.n_head, nano.n_embd, nano.n_positions, nano.batch_size) == (4, 4, 128, 64, 12)
    assert (nano.attn_pdrop, nano.learning_rate, nano.max_iters, nano.beta2) == (0.0, 1e-3, 2000, 0.99)
    assert (baby.n_layer, baby.n_head, baby.n_embd, baby.n_positions, baby.batch_size) == (6, 6, 384, 256, 12)
    assert (baby.attn_pdrop, baby.resid_pdrop, baby.embd_pdrop) == (0.0, 0.0, 0.0)
    assert (small.n_layer, small.n_head, small.n_embd, small.n_positions) == (12, 12, 768, 1024)
    assert (small.n_inner, small.lr_decay_iters) == (3072, small.max_iters)
    assert gpt2.Config(preset="baby", n_layer=2, resid_pdrop=0.0, vocab_size=9).n_layer == 2
    with pytest.raises(ValueError, match="preset is one of nano, baby, small, not 'huge'"):
        gpt2.Config(preset="huge")


def test_small_is_the_published_size() -> None:
    c = gpt2.Config(preset="small")
    block = 12 * c.n_embd**2 + 13 * c.n_embd
    assert (c.vocab_size + c.n_positions) * c.n_embd + c.n_layer * block + 2 * c.n_embd == 124_439_808


def test_gpt2_starts_as_published(text: str) -> None:
    gc.seed(0)
    weights = gpt2.Model(gpt2.Config(data=text, n_layer=8, initializer_range=0.02)).state_dict()
    assert weights["transformer.wpe.weight"].std() == pytest.approx(0.02, rel=0.05)
    assert weights["transformer.h.3.mlp.c_proj.weight"].std() == pytest.approx(0.02 / 4, rel=0.05)
    assert not weights["transformer.h.3.mlp.c_proj.bias"].any()
    assert (weights["transformer.h.3.ln_1.weight"] == 1).all()


# What is compiled ----------------------------------------------------------------------------------------------------


def check_against_interpreter(module: ModuleType, config: Any, steps: int) -> Any:
    entries = module.entries(config)[:3]
    traced = {t.entry.name: t for t in trace_entries(*entries)}
    state = {name: a for t in traced.values() for name, a in t.initial.items()}
    program = gc.compile(*entries)
    from graphc.passes import pipeline

    graph = pipeline.run(traced["train"].graph, stop_after="differentiate")
    feed = module.batches(config, "train")
    for _ in range(steps):
        batch = next(feed)
        want, state = interpret(graph, batch, state)
        got = program.train(**batch)
        np.testing.assert_allclose(got["loss"], want["loss"], rtol=2e-5)
    batch = next(module.batches(config, "heldout"))
    want, _ = interpret(traced["evaluate"].graph, batch, state)
    np.testing.assert_allclose(program.evaluate(**batch)["loss"], want["loss"], rtol=1e-4)
    return program


def test_mlp_computes_what_the_interpreter_computes() -> None:
    check_against_interpreter(mlp, mlp.Config(hidden_features=24, batch_size=16), 4)


def test_convnet_computes_what_the_interpreter_computes(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for part, n in (("train", 20), ("t10k", 8)):
        labels = rng.integers(0, 10, n).astype(np.uint8)
        write_idx(tmp_path / f"{part}-labels-idx1-ubyte", labels)
        write_idx(tmp_path / f"{part}-images-idx3-ubyte", rng.integers(0, 256, (n, 28, 28)).astype(np.uint8))
    config = convnet.Config(data=str(tmp_path), channels=4, kernel_size=3, batch_size=4, max_iters=4, warmup_iters=1)
    check_against_interpreter(convnet, config, 3)
    assert convnet.baselines(config)["prior_loss"] > 0
    with pytest.raises(GraphcError, match="GC0603: there are no images") as caught:
        next(convnet.batches(convnet.Config(), "train"))
    assert "MNIST" in str(caught.value.hint)


@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_gpt2_computes_what_the_interpreter_computes(dropout: float, text: str) -> None:
    rates = dict.fromkeys(("resid_pdrop", "embd_pdrop", "attn_pdrop"), dropout)
    config = gpt2.Config(data=text, n_layer=2, n_embd=32, n_head=2, n_positions=16, batch_size=4, **rates)
    check_against_interpreter(gpt2, config, 4)


def test_gpt2_is_causal_and_ignores_padding(text: str) -> None:
    config = gpt2.Config(data=text, n_layer=1, n_embd=32, n_head=2, n_positions=16)
    infer = gpt2.entries(config)[2]
    program = gc.compile(infer)
    x = np.arange(16, dtype=np.int32)[None] % config.vocab_size
    whole = program.infer(x=x)["logits"]
    cut = program.infer(x=np.where(np.arange(16) < 9, x, 0))["logits"]
    assert whole.shape == (1, 16, config.vocab_size)
    np.testing.assert_array_equal(whole[:, :9], cut[:, :9])
    assert np.abs(whole[:, 9:] - cut[:, 9:]).max() > 1e-4
    sample = gpt2.sample(program.infer, config, 20)
    assert len(sample) == 20
    assert set(sample) <= set(gpt2.corpus(config).vocab)


@pytest.mark.parametrize("name", ["gelu_new", "gelu", "relu", "silu"])
def test_gpt2_activations(name: str) -> None:
    config = gpt2.Config(**TINY, activation_function=name)
    traced = trace_entries(*gpt2.entries(config))[2]
    out, _ = interpret(traced.graph, {"x": np.zeros((1, 4), np.int32)}, traced.initial)
    assert np.isfinite(out["logits"]).all()


def test_gpt2_nano_beats_the_bigram(tmp_path: Path) -> None:
    """A tenth of the default run. Chance, unigram and bigram are what a broken gradient could reach as well."""
    config = gpt2.Config(max_iters=250, warmup_iters=20)
    program = gc.compile(*gpt2.entries(config)[:2])
    for _, batch in zip(range(250), gpt2.batches(config, "train"), strict=False):
        program.train(**batch)
    losses = [program.evaluate(**b)["loss"] for _, b in zip(range(60), gpt2.batches(config, "heldout"), strict=False)]
    baselines = gpt2.baselines(config)
    assert np.mean(losses) < baselines["bigram_loss"] - 0.05 < baselines["unigram_loss"]


# Data ----------------------------------------------------------------------------------------------------------------


def test_batches_are_a_function_of_seed_and_number(text: str) -> None:
    for module, config in ((gpt2, gpt2.Config(data=text, seed=5)), (mlp, mlp.Config(seed=5, batch_size=4))):
        feed = module.batches(config, "train")
        first = [next(feed) for _ in range(4)]
        late = next(module.batches(config, "train", 3))
        for key, array in first[3].items():
            np.testing.assert_array_equal(array, late[key])
            assert not np.array_equal(array, first[2][key])
    x, y = first[0]["x"], first[0]["y"]
    assert (x.shape, x.dtype, y.shape, y.dtype) == ((4, 784), np.float32, (4,), np.int32)
    assert (x.reshape(4, 8, 98).sum(axis=2) == 1).all()


def test_targets_are_one_character_ahead(text: str) -> None:
    config = gpt2.Config(data=text)
    for split in ("train", "heldout"):
        batch = next(gpt2.batches(config, split))
        assert batch["x"].shape == batch["y"].shape == (12, 64)
        np.testing.assert_array_equal(batch["x"][:, 1:], batch["y"][:, :-1])


def test_the_corpus_is_split_without_overlap(text: str) -> None:
    corpus = data.text_corpus(text)
    whole = Path(text).read_text()
    assert corpus.decode(np.concatenate([corpus.train, corpus.heldout])) == whole
    assert len(corpus.train) == int(0.9 * len(whole))
    assert corpus.vocab == "".join(sorted(set(whole)))
    np.testing.assert_array_equal(corpus.encode("fox\u20ac"), [corpus.vocab.index(c) for c in "fox"])


def test_windows_cover_the_text_once() -> None:
    tokens = np.arange(101, dtype=np.int32)
    seen = [tuple(row) for rows in data.windows(tokens, 5, 11) for row in rows]
    assert sorted(seen) == [tuple(range(i, i + 11)) for i in range(0, 100, 10)]
    assert len(list(data.windows(np.arange(12), 5, 11))) == 1  # too short for a batch of its own windows
    with pytest.raises(GraphcError, match="GC0604: a window of 11 tokens does not fit into a split of 10 tokens"):
        list(data.windows(np.arange(10), 2, 11))


def test_an_epoch_covers_the_text_once() -> None:
    tokens = np.arange(1000, dtype=np.int32)
    feed = data.random_windows(tokens, 4, 11, seed=3)
    first, second = ([row for _ in range(24) for row in next(feed)] for _ in range(2))  # 98 windows fit: 24 batches
    for epoch in (first, second):
        assert len({row[0] for row in epoch}) == 96
        assert len({row[0] % 10 for row in epoch}) == 1
    assert {row[0] for row in first} != {row[0] for row in second}
    assert [row[0] for row in first] != sorted(row[0] for row in first)
    tiny = data.random_windows(np.arange(12, dtype=np.int32), 3, 11, seed=0)  # fewer windows than a batch has rows
    assert next(tiny).shape == (3, 11)


def test_baselines_against_their_definition() -> None:
    rng = np.random.default_rng(0)
    train, heldout = rng.integers(0, 5, 400), rng.integers(0, 6, 90)
    train[train == 3] = 1  # 3 and 5 occur in the held-out part only
    size = 6
    p1 = [(np.sum(train == b) + 1) / (len(train) + size) for b in range(size)]
    assert data.class_loss(train, heldout, size) == pytest.approx(-np.mean([np.log(p1[b]) for b in heldout]))

    def p2(a: int, b: int) -> float:
        followers = train[1:][train[:-1] == a]
        n, t = len(followers), len(set(followers))
        return float((np.sum(followers == b) + t * p1[b]) / (n + t)) if n else p1[b]

    # the frequencies to which the bigram falls back are those of second members of pairs
    p1 = [(np.sum(train[1:] == b) + 1) / (len(train) - 1 + size) for b in range(size)]
    want = -np.mean([np.log(p2(a, b)) for a, b in pairwise(heldout)])
    got = data.conditional_loss((train[:-1], train[1:]), (heldout[:-1], heldout[1:]), size)
    assert got == pytest.approx(want)
    assert sum(p2(2, b) for b in range(size)) == pytest.approx(1)


def test_stdlib_text_is_there_and_is_code() -> None:
    corpus = data.text_corpus()
    assert len(corpus.train) > 2_000_000
    assert "def " in corpus.decode(corpus.train[:20_000])
    assert set(corpus.vocab) <= set(mlp.CHARS + "\x0c\r")


def write_idx(path: Path, array: np.ndarray) -> None:
    header = bytes([0, 0, 8, array.ndim]) + np.array(array.shape, ">u4").tobytes()
    path.write_bytes(header + array.tobytes())


def test_mnist_files(tmp_path: Path) -> None:
    import gzip

    images = np.arange(3 * 4 * 4, dtype=np.uint8).reshape(3, 4, 4)
    header = b"\0\0\x08\x03" + np.array([3, 4, 4], ">u4").tobytes()
    with gzip.open(tmp_path / "train-images-idx3-ubyte.gz", "wb") as file:
        file.write(header + images.tobytes())
    write_idx(tmp_path / "train-labels-idx1-ubyte", np.array([1, 2, 0], np.uint8))
    x, y = data.mnist(str(tmp_path), "train")
    np.testing.assert_array_equal(x, images.reshape(3, 16))
    np.testing.assert_array_equal(y, [1, 2, 0])
    with pytest.raises(GraphcError, match="GC0603: cannot read the data file"):
        data.mnist(str(tmp_path), "heldout")
    (tmp_path / "cut").write_bytes(header + b"12")
    with pytest.raises(GraphcError, match=r"GC0604: .* is not a complete IDX file"):
        data.read_idx(str(tmp_path / "cut"))
