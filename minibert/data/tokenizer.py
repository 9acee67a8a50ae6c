"""Turn text into token ids and back with BERT's WordPiece, and read and write a tokenizer's folder.

The `tokenizers` library does the work. The class `Tokenizer` adds what the rest of Mini-BERT needs: which ids
are special tokens, and which word pieces continue a word. It reads and writes the files of Hugging Face
(details in `tokenizer_files.py`). `vocabulary.py` trains a new vocabulary.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
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
    add_tokens,
    apply_config,
    check_config,
    check_vocabulary,
    name_unused,
    read_bytes,
    read_json,
    read_max_length,
    read_normalizer,
    read_part,
    read_token,
    read_vocabulary,
)
from minibert.data.tokenizer_safety import check_vocabulary_size, library_errors, longest_text
from minibert.errors import DataError, brief
from minibert.files import write_text

CONTINUATION = "##"  # the prefix of a word piece that continues a word, as in "##ing"

# The fields of tokenizer_config.json that name the special tokens, and the tokens used if a field is absent.
SPECIAL_TOKENS = {
    "pad_token": "[PAD]",
    "unk_token": "[UNK]",
    "cls_token": "[CLS]",
    "sep_token": "[SEP]",
    "mask_token": "[MASK]",
}


class Tokenizer:
    """Convert text to token ids and back.

    Args:
        backend: a WordPiece tokenizer of the `tokenizers` library; its truncation and padding are switched off.
        special_tokens: field -> token, such as {"mask_token": "<mask>"}, for special tokens other than the usual
            `[PAD] [UNK] [CLS] [SEP] [MASK]`.
        model_max_length: the longest sequence that the model takes, [CLS] and [SEP] included, if the files say so;
            None if they do not.

    Attributes:
        model_max_length: as given.
        vocab_size: V, one more than the largest id.
        pad_id, unk_id, cls_id, sep_id, mask_id: the ids of the special tokens.
        special_ids: int32, sorted: these five ids and those of all other tokens that the files mark as special.
        is_special: (V,) bool, True for the ids in special_ids.
        ordinary_ids: int32, sorted: all other ids.
        is_continuation: (V,) bool, True if the word piece continues a word ("##ing").
        lowercase: True if text is lowercased (and accents dropped) before it is split.

    Raises:
        DataError: the vocabulary lacks a special token or has gigantic ids; or the tokenizer could run for ever.
    """

    def __init__(
        self,
        backend: tokenizers.Tokenizer,
        special_tokens: Mapping[str, str] | None = None,
        model_max_length: int | None = None,
    ) -> None:
        # Published tokenizer.json files often contain the truncation and padding settings of an earlier run.
        backend.no_truncation()
        backend.no_padding()
        self.backend = backend
        self.model_max_length = model_max_length
        self.special_tokens = {**SPECIAL_TOKENS, **(special_tokens or {})}
        vocabulary: dict[str, int] = backend.get_vocab(with_added_tokens=True)
        missing = [token for token in self.special_tokens.values() if token not in vocabulary]
        if missing:
            raise DataError(
                f"the vocabulary of {len(vocabulary)} tokens lacks {' '.join(map(_shown, missing))}; BERT needs all of "
                f"{' '.join(map(_shown, self.special_tokens.values()))}; if they have other names, write these into "
                f"{CONFIG_FILE}"
            )
        check_vocabulary_size(vocabulary)
        self._longest_text = longest_text(backend)
        self.vocab_size = max(vocabulary.values()) + 1
        self.pad_id, self.unk_id, self.cls_id, self.sep_id, self.mask_id = (
            vocabulary[self.special_tokens[field]] for field in SPECIAL_TOKENS
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
        self.lowercase = bool(read_normalizer(backend).get("lowercase", False))
        cls_token, sep_token = self.special_tokens["cls_token"], self.special_tokens["sep_token"]
        with library_errors(f"texts are put between {brief(cls_token)} and {brief(sep_token)}"):
            backend.post_processor = processors.TemplateProcessing(
                single=f"{cls_token} $A {sep_token}",
                pair=f"{cls_token} $A {sep_token} $B:1 {sep_token}:1",
                special_tokens=[(cls_token, self.cls_id), (sep_token, self.sep_id)],
            )

    def encode(self, text: str) -> list[int]:
        """Return the token ids of a text, without [CLS] and [SEP].

        Raises:
            DataError: the text is not Unicode: it holds half a surrogate pair. That comes from a byte of the command
                line that is not UTF-8, or from an escape in JSON. Or the text is so long that tokenizing it would take
                gigabytes, or the tokenizer fails. `encode_batch` and `encode_pair` raise it, too.
        """
        self._check_length(text)
        with library_errors("it encodes this text", [text]):
            return list(self.backend.encode(text, add_special_tokens=False).ids)

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """Return the token ids of many texts, without [CLS] and [SEP]; uses all cores."""
        found: list[list[int]] = []
        for group in self._groups(texts):
            with library_errors("it encodes a batch of texts", group):
                found += [encoding.ids for encoding in self.backend.encode_batch_fast(group, add_special_tokens=False)]
        return found

    def _groups(self, texts: Sequence[str]) -> Iterator[Sequence[str]]:
        """Yield neighbouring texts in groups that the library can encode within bounded memory."""
        start = characters = 0
        for number, text in enumerate(texts):
            self._check_length(text)
            if characters + len(text) > self._longest_text and number > start:
                yield texts[start:number]
                start, characters = number, 0
            characters += len(text)
        yield texts[start:]

    def _check_length(self, text: str) -> None:
        """Refuse a text that is too long to be tokenized at once.

        Raises:
            DataError: the text has too many characters.
        """
        if len(text) > self._longest_text:
            raise DataError(
                f"a text of {len(text):,} characters ({brief(text, 40)}) is too long to be tokenized at once; divide "
                f"it into texts of at most {self._longest_text:,}"
            )

    def encode_pair(self, a: str, b: str | None = None) -> tuple[list[int], list[int]]:
        """Return (input_ids, token_type_ids) of `[CLS] a [SEP]` or `[CLS] a [SEP] b [SEP]`.

        The token type is 1 for `b` and its [SEP], and 0 elsewhere. An empty `b` counts as none, as in Hugging Face.
        """
        texts = [a, b or ""]
        for text in texts:
            self._check_length(text)
        with library_errors("it encodes this text", texts):
            encoding = self.backend.encode(a, b or None)
        return list(encoding.ids), list(encoding.type_ids)

    def decode(self, ids: Iterable[int], skip_special_tokens: bool = True) -> str:
        """Return the text of some token ids; a piece that begins with "##" is joined to the piece before it.

        Raises:
            DataError: an id is negative or beyond 32 bits, or the tokenizer fails.
        """
        with library_errors("it decodes ids"):
            return str(self.backend.decode([int(id_) for id_ in ids], skip_special_tokens=skip_special_tokens))

    def token_to_id(self, token: str) -> int:
        """Return the id of a token.

        Raises:
            KeyError: the vocabulary has no such token.
        """
        id_ = self.backend.token_to_id(token)
        if id_ is None:
            raise KeyError(f"{brief(token)} is not in the vocabulary of {self.vocab_size} tokens")
        return int(id_)

    def id_to_token(self, id_: int) -> str:
        """Return the token of an id.

        Raises:
            KeyError: the vocabulary has no such id.
        """
        token = self.backend.id_to_token(int(id_)) if id_ >= 0 else None
        if token is None:
            raise KeyError(f"{id_} is not the id of a token; ids go from 0 to {self.vocab_size - 1}")
        return str(token)

    def tokens(self) -> list[str]:
        """Return all tokens in the order of their ids; an id without a token gives `[unused <id>]`."""
        tokens = (self.backend.id_to_token(id_) for id_ in range(self.vocab_size))
        return [name_unused(id_) if token is None else token for id_, token in enumerate(tokens)]

    def fingerprint(self) -> str:
        """Return 64 hexadecimal digits that change whenever any text could get other ids."""
        parts = [self.tokens(), self.special_tokens, self.special_ids.tolist()]
        parts += [read_part(self.backend.normalizer), read_part(self.backend.pre_tokenizer)]
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()

    def save(self, folder: str | Path, model_max_length: int | None = None) -> None:
        """Write the files from which `load` and Hugging Face's `AutoTokenizer.from_pretrained` make the same ids.

        A tokenizer with BERT's normalizer and pre-tokenizer is saved as a `BertTokenizer`, with `vocab.txt`. Any
        other is saved as a class that transformers reads from `tokenizer.json` alone.

        Args:
            folder: created if it does not exist.
            model_max_length: the longest sequence that the tokenizer's model takes; None if it is not known.
        """
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        config: dict[str, Any] = {"tokenizer_class": GENERIC_CLASS, **self.special_tokens}
        if model_max_length is not None:
            config["model_max_length"] = model_max_length
        if _is_bert_tokenizer(self.backend):
            options = read_normalizer(self.backend)
            config["tokenizer_class"] = "BertTokenizer"
            config |= {theirs: options[ours] for ours, (theirs, _) in NORMALIZER_FIELDS.items()}
            write_text(folder / VOCABULARY_FILE, "".join(f"{token}\n" for token in self.tokens()))
        else:
            config["model_input_names"] = ["input_ids", "token_type_ids", "attention_mask"]  # else no token_type_ids
            (folder / VOCABULARY_FILE).unlink(missing_ok=True)  # a file there belongs to another tokenizer
        write_text(folder / TOKENIZER_FILE, self.backend.to_str(pretty=True))
        write_text(folder / CONFIG_FILE, json.dumps(config, indent=2, sort_keys=True) + "\n")
        write_text(folder / SPECIAL_FILE, json.dumps(self.special_tokens, indent=2, sort_keys=True) + "\n")

    @classmethod
    def load(cls, folder: str | Path) -> Tokenizer:
        """Read a tokenizer from `tokenizer.json` or, if there is none, from `vocab.txt`.

        `tokenizer_config.json` and `special_tokens_map.json` are used if present, and `added_tokens.json` if
        there is only `vocab.txt`. The special tokens may have any ids.

        Raises:
            DataError: the files are missing or damaged, contradict each other, or lack a special token.
        """
        folder = Path(folder)
        config = {**read_json(folder / SPECIAL_FILE), **read_json(folder / CONFIG_FILE)}
        check_config(folder / CONFIG_FILE, config, SPECIAL_TOKENS)
        special_tokens = {field: read_token(config[field]) for field in SPECIAL_TOKENS if config.get(field) is not None}
        if (folder / TOKENIZER_FILE).exists():
            backend = _read_backend(folder / TOKENIZER_FILE)
            if config.get("tokenizer_class") not in GENERIC_CLASSES:
                apply_config(folder, backend, config)
            check_vocabulary(folder, backend)
        elif (folder / VOCABULARY_FILE).exists():
            backend = build_wordpiece(read_vocabulary(folder / VOCABULARY_FILE), config, special_tokens)
            add_tokens(folder / ADDED_FILE, backend)
        else:
            raise DataError(
                f"{folder} has no tokenizer: neither {TOKENIZER_FILE} nor {VOCABULARY_FILE} is there; copy the "
                "tokenizer's files into it"
            )
        try:
            return cls(backend, special_tokens, read_max_length(config))
        except DataError as error:
            raise DataError(f"{folder}: {error}") from error


def _read_backend(path: Path) -> tokenizers.Tokenizer:
    """Read a tokenizer.json.

    Raises:
        DataError: the file cannot be read, or is no tokenizer; the message names it.
    """
    content = read_bytes(path)
    try:
        with library_errors("it reads this file"):
            return tokenizers.Tokenizer.from_buffer(content)
    except DataError as error:
        raise DataError(f"{path} is damaged: {error}") from error


def build_wordpiece(
    vocabulary: Mapping[str, int],
    config: Mapping[str, Any] | None = None,
    special_tokens: Mapping[str, str] | None = None,
) -> tokenizers.Tokenizer:
    """Return BERT's WordPiece tokenizer, as an object of the `tokenizers` library.

    Args:
        vocabulary: token -> id.
        config: the fields of tokenizer_config.json that say how text is normalized.
        special_tokens: field -> token, as for `Tokenizer`.
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
    # This makes "[MASK]" in a text the special token. A token that the vocabulary lacks would get a new id here, so
    # it is left out, and `Tokenizer` reports it.
    backend.add_special_tokens([token for token in special_tokens.values() if token in vocabulary])
    return backend


def _is_bert_tokenizer(backend: tokenizers.Tokenizer) -> bool:
    """Return True if transformers' BertTokenizer would give the same ids with this vocabulary.

    BertTokenizer reads only the vocabulary; it makes its normalizer and pre-tokenizer itself.
    """
    model, pre_tokenizer = backend.model, read_part(backend.pre_tokenizer)
    return (
        read_normalizer(backend).get("clean_text") is True
        and pre_tokenizer.get("type") == "BertPreTokenizer"
        and isinstance(model, models.WordPiece)
        and (model.continuing_subword_prefix, model.max_input_chars_per_word) == (CONTINUATION, 100)
    )


def _shown(token: str) -> str:
    """Return a token for a message."""
    return brief(token, quoted=False)


def pad_batch(sequences: Sequence[Sequence[int]], pad_id: int) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.int32]]:
    """Put sequences of different lengths into one array; used by inference and fine-tuning.

    Args:
        sequences: B lists of token ids.
        pad_id: fills the shorter ones at the end.

    Returns:
        input_ids, (B, T) int32, where T is the length of the longest sequence;
        attention_mask, (B, T) int32, 1 for a token and 0 for padding.
    """
    length = max(map(len, sequences), default=0)
    ids = np.full((len(sequences), length), pad_id, dtype=np.int32)
    mask = np.zeros_like(ids)
    for row, sequence in enumerate(sequences):
        ids[row, : len(sequence)] = sequence
        mask[row, : len(sequence)] = 1
    return ids, mask
