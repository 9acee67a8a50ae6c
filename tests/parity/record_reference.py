"""Write tests/recordings/reference.safetensors: results of PyTorch, for machines without PyTorch.

Run `python tests/parity/record_reference.py` in the environment of `make test-parity`, after a change of the
BERT or the batch in tests/support/oracle.py. `tests/model/test_recorded_reference.py` reads the file.
"""

from __future__ import annotations

import sys
import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
import transformers
from safetensors.numpy import save_file

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))

from tests.parity.in_transformers import in_transformers  # noqa: E402 - needs the path above
from tests.support.oracle import INPUTS, ODD_SIZES, batch, fresh_classifier, fresh_model  # noqa: E402


def record_classifier(arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Return the parameters, logits, loss and gradients of a sequence classifier."""
    model = fresh_classifier(ODD_SIZES, "float64")
    with tempfile.TemporaryDirectory() as folder:
        theirs = in_transformers(model, Path(folder), "BertForSequenceClassification")
    inputs = {name: torch.from_numpy(arrays[name]) for name in INPUTS}
    outputs = theirs(**inputs, labels=torch.from_numpy(arrays["class_labels"]))
    outputs.loss.backward()
    results = {
        "loss": outputs.loss,
        "logits": outputs.logits,
        **{f"gradients.{name}": parameter.grad for name, parameter in theirs.named_parameters()},
    }
    recorded = {f"classifier.{name}": tensor.detach().numpy() for name, tensor in results.items()}
    return {**recorded, "classifier.parameters": np.array(model.parameters.flat)}


def main() -> None:
    """Record parameters and batch once, and the outputs for every activation."""
    arrays = batch(ODD_SIZES)
    recorded = {f"batch.{name}": array for name, array in arrays.items()}
    recorded["parameters"] = np.array(fresh_model(ODD_SIZES, "float64").parameters.flat)
    for activation in ("gelu", "gelu_new", "relu"):
        model = fresh_model(replace(ODD_SIZES, hidden_act=activation), "float64")
        with tempfile.TemporaryDirectory() as folder:
            theirs = in_transformers(model, Path(folder))
        outputs = theirs(
            **{name: torch.from_numpy(arrays[name]) for name in INPUTS},
            labels=torch.from_numpy(arrays["labels"]),
            next_sentence_label=torch.from_numpy(arrays["next_sentence_labels"]),
            output_hidden_states=True,
            output_attentions=True,
        )
        outputs.loss.backward()
        results = {
            "loss": outputs.loss,
            "logits": outputs.prediction_logits,
            "next_sentence_logits": outputs.seq_relationship_logits,
            "hidden_states": torch.stack(outputs.hidden_states),
            "attention_weights": torch.stack(outputs.attentions),
            **{f"gradients.{name}": parameter.grad for name, parameter in theirs.named_parameters()},
        }
        recorded |= {f"{activation}.{name}": tensor.detach().numpy() for name, tensor in results.items()}
    recorded |= record_classifier(arrays)
    path = ROOT / "tests" / "recordings" / "reference.safetensors"
    path.parent.mkdir(exist_ok=True)
    written_by = f"transformers {transformers.__version__}, torch {torch.__version__}"
    path.unlink(missing_ok=True)
    save_file({name: np.array(array, order="C") for name, array in recorded.items()}, path, {"by": written_by})
    print(f"{path}: {len(recorded)} arrays, {path.stat().st_size:,} bytes, by {written_by}")


if __name__ == "__main__":
    main()
