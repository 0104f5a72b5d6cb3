"""BERT: published names, WordPiece, labelled sentences, and what it trains on. That it computes what `transformers`
does is in test_hub_fixtures.py."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from test_models import check_against_interpreter

import graphc as gc
from graphc import data_sentences
from graphc.errors import GraphcError
from graphc.models import bert
from graphc.wordpiece import SPECIAL, WordPiece, words

TINY = {
    "hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16, "vocab_size": 11,
    "max_position_embeddings": 6,
}  # fmt: skip

# transformers, BertForSequenceClassification(BertConfig(**TINY, num_labels=3)).state_dict()
ENCODER_NAMES = {
    "bert.embeddings.word_embeddings.weight": (11, 8),
    "bert.embeddings.position_embeddings.weight": (6, 8),
    "bert.embeddings.token_type_embeddings.weight": (2, 8),
    "bert.embeddings.LayerNorm.weight": (8,),
    "bert.embeddings.LayerNorm.bias": (8,),
    "bert.encoder.layer.0.attention.self.query.weight": (8, 8),
    "bert.encoder.layer.0.attention.self.query.bias": (8,),
    "bert.encoder.layer.0.attention.self.key.weight": (8, 8),
    "bert.encoder.layer.0.attention.self.key.bias": (8,),
    "bert.encoder.layer.0.attention.self.value.weight": (8, 8),
    "bert.encoder.layer.0.attention.self.value.bias": (8,),
    "bert.encoder.layer.0.attention.output.dense.weight": (8, 8),
    "bert.encoder.layer.0.attention.output.dense.bias": (8,),
    "bert.encoder.layer.0.attention.output.LayerNorm.weight": (8,),
    "bert.encoder.layer.0.attention.output.LayerNorm.bias": (8,),
    "bert.encoder.layer.0.intermediate.dense.weight": (16, 8),
    "bert.encoder.layer.0.intermediate.dense.bias": (16,),
    "bert.encoder.layer.0.output.dense.weight": (8, 16),
    "bert.encoder.layer.0.output.dense.bias": (8,),
    "bert.encoder.layer.0.output.LayerNorm.weight": (8,),
    "bert.encoder.layer.0.output.LayerNorm.bias": (8,),
    "bert.pooler.dense.weight": (8, 8),
    "bert.pooler.dense.bias": (8,),
}
CLASSIFIER_NAMES = {"classifier.weight": (3, 8), "classifier.bias": (3,)}
PRETRAINING_NAMES = {
    "cls.predictions.bias": (11,),
    "cls.predictions.transform.dense.weight": (8, 8),
    "cls.predictions.transform.dense.bias": (8,),
    "cls.predictions.transform.LayerNorm.weight": (8,),
    "cls.predictions.transform.LayerNorm.bias": (8,),
    "cls.predictions.decoder.weight": (11, 8),
    "cls.predictions.decoder.bias": (11,),
    "cls.seq_relationship.weight": (2, 8),
    "cls.seq_relationship.bias": (2,),
}

GOOD, BAD = "a fine and moving film .", "a dull , tired film !"


@pytest.fixture(scope="module")
def sst2(tmp_path_factory: pytest.TempPathFactory) -> str:
    """SST-2 files of a few sentences: lines to train on, a table for the rest."""
    folder = tmp_path_factory.mktemp("sst2")
    (folder / "stsa.binary.train").write_text(f"1 {GOOD}\n0 {BAD}\n" * 12)
    (folder / "dev.tsv").write_text(f"sentence\tlabel\n{GOOD}\t1\n{BAD}\t0\n" * 1 + f"{BAD}\t0\n{GOOD}\t1\n")
    return str(folder)


# Names and sizes -----------------------------------------------------------------------------------------------------


def test_names_are_those_of_transformers() -> None:
    model = bert.Model(bert.Config(**TINY, num_labels=3))
    assert {name: a.shape for name, a in model.state_dict().items()} == ENCODER_NAMES | CLASSIFIER_NAMES
    both = bert.PretrainingModel(bert.Config(**TINY))
    assert {name: a.shape for name, a in both.state_dict().items()} == ENCODER_NAMES | PRETRAINING_NAMES
    assert both.cls.predictions.decoder.weight is both.bert.embeddings.word_embeddings.weight
    assert both.cls.predictions.decoder.bias is both.cls.predictions.bias


def test_old_files_load() -> None:
    """Files of 2018 name gains gamma, hold the numbers of the positions, and hold tied tensors once."""
    rng = np.random.default_rng(0)
    weights = {name: rng.standard_normal(s, np.float32) for name, s in (ENCODER_NAMES | PRETRAINING_NAMES).items()}
    del weights["cls.predictions.decoder.weight"], weights["cls.predictions.decoder.bias"]
    old = {
        name.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta"): a
        for name, a in weights.items()
    }
    old["bert.embeddings.position_ids"] = np.arange(6)[None]
    model = bert.PretrainingModel(bert.Config(**TINY))
    assert model.load_state_dict(old) == ([], [])
    loaded = model.state_dict()
    for name, array in weights.items():
        np.testing.assert_array_equal(loaded[name], array)
    classifier = bert.Model(bert.Config(**TINY))
    missing, extra = classifier.load_state_dict(old, strict=False)
    assert missing == ["classifier.weight", "classifier.bias"]
    assert all(name.startswith("cls.") for name in extra)


def test_base_is_the_published_size() -> None:
    c = bert.Config(preset="base")
    d = c.hidden_size
    layer = 4 * d**2 + 2 * d * c.intermediate_size + 9 * d + c.intermediate_size
    embeddings = (c.vocab_size + c.max_position_embeddings + c.type_vocab_size + 2) * d
    assert embeddings + c.num_hidden_layers * layer + d * d + d == 109_482_240


def test_configurations_that_cannot_be() -> None:
    with pytest.raises(ValueError, match="task is classify or pretrain, not 'translate'"):
        bert.Config(**TINY, task="translate")
    with pytest.raises(ValueError, match="3 heads do not divide a width of 8"):
        bert.Config(**TINY | {"num_attention_heads": 3})
    assert bert.Config(**TINY, max_length=99).max_length == 6


# What is compiled ----------------------------------------------------------------------------------------------------


def test_bert_computes_what_the_interpreter_computes(sst2: str) -> None:
    config = bert.Config(**TINY | {"vocab_size": 0}, data=sst2, batch_size=4, warmup_iters=1)
    program = check_against_interpreter(bert, config, 3)
    row = {name: a[:1] for name, a in next(bert.batches(config, "train")).items() if name != "labels"}
    assert program.infer(**row)["logits"].shape == (1, 2)


def test_pretraining_computes_what_the_interpreter_computes() -> None:
    config = bert.Config(**TINY | {"vocab_size": 0, "max_position_embeddings": 16}, task="pretrain", batch_size=4)
    check_against_interpreter(bert, config, 2)


def test_padding_is_not_seen() -> None:
    gc.seed(0)
    config = bert.Config(**TINY | {"initializer_range": 0.1})
    model = bert.Model(config)

    @gc.entry(ids=gc.spec((1, 6), "int32"), mask=gc.spec((1, 6), "int32"))
    def masked(ids: gc.Tensor, mask: gc.Tensor) -> dict[str, gc.Tensor]:
        return {"y": model.eval()(ids, mask)}

    @gc.entry(ids=gc.spec((1, 4), "int32"))
    def short(ids: gc.Tensor) -> dict[str, gc.Tensor]:
        return {"y": model.eval()(ids)}

    program = gc.compile(masked, short)
    ids = np.array([[2, 7, 8, 3, 0, 0]], np.int32)
    mask = np.array([[1, 1, 1, 1, 0, 0]], np.int32)
    want = program.short(ids=ids[:, :4])["y"]
    np.testing.assert_allclose(program.masked(ids=ids, mask=mask)["y"], want, rtol=1e-5, atol=1e-6)
    other = np.where(mask == 1, ids, 9).astype(np.int32)
    np.testing.assert_array_equal(program.masked(ids=other, mask=mask)["y"], program.masked(ids=ids, mask=mask)["y"])
    assert np.abs(program.masked(ids=ids, mask=np.ones_like(mask))["y"] - want).max() > 1e-4


# WordPiece -----------------------------------------------------------------------------------------------------------


def test_words() -> None:
    assert words("Crème brûlée, isn't $5!") == ["creme", "brulee", ",", "isn", "'", "t", "$", "5", "!"]
    assert words("a\tb\x00c 你好") == ["a", "bc", "你", "好"]
    assert words("") == []


def test_wordpiece_takes_the_longest_piece(tmp_path: Path) -> None:
    pieces = [*SPECIAL, "un", "##aff", "##able", "##a", "##ff", "aff", ","]
    (tmp_path / "vocab.txt").write_text("\n".join(pieces) + "\n")
    tokens = WordPiece.read(tmp_path / "vocab.txt")
    assert len(tokens) == len(pieces)
    assert [tokens.vocabulary[n] for n in tokens.encode("Unaffable, affx")] == ["un", "##aff", "##able", ",", "[UNK]"]
    assert tokens.decode(tokens.encode("unaffable , un")) == "unaffable , un"
    assert tokens.encode("un" * 60) == [tokens.number("[UNK]")]
    with pytest.raises(GraphcError, match="GC0604: the vocabulary has no"):
        WordPiece(["a", "b"])
    with pytest.raises(GraphcError, match="GC0603: cannot read the vocabulary"):
        WordPiece.read(tmp_path / "none.txt")


def test_rows() -> None:
    tokens = WordPiece([*SPECIAL, *"abcdefg"])
    rows = tokens.rows([("a b",), ("a b", "c d e f g")], 8)
    number = tokens.number
    assert rows["input_ids"][0].tolist() == [2, number("a"), number("b"), 3, 0, 0, 0, 0]
    assert rows["attention_mask"].tolist() == [[1] * 4 + [0] * 4, [1] * 8]
    second = ["[CLS]", "a", "b", "[SEP]", "c", "d", "e", "[SEP]"]
    assert [tokens.vocabulary[n] for n in rows["input_ids"][1]] == second
    assert rows["token_type_ids"].tolist() == [[0] * 8, [0] * 4 + [1] * 4]


def test_a_vocabulary_of_texts_spells_every_word_over_its_letters() -> None:
    tokens = WordPiece.of(["the cat", "the hat", "act"])
    assert "the" in tokens.vocabulary
    assert "cat" not in tokens.vocabulary  # it occurs once
    assert tokens.number("[UNK]") not in tokens.encode("teach that")
    assert len(WordPiece.of(["the the then then"], size=14)) == 14


# Sentences -----------------------------------------------------------------------------------------------------------


def test_sst2_files(sst2: str, tmp_path: Path) -> None:
    train, heldout = (data_sentences.sentences(sst2, split) for split in ("train", "heldout"))
    assert (len(train.texts), train.texts[0], train.labels[:2].tolist()) == (24, GOOD, [1, 0])
    assert (heldout.texts, heldout.labels.tolist()) == ((GOOD, BAD, BAD, GOOD), [1, 0, 0, 1])
    assert data_sentences.naive_bayes_accuracy(train, heldout) == 1.0
    with pytest.raises(GraphcError, match=r"GC0603: .* has no sentences for test"):
        data_sentences.sentences(sst2, "test")
    (tmp_path / "glue_dev.tsv").write_text("label\tsentence\n0\tdull\n")
    (tmp_path / "stsa.binary.dev").write_text("1 good\n0 bad\n")
    by_name = {name: data_sentences.sentences(str(tmp_path / name), "heldout") for name in ("", "glue_train.tsv")}
    assert [len(found.texts) for found in by_name.values()] == [2, 1]
    (tmp_path / "train.tsv").write_text("a\tb\tc\n")
    with pytest.raises(GraphcError, match=r"GC0604: .* has the columns a, b, c"):
        data_sentences.sentences(str(tmp_path), "train")
    (tmp_path / "stsa.binary.test").write_text("1 good\nbad\n")
    with pytest.raises(GraphcError, match=r"GC0604: sentence 2 of .* is no label and text"):
        data_sentences.sentences(str(tmp_path), "test")


def test_naive_bayes_by_hand() -> None:
    def made(*pairs: tuple[str, int]) -> data_sentences.Sentences:
        return data_sentences.Sentences(tuple(t for t, _ in pairs), np.array([k for _, k in pairs], np.int32))

    # "x" twice in class 0 and once in class 1, whose documents are as many: (2+1)/(n0+V) > (1+1)/(n1+V)
    train = made(("x", 0), ("x", 0), ("x y", 1), ("y", 1))
    assert data_sentences.naive_bayes_accuracy(train, made(("x", 0), ("y", 1), ("z", 0))) == 1.0
    assert data_sentences.naive_bayes_accuracy(train, made(("x", 1))) == 0.0


def test_the_standard_library_has_docstrings_and_comments() -> None:
    train, heldout = (data_sentences.sentences("", split) for split in ("train", "heldout"))
    assert len(train.texts) > 5000
    assert len(heldout.texts) > 500
    assert train.labels.mean() == heldout.labels.mean() == 0.5
    assert not set(data_sentences.prose("", "heldout")) - set(heldout.texts)


def test_masked_words() -> None:
    config = bert.Config(**TINY | {"vocab_size": 0, "max_position_embeddings": 64}, task="pretrain", batch_size=64)
    tokens = bert.tokenizer(config)
    first, second = (next(bert.batches(config, "train", start)) for start in (0, 1))
    again = next(bert.batches(config, "train", 1))
    for name, array in second.items():
        np.testing.assert_array_equal(array, again[name])
        assert not np.array_equal(array, first[name])
    targets = first["labels"] != bert.IGNORED
    text = (first["attention_mask"] == 1) & (first["input_ids"] != tokens.number("[SEP]"))
    assert 0.12 < targets.sum() / text.sum() < 0.18
    assert not (targets & (first["attention_mask"] == 0)).any()
    shown = first["input_ids"][targets]
    assert 0.75 < (shown == tokens.number("[MASK]")).mean() < 0.85
    assert 0.06 < (shown == first["labels"][targets]).mean() < 0.14
    assert 0.3 < first["next_sentence_label"].mean() < 0.7
