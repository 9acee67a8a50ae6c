"""Cases of vocabularies and of `tokenizer.json`, and what is done with them."""

from __future__ import annotations

import base64
import json

from hypothesis import strategies as st

from minibert.data.tokenizer import Tokenizer
from tests.fuzz.folders import whole, with_files
from tests.fuzz.strategies import ODD_NUMBERS, RAW_JSON, as_json, changed_fields, damaged, texts, values


def use_tokenizer(files: dict[str, bytes | None]) -> None:
    """Load the tokenizer, and encode and decode texts."""
    with with_files(files) as folder:
        tokenizer = Tokenizer.load(folder)
    ids = tokenizer.encode("the cat \U0001f600 \u0130\u6771 [MASK] aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa!")
    assert all(0 <= id_ < tokenizer.vocab_size for id_ in ids)
    tokenizer.encode_batch(["", "a" * 3000, "cat dog " * 20])
    tokenizer.encode_pair("the cat", "a saw")
    tokenizer.decode(ids)
    assert len(tokenizer.tokens()) == tokenizer.vocab_size
    tokenizer.fingerprint()


_SPECIAL = ("pad_token", "unk_token", "cls_token", "sep_token", "mask_token", "do_lower_case", "strip_accents",
            "tokenize_chinese_chars", "model_max_length", "tokenizer_class")  # fmt: skip


@st.composite
def vocabularies(draw: st.DrawFn) -> dict[str, bytes | None]:
    """A vocab.txt, with odd files beside it."""
    files: dict[str, bytes | None] = {"tokenizer.json": None}
    lines = whole("vocab.txt").decode().split("\n")
    for _ in range(draw(st.integers(0, 4))):
        at = draw(st.integers(0, len(lines)))
        lines[at : at + draw(st.integers(0, 3))] = draw(st.lists(texts, max_size=3))
    content = "\n".join(lines).encode(errors="surrogatepass")
    files["vocab.txt"] = draw(st.one_of(st.just(content), damaged(content), st.binary(max_size=40)))
    entries = st.builds(lambda token: {"content": token, "lstrip": True}, texts | values)
    for name in ("tokenizer_config.json", "special_tokens_map.json"):
        if draw(st.booleans()):
            fields = changed_fields(_SPECIAL, entries | st.sampled_from(["PreTrainedTokenizerFast", "[MASK]"]))
            files[name] = draw(fields.map(as_json) | st.sampled_from(RAW_JSON))
    if draw(st.booleans()):
        tokens = st.dictionaries(texts, st.integers(15, 22) | st.sampled_from(ODD_NUMBERS) | values, max_size=3)
        files["added_tokens.json"] = draw(tokens.map(as_json) | st.sampled_from(RAW_JSON))
    return files


_REGEXES = ("(a+)+$", "(a|a)*b", "a*", "", " {2,}", "[", "\\p{L}+", "(?=a)", "a", "(((a{1,9}){1,9}){1,9}){1,9}b")
_patterns = st.builds(
    lambda kind, text: {kind: text}, st.sampled_from(["Regex", "String"]), st.sampled_from(_REGEXES) | texts
)
_KINDS = [
    "BertNormalizer",
    "NFKC",
    "NFKD",
    "Lowercase",
    "Strip",
    "Nmt",
    "Precompiled",
    "Prepend",
    "ByteLevel",
    "Metaspace",
    "BertPreTokenizer",
    "Whitespace",
    "Digits",
    "Punctuation",
    "UnicodeScripts",
    "CharDelimiterSplit",
    "WordPiece",
    "Fuse",
    "BPEDecoder",
    "CTC",
    "ByteFallback",
    "StripAccents",
    "TemplateProcessing",
]
_FLAGS = [
    "add_prefix_space",
    "lowercase",
    "clean_text",
    "handle_chinese_chars",
    "strip_accents",
    "cleanup",
    "strip_left",
    "strip_right",
    "individual_digits",
    "use_regex",
    "trim_offsets",
    "split",
]
_fields = st.fixed_dictionaries(
    {},
    optional={
        **dict.fromkeys(_FLAGS, st.booleans()),
        **dict.fromkeys(("prepend", "replacement", "delimiter", "prefix", "content"), texts),
        **dict.fromkeys(("start", "stop"), st.integers(0, 3)),
        "prepend_scheme": st.just("always"),
        "precompiled_charsmap": st.binary(max_size=24).map(lambda data: base64.b64encode(data).decode()),
    },
)
_parts = st.recursive(
    st.one_of(
        st.builds(lambda kind, fields: {"type": kind, **fields}, st.sampled_from(_KINDS), _fields),
        st.builds(lambda pattern, text: {"type": "Replace", "pattern": pattern, "content": text}, _patterns, texts),
        st.builds(
            lambda pattern, behavior: {"type": "Split", "pattern": pattern, "behavior": behavior, "invert": False},
            _patterns,
            st.sampled_from(["Isolated", "Removed", "MergedWithNext", "Contiguous"]),
        ),
    ),
    lambda inner: st.lists(inner, max_size=4).map(
        lambda parts: {"type": "Sequence", "normalizers": parts, "pretokenizers": parts, "decoders": parts}
    ),
    max_leaves=5,
)


@st.composite
def tokenizer_files(draw: st.DrawFn) -> dict[str, bytes | None]:
    """A tokenizer.json with other parts, another model or other added tokens."""
    fields = json.loads(whole("tokenizer.json"))
    for name in ("normalizer", "pre_tokenizer", "decoder"):
        if draw(st.booleans()):
            fields[name] = draw(_parts | st.none() | values)
    model = fields["model"]
    if draw(st.booleans()):
        model.update(
            draw(changed_fields(("unk_token", "max_input_chars_per_word", "continuing_subword_prefix"), texts))
        )
    if draw(st.booleans()):
        ids = st.integers(0, 30) | st.sampled_from(ODD_NUMBERS)
        model["vocab"] = {**model["vocab"], **draw(st.dictionaries(texts, ids, max_size=3))}
    if draw(st.integers(0, 3)) == 0:
        vocab = model["vocab"]
        fields["model"] = draw(
            st.sampled_from([
                {"type": "WordLevel", "vocab": vocab, "unk_token": "[UNK]"},
                {"type": "WordLevel", "vocab": vocab, "unk_token": "none"},
                {"type": "BPE", "vocab": {**vocab, "b": 20, "ab": 21}, "merges": ["a b"]},
                {"type": "BPE", "vocab": vocab, "merges": ["x y"], "dropout": 2.0},
                {"type": "Unigram", "unk_id": 1, "vocab": [[token, -1.0] for token in vocab]},
                {"type": "Unigram", "unk_id": 99, "vocab": [[token, float("nan")] for token in vocab]},
                {"type": "Unigram", "vocab": []},
            ])
        )  # fmt: skip
    if draw(st.booleans()):
        token = st.fixed_dictionaries({
            "id": st.integers(0, 30) | st.sampled_from(ODD_NUMBERS), "content": texts, "single_word": st.booleans(),
            "lstrip": st.booleans(), "rstrip": st.booleans(), "normalized": st.booleans(), "special": st.booleans(),
        })  # fmt: skip
        fields["added_tokens"] = fields["added_tokens"] + draw(st.lists(token, max_size=3))
    if draw(st.integers(0, 5)) == 0:
        fields.update(draw(changed_fields(tuple(fields))))
    content = as_json(fields)
    generic = as_json({"tokenizer_class": "PreTrainedTokenizerFast"})
    return {
        "tokenizer.json": draw(st.sampled_from([content] * 5 + [RAW_JSON[6]]) | damaged(content)),
        "vocab.txt": None,
        "tokenizer_config.json": draw(st.sampled_from([generic, generic, None, b"{}"])),
    }
