"""Tokenizers from strangers: none hangs, fills the memory or escapes as another error."""

from __future__ import annotations

import contextlib
import json

import pytest

from minibert.data.tokenizer import Tokenizer, build_wordpiece
from minibert.data.tokenizer_safety import LONGEST_TEXT, check_pattern
from minibert.errors import DataError

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "cat", "dog", "a"]


@pytest.fixture
def folder(tmp_path):
    Tokenizer(build_wordpiece({word: id_ for id_, word in enumerate(WORDS)})).save(tmp_path)
    (tmp_path / "vocab.txt").unlink()
    (tmp_path / "tokenizer_config.json").write_text('{"tokenizer_class": "PreTrainedTokenizerFast"}')
    return tmp_path


def change(folder, **parts) -> None:
    path = folder / "tokenizer.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **parts}))


def change_model(folder, **fields) -> None:
    change(folder, model={**json.loads((folder / "tokenizer.json").read_text())["model"], **fields})


def replace(pattern, content) -> dict:
    return {"type": "Replace", "pattern": pattern, "content": content}


def sequence(*parts) -> dict:
    return {"type": "Sequence", "normalizers": list(parts)}


def refused(folder, match: str) -> None:
    with pytest.raises(DataError, match=match) as error:
        Tokenizer.load(folder)
    assert len(str(error.value)) < 700


@pytest.mark.parametrize("id_", [5 * 10**8, 2**31, 2**32 - 1])
def test_gigantic_ids_are_refused(folder, id_):
    change_model(folder, vocab={**{word: n for n, word in enumerate(WORDS)}, "x" * 1000: id_})
    refused(folder, "has the id .* in a vocabulary of 9 tokens")


def test_ids_that_nothing_uses_are_fine(folder):
    change_model(folder, vocab={**{word: n for n, word in enumerate(WORDS)}, "x": 1000})
    assert Tokenizer.load(folder).vocab_size == 1001


PATTERN = "(a+)+$"


@pytest.mark.parametrize(
    "part",
    [
        {"normalizer": replace({"Regex": PATTERN}, "b")},
        {"normalizer": sequence(sequence(replace({"Regex": PATTERN}, "b")))},
        {"pre_tokenizer": {"type": "Split", "pattern": {"Regex": PATTERN}, "behavior": "Isolated", "invert": False}},
        {"decoder": replace({"Regex": PATTERN}, "b")},
    ],
)
def test_a_pattern_that_takes_for_ever_is_refused(folder, part):
    change(folder, **part)
    refused(folder, r"regular expression '\(a\+\)\+\$', whose search can take for ever")


@pytest.mark.parametrize(
    "pattern",
    [
        "(a*)*",
        "(a|a)*",
        "((a+)?)*b",
        "(?:a+b?){2,}",
        "(a{1,100}){10}",
        "([a-z]+)*",
        "(\\w+\\s?)+",
        "a*a*a*a*a*b",
        "(a++)+",
    ],
)
def test_exponential_patterns_are_found(pattern):
    with pytest.raises(DataError, match="for ever"):
        check_pattern(pattern)


@pytest.mark.parametrize(
    "pattern",
    [
        " {2,}",
        "``|''",
        "\\s+",
        "[^)+*(]+",
        r"'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+",  # GPT-2
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+",
        "(ab){1,3}c",
        "[]a-z]",
        "(",
    ],
)
def test_usual_patterns_are_fine(pattern):
    check_pattern(pattern)


def test_replacements_that_grow_and_grow_are_refused(folder):
    change(folder, normalizer=sequence(*[replace({"String": "a"}, "a" * 1000)] * 4))
    refused(folder, "1000000000000 times as long")
    change(folder, normalizer=replace({"String": ""}, "x" * 2000))
    refused(folder, "2001 times as long")
    change(folder, normalizer=sequence(replace({"String": "..."}, "…"), replace({"Regex": " {2,}"}, " ")))
    assert Tokenizer.load(folder).encode("cat dog") == [5, 6]
    change(folder, normalizer=replace({"String": "a"}, "aa"))
    with pytest.raises(DataError, match="divide it into texts of at most 2,097,152"):
        Tokenizer.load(folder).encode("cat " * (LONGEST_TEXT // 8 + 1))


def test_words_of_any_length_are_refused(folder):
    change_model(folder, max_input_chars_per_word=10**6)
    refused(folder, "max_input_chars_per_word is 1,000,000.*at most 256")


def test_a_missing_token_for_unknown_words_is_found_before_an_unknown_word(folder):
    change_model(folder, unk_token="<unknown>")
    refused(folder, "token for unknown words is '<unknown>'")


@pytest.mark.parametrize("charsmap", ["AAAA", "ALQCAACEAAAAAACA", "/////w==", "AgAAAP//////////"])
def test_a_panic_of_the_library_is_an_error_like_others(folder, charsmap):
    change(folder, normalizer={"type": "Precompiled", "precompiled_charsmap": charsmap})
    with contextlib.suppress(DataError):
        tokenizer = Tokenizer.load(folder)
        tokenizer.encode("the cat")
        tokenizer.encode_batch(["\u00c4 \U0001f600", "dog"])


def test_a_failure_while_encoding_is_explained(folder, monkeypatch):
    class PanicException(BaseException):
        pass

    class Failing:
        def encode(self, *_, **__):
            raise PanicException("called `Option::unwrap()` on a `None` value")

        encode_batch_fast = decode = encode

    tokenizer = Tokenizer.load(folder)
    tokenizer.backend = Failing()
    for call in (tokenizer.encode, tokenizer.encode_pair, lambda text: tokenizer.encode_batch([text])):
        with pytest.raises(DataError, match=r"library fails when it encodes .*Option::unwrap"):
            call("cat")
    with pytest.raises(DataError, match="library fails when it decodes ids"):
        tokenizer.decode([5])
    Failing.encode = lambda *_, **__: (_ for _ in ()).throw(KeyboardInterrupt)
    with pytest.raises(KeyboardInterrupt):
        tokenizer.encode("cat")


@pytest.mark.parametrize("token", ["\ud800", "[CLS] $A", "$A", ""])
def test_a_special_token_that_the_library_cannot_read_is_refused(folder, token):
    (folder / "tokenizer_config.json").write_text(json.dumps({"cls_token": token}))
    refused(folder, "not Unicode|lacks|library fails")


def test_a_very_long_text_is_refused_and_a_long_batch_is_divided(folder):
    tokenizer = Tokenizer.load(folder)
    with pytest.raises(DataError, match=r"a text of 48,000,000 characters \('cat cat"):
        tokenizer.encode_batch(["dog", "cat " * 12_000_000])
    texts = ["cat " * 50_000] * 30 + ["dog"]
    assert sum(map(len, texts)) > LONGEST_TEXT
    encoded = tokenizer.encode_batch(texts)
    assert [len(ids) for ids in encoded] == [50_000] * 30 + [1]
    assert tokenizer.encode_batch([]) == []


def test_a_file_without_access_is_not_called_damaged(folder, monkeypatch):
    from pathlib import Path

    def denied(path, *_, **__):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(Path, "open", denied)
    refused(folder, r"\.json cannot be read: Permission denied")
