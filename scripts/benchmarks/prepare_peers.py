"""Write the model files that onnxruntime and OpenVINO read: the model as ONNX, and its quantized copies.

`benchmarks.throughput` and `benchmarks.cold_start` run this module in the interpreter that has PyTorch, with a job's
file and the parties that need files. The files are float32.onnx, int8.onnx (onnxruntime's) and int8.xml (OpenVINO's).
"""

from __future__ import annotations

import os
import sys
import warnings
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.throughput import Job
from benchmarks.worker_throughput import load_tokenizer


def main() -> None:
    """Write the files that the parties on the command line need, and print an empty JSON object."""
    job, parties = Job.read(sys.argv[1]), sys.argv[2:]
    warnings.simplefilter("ignore")
    files = Path(job.files)
    write_onnx(job.model, files / "float32.onnx")
    if "onnxruntime-int8" in parties:
        from onnxruntime.quantization import QuantType, quantize_dynamic

        quantize_dynamic(files / "float32.onnx", files / "int8.onnx", per_channel=True, weight_type=QuantType.QInt8)
    if "openvino-int8" in parties:
        write_openvino_int8(job)
    print("{}")


def write_onnx(folder: str, path: Path) -> None:
    """Write transformers' model as ONNX, for any batch and length.

    PyTorch's older exporter is used, and attention is written out in single operations. The files of the newer exporter
    are slower in onnxruntime and OpenVINO. Those with PyTorch's fused attention are slower in onnxruntime's int8, and
    less accurate in OpenVINO's.
    """
    import torch
    from transformers import AutoModel

    model = AutoModel.from_pretrained(folder, attn_implementation="eager").eval()

    class LastHiddenState(torch.nn.Module):
        """The model with one output."""

        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def forward(self, input_ids: Any, attention_mask: Any) -> Any:
            return self.model(input_ids, attention_mask).last_hidden_state

    ids = torch.ones((2, 16), dtype=torch.int64)
    torch.onnx.export(
        LastHiddenState(),
        (ids, torch.ones_like(ids)),
        str(path),
        input_names=["input_ids", "attention_mask"],
        output_names=["last_hidden_state"],
        dynamic_axes={name: {0: "batch", 1: "sequence"} for name in ("input_ids", "attention_mask")},
        dynamo=False,
    )


def write_openvino_int8(job: Job) -> None:
    """Quantize the weights and activations of the ONNX model with nncf, after calibration, for OpenVINO."""
    os.environ["NNCF_CI"] = "1"  # otherwise nncf sends usage data over the network
    import nncf
    import openvino

    def inputs(ids: list[int]) -> dict[str, np.ndarray]:
        array = np.array([ids], np.int64)
        return {"input_ids": array, "attention_mask": np.ones_like(array)}

    model = openvino.Core().read_model(str(Path(job.files) / "float32.onnx"))
    quantized = nncf.quantize(
        model,
        nncf.Dataset(load_tokenizer(job)(job.calibration), inputs),
        model_type=nncf.ModelType.TRANSFORMER,
        subset_size=len(job.calibration),
    )
    openvino.save_model(quantized, str(Path(job.files) / "int8.xml"))


if __name__ == "__main__":
    main()
