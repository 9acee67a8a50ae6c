"""WordPiece: the same vocabulary every time, and the files Hugging Face keeps a tokenizer in."""

import json
import subprocess
import sys

import numpy as np
import pytest
import tokenizers
from tokenizers import normalizers, pre_tokenizers

from minibert.data.tokenizer import Tokenizer, build_wordpiece, pad_batch
from minibert.data.vocabulary import _draw_sample, train_tokenizer
from minibert.errors import DataError

WORDS = "the cat sat on the mat while a dog ran by and barked at cats running past the café in naïve joy"
TEXTS = [f"{WORDS}. Number {n}, {WORDS[n % 40 :]}!" for n in range(300)]


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return train_tokenizer(TEXTS, 200)


def write_vocabulary(folder, tokens):
    (folder / "vocab.txt").write_text("".join(f"{token}\n" for token in tokens), encoding="utf-8")


def test_special_tokens_have_the_first_ids(tokenizer):
    assert [tokenizer.id_to_token(id_) for id_ in range(5)] == ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    ids = (tokenizer.pad_id, tokenizer.unk_id, tokenizer.cls_id, tokenizer.sep_id, tokenizer.mask_id)
    assert ids == (0, 1, 2, 3, 4)
    assert tokenizer.special_ids.tolist() == [0, 1, 2, 3, 4]
    assert tokenizer.ordinary_ids.tolist() == list(range(5, tokenizer.vocab_size))


def test_a_vocabulary_has_the_size_asked_for_or_all_there_is(tokenizer):
    assert tokenizer.vocab_size == 200
    assert 20 < train_tokenizer(["only a few words"], 8192).vocab_size < 100
    with pytest.raises(DataError, match="vocabulary of 6 tokens is too small"):
        train_tokenizer(TEXTS, 6)
    with pytest.raises(DataError, match="no text to make a vocabulary from"):
        train_tokenizer([" ", ""], 100)


def test_a_vocabulary_too_small_for_the_alphabet_keeps_the_most_frequent_characters():
    small = train_tokenizer(["e" * 50 + " tt é Ω"], 9)
    assert small.tokens()[5:] == ["e", "t", "##e", "##t"]
    assert small.encode("Ω") == [small.unk_id]


def test_training_twice_gives_the_same_vocabulary_and_ids(tokenizer):
    # Another process has other hash seeds; ties between equally frequent pieces must not follow them.
    script = (
        "import sys; from minibert.data.vocabulary import train_tokenizer\n"
        "print(train_tokenizer(eval(sys.stdin.read()), 200).fingerprint())"
    )
    others = [
        subprocess.run([sys.executable, "-c", script], input=repr(TEXTS), capture_output=True, text=True, check=True)
        for _ in range(2)
    ]
    fingerprints = {other.stdout.strip() for other in others} | {train_tokenizer(TEXTS, 200).fingerprint()}
    assert fingerprints == {tokenizer.fingerprint()}


def test_a_large_corpus_is_sampled_evenly_and_alike_every_time():
    texts = [f"document {number:05d}" for number in range(10_000)]
    sample = _draw_sample(iter(texts), 30_000)
    assert 15_000 <= sum(map(len, sample)) <= 30_000
    assert sample == _draw_sample(iter(texts), 30_000)
    numbers = [int(text[-5:]) for text in sample]
    assert numbers == sorted(numbers)
    assert abs(sum(number < 5000 for number in numbers) / len(numbers) - 0.5) < 0.06
    assert _draw_sample(texts, 10**9) == texts


def test_a_document_longer_than_the_sample_is_sampled_too():
    text = " ".join(f"word{number}" for number in range(20_000))
    sample = _draw_sample([text], 60_000)
    assert 20_000 < sum(map(len, sample)) <= 60_000
    assert all(block in text for block in sample)
    assert train_tokenizer([text], 300, sample_characters=1000).vocab_size > 20


def test_lowercasing_drops_accents_and_can_be_switched_off(tokenizer):
    assert tokenizer.lowercase
    assert tokenizer.encode("The CAFÉ") == tokenizer.encode("the cafe")
    cased = train_tokenizer([*TEXTS, "The CAFÉ É"], 200, lowercase=False)
    assert not cased.lowercase
    assert cased.encode("The CAFÉ") != cased.encode("the cafe")
    assert cased.decode(cased.encode("The café")) == "The café"


def test_decoding_joins_the_pieces_of_words(tokenizer):
    ids = tokenizer.encode("the cat barked")
    assert tokenizer.decode(ids) == "the cat barked"
    unusual = tokenizer.encode("tabby")
    assert len(unusual) > 1
    assert tokenizer.is_continuation[unusual].tolist() == [False] + [True] * (len(unusual) - 1)
    assert tokenizer.decode([tokenizer.cls_id, *ids]) == "the cat barked"
    assert tokenizer.decode([tokenizer.cls_id, *ids], skip_special_tokens=False) == "[CLS] the cat barked"


def test_continuations_are_exactly_the_pieces_that_begin_with_two_hashes(tokenizer):
    for id_, token in enumerate(tokenizer.tokens()):
        assert tokenizer.is_continuation[id_] == (token.startswith("##") and len(token) > 2)


def test_batches_are_encoded_like_single_texts_and_pairs_get_their_special_tokens(tokenizer):
    texts = ["the cat", "", "a dog ran by!"]
    assert tokenizer.encode_batch(texts) == [tokenizer.encode(text) for text in texts]
    a, b = tokenizer.encode(texts[0]), tokenizer.encode(texts[2])
    cls, sep = tokenizer.cls_id, tokenizer.sep_id
    assert tokenizer.encode_pair(texts[0]) == ([cls, *a, sep], [0] * (len(a) + 2))
    ids, types = tokenizer.encode_pair(texts[0], texts[2])
    assert ids == [cls, *a, sep, *b, sep]
    assert types == [0] * (len(a) + 2) + [1] * (len(b) + 1)


def test_a_mask_in_a_text_is_the_mask_token(tokenizer):
    assert tokenizer.mask_id in tokenizer.encode("the [MASK] sat")


def test_tokens_and_ids_that_do_not_exist_are_refused(tokenizer):
    assert tokenizer.id_to_token(tokenizer.token_to_id("the")) == "the"
    with pytest.raises(KeyError, match="'zebra' is not in the vocabulary of 200"):
        tokenizer.token_to_id("zebra")
    for id_ in (-1, 200):
        with pytest.raises(KeyError, match="ids go from 0 to 199"):
            tokenizer.id_to_token(id_)


@pytest.mark.parametrize("lowercase", [True, False])
def test_a_saved_tokenizer_comes_back_from_either_file(tmp_path, lowercase):
    tokenizer = train_tokenizer(TEXTS, 150, lowercase)
    tokenizer.save(tmp_path / "new", model_max_length=64)
    text = "The café's CAT, 東京 Ünknown [MASK] ##cat"
    for _ in range(2):
        loaded = Tokenizer.load(tmp_path / "new")
        assert loaded.fingerprint() == tokenizer.fingerprint()
        assert loaded.encode_pair(text, text) == tokenizer.encode_pair(text, text)
        assert loaded.lowercase == lowercase
        (tmp_path / "new" / "tokenizer.json").unlink(missing_ok=True)
    names = {path.name for path in (tmp_path / "new").iterdir()}
    assert names == {"vocab.txt", "tokenizer_config.json", "special_tokens_map.json"}


def test_the_files_say_what_hugging_face_asks_for(tokenizer, tmp_path):
    tokenizer.save(tmp_path, model_max_length=128)
    config = json.loads((tmp_path / "tokenizer_config.json").read_text())
    assert config["tokenizer_class"] == "BertTokenizer"
    assert config["do_lower_case"] is True
    assert config["model_max_length"] == 128
    assert config["mask_token"] == "[MASK]"
    assert json.loads((tmp_path / "special_tokens_map.json").read_text())["pad_token"] == "[PAD]"
    assert (tmp_path / "vocab.txt").read_text(encoding="utf-8").splitlines()[:5] == tokenizer.tokens()[:5]
    tokenizer.save(tmp_path)
    assert "model_max_length" not in json.loads((tmp_path / "tokenizer_config.json").read_text())


def test_special_tokens_may_stand_anywhere_and_have_other_names(tmp_path):
    write_vocabulary(tmp_path, ["a", "<mask>", "b", "[PAD]", "##a", "[SEP]", "[CLS]", "[UNK]"])
    mask = {"content": "<mask>", "lstrip": False}  # published files use either form
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"mask_token": mask, "do_lower_case": False}))
    tokenizer = Tokenizer.load(tmp_path)
    ids = (tokenizer.pad_id, tokenizer.unk_id, tokenizer.cls_id, tokenizer.sep_id, tokenizer.mask_id)
    assert ids == (3, 7, 6, 5, 1)
    assert tokenizer.special_ids.tolist() == [1, 3, 5, 6, 7]
    assert tokenizer.encode("a <mask> ba aa A") == [0, 1, 2, 4, 0, 4, 7]
    tokenizer.save(tmp_path / "again")
    assert Tokenizer.load(tmp_path / "again").fingerprint() == tokenizer.fingerprint()


def test_truncation_and_padding_left_in_a_tokenizer_file_are_ignored(tokenizer, tmp_path):
    tokenizer.save(tmp_path)
    path = tmp_path / "tokenizer.json"
    content = json.loads(path.read_text(encoding="utf-8"))
    content["truncation"] = {"direction": "Right", "max_length": 4, "strategy": "LongestFirst", "stride": 0}
    content["padding"] = {
        "strategy": {"Fixed": 8}, "direction": "Right", "pad_to_multiple_of": None,
        "pad_id": 0, "pad_type_id": 0, "pad_token": "[PAD]",
    }  # fmt: skip
    path.write_text(json.dumps(content), encoding="utf-8")
    for text in ("the cat sat on the mat by the dog", "cat"):
        assert Tokenizer.load(tmp_path).encode_pair(text) == tokenizer.encode_pair(text)


def test_the_config_decides_about_lower_case_as_in_hugging_face(tokenizer, tmp_path):
    tokenizer.save(tmp_path)
    (tmp_path / "tokenizer_config.json").write_text('{"do_lower_case": false}')
    loaded = Tokenizer.load(tmp_path)
    assert not loaded.lowercase
    assert loaded.unk_id in loaded.encode("CAT")
    assert loaded.fingerprint() != tokenizer.fingerprint()


def test_a_folder_without_a_usable_tokenizer_is_an_error(tokenizer, tmp_path):
    with pytest.raises(DataError, match=r"has no tokenizer: neither tokenizer.json nor vocab.txt"):
        Tokenizer.load(tmp_path)
    write_vocabulary(tmp_path, ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "a"])
    with pytest.raises(DataError, match=r"vocabulary of 5 tokens lacks \[MASK\]"):
        Tokenizer.load(tmp_path)
    (tmp_path / "vocab.txt").write_bytes(b"[PAD]\n\xff\n")
    with pytest.raises(DataError, match="byte 6 is not UTF-8"):
        Tokenizer.load(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{")
    with pytest.raises(DataError, match=r"tokenizer.json is damaged"):
        Tokenizer.load(tmp_path)
    for content, message in (("{", "is not valid JSON"), ("[]", "must hold a JSON object, not a list")):
        (tmp_path / "tokenizer_config.json").write_text(content)
        with pytest.raises(DataError, match=f"tokenizer_config.json {message}"):
            Tokenizer.load(tmp_path)


def test_a_vocabulary_that_contradicts_the_tokenizer_beside_it_is_named(tmp_path):
    tokenizer = train_tokenizer(["the fox and the dog"] * 5, vocab_size=60)
    tokenizer.save(tmp_path)
    lines = (tmp_path / "vocab.txt").read_text(encoding="utf-8").splitlines()
    lines[10], lines[11] = lines[11], lines[10]
    (tmp_path / "vocab.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    with pytest.raises(DataError, match=r"vocab\.txt says that the token .* different vocabularies"):
        Tokenizer.load(tmp_path)


SMALL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "the", "don't", "cat", "The", "Cat", "##s"]


def with_other_parts(change: str) -> tokenizers.Tokenizer:
    """WordPiece, but not as transformers' BertTokenizer makes it."""
    backend = build_wordpiece({token: id_ for id_, token in enumerate(SMALL)})
    if change == "normalizer":
        backend.normalizer = normalizers.Sequence([normalizers.NFD(), normalizers.Lowercase()])
    if change == "pre-tokenizer":
        backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    if change == "clean_text":
        backend.normalizer = normalizers.BertNormalizer(clean_text=False)
    if change == "longest word":
        backend.model.max_input_chars_per_word = 2
    return backend


@pytest.mark.parametrize("change", ["normalizer", "pre-tokenizer", "clean_text", "longest word"])
def test_a_tokenizer_with_parts_unlike_berts_is_saved_as_a_class_read_from_its_file_alone(tmp_path, change):
    """Transformers' BertTokenizer makes its normalizer and pre-tokenizer itself, whatever tokenizer.json says."""
    write_vocabulary(tmp_path, ["of", "another"])
    tokenizer = Tokenizer(with_other_parts(change))
    tokenizer.save(tmp_path, model_max_length=9)
    assert {path.name for path in tmp_path.iterdir()} == {
        "tokenizer.json",
        "tokenizer_config.json",
        "special_tokens_map.json",
    }
    config = json.loads((tmp_path / "tokenizer_config.json").read_text())
    assert config["tokenizer_class"] == "PreTrainedTokenizerFast"
    assert config["model_max_length"] == 9
    assert not {"do_lower_case", "strip_accents", "tokenize_chinese_chars"} & set(config)
    loaded = Tokenizer.load(tmp_path)
    assert loaded.fingerprint() == tokenizer.fingerprint()
    assert loaded.model_max_length == 9
    text = "The cats don't \x00 THE cat"
    assert loaded.encode(text) == tokenizer.encode(text)


def test_a_cased_tokenizer_that_transformers_would_lowercase_is_refused(tmp_path):
    train_tokenizer([*TEXTS, "The CAT"], 150, lowercase=False).save(tmp_path)
    for content in (None, '{"tokenizer_class": "BertTokenizer", "strip_accents": null}'):
        (tmp_path / "tokenizer_config.json").unlink()
        if content is not None:
            (tmp_path / "tokenizer_config.json").write_text(content)
        with pytest.raises(DataError, match=r"lowercase false.*does not say do_lower_case.*takes true: write"):
            Tokenizer.load(tmp_path)
        (tmp_path / "tokenizer_config.json").write_text('{"do_lower_case": false}')
        assert not Tokenizer.load(tmp_path).lowercase
    (tmp_path / "tokenizer_config.json").write_text('{"tokenizer_class": "PreTrainedTokenizerFast"}')
    assert not Tokenizer.load(tmp_path).lowercase  # for this class only tokenizer.json counts


def test_an_explicit_default_is_no_contradiction(tmp_path):
    backend = build_wordpiece({token: id_ for id_, token in enumerate(SMALL)}, {"strip_accents": True})
    Tokenizer(backend).save(tmp_path)
    (tmp_path / "tokenizer_config.json").unlink()
    assert Tokenizer.load(tmp_path).encode("thé") == [SMALL.index("the")]


def test_added_tokens_beside_a_vocabulary_are_used(tmp_path):
    write_vocabulary(tmp_path, [*SMALL, *"abcdefghijklmnopqrstuvwxyz"[: 99 - len(SMALL)]])
    first = len(SMALL) + 26
    (tmp_path / "added_tokens.json").write_text(json.dumps({"<b>": first + 1, "<a>": first, "cat": 7}))
    tokenizer = Tokenizer.load(tmp_path)
    assert tokenizer.encode("the <a>cat <b>") == [5, first, 7, first + 1]
    tokenizer.save(tmp_path / "again")
    assert Tokenizer.load(tmp_path / "again").fingerprint() == tokenizer.fingerprint()
    for wrong, message in ((first + 5, f"gives the token '<a>' the id {first + 5}"), ("7", "must be a whole number")):
        (tmp_path / "added_tokens.json").write_text(json.dumps({"<a>": wrong}))
        with pytest.raises(DataError, match=message):
            Tokenizer.load(tmp_path)


def test_a_byte_order_mark_is_no_token_and_the_last_of_two_equal_lines_counts(tmp_path):
    write_vocabulary(tmp_path, ["\ufeff[PAD]", *SMALL[1:], "cat", "sat"])
    tokenizer = Tokenizer.load(tmp_path)
    assert tokenizer.pad_id == 0
    assert tokenizer.encode("cat sat") == [len(SMALL), len(SMALL) + 1]
    tokenizer.save(tmp_path / "again")  # an id without a token is no contradiction between the files
    assert Tokenizer.load(tmp_path / "again").fingerprint() == tokenizer.fingerprint()


TOKEN_EXPECTED = 'mask_token must be a string, or an object with the token in its field "content"'


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"do_lower_case": None}, "do_lower_case must be true or false, not null"),
        ({"do_lower_case": "no"}, 'do_lower_case must be true or false, not "no"'),
        ({"strip_accents": 1}, "strip_accents must be true or false, not 1"),
        ({"mask_token": 5}, TOKEN_EXPECTED),
        (
            {"mask_token": {"lstrip": True}},
            TOKEN_EXPECTED,
        ),
    ],
)
def test_a_field_of_the_wrong_type_is_named(tokenizer, tmp_path, content, message):
    tokenizer.save(tmp_path)
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(content))
    for _ in range(2):
        with pytest.raises(DataError, match=rf"tokenizer_config\.json: {message}"):
            Tokenizer.load(tmp_path)
        (tmp_path / "tokenizer.json").unlink(missing_ok=True)


@pytest.mark.parametrize(("length", "read"), [(64, 64), (10**30, None), (1e30, None), ("64", None), (True, None)])
def test_the_longest_sequence_is_read_where_it_is_a_length(tokenizer, tmp_path, length, read):
    tokenizer.save(tmp_path, model_max_length=length)
    assert Tokenizer.load(tmp_path).model_max_length == read


def test_half_a_surrogate_pair_is_no_text(tokenizer):
    ways = (
        lambda: tokenizer.encode("the c\ud800"),
        lambda: tokenizer.encode_batch(["cat", "the c\ud800"]),
        lambda: tokenizer.encode_pair("cat", "the c\ud800"),
    )
    for way in ways:
        with pytest.raises(DataError, match=r"this is not Unicode text: 'the c\\ud800', at character 5"):
            way()


def test_an_empty_second_text_is_none(tokenizer):
    assert tokenizer.encode_pair("the cat", "") == tokenizer.encode_pair("the cat")


def test_padding_fills_short_sequences_at_the_end():
    ids, mask = pad_batch([[5, 6, 7], [], [8]], pad_id=9)
    assert ids.tolist() == [[5, 6, 7], [9, 9, 9], [8, 9, 9]]
    assert mask.tolist() == [[1, 1, 1], [0, 0, 0], [1, 0, 0]]
    assert ids.dtype == mask.dtype == np.int32
    assert pad_batch([], 0)[0].shape == (0, 0)
