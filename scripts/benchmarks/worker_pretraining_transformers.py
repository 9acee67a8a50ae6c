"""Pretrain BERT with transformers as people do: the worker of `benchmarks.pretraining` for its parties in PyTorch.

The script follows run_mlm.py of the transformers examples: train a vocabulary, tokenize, cut the text into blocks,
and train with Trainer and DataCollatorForLanguageModeling. It needs torch, transformers and accelerate.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

import accelerate
import torch
import transformers
from tokenizers import BertWordPieceTokenizer
from transformers import (
    BertConfig,
    BertForMaskedLM,
    BertTokenizerFast,
    DataCollatorForLanguageModeling,
    Trainer,
    TrainingArguments,
)


def main() -> None:
    """Do the task that the command line describes as JSON (`benchmarks.pretraining.transformers_task`).

    Prints, as JSON on the last line, the time at which the first step began (seconds since the epoch) and the
    versions of the libraries.
    """
    task: dict[str, Any] = json.loads(sys.argv[1])
    transformers.logging.set_verbosity_error()
    torch.set_num_threads(task["threads"])
    transformers.set_seed(task["seed"])
    output = Path(task["output"])
    texts = {name: read_documents(Path(task[name])) for name in ("train", "held_out")}
    tokenizer = train_tokenizer([*texts["train"], *texts["held_out"]], task["vocab_size"], output)
    blocks = {name: cut_blocks(documents, tokenizer, task["seq_length"]) for name, documents in texts.items()}
    model = BertForMaskedLM(BertConfig(**{**task["config"], "vocab_size": len(tokenizer)}))
    trainer = Trainer(
        model=model,
        args=TrainingArguments(
            output_dir=str(output),
            max_steps=task["steps"],
            per_device_train_batch_size=task["batch_size"],
            dataloader_drop_last=True,
            learning_rate=task["learning_rate"],
            lr_scheduler_type="linear",
            warmup_steps=task["warmup_steps"],
            weight_decay=task["weight_decay"],
            adam_beta1=task["betas"][0],
            adam_beta2=task["betas"][1],
            adam_epsilon=task["epsilon"],
            max_grad_norm=task["clip_norm"],
            logging_steps=task["report_every"],
            eval_strategy="steps",
            eval_steps=task["every"],
            save_steps=task["every"],
            save_only_model=True,  # no optimizer state: ten checkpoints of BERT-base would take 13 GB
            use_cpu=True,
            bf16=task["bfloat16"],
            seed=task["seed"],
            disable_tqdm=True,
            report_to="none",
            remove_unused_columns=False,  # otherwise special_tokens_mask is lost, and found again slowly for each batch
        ),
        data_collator=DataCollatorForLanguageModeling(tokenizer, mlm_probability=task["mask_probability"]),
        train_dataset=blocks["train"],
        eval_dataset=blocks["held_out"],
    )
    began = time.time()
    trainer.train()
    trainer.save_model()
    tokenizer.save_pretrained(output)
    libraries = ", ".join(
        f"{name} {library.__version__}"
        for name, library in (("PyTorch", torch), ("transformers", transformers), ("accelerate", accelerate))
    )
    print(json.dumps({"began": began, "description": libraries}))


def read_documents(path: Path) -> list[str]:
    """Return the documents of a JSON lines file."""
    with open(path, encoding="utf-8") as file:
        return [json.loads(line)["text"] for line in file]


def train_tokenizer(documents: list[str], vocab_size: int, folder: Path) -> BertTokenizerFast:
    """Train an uncased WordPiece vocabulary, and save it in `folder`."""
    learner = BertWordPieceTokenizer(lowercase=True)
    learner.train_from_iterator(documents, vocab_size=vocab_size, show_progress=False)
    folder.mkdir(parents=True, exist_ok=True)
    learner.save_model(str(folder))
    return BertTokenizerFast.from_pretrained(folder)


def cut_blocks(documents: list[str], tokenizer: BertTokenizerFast, seq_length: int) -> list[dict[str, list[int]]]:
    """Return blocks `[CLS] text [SEP]` of `seq_length` tokens, cut from all documents, each with a [SEP] at its end."""
    ids: list[int] = []
    for document in tokenizer(documents, add_special_tokens=False)["input_ids"]:
        ids += [*document, tokenizer.sep_token_id]
    room = seq_length - 2
    blocks = []
    for start in range(0, len(ids) - room + 1, room):
        block = [tokenizer.cls_token_id, *ids[start : start + room], tokenizer.sep_token_id]
        special = [int(token in (tokenizer.cls_token_id, tokenizer.sep_token_id)) for token in block]
        blocks.append({"input_ids": block, "special_tokens_mask": special})
    return blocks


if __name__ == "__main__":
    main()
