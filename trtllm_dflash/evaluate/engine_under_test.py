"""An engine to evaluate: an intact directory of a CPU engine, with a tokenizer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trtllm_dflash.engine_dir import manifest
from trtllm_dflash.engine_dir.config import EngineConfig
from trtllm_dflash.engine_dir.files import CONFIG_FILE, TOKENIZER_FILE
from trtllm_dflash.errors import EngineError, UsageError
from trtllm_dflash.models.hf_config import parse_json
from trtllm_dflash.runtime.engine import check_engine
from trtllm_dflash.runtime.text.chat_format import ChatFormat, PromptContent
from trtllm_dflash.runtime.text.tokenizer import Tokenizer

AS_THEY_ARE = ChatFormat(chat=False)
_FACTS = ("created", "arch", "backend", "argv", "versions", "graph", "weights")


@dataclass(frozen=True)
class EvaluatedEngine:
    """An engine directory whose graph can be inspected."""

    directory: Path
    config: EngineConfig
    tokenizer: Tokenizer | None

    @classmethod
    def open(cls, directory: Path) -> EvaluatedEngine:
        """Check a directory.

        Raises:
            EngineError: for one that is damaged, or not a float32 engine for the CPU.
        """
        config = check_engine(directory)
        if config.backend != "onnxruntime" or config.dtype != "float32":
            raise EngineError(
                f"{directory}: this engine was built with {config.backend} for {config.gpu_arch} in"
                f" {config.dtype}, and only the float32 graph of a CPU engine shows its logits and"
                " linears. Build one of the same checkpoints with --arch cpu: it computes with the"
                " same quantized weights."
            )
        return cls(directory, config, Tokenizer.of_engine(directory, config))

    def encode(
        self, content: PromptContent, chat_format: ChatFormat = AS_THEY_ARE
    ) -> list[int]:
        """Return the token ids of a text or a conversation, put in a format.

        Raises:
            UsageError: without a tokenizer, or for messages that the template does not take.
        """
        if self.tokenizer is None:
            raise UsageError(
                f"{self.directory}: this engine has no {TOKENIZER_FILE}, so it cannot read text. "
                "Build it from a checkpoint with its tokenizer files."
            )
        return chat_format.encode(content, self.tokenizer)

    @property
    def weights(self) -> str:
        """Return the quantization of the target's weights, or else the engine's type."""
        precision = self.config.weight_only_precision
        return precision or self._algorithm("pretrained_config", "quant_algo")

    @property
    def drafter(self) -> str | None:
        """Return the same for the drafter's weights; None without a drafter."""
        if not self.config.speculates:
            return None
        return self.config.weight_only_precision or self._algorithm("dflash", "quant_algo")

    @property
    def kv_caches(self) -> str:
        """Return the type that the target's KV caches are rounded to."""
        return self._algorithm("pretrained_config", "kv_cache_quant_algo")

    def facts(self) -> dict[str, Any]:
        """Return the facts of the engine's build."""
        built: Mapping[str, Any] = manifest.load(self.directory)
        facts = {name: built.get(name) for name in _FACTS}
        quantization = self._section("pretrained_config").get("quantization")
        return facts | {"quantization": quantization, "draft_len": self.config.draft_len}

    def _algorithm(self, section: str, key: str) -> str:
        """Return a quantization algorithm of config.json, or else the engine's type."""
        quantization = self._section(section).get("quantization")
        algorithm = quantization.get(key) if isinstance(quantization, dict) else None
        return str(algorithm or self.config.dtype)

    def _section(self, name: str) -> dict[str, Any]:
        """Return a section of config.json."""
        path = self.directory / CONFIG_FILE
        found: dict[str, Any] = parse_json(path.read_bytes(), str(path))[name]
        return found


def check_same_vocabulary(
    ours: EvaluatedEngine,
    other: EvaluatedEngine,
    texts: Sequence[tuple[PromptContent, list[int]]],
    chat_format: ChatFormat = AS_THEY_ARE,
) -> None:
    """Check that token ids have the same meaning in both engines.

    `texts` are some texts with the ids that `ours` gives them. An engine without a tokenizer is
    taken to have the other's.

    Raises:
        UsageError: if the vocabularies differ.
    """
    sizes = ours.config.vocab_size, other.config.vocab_size
    if sizes[0] != sizes[1]:
        raise UsageError(
            f"{ours.directory} has a vocabulary of {sizes[0]} tokens and {other.directory} one of"
            f" {sizes[1]}: their predictions cannot be compared. Give --against an engine of the"
            " same target."
        )
    if other.tokenizer is None:
        return
    for text, token_ids in texts:
        if other.encode(text, chat_format) != token_ids:
            raise UsageError(
                f"{ours.directory} and {other.directory} have different tokenizers: they make"
                f" different tokens of {str(text)[:40]!r}. Give --against an engine of the same"
                " target."
            )
