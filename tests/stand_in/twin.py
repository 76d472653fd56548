"""A CPU engine that rounds where our kernels read and write bfloat16, and nowhere else."""

from __future__ import annotations

import hashlib
import json
import pickle
import shutil
from pathlib import Path

import onnx
from onnx import FunctionProto, NodeProto, TensorProto, helper

from tests.stand_in.small_builder import SmallPlan
from trtllm_dflash.engine_dir.files import ENGINE_FILE, MODEL_FILE
from trtllm_dflash.graph.builder import OPS_DOMAIN
from trtllm_dflash.graph.ops import BLOCK_LINEAR, MOE, OPS
from trtllm_dflash.graph.ops.spec import OpSpec

_LINEAR = f"/{BLOCK_LINEAR.name}"


def make_twin(cpu: Path, gpu: Path, directory: Path) -> Path:
    """Copy a CPU engine; there its operators' inputs and results of type T are rounded.

    So are those of its linears that are operators of ours in the GPU's engine.
    """
    shutil.copytree(cpu, directory)
    path = directory / MODEL_FILE
    model = onnx.load(str(path), load_external_data=False)
    plan: SmallPlan = pickle.loads((gpu / ENGINE_FILE).read_bytes())
    linears = {path.rpartition("/")[0] for path in plan.plugins if path.endswith(_LINEAR)}
    nodes = []
    for node in model.graph.node:
        is_linear = node.op_type == "Gemm" and node.name.rpartition("/")[0] in linears
        nodes += _rounding(node, BLOCK_LINEAR if is_linear else None)
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    for function in model.functions:
        if function.name == MOE.name:
            _round_inner(function)
    del model.graph.value_info[:]
    onnx.save(model, str(path))
    manifest = json.loads((directory / "manifest.json").read_text())
    data = path.read_bytes()
    entry = {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    manifest["files"][MODEL_FILE] = entry
    (directory / "manifest.json").write_text(json.dumps(manifest))
    return directory


def _rounding(node: NodeProto, spec: OpSpec | None) -> list[NodeProto]:
    spec = OPS.get(node.op_type) if node.domain == OPS_DOMAIN else spec
    if spec is None or spec.kernel.dtype != "bfloat16":
        return [node]
    in_place = {tensor.aliases for tensor in spec.outputs}
    before, after = [], []
    for index, (name, tensor) in enumerate(zip(node.input, spec.inputs, strict=False)):
        if name and tensor.dtype == "T" and tensor.name not in in_place:
            node.input[index] = f"{node.name} rounded {index}"
            before += _rounded(name, node.input[index])
    for index, (name, tensor) in enumerate(zip(node.output, spec.outputs, strict=True)):
        if name and tensor.dtype == "T" and not tensor.aliases:
            node.output[index] = f"{node.name} raw {index}"
            after += _rounded(node.output[index], name)
    return [*before, node, *after]


def _round_inner(function: FunctionProto) -> None:
    """Round what the experts' second product reads: DFlashMoE's kernel keeps it in bfloat16."""
    place = max(i for i, node in enumerate(function.node) if node.op_type == "MatMul")
    product = function.node[place]
    inner, product.input[1] = product.input[1], "inner rounded"
    nodes = [*function.node[:place], *_rounded(inner, product.input[1]), *function.node[place:]]
    del function.node[:]
    function.node.extend(nodes)


def _rounded(name: str, to: str) -> list[NodeProto]:
    between = f"{to} in bfloat16"
    return [
        helper.make_node("Cast", [name], [between], to=TensorProto.BFLOAT16),
        helper.make_node("Cast", [between], [to], to=TensorProto.FLOAT),
    ]
