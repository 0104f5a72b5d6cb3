"""ONNX Runtime and OpenVINO, which run the PyTorch model as an ONNX file (inference only).

    python bench/system_onnx.py WORKLOAD_JSON WEIGHTS.npz MODEL.onnx

exports the file, in a process of its own so that the one which is measured does not hold PyTorch.
"""

from __future__ import annotations

import sys
from typing import Any

import numpy as np
from systems import Job, Running
from workloads import BFLOAT16, FLOAT32, Workload


def prepare(job: Job, runtime: str) -> Running:
    return {"onnxruntime": onnxruntime, "openvino": openvino}[runtime](job)


def onnxruntime(job: Job) -> Running:
    """All graph optimisations, which is the default; the threads wait in a loop between the steps."""
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_ALL
    options.intra_op_num_threads, options.inter_op_num_threads = job.threads, 1
    session = ort.InferenceSession(str(job.model), options, providers=["CPUExecutionProvider"])
    return Running(lambda: session.run(None, job.inputs)[0])


def openvino(job: Job) -> Running:
    import openvino as ov

    core = ov.Core()
    settings: dict[str, Any] = {
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_PRECISION_HINT": {FLOAT32: "f32", BFLOAT16: "bf16"}[job.workload.precision],
        "INFERENCE_NUM_THREADS": job.threads,
        "CACHE_DIR": str(job.folder / "openvino"),
    }
    request = core.compile_model(core.read_model(job.model), "CPU", settings).create_infer_request()
    inputs = {name: ov.Tensor(array, shared_memory=True) for name, array in job.inputs.items()}
    for name, tensor in inputs.items():
        request.set_tensor(name, tensor)

    def step() -> np.ndarray:
        request.infer()
        return request.get_output_tensor(0).data

    return Running(step)


def export(work: Workload, weights: str, path: str) -> None:
    import system_torch
    import torch

    with np.load(weights) as arrays:
        net = system_torch.model(work, arrays).eval().to(memory_format=torch.contiguous_format)
    inputs, _ = work.data("infer")
    arguments = tuple(map(torch.from_numpy, inputs.values()))
    with torch.no_grad():
        torch.onnx.export(net, arguments, path, input_names=list(inputs), dynamo=True, external_data=False)


if __name__ == "__main__":
    export(Workload.from_json(sys.argv[1]), *sys.argv[2:])
