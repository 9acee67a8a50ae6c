"""Read from a folder's files how the hidden states of a text become one vector.

Folders of sentence-transformers describe this in four files: `modules.json` (the steps), `1_Pooling/config.json` (the
pooling), `sentence_bert_config.json` (the longest text) and `config_sentence_transformers.json` (the prompt before
every text). A step that Mini-BERT does not compute is refused by name. Without these files the vector is the mean of
the hidden states, as in sentence-transformers.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from minibert.errors import InferenceError, brief
from minibert.huggingface.tensor_files import read_json
from minibert.reading import read_bytes

POOLINGS = ("mean", "cls")

_MODULES_FILE, _TEXT_FILE = "modules.json", "sentence_bert_config.json"
_PROMPTS_FILE = "config_sentence_transformers.json"
_POOLING_OF_FLAG = {"pooling_mode_mean_tokens": "mean", "pooling_mode_cls_token": "cls"}


@dataclass(frozen=True)
class SentencePooling:
    """The settings by which the hidden states of a text become one vector.

    Attributes:
        pooling: "mean" for the mean of all hidden states ([CLS] and [SEP] included), "cls" for the hidden state of
            [CLS] alone.
        normalize: True to divide the vector by its Euclidean length.
        max_length: the most tokens that are read of a text, [CLS] and [SEP] included; None for as many as the
            tokenizer's files and the model allow.
        lowercase: True to lowercase the text before it is tokenized.
        prompt: put before every text; its tokens are pooled like the tokens of the text.

    Raises:
        InferenceError: `pooling` is neither of these, or `max_length` leaves no room for a text.
    """

    pooling: str = "mean"
    normalize: bool = False
    max_length: int | None = None
    lowercase: bool = False
    prompt: str = ""

    def __post_init__(self) -> None:
        if self.pooling not in POOLINGS:
            raise InferenceError(f"pooling must be one of {', '.join(POOLINGS)}, not {brief(self.pooling)}")
        if self.max_length is not None and self.max_length < 3:
            raise InferenceError(f"a text needs at least 3 tokens, [CLS] and [SEP] included, not {self.max_length}")

    @classmethod
    def read(cls, folder: Path) -> SentencePooling:
        """Read the pooling that a folder describes; if it describes none, return the defaults of the class.

        Raises:
            InferenceError, PretrainedError: there is a step that Mini-BERT does not compute, or a file is damaged.
        """
        path = folder / _MODULES_FILE
        if not path.exists():
            return cls()
        fields: dict[str, Any] = {"prompt": _default_prompt(folder / _PROMPTS_FILE)}
        for module in _modules(path):
            kind = str(module.get("type", "")).rsplit(".", 1)[-1]
            module_folder = folder / str(module.get("path", ""))
            if kind == "Transformer":
                fields |= _text_fields(module_folder / _TEXT_FILE)
            elif kind == "Pooling":
                fields["pooling"] = _pooling(module_folder / "config.json", fields["prompt"])
            elif kind == "Normalize":
                fields["normalize"] = True
            else:
                raise InferenceError(
                    f"{path}: Mini-BERT does not compute the step {brief(kind or module, quoted=False)}"
                )
        return cls(**fields)


def _modules(path: Path) -> list[dict[str, Any]]:
    """Return the steps in `modules.json`. The file holds a list, so `read_json` cannot read it."""
    try:
        modules = json.loads(read_bytes(path))
    except OSError as error:
        raise InferenceError(f"{path} cannot be read: {error.strerror or error}") from error
    except (ValueError, RecursionError) as error:
        raise InferenceError(f"{path} is not valid JSON ({error}); download it again") from error
    if not isinstance(modules, list) or not all(isinstance(module, dict) for module in modules):
        raise InferenceError(f"{path} must hold a list of steps")
    return modules


def _text_fields(path: Path) -> dict[str, Any]:
    """Return `max_length` and `lowercase` as a `sentence_bert_config.json` gives them."""
    if not path.exists():
        return {}
    content = read_json(path)
    longest, lowercase = content.get("max_seq_length"), content.get("do_lower_case", False)
    if longest is not None and type(longest) is not int:
        raise InferenceError(f"{path}: max_seq_length must be a whole number or null, not {brief(longest)}")
    if type(lowercase) is not bool:
        raise InferenceError(f"{path}: do_lower_case must be true or false, not {brief(lowercase)}")
    return {"max_length": longest, "lowercase": lowercase}


def _default_prompt(path: Path) -> str:
    """Return the folder's default prompt; an empty text if it has none."""
    content = read_json(path) if path.exists() else {}
    name, prompts = content.get("default_prompt_name"), content.get("prompts") or {}
    if name is None:
        return ""
    prompt = prompts.get(name) if isinstance(prompts, dict) and isinstance(name, str) else None
    if not isinstance(prompt, str):
        raise InferenceError(f"{path}: default_prompt_name is {brief(name)}, but the prompts have no text of that name")
    return prompt


def _pooling(path: Path, prompt: str) -> str:
    """Return "mean" or "cls", as the `config.json` of a pooling step says.

    Raises:
        InferenceError: the pooling is neither of these, is a combination, or leaves out the tokens of the prompt.
    """
    content = read_json(path)
    if prompt and content.get("include_prompt", True) is not True:
        raise InferenceError(
            f"{path} leaves out the tokens of the prompt {brief(prompt)} (include_prompt); Mini-BERT does not "
            "compute that"
        )
    flags = [name for name, value in content.items() if name.startswith("pooling_mode_") and value is True]
    if "pooling_mode" in content and not flags:
        flags = [str(content["pooling_mode"])]
    wanted = [_POOLING_OF_FLAG.get(flag, flag) for flag in flags]
    if len(wanted) != 1 or wanted[0] not in POOLINGS:
        raise InferenceError(
            f"{path} asks for the pooling {brief(' and '.join(wanted) or 'none', quoted=False)}; Mini-BERT computes "
            f"exactly one of {', '.join(POOLINGS)}"
        )
    return wanted[0]
