"""A corpus tokenized once: two splits on disk, reused until text or tokenizer change, never half made."""

import os
import shutil
import time
import tracemalloc
from itertools import pairwise

import numpy as np
import pytest

from minibert.data import token_file as token_file_module
from minibert.data.corpus import open_corpus, split_sentences
from minibert.data.token_file import prepare_tokens
from minibert.data.tokenizer import Tokenizer, build_wordpiece
from minibert.data.vocabulary import train_tokenizer
from minibert.errors import CacheWarning, DataError
from minibert.files import _locked_folder
from minibert.random_bits import Stream, derive_key, random_bits

WORDS = [f"word{letter}{ending}" for letter in "abcdefghij" for ending in ("", "s", "ed", "ing")]


def story(number: int, sentences: int) -> str:
    """Return a document; each of its sentences holds the numbers of the document and of the sentence."""
    bits = random_bits(np.arange(sentences, dtype=np.uint32), derive_key(number, Stream.ORDER), 8)
    lines = [" ".join(WORDS[word % len(WORDS)] for word in row) for row in bits.tolist()]
    return "\n".join(f"{number} {place} {line}." for place, line in enumerate(lines))


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return train_tokenizer([story(number, 20) for number in range(50)], 200)


@pytest.fixture
def corpus_of(tmp_path):
    def make(documents, name="corpus.txt"):
        path = tmp_path / name
        path.write_text("\n\n".join(documents), encoding="utf-8")
        return open_corpus([str(path)])

    return make


def documents_of(split):
    return [split.tokens[a:b].tolist() for a, b in pairwise(split.document_offsets)]


def sentences_of(split, tokenizer):
    """All sentences as tuples, without the [SEP] after a document."""
    sentences = (split.tokens[a:b].tolist() for a, b in pairwise(split.sentence_offsets))
    return [tuple(id_ for id_ in sentence if id_ != tokenizer.sep_id) for sentence in sentences]


def test_both_splits_together_hold_every_sentence_once(corpus_of, tokenizer, tmp_path):
    documents = [story(number, 1 + number % 30) for number in range(200)]
    tokenized = prepare_tokens(corpus_of(documents), tokenizer, tmp_path / "tokens")
    expected = [tuple(tokenizer.encode(sentence)) for text in documents for sentence in split_sentences(text)]
    found = sentences_of(tokenized.train, tokenizer) + sentences_of(tokenized.evaluation, tokenizer)
    assert sorted(found) == sorted(expected)


def test_every_document_ends_with_one_separator_and_begins_with_a_sentence(corpus_of, tokenizer, tmp_path):
    tokenized = prepare_tokens(corpus_of([story(number, 9) for number in range(300)]), tokenizer, tmp_path)
    for split in (tokenized.train, tokenized.evaluation):
        assert split.tokens.dtype == np.uint16
        assert split.document_offsets.dtype == split.sentence_offsets.dtype == np.int64
        assert split.number_of_documents == len(split.document_offsets) - 1
        assert split.number_of_tokens == split.document_offsets[-1] == split.sentence_offsets[-1] == split.tokens.size
        assert split.document_offsets[0] == split.sentence_offsets[0] == 0
        assert np.isin(split.document_offsets, split.sentence_offsets).all()
        assert (np.diff(split.sentence_offsets) > 0).all()
        ends = np.flatnonzero(split.tokens == tokenizer.sep_id)
        assert np.array_equal(ends + 1, split.document_offsets[1:])


def test_a_long_document_with_a_stretch_held_out_becomes_two_documents(corpus_of, tokenizer, tmp_path):
    tokenized = prepare_tokens(corpus_of([story(number, 200) for number in range(20)]), tokenizer, tmp_path)
    assert tokenized.train.number_of_documents > 20
    for split in (tokenized.train, tokenized.evaluation):
        for ids in documents_of(split):
            lines = tokenizer.decode(ids).replace(" .", ".").rstrip(".").split(".")
            names = [tuple(map(int, line.split()[:2])) for line in lines]
            assert names == [(names[0][0], names[0][1] + n) for n in range(len(names))]


@pytest.mark.parametrize("fraction", [0.02, 0.1, 0.5])
def test_evaluation_gets_its_share_from_several_places(corpus_of, tokenizer, tmp_path, fraction):
    tokenized = prepare_tokens(
        corpus_of([story(number, 100) for number in range(300)]), tokenizer, tmp_path, evaluation_fraction=fraction
    )
    train, evaluation = tokenized.train.number_of_tokens, tokenized.evaluation.number_of_tokens
    assert fraction <= evaluation / (train + evaluation) < fraction * 1.2
    assert tokenized.evaluation.number_of_documents >= 5


@pytest.mark.parametrize("sentences", [5, 20, 100, 3000])
def test_a_single_document_can_be_trained_on_and_evaluated(corpus_of, tokenizer, tmp_path, sentences):
    tokenized = prepare_tokens(corpus_of([story(1, sentences)]), tokenizer, tmp_path)
    train, evaluation = tokenized.train.number_of_tokens, tokenized.evaluation.number_of_tokens
    assert 0.02 < evaluation / (train + evaluation) < 0.45
    # Small texts give more of themselves: a fifth, up to 4,096 tokens.
    assert evaluation >= min(4096, (train + evaluation) // 5)


def test_a_single_sentence_cannot_be_divided(corpus_of, tokenizer, tmp_path):
    with pytest.raises(DataError, match=r"corpus of 1 sentence\(s\) and \d+ tokens cannot be divided"):
        prepare_tokens(corpus_of(["worda wordb."]), tokenizer, tmp_path / "tokens")
    assert list((tmp_path / "tokens").iterdir()) == []


def test_the_split_of_a_document_does_not_depend_on_where_tokens_are_kept(corpus_of, tokenizer, tmp_path):
    corpus = corpus_of([story(number, 9) for number in range(300)])
    one, two = (prepare_tokens(corpus, tokenizer, tmp_path / name) for name in ("one", "two"))
    assert np.array_equal(one.evaluation.tokens, two.evaluation.tokens)
    assert np.array_equal(one.train.tokens, two.train.tokens)
    assert one.fingerprint == two.fingerprint


def test_counts_are_those_of_the_training_text_without_special_tokens(corpus_of, tokenizer, tmp_path):
    documents = [*(story(number, 9) for number in range(30)), "[MASK] worda ☃ ☃.\nwordb [SEP] worda."]
    tokenized = prepare_tokens(corpus_of(documents), tokenizer, tmp_path)
    expected = np.bincount(np.asarray(tokenized.train.tokens), minlength=tokenizer.vocab_size)
    expected[tokenizer.special_ids] = 0
    assert tokenized.unigram_counts.dtype == np.int64
    assert np.array_equal(tokenized.unigram_counts, expected)
    assert expected.sum() > 1000


def test_tokens_are_made_once_and_found_again(corpus_of, tokenizer, tmp_path, monkeypatch):
    corpus = corpus_of([story(number, 9) for number in range(50)])
    heard = []
    first = prepare_tokens(corpus, tokenizer, tmp_path, progress=lambda stage, tokens: heard.append((stage, tokens)))
    assert [stage for stage, _ in heard] == ["tokenizing", "splitting"]
    assert heard[0][1] == heard[1][1] > 1000
    monkeypatch.setattr(Tokenizer, "encode_batch", None)
    again = prepare_tokens(corpus, tokenizer, tmp_path)
    assert again.fingerprint == first.fingerprint
    assert np.array_equal(again.train.tokens, first.train.tokens)


def test_a_change_of_text_tokenizer_or_share_makes_new_tokens(corpus_of, tokenizer, tmp_path):
    documents = [story(number, 9) for number in range(50)]
    corpus = corpus_of(documents)
    fingerprints = [prepare_tokens(corpus, tokenizer, tmp_path).fingerprint]
    fingerprints.append(prepare_tokens(corpus, tokenizer, tmp_path, evaluation_fraction=0.1).fingerprint)
    fingerprints.append(prepare_tokens(corpus, train_tokenizer(documents, 150), tmp_path).fingerprint)
    fingerprints.append(prepare_tokens(corpus_of(documents[1:]), tokenizer, tmp_path).fingerprint)
    assert len(set(fingerprints)) == 4
    assert len(list(tmp_path.glob("tokens-*"))) == 4


def test_a_killed_run_leaves_nothing_that_is_taken_for_finished(corpus_of, tokenizer, tmp_path, monkeypatch):
    corpus = corpus_of([story(number, 9) for number in range(50)])

    class Killed(BaseException):
        """Like a real kill, this is not an Exception."""

    def kill(*arguments):
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(token_file_module, "_rename", kill)  # at the last moment
        patch.setattr(shutil, "rmtree", lambda *arguments, **options: None)  # no time to clean up
        with pytest.raises(Killed):
            prepare_tokens(corpus, tokenizer, tmp_path)
    (leftover,) = tmp_path.glob(".making-tokens-*")
    assert not list(tmp_path.glob("tokens-*"))
    tokenized = prepare_tokens(corpus, tokenizer, tmp_path)
    assert tokenized.train.number_of_tokens > 1000
    assert leftover.exists()  # another process may have made it at this moment, and not locked it yet ...
    two_minutes_ago = time.time() - 120
    for path in (*leftover.iterdir(), leftover):
        os.utime(path, (two_minutes_ago, two_minutes_ago))
    with _locked_folder(leftover):
        prepare_tokens(corpus, tokenizer, tmp_path, evaluation_fraction=0.1)
        assert leftover.exists()  # ... or still be filling it ...
    prepare_tokens(corpus, tokenizer, tmp_path, evaluation_fraction=0.15)
    assert not leftover.exists()  # ... but nobody does


def test_two_processes_may_make_the_same_tokens_at_the_same_time(corpus_of, tokenizer, tmp_path, monkeypatch):
    corpus = corpus_of([story(number, 9) for number in range(50)])
    rename = token_file_module._rename

    def beaten(beside, final):
        monkeypatch.setattr(token_file_module, "_rename", rename)
        prepare_tokens(corpus, tokenizer, tmp_path)  # another process is faster
        rename(beside, final)

    monkeypatch.setattr(token_file_module, "_rename", beaten)
    assert prepare_tokens(corpus, tokenizer, tmp_path).train.number_of_tokens > 1000
    assert [path.name[:7] for path in tmp_path.iterdir() if path.is_dir()] == ["tokens-"]


FILES = (
    "checksums.json", "description.json", "evaluation.documents", "evaluation.sentences", "evaluation.tokens",
    "train.counts", "train.documents", "train.sentences", "train.tokens",
)  # fmt: skip


@pytest.mark.parametrize("damage", ["missing", "empty", "cut off", "longer", "zeros", "shuffled", "one bit"])
@pytest.mark.parametrize("name", FILES)
def test_damaged_files_are_named_and_made_again(corpus_of, tokenizer, tmp_path, name, damage):
    corpus = corpus_of([story(number, 9) for number in range(50)])
    folder = prepare_tokens(corpus, tokenizer, tmp_path).folder
    assert {path.name for path in folder.iterdir()} == set(FILES)
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    path, content = folder / name, before[name]
    middle = len(content) // 2
    path.unlink()
    if damage != "missing":
        path.write_bytes(
            {
                "empty": b"",
                "cut off": content[: len(content) // 16 * 8],  # whole numbers, too few of them
                "longer": content + content[:8],
                "zeros": bytes(len(content)),
                "shuffled": content[middle // 8 * 8 :] + content[: middle // 8 * 8],
                "one bit": content[:middle] + bytes([content[middle] ^ 4]) + content[middle + 1 :],
            }[damage]
        )
    with pytest.warns(CacheWarning, match=r"is (damaged|missing).*: the text is tokenized again"):
        prepare_tokens(corpus, tokenizer, tmp_path)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    prepare_tokens(corpus, tokenizer, tmp_path)  # without a warning


def test_a_text_that_changes_while_it_is_tokenized_leaves_no_tokens(corpus_of, tokenizer, tmp_path, monkeypatch):
    corpus = corpus_of([story(number, 9) for number in range(50)])
    split = token_file_module.split_tokens

    def append(*arguments):
        with open(corpus.files[0], "a", encoding="utf-8") as file:
            file.write("worda wordb.\n")
        return split(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(token_file_module, "split_tokens", append)
        with pytest.raises(DataError, match=r"corpus\.txt changed while it was read: start again"):
            prepare_tokens(corpus, tokenizer, tmp_path)
    assert not [path for path in tmp_path.iterdir() if path.is_dir()]
    prepare_tokens(corpus, tokenizer, tmp_path)


def test_the_tokens_get_their_name_only_when_they_are_on_the_disk(corpus_of, tokenizer, tmp_path, monkeypatch):
    """After a power cut a file that was renamed but not flushed may be empty."""
    flushed = []

    def flush(path):
        flushed.append(path.name)
        if path != tmp_path / "tokens":
            assert not list((tmp_path / "tokens").glob("tokens-*"))

    monkeypatch.setattr("minibert.files.flush", flush)
    folder = prepare_tokens(
        corpus_of([story(number, 9) for number in range(50)]), tokenizer, tmp_path / "tokens"
    ).folder
    assert {path.name for path in folder.iterdir()} < set(flushed)
    *_, made, parent = flushed  # the folder itself, and the one that it lies in
    assert (made[:8], parent) == (".making-", "tokens")


def test_a_large_vocabulary_takes_four_bytes_a_token(corpus_of, tmp_path):
    tokens = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *(f"w{number}" for number in range(70_000))]
    tokenizer = Tokenizer(build_wordpiece({token: id_ for id_, token in enumerate(tokens)}))
    tokenized = prepare_tokens(corpus_of(["w69999 w0.\nw69998 w1.\nw5 w6."] * 9), tokenizer, tmp_path)
    assert tokenized.train.tokens.dtype == np.uint32
    assert tokenized.train.tokens.max() == 70_004


@pytest.mark.parametrize("fraction", [0, 1, -1, 1.5])
def test_an_impossible_share_is_refused(corpus_of, tokenizer, tmp_path, fraction):
    with pytest.raises(DataError, match="between 0 and 1"):
        prepare_tokens(corpus_of([story(0, 9)]), tokenizer, tmp_path, evaluation_fraction=fraction)


def test_preparing_takes_no_more_memory_for_a_larger_corpus(corpus_of, tokenizer, tmp_path):
    documents = [story(number, 40) for number in range(400)]  # 1 MB
    peaks = []
    for repeats in (1, 4):
        corpus = corpus_of(documents * repeats, f"{repeats}.txt")
        assert corpus.files[0].stat().st_size > 1_000_000 * repeats
        tracemalloc.start()
        prepare_tokens(corpus, tokenizer, tmp_path / "tokens")
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < peaks[0] * 1.15
