"""WordPiece, as BERT uses it: text <-> ids, and the files Hugging Face keeps a tokenizer in.

The work is done by the `tokenizers` library; this class adds what the rest of Mini-BERT asks for (which
ids are special, which pieces continue a word) and reads and writes a folder. Training a vocabulary is in
`vocabulary.py`.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tokenizers
from tokenizers import decoders, models, normalizers, pre_tokenizers, processors

from minibert.data.errors import DataError

CONTINUATION = "##"  # what a piece that continues a word begins with

# The roles, as tokenizer_config.json calls them, and the tokens that play them unless that file says otherwise.
SPECIAL_TOKENS = {
    "pad_token": "[PAD]",
    "unk_token": "[UNK]",
    "cls_token": "[CLS]",
    "sep_token": "[SEP]",
    "mask_token": "[MASK]",
}

_TOKENIZER_FILE, _VOCABULARY_FILE = "tokenizer.json", "vocab.txt"
_CONFIG_FILE, _SPECIAL_FILE = "tokenizer_config.json", "special_tokens_map.json"


class Tokenizer:
    """Text to ids and back.

    Args:
        backend: a WordPiece tokenizer of the `tokenizers` library; truncation and padding are switched off.
        special_tokens: role -> token, for roles that are not played by the usual `[PAD] [UNK] [CLS] [SEP] [MASK]`.

    Attributes:
        vocab_size: V, one more than the largest id.
        pad_id, unk_id, cls_id, sep_id, mask_id: where this vocabulary keeps the special tokens.
        special_ids: int32, sorted: those five and every other token the files mark as special.
        is_special: (V,) bool, the same as a table.
        ordinary_ids: int32, sorted: all ids that are not special.
        is_continuation: (V,) bool: the piece continues a word ("##ing").
        lowercase: whether text is lowercased (and accents dropped) first.

    Raises:
        DataError: the vocabulary lacks a special token.
    """

    def __init__(self, backend: tokenizers.Tokenizer, special_tokens: Mapping[str, str] | None = None) -> None:
        # Published tokenizer.json files often carry the truncation and padding of somebody's last run.
        backend.no_truncation()
        backend.no_padding()
        self.backend = backend
        self.special_tokens = {**SPECIAL_TOKENS, **(special_tokens or {})}
        vocabulary: dict[str, int] = backend.get_vocab(with_added_tokens=True)
        missing = [token for token in self.special_tokens.values() if token not in vocabulary]
        if missing:
            raise DataError(
                f"the vocabulary of {len(vocabulary)} tokens lacks {' '.join(missing)}; BERT needs all of "
                f"{' '.join(self.special_tokens.values())} (other names belong in {_CONFIG_FILE})"
            )
        self.vocab_size = max(vocabulary.values()) + 1
        self.pad_id, self.unk_id, self.cls_id, self.sep_id, self.mask_id = (
            vocabulary[self.special_tokens[role]] for role in SPECIAL_TOKENS
        )
        added = [id_ for id_, token in backend.get_added_tokens_decoder().items() if token.special]
        self.is_special = np.zeros(self.vocab_size, dtype=np.bool_)
        self.is_special[[self.pad_id, self.unk_id, self.cls_id, self.sep_id, self.mask_id, *added]] = True
        self.special_ids = np.flatnonzero(self.is_special).astype(np.int32)
        self.ordinary_ids = np.flatnonzero(~self.is_special).astype(np.int32)
        self.is_continuation = np.zeros(self.vocab_size, dtype=np.bool_)
        continuations = [
            id_ for token, id_ in vocabulary.items() if token.startswith(CONTINUATION) and token != CONTINUATION
        ]
        self.is_continuation[continuations] = True
        self.is_continuation &= ~self.is_special
        self.lowercase = bool(_normalizer_options(backend).get("lowercase", False))
        cls_token, sep_token = self.special_tokens["cls_token"], self.special_tokens["sep_token"]
        backend.post_processor = processors.TemplateProcessing(
            single=f"{cls_token} $A {sep_token}",
            pair=f"{cls_token} $A {sep_token} $B:1 {sep_token}:1",
            special_tokens=[(cls_token, self.cls_id), (sep_token, self.sep_id)],
        )

    def encode(self, text: str) -> list[int]:
        """The ids of a text, without [CLS] and [SEP]."""
        return list(self.backend.encode(text, add_special_tokens=False).ids)

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """The ids of many texts, without [CLS] and [SEP], on all cores."""
        return [encoding.ids for encoding in self.backend.encode_batch_fast(texts, add_special_tokens=False)]

    def encode_pair(self, a: str, b: str | None = None) -> tuple[list[int], list[int]]:
        """`[CLS] a [SEP]` or `[CLS] a [SEP] b [SEP]`: ids, and token types (0 for a, 1 for b and its [SEP])."""
        encoding = self.backend.encode(a, b)
        return list(encoding.ids), list(encoding.type_ids)

    def decode(self, ids: Iterable[int], skip_special_tokens: bool = True) -> str:
        """The text of some ids; "##" pieces join their word."""
        return str(self.backend.decode([int(id_) for id_ in ids], skip_special_tokens=skip_special_tokens))

    def token_to_id(self, token: str) -> int:
        """The id of a token.

        Raises:
            KeyError: the vocabulary has no such token.
        """
        id_ = self.backend.token_to_id(token)
        if id_ is None:
            raise KeyError(f"{token!r} is not in the vocabulary of {self.vocab_size} tokens")
        return int(id_)

    def id_to_token(self, id_: int) -> str:
        """The token of an id.

        Raises:
            KeyError: the vocabulary has no such id.
        """
        token = self.backend.id_to_token(int(id_)) if id_ >= 0 else None
        if token is None:
            raise KeyError(f"{id_} is not the id of a token; ids go from 0 to {self.vocab_size - 1}")
        return str(token)

    def tokens(self) -> list[str]:
        """All tokens in the order of their ids; an id without a token gives `[unused id]`."""
        tokens = (self.backend.id_to_token(id_) for id_ in range(self.vocab_size))
        return [f"[unused {id_}]" if token is None else token for id_, token in enumerate(tokens)]

    def fingerprint(self) -> str:
        """64 hexadecimal digits that change when any text could be given other ids."""
        parts = [self.tokens(), self.special_tokens, self.special_ids.tolist()]
        parts += [_state(self.backend.normalizer), _state(self.backend.pre_tokenizer)]
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()

    def save(self, folder: str | Path, model_max_length: int | None = None) -> None:
        """Writes the files `AutoTokenizer.from_pretrained(folder)` reads, and `Tokenizer.load` too.

        Args:
            folder: made if it is not there.
            model_max_length: the longest sequence of the model the tokenizer belongs to, if there is one.
        """
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        options = _normalizer_options(self.backend)
        config: dict[str, Any] = {
            "tokenizer_class": "BertTokenizer",
            "do_lower_case": self.lowercase,
            "strip_accents": options.get("strip_accents"),
            "tokenize_chinese_chars": options.get("handle_chinese_chars", True),
            **self.special_tokens,
        }
        if model_max_length is not None:
            config["model_max_length"] = model_max_length
        _write(folder / _VOCABULARY_FILE, "".join(f"{token}\n" for token in self.tokens()))
        _write(folder / _TOKENIZER_FILE, self.backend.to_str(pretty=True))
        _write(folder / _CONFIG_FILE, json.dumps(config, indent=2, sort_keys=True) + "\n")
        _write(folder / _SPECIAL_FILE, json.dumps(self.special_tokens, indent=2, sort_keys=True) + "\n")

    @classmethod
    def load(cls, folder: str | Path) -> Tokenizer:
        """Reads a tokenizer from `tokenizer.json` or, where there is none, from `vocab.txt`.

        `tokenizer_config.json` and `special_tokens_map.json` are heeded where present; nothing is assumed
        about which id a token has.

        Raises:
            DataError: the files are missing, damaged, contradict each other, or lack a special token.
        """
        folder = Path(folder)
        config = {**_read_json(folder / _SPECIAL_FILE), **_read_json(folder / _CONFIG_FILE)}
        special_tokens = {role: _token(config[role]) for role in SPECIAL_TOKENS if config.get(role) is not None}
        if (folder / _TOKENIZER_FILE).is_file():
            try:
                backend = tokenizers.Tokenizer.from_file(str(folder / _TOKENIZER_FILE))
            except Exception as error:  # the library raises bare Exception for anything wrong with the file
                raise DataError(f"{folder / _TOKENIZER_FILE} is damaged: {error}") from error
            _heed_config(backend, config)
            _check_agreement(folder, backend)
        elif (folder / _VOCABULARY_FILE).is_file():
            backend = wordpiece(_read_vocabulary(folder / _VOCABULARY_FILE), config, special_tokens)
        else:
            raise DataError(f"{folder} has no tokenizer: neither {_TOKENIZER_FILE} nor {_VOCABULARY_FILE} is there")
        try:
            return cls(backend, special_tokens)
        except DataError as error:
            raise DataError(f"{folder}: {error}") from error


def _check_agreement(folder: Path, backend: tokenizers.Tokenizer) -> None:
    """A vocab.txt beside tokenizer.json must give every token the same id: other readers prefer it."""
    path = folder / _VOCABULARY_FILE
    if not path.is_file():
        return
    ids = backend.get_vocab(with_added_tokens=True)
    for token, number in _read_vocabulary(path).items():
        if ids.get(token) != number:
            raise DataError(
                f"{path} says that the token {token!r} has the id {number}, {_TOKENIZER_FILE} beside it says "
                f"{ids.get(token, 'that there is no such token')}: the two are of different vocabularies; put back the "
                "one that belongs to the model, or remove the other"
            )


def wordpiece(
    vocabulary: Mapping[str, int],
    config: Mapping[str, Any] | None = None,
    special_tokens: Mapping[str, str] | None = None,
) -> tokenizers.Tokenizer:
    """BERT's WordPiece tokenizer for a vocabulary.

    Args:
        vocabulary: token -> id.
        config: the fields of tokenizer_config.json that say how text is normalized.
        special_tokens: role -> token, as `Tokenizer`.
    """
    config = config or {}
    special_tokens = {**SPECIAL_TOKENS, **(special_tokens or {})}
    backend = tokenizers.Tokenizer(models.WordPiece(dict(vocabulary), unk_token=special_tokens["unk_token"]))
    backend.normalizer = normalizers.BertNormalizer(
        handle_chinese_chars=config.get("tokenize_chinese_chars", True),
        strip_accents=config.get("strip_accents"),
        lowercase=config.get("do_lower_case", True),
    )
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    backend.decoder = decoders.WordPiece(prefix=CONTINUATION)
    # So that "[MASK]" in a text is the token; one that is missing would be added, and is an error instead.
    backend.add_special_tokens([token for token in special_tokens.values() if token in vocabulary])
    return backend


def _normalizer_options(backend: tokenizers.Tokenizer) -> dict[str, Any]:
    """The fields of the BertNormalizer, or nothing if the tokenizer has another normalizer."""
    options = _state(backend.normalizer)
    return options if options.get("type") == "BertNormalizer" else {}


def _state(part: Any) -> dict[str, Any]:
    """What tokenizer.json says of one part of the tokenizer (which may be None)."""
    return {} if part is None else dict(json.loads(part.__getstate__()))


def _heed_config(backend: tokenizers.Tokenizer, config: Mapping[str, Any]) -> None:
    """Where tokenizer_config.json contradicts tokenizer.json on normalizing, it wins, as in Hugging Face."""
    options = _normalizer_options(backend)
    if not options:
        return
    names = {"do_lower_case": "lowercase", "strip_accents": "strip_accents"}
    names["tokenize_chinese_chars"] = "handle_chinese_chars"
    wanted = {ours: config[theirs] for theirs, ours in names.items() if theirs in config}
    if any(options[name] != value for name, value in wanted.items()):
        options.pop("type")
        backend.normalizer = normalizers.BertNormalizer(**{**options, **wanted})


def _token(entry: str | Mapping[str, Any]) -> str:
    """A special token is written as a string or as an object with its flags."""
    return entry if isinstance(entry, str) else str(entry["content"])


def _read_json(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise DataError(f"{path} is not JSON: {error}") from error
    if not isinstance(content, dict):
        raise DataError(f"{path} holds a {type(content).__name__} where an object belongs")
    return content


def _read_vocabulary(path: Path) -> dict[str, int]:
    try:
        tokens = path.read_text(encoding="utf-8").split("\n")
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: byte {error.start} is not UTF-8; a vocabulary has one token a line") from error
    if tokens[-1] == "":
        tokens.pop()
    vocabulary = {token: id_ for id_, token in enumerate(tokens)}
    if len(vocabulary) != len(tokens):
        twice = next(token for id_, token in enumerate(tokens) if vocabulary[token] != id_)
        first, again = tokens.index(twice) + 1, vocabulary[twice] + 1
        raise DataError(f"{path}, line {again}: {twice!r} stands in line {first} already; a token has one id")
    return vocabulary


def _write(path: Path, content: str) -> None:
    """Writes beside and renames, so that a killed run never leaves half a file."""
    beside = path.with_name(path.name + ".part")
    beside.write_text(content, encoding="utf-8", newline="\n")
    beside.replace(path)
