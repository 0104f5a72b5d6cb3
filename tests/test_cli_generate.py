"""``graphc generate`` from an artifact alone, and the tokenizers that it reads."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

import graphc as gc
from graphc.cli import main
from graphc.cli_generate import known
from graphc.driver import rebuild
from graphc.errors import GraphcError
from graphc.models import gpt2, llama
from graphc.tokenizers import Characters, Llama2C, characters, open_tokenizer

DATA = Path(__file__).resolve().parents[2] / "shared" / "data"
STORIES = DATA / "weights" / "stories260K"

VOCABULARY = "\n abcdefgh"
TINY = {"vocab_size": len(VOCABULARY), "n_layer": 1, "n_embd": 16, "n_head": 2, "n_positions": 10}


@pytest.fixture(scope="module")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A GPT-2 with random weights that carries its characters."""
    path = tmp_path_factory.mktemp("generate") / "tiny.gcx"
    entries = gpt2.entries(gpt2.Config(**TINY))
    gc.compile(*entries[2:], metadata=characters(VOCABULARY)).save(path)
    return str(path)


def generate(capsys: pytest.CaptureFixture[str], *words: str) -> dict[str, Any]:
    assert main(["generate", *words, "--json"]) == 0
    result: dict[str, Any] = json.loads(capsys.readouterr().out)
    return result


def test_the_artifact_alone_continues_a_prompt(artifact: str, capsys: pytest.CaptureFixture[str]) -> None:
    words = (artifact, "--prompt", "abba", "--tokens", "25")
    one = generate(capsys, *words, "--seed", "3")
    assert (one["prompt"], one["prompt_tokens"], len(one["tokens"]), len(one["text"])) == ("abba", 4, 29, 25)
    assert one["text"] == "".join(VOCABULARY[t] for t in one["tokens"][4:])
    assert generate(capsys, *words, "--seed", "3")["text"] == one["text"]
    assert generate(capsys, *words, "--seed", "4")["text"] != one["text"]
    assert main(["generate", *words]) == 0
    assert capsys.readouterr().out.startswith("abba")


def test_greedy_text_is_what_infer_says(artifact: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Within the context, and beyond it: then the second half of the context is the new prompt."""
    tokens = generate(capsys, artifact, "--prompt", "cab", "--tokens", "20", "--temperature", "0")["tokens"]
    infer = gc.load(artifact).infer
    start = 0
    for i in range(3, len(tokens)):
        if i - start > 10:
            start = i - 5
        x = np.zeros((1, 10), np.int32)
        x[0, : i - start] = tokens[start:i]
        assert infer(x=x)["logits"][0, i - start - 1].argmax() == tokens[i]


def test_top_k_of_one_is_greedy(artifact: str, capsys: pytest.CaptureFixture[str]) -> None:
    greedy = generate(capsys, artifact, "--temperature", "0", "--tokens", "8")
    for limit in (("--top-k", "1"), ("--top-p", "0")):
        assert generate(capsys, artifact, *limit, "--tokens", "8")["tokens"] == greedy["tokens"]
    assert greedy["tokens"][0] == VOCABULARY.index("\n")  # where there is no prompt


@pytest.mark.parametrize(
    ("words", "code", "text"),
    [
        (("--prompt", "xyz"), "GC0612", "the model has no token for 'x', 'y', 'z'"),
        (("--prompt", "a" * 11), "GC0612", "the prompt has 11 tokens, and the model takes 10"),
        (("--tokenizer", "no/where.json"), "GC0603", "cannot read the tokenizer"),
        (("--weights", "no.safetensors"), "GC0805", "cannot read no.safetensors"),
    ],
)
def test_what_does_not_fit(
    words: tuple[str, ...], code: str, text: str, artifact: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["generate", artifact, *words]) == 1
    said = capsys.readouterr().err
    assert code in said
    assert text in said


def test_published_weights_are_found_without_the_model_name(artifact: str, tmp_path: Path) -> None:
    program = gc.load(artifact)
    held = {p.name: program.state[p.name] * 2 for p in program.code.manifest.state if p.trainable}
    published = {name.removeprefix("transformer."): array.astype(np.float16) for name, array in held.items()}
    published["h.0.attn.bias"] = np.tri(10, dtype=np.float16)
    found = known(program, published)
    assert found.keys() == held.keys()
    for name, array in found.items():
        np.testing.assert_array_equal(array, held[name].astype(np.float16).astype(np.float32))


def test_weights_of_another_model_are_refused(
    artifact: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    program = gc.load(artifact)
    held = {p.name: program.state[p.name] for p in program.code.manifest.state if p.trainable}
    first, *others = held
    for kept, text in ((others, f"lacks {first} of"), ((), f"lacks {first} and {len(others)} others of")):
        save_file({name: held[name] for name in kept}, tmp_path / "w.safetensors")
        assert main(["generate", artifact, "--weights", str(tmp_path / "w.safetensors")]) == 1
        said = capsys.readouterr().err
        assert said.startswith("GC0801: ")
        assert text in said
    save_file(held | {first: held[first][:1]}, tmp_path / "w.safetensors")
    assert main(["generate", artifact, "--weights", str(tmp_path / "w.safetensors")]) == 1
    assert f"GC0802: state {first!r} is" in capsys.readouterr().err


def test_an_artifact_without_the_entries_or_a_tokenizer(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    *_, infer, prefill, decode = gpt2.entries(gpt2.Config(**TINY))
    gc.compile(infer).save(tmp_path / "infer.gcx")
    assert main(["generate", str(tmp_path / "infer.gcx")]) == 1
    assert "has no entry 'prefill'" in capsys.readouterr().err
    gc.compile(prefill, decode).save(tmp_path / "plain.gcx")
    assert main(["generate", str(tmp_path / "plain.gcx")]) == 1
    assert "GC0612: the artifact carries no tokenizer" in capsys.readouterr().err


def test_model_files_tell_their_characters(tmp_path: Path) -> None:
    text = tmp_path / "text.txt"
    text.write_text("abc cba\n" * 200)
    assert gpt2.metadata(gpt2.Config(data=str(text))) == characters("\n abc")
    assert llama.metadata(llama.Config(data=str(text))) == characters("\n abc")
    assert gpt2.metadata(gpt2.Config(data=str(text), vocab_size=50257)) == {}


def test_metadata_travels_with_a_model_file_and_a_rebuild(tmp_path: Path) -> None:
    text = tmp_path / "text.txt"
    text.write_text("abc cba\n" * 200)
    keys = {key: str(value) for key, value in TINY.items() if key != "vocab_size"} | {"data": str(text)}
    program = gc.compile_file(gpt2.__file__, entry="infer", set=keys)
    assert program.code.manifest.metadata == characters("\n abc")
    assert rebuild(program.code.with_state(program.state)).code.manifest.metadata == characters("\n abc")


# Tokenizers ----------------------------------------------------------------------------------------------------------


def test_characters() -> None:
    tokenizer = Characters("ab\n")
    assert tokenizer.encode("abba") == [0, 1, 1, 0]
    assert tokenizer.encode("") == [2]
    assert tokenizer.decode([0, 1, 9]) == "ab\ufffd"


def llama2c(*pieces: tuple[str, float]) -> bytes:
    """A vocabulary file: the marks, all bytes, then ``pieces`` with their scores."""
    marks = [(b"<unk>", 0.0), (b"\n<s>\n", 0.0), (b"\n</s>\n", 0.0)]
    table = [*marks, *((b"<0x%02X>" % i, 0.0) for i in range(256)), *((p.encode(), s) for p, s in pieces)]
    return struct.pack("<i", 8) + b"".join(struct.pack("<fi", s, len(p)) + p for p, s in table)


def test_llama2c_merges_the_best_pair_first(tmp_path: Path) -> None:
    pieces = ((" ", -9.0), ("a", -9.0), ("b", -9.0), ("ab", -2.0), ("ba", -1.0), (" a", -3.0), ("abba", -0.5))
    tokenizer = Llama2C(llama2c(*pieces))
    number = {piece: 259 + i for i, (piece, _) in enumerate(pieces)}
    assert tokenizer.encode("") == [1]
    assert tokenizer.encode("abba") == [1, number[" "], number["abba"]]  # by way of ba and ab
    assert tokenizer.encode("aab") == [1, number[" a"], number["ab"]]
    assert tokenizer.encode("é") == [1, number[" "], 3 + 0xC3, 3 + 0xA9]
    for text in ("abba ab", "é€", " a"):
        assert tokenizer.decode(tokenizer.encode(text)) == text
    (tmp_path / "cut.bin").write_bytes(llama2c(*pieces)[:-1])
    with pytest.raises(GraphcError, match=r"GC0612: .* is no tokenizer"):
        open_tokenizer(tmp_path / "cut.bin")


@pytest.mark.skipif(not STORIES.is_dir(), reason="no ../shared/data/weights/stories260K here")
def test_llama_with_real_weights_generates_the_published_text(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    entries = llama.entries(llama.Config(preset="stories260K"))
    gc.compile(*entries[3:]).save(tmp_path / "stories.gcx")
    files = ("--weights", str(STORIES / "stories260K_hf.safetensors"), "--tokenizer", str(STORIES / "tok512.bin"))
    result = generate(capsys, str(tmp_path / "stories.gcx"), *files, "--temperature", "0", "--tokens", "255")
    assert result["tokens"] == np.load(STORIES / "greedy_tokens.npy").tolist()
    assert result["text"].strip() == (STORIES / "greedy_text.txt").read_text().strip()
    assert open_tokenizer(STORIES / "tok512.bin").encode("Once upon a time") == result["tokens"][:5]


@pytest.mark.skipif(not (DATA / "tokenizers" / "gpt2").is_dir(), reason="no ../shared/data/tokenizers/gpt2 here")
def test_gpt2_bytes() -> None:
    pytest.importorskip("tokenizers", reason="pip install 'graphc[text]' reads published tokenizers")
    tokenizer = open_tokenizer(DATA / "tokenizers" / "gpt2")
    assert tokenizer.encode("Hello world") == [15496, 995]
    assert tokenizer.encode("") == [50256]
    assert tokenizer.stop == {50256}
    text = "naïve 日本 \n\t code()"
    assert tokenizer.decode(tokenizer.encode(text)) == text


def test_tokenizer_json(tmp_path: Path) -> None:
    tokenizers = pytest.importorskip("tokenizers", reason="pip install 'graphc[text]' reads published tokenizers")
    words = tokenizers.Tokenizer(tokenizers.models.WordLevel({"<s>": 0, "</s>": 1, "one": 2, "two": 3}, "<s>"))
    words.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    words.save(str(tmp_path / "tokenizer.json"))
    for path in (tmp_path, tmp_path / "tokenizer.json"):
        tokenizer = open_tokenizer(path)
        assert (tokenizer.encode("two one"), tokenizer.encode(""), tokenizer.stop) == ([3, 2], [0], {1})
        assert tokenizer.decode([3, 2]) == "two one"
