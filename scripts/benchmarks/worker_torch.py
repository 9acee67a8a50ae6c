"""Time the same training step in PyTorch: the worker for the peers.

Parties:
    transformers: Hugging Face's BertForMaskedLM as people usually run it: logits at all positions, labels of -100
        where nothing is predicted, AdamW.
    transformers-compile: transformers under torch.compile.
    torch: tuned by hand: logits at masked positions only, scaled-dot-product attention (which PyTorch fuses on a
        CPU only without dropout), fused AdamW, clipping over lists of tensors.
    torch-pruned: torch, with the last layer computed only where the predictions need it, as in Mini-BERT.
    torch-compile: torch under torch.compile.
    torch-bfloat16: torch under bfloat16 autocast.
"""

from __future__ import annotations

import json
import os
import sys

from benchmarks.work import Work, peak_bytes, timed

PARTIES = ("transformers", "transformers-compile", "torch", "torch-pruned", "torch-compile", "torch-bfloat16")


def main() -> None:
    """Do the work that the command line describes, and print the figures."""
    work = Work.from_json(sys.argv[1])
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    import torch
    import transformers
    from torch.nn import functional
    from transformers import BertConfig, BertForMaskedLM

    torch.set_num_threads(work.threads)
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=work.vocabulary,
        hidden_size=work.hidden,
        num_hidden_layers=work.layers,
        num_attention_heads=work.hidden // 64,
        intermediate_size=4 * work.hidden,
        hidden_dropout_prob=work.dropout,
        attention_probs_dropout_prob=work.dropout,
        attn_implementation="sdpa",
    )
    model = BertForMaskedLM(config).train()
    batch = work.batch_arrays()
    ids, positions = torch.tensor(batch["ids"]), torch.tensor(batch["positions"])
    labels = torch.tensor(batch["labels"])
    everywhere = torch.full((work.tokens,), -100)
    everywhere[positions] = labels
    everywhere = everywhere.view(work.batch, work.length)
    mask = torch.ones_like(ids)
    decayed = [p for p in model.parameters() if p.ndim > 1]
    others = [p for p in model.parameters() if p.ndim <= 1]
    hand_tuned = work.party.startswith("torch")
    optimizer = torch.optim.AdamW(
        [{"params": decayed, "weight_decay": 0.01}, {"params": others, "weight_decay": 0.0}], lr=1e-4, fused=hand_tuned
    )

    def masked_loss() -> torch.Tensor:
        hidden = model.bert(ids).last_hidden_state.view(-1, work.hidden)[positions]  # no padding, so no mask
        return functional.cross_entropy(model.cls(hidden), labels)

    def pruned_loss() -> torch.Tensor:
        hidden = model.bert.embeddings(ids)
        *layers, last = model.bert.encoder.layer
        for layer in layers:
            hidden = layer(hidden)
        attention = last.attention.self
        chosen = hidden.view(-1, work.hidden)[positions].view(work.batch, -1, work.hidden)  # (B, P, H)
        query, key, value = (
            projection(x).view(work.batch, -1, attention.num_attention_heads, 64).transpose(1, 2)
            for projection, x in ((attention.query, chosen), (attention.key, hidden), (attention.value, hidden))
        )
        context = functional.scaled_dot_product_attention(query, key, value, dropout_p=work.dropout)  # (B, A, P, 64)
        attended = last.attention.output(context.transpose(1, 2).reshape(chosen.shape), chosen)
        return functional.cross_entropy(model.cls(last.feed_forward_chunk(attended)).view(-1, work.vocabulary), labels)

    def plain_loss() -> torch.Tensor:
        return model(input_ids=ids, attention_mask=mask, labels=everywhere).loss

    pruned = work.party == "torch-pruned"
    loss_of = pruned_loss if pruned else masked_loss if hand_tuned else plain_loss
    if work.party.endswith("-compile"):
        loss_of = torch.compile(loss_of)

    losses = []

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=work.party == "torch-bfloat16"):
            loss = loss_of()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0, foreach=True if hand_tuned else None)
        optimizer.step()
        losses.append(loss.item())

    figures = timed(step, work.warmup, work.steps)
    figures["peak_bytes"] = peak_bytes()
    figures["product_gflop"] = work.product_flops(pruned=pruned) / 1e9
    figures["losses"] = losses
    figures["description"] = f"PyTorch {torch.__version__}, transformers {transformers.__version__}"
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
