"""Our operators on the current GPU, without TensorRT: the launches that their plugins make."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

from trtllm_dflash.graph.kernel_specs import KernelVariant
from trtllm_dflash.graph.ops import OPS
from trtllm_dflash.graph.plugin_nodes import kernel_variant
from trtllm_dflash.hardware.cuda_module import Launch
from trtllm_dflash.trt_plugins.call import Call
from trtllm_dflash.trt_plugins.launch_config import OPERATIONS
from trtllm_dflash.trt_plugins.shapes import check_shapes


class Module(Protocol):
    """Where kernels are launched: a `CudaModule`, or the emulator in tests."""

    processors: int
    processor_shared_bytes: int

    def launch(self, launches: Sequence[Launch], stream: int) -> None:
        """Put launches on a stream."""


Load = Callable[[KernelVariant, Sequence[str]], Module]


class Operator:
    """An operator with the fields of its plugin: shapes and addresses in, launches out."""

    def __init__(self, name: str, fields: Mapping[str, int | float], load: Load) -> None:
        """`load` returns a module with the kernels of these names."""
        self.spec = OPS[name]
        self.fields = dict(fields)
        self._sizes = {key: size for key, size in fields.items() if isinstance(size, int)}
        self._operation = OPERATIONS[self.spec.kernel.source]
        variant = kernel_variant(self.spec, self._sizes)
        self._module = load(variant, self._operation.kernels(variant))

    def workspace_bytes(self, dims: Mapping[str, Sequence[int]]) -> int:
        """Return the bytes of workspace for tensors of these shapes."""
        check_shapes(self.spec, dims, self._sizes)
        return self._operation.workspace_bytes(dims, self.fields)

    def launch(
        self,
        dims: Mapping[str, Sequence[int]],
        addresses: Mapping[str, int],
        workspace: int,
        stream: int,
    ) -> None:
        """Put one use on a stream; tensors are by name, those written in place by their input's."""
        module = self._module
        processors = module.processors, module.processor_shared_bytes
        call = Call(dims, addresses, self.fields, workspace, *processors)
        module.launch(self._operation.launches(call), stream)
