"""ModelOpt's own export of a target, and its fake-quantized forward with the exported scales.

Nothing here uses our quantization, which is compared with it.
"""

from __future__ import annotations

import contextlib
import copy
import io
import shutil
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from trtllm_dflash.quantize import nvfp4_cpu

FORMATS = {
    "fp8": "FP8_DEFAULT_CFG",
    "nvfp4": "NVFP4_DEFAULT_CFG",
    "w4a16_nvfp4": "W4A16_NVFP4_CFG",
}


def calibration_ids(vocab_size: int, seed: int = 0) -> list[torch.Tensor]:
    """Return a few sequences of random tokens, int64 [1, length]."""
    generator = torch.Generator().manual_seed(seed)
    return [
        torch.randint(0, vocab_size, (1, length), generator=generator)
        for length in (17, 23, 31)
    ]


def quantized_model(
    target: Path,
    form: str,
    kv_cache_dtype: str | None = None,
    ids: Sequence[torch.Tensor] | None = None,
) -> Any:
    """Calibrate the target under ModelOpt's quantizers, scales shared as the export shares them.

    `form` "none" leaves the linears alone; `kv_cache_dtype` "fp8_cast" is that of the recipes
    *-kv_fp8_cast.

    Calling it is ModelOpt's fake-quantized forward.
    """
    import modelopt.torch.quantization as mtq
    from modelopt.torch.export.unified_export_hf import requantize_resmooth_fused_llm_layers
    from transformers import AutoModelForCausalLM

    torch.set_num_threads(1)
    nvfp4_cpu.install()
    nothing = {"quant_cfg": [{"quantizer_name": "*", "enable": False}], "algorithm": "max"}
    config = copy.deepcopy(getattr(mtq, FORMATS[form])) if form in FORMATS else nothing
    with quiet():
        model = AutoModelForCausalLM.from_pretrained(target, dtype="auto").eval()
        if kv_cache_dtype is not None:
            kv_cache = copy.deepcopy(mtq.FP8_KV_CFG["quant_cfg"])
            for entry in kv_cache:
                entry["cfg"]["use_constant_amax"] = kv_cache_dtype == "fp8_cast"
            config = mtq.utils.update_quant_cfg_with_kv_cache_quant(config, kv_cache)
        sequences = calibration_ids(model.config.vocab_size) if ids is None else ids

        def calibrate(model: Any) -> None:
            for sequence in sequences:
                model(sequence)

        with torch.no_grad():
            mtq.quantize(model, config, calibrate)
            requantize_resmooth_fused_llm_layers(model)
    return model


def export(model: Any, target: Path, directory: Path) -> Path:
    """Write ModelOpt's checkpoint of a quantized model (which it alters) with the target's
    tokenizer files.
    """
    from modelopt.torch.export import export_hf_checkpoint

    with quiet(), torch.no_grad():
        export_hf_checkpoint(model, export_dir=directory)
    for file in target.glob("tokenizer*"):
        shutil.copyfile(file, directory / file.name)
    return directory


@contextlib.contextmanager
def quiet() -> Any:
    """ModelOpt and transformers print, warn and draw bars."""
    with (
        warnings.catch_warnings(),
        contextlib.redirect_stdout(io.StringIO()),
        contextlib.redirect_stderr(io.StringIO()),
    ):
        warnings.simplefilter("ignore")
        yield
