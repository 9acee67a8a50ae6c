"""WordPiece, as BERT uses it: text <-> ids, and the files Hugging Face keeps a tokenizer in.

The work is done by the `tokenizers` library; this class adds what the rest of Mini-BERT asks for (which
ids are special, which pieces continue a word) and reads and writes a folder. Training a vocabulary is in
`vocabulary.py`.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import tokenizers
from tokenizers import decoders, models, normalizers, pre_tokenizers, processors

from minibert.data.tokenizer_files import (
    ADDED_FILE,
    CONFIG_FILE,
    GENERIC_CLASS,
    GENERIC_CLASSES,
    NORMALIZER_FIELDS,
    SPECIAL_FILE,
    TOKENIZER_FILE,
    VOCABULARY_FILE,
    check_config,
    longest_sequence,
    read_added_tokens,
    read_json,
    read_vocabulary,
    token_of,
)
from minibert.errors import DataError
from minibert.files import write_text

CONTINUATION = "##"  # what a piece that continues a word begins with

# The roles, as tokenizer_config.json calls them, and the tokens that play them unless that file says otherwise.
SPECIAL_TOKENS = {
    "pad_token": "[PAD]",
    "unk_token": "[UNK]",
    "cls_token": "[CLS]",
    "sep_token": "[SEP]",
    "mask_token": "[MASK]",
}


class Tokenizer:
    """Text to ids and back.

    Args:
        backend: a WordPiece tokenizer of the `tokenizers` library; truncation and padding are switched off.
        special_tokens: role -> token, for roles that are not played by the usual `[PAD] [UNK] [CLS] [SEP] [MASK]`.
        model_max_length: the longest sequence, [CLS] and [SEP] included, that the files speak of; None: they do not.

    Attributes:
        model_max_length: as given.
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

    def __init__(
        self,
        backend: tokenizers.Tokenizer,
        special_tokens: Mapping[str, str] | None = None,
        model_max_length: int | None = None,
    ) -> None:
        # Published tokenizer.json files often carry the truncation and padding of somebody's last run.
        backend.no_truncation()
        backend.no_padding()
        self.backend = backend
        self.model_max_length = model_max_length
        self.special_tokens = {**SPECIAL_TOKENS, **(special_tokens or {})}
        vocabulary: dict[str, int] = backend.get_vocab(with_added_tokens=True)
        missing = [token for token in self.special_tokens.values() if token not in vocabulary]
        if missing:
            raise DataError(
                f"the vocabulary of {len(vocabulary)} tokens lacks {' '.join(missing)}; BERT needs all of "
                f"{' '.join(self.special_tokens.values())} (other names belong in {CONFIG_FILE})"
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
        """The ids of a text, without [CLS] and [SEP].

        Raises:
            DataError: the text is not Unicode, as this and the other two ways to encode say: half a surrogate pair,
                from a byte of the command line that is not UTF-8 or from an escape in JSON.
        """
        with _unicode_only(text):
            return list(self.backend.encode(text, add_special_tokens=False).ids)

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """The ids of many texts, without [CLS] and [SEP], on all cores."""
        with _unicode_only(*texts):
            return [encoding.ids for encoding in self.backend.encode_batch_fast(texts, add_special_tokens=False)]

    def encode_pair(self, a: str, b: str | None = None) -> tuple[list[int], list[int]]:
        """`[CLS] a [SEP]` or `[CLS] a [SEP] b [SEP]`: ids, and token types (0 for a, 1 for b and its [SEP]).

        An empty `b` is none, as in Hugging Face.
        """
        with _unicode_only(a, b or ""):
            encoding = self.backend.encode(a, b or None)
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
        return [_unused(id_) if token is None else token for id_, token in enumerate(tokens)]

    def fingerprint(self) -> str:
        """64 hexadecimal digits that change when any text could be given other ids."""
        parts = [self.tokens(), self.special_tokens, self.special_ids.tolist()]
        parts += [_state(self.backend.normalizer), _state(self.backend.pre_tokenizer)]
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()

    def save(self, folder: str | Path, model_max_length: int | None = None) -> None:
        """Writes the files from which `AutoTokenizer.from_pretrained(folder)` makes the same ids, and `load` too.

        Normalizer and pre-tokenizer of BERT are those of a `BertTokenizer`, with its `vocab.txt`. With any others
        the class is one that transformers reads from `tokenizer.json` alone.

        Args:
            folder: made if it is not there.
            model_max_length: the longest sequence of the model the tokenizer belongs to, if there is one.
        """
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        config: dict[str, Any] = {"tokenizer_class": GENERIC_CLASS, **self.special_tokens}
        if model_max_length is not None:
            config["model_max_length"] = model_max_length
        if _is_berts(self.backend):
            options = _normalizer_options(self.backend)
            config["tokenizer_class"] = "BertTokenizer"
            config |= {theirs: options[ours] for ours, (theirs, _) in NORMALIZER_FIELDS.items()}
            write_text(folder / VOCABULARY_FILE, "".join(f"{token}\n" for token in self.tokens()))
        else:
            config["model_input_names"] = ["input_ids", "token_type_ids", "attention_mask"]  # else no token types
            (folder / VOCABULARY_FILE).unlink(missing_ok=True)  # what lies there is of another tokenizer
        write_text(folder / TOKENIZER_FILE, self.backend.to_str(pretty=True))
        write_text(folder / CONFIG_FILE, json.dumps(config, indent=2, sort_keys=True) + "\n")
        write_text(folder / SPECIAL_FILE, json.dumps(self.special_tokens, indent=2, sort_keys=True) + "\n")

    @classmethod
    def load(cls, folder: str | Path) -> Tokenizer:
        """Reads a tokenizer from `tokenizer.json` or, where there is none, from `vocab.txt`.

        `tokenizer_config.json` and `special_tokens_map.json` are heeded where present, and `added_tokens.json`
        beside `vocab.txt`; nothing is assumed about which id a token has.

        Raises:
            DataError: the files are missing, damaged, contradict each other, or lack a special token.
        """
        folder = Path(folder)
        config = {**read_json(folder / SPECIAL_FILE), **read_json(folder / CONFIG_FILE)}
        check_config(folder / CONFIG_FILE, config, SPECIAL_TOKENS)
        special_tokens = {role: token_of(config[role]) for role in SPECIAL_TOKENS if config.get(role) is not None}
        if (folder / TOKENIZER_FILE).is_file():
            try:
                backend = tokenizers.Tokenizer.from_file(str(folder / TOKENIZER_FILE))
            except Exception as error:  # the library raises bare Exception for anything wrong with the file
                raise DataError(f"{folder / TOKENIZER_FILE} is damaged: {error}") from error
            if config.get("tokenizer_class") not in GENERIC_CLASSES:
                _heed_config(folder, backend, config)
            _check_agreement(folder, backend)
        elif (folder / VOCABULARY_FILE).is_file():
            backend = wordpiece(read_vocabulary(folder / VOCABULARY_FILE), config, special_tokens)
            _add_tokens(folder / ADDED_FILE, backend)
        else:
            raise DataError(f"{folder} has no tokenizer: neither {TOKENIZER_FILE} nor {VOCABULARY_FILE} is there")
        try:
            return cls(backend, special_tokens, longest_sequence(config))
        except DataError as error:
            raise DataError(f"{folder}: {error}") from error


def _check_agreement(folder: Path, backend: tokenizers.Tokenizer) -> None:
    """A vocab.txt beside tokenizer.json must give every token the same id: other readers prefer it."""
    path = folder / VOCABULARY_FILE
    if not path.is_file():
        return
    ids = backend.get_vocab(with_added_tokens=True)
    for token, number in read_vocabulary(path).items():
        if ids.get(token) != number and token != _unused(number):
            raise DataError(
                f"{path} says that the token {token!r} has the id {number}, {TOKENIZER_FILE} beside it says "
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


def _is_berts(backend: tokenizers.Tokenizer) -> bool:
    """Whether transformers' BertTokenizer, which makes all but the vocabulary itself, makes the same."""
    model, pre_tokenizer = backend.model, _state(backend.pre_tokenizer)
    return (
        _normalizer_options(backend).get("clean_text") is True
        and pre_tokenizer.get("type") == "BertPreTokenizer"
        and isinstance(model, models.WordPiece)
        and (model.continuing_subword_prefix, model.max_input_chars_per_word) == (CONTINUATION, 100)
    )


def _state(part: Any) -> dict[str, Any]:
    """What tokenizer.json says of one part of the tokenizer (which may be None)."""
    return {} if part is None else dict(json.loads(part.__getstate__()))


def _unused(id_: int) -> str:
    """What stands in vocab.txt for an id that no token has."""
    return f"[unused {id_}]"


@contextmanager
def _unicode_only(*texts: str) -> Iterator[None]:
    """The library's error for half a surrogate pair is that the text is no text."""
    try:
        yield
    except TypeError as error:
        for text in texts:
            try:
                text.encode()
            except UnicodeEncodeError as why:
                here = text[max(0, why.start - 10) : why.start + 10]
                raise DataError(f"this is not Unicode text: {here!r}, at character {why.start}") from error
        raise


def _heed_config(folder: Path, backend: tokenizers.Tokenizer, config: Mapping[str, Any]) -> None:
    """Where tokenizer_config.json contradicts tokenizer.json on normalizing, it wins, as in Hugging Face.

    Raises:
        DataError: it is silent, and its default contradicts tokenizer.json. Hugging Face takes the default, which
            is hardly what was meant: a cased vocabulary that gets lower-cased text.
    """
    options = _normalizer_options(backend)
    if not options:
        return
    wanted = {ours: config.get(theirs, default) for ours, (theirs, default) in NORMALIZER_FIELDS.items()}
    if _effect(options) == _effect(wanted):
        return
    for ours, (theirs, default) in NORMALIZER_FIELDS.items():
        if theirs not in config and options[ours] != default:
            said, instead = json.dumps({theirs: options[ours]}), json.dumps(default)
            raise DataError(
                f"{folder / TOKENIZER_FILE} has {ours} {json.dumps(options[ours])}, but {CONFIG_FILE} beside it does "
                f"not say {theirs}, and transformers then takes {instead}: write {said} into {CONFIG_FILE}, or "
                f"{instead} if the model was trained so"
            )
    backend.normalizer = normalizers.BertNormalizer(clean_text=options["clean_text"], **wanted)


def _effect(options: Mapping[str, Any]) -> tuple[Any, ...]:
    """What the fields of a BertNormalizer come to: accents go with the capitals where nothing is said."""
    strip = options["lowercase"] if options["strip_accents"] is None else options["strip_accents"]
    return options["lowercase"], strip, options["handle_chinese_chars"]


def _add_tokens(path: Path, backend: tokenizers.Tokenizer) -> None:
    """The tokens of added_tokens.json, beside vocab.txt."""
    for token, id_ in read_added_tokens(path).items():
        if backend.token_to_id(token) is None:
            backend.add_tokens([tokenizers.AddedToken(token, normalized=True)])
        if backend.token_to_id(token) != id_:
            raise DataError(
                f"{path} gives the token {token!r} the id {id_}, but after {VOCABULARY_FILE} it is "
                f"{backend.token_to_id(token)}; the two do not belong together"
            )
