"""The options of `dflash-trt build`."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trtllm_dflash.errors import UsageError
from trtllm_dflash.hardware.archs import ARCHS, Arch
from trtllm_dflash.hardware.gpu_names import arch_named
from trtllm_dflash.options.checks import parse_integers, parse_json_object, typed_text
from trtllm_dflash.options.draft_len import AUTO, check_draft_len, parse_own_draft_len
from trtllm_dflash.options.fields import DTYPE_NAMES, check_fields, cli_option, option_name
from trtllm_dflash.options.resolved_build import MAX_SEQ_LEN, MAX_SLOTS, ResolvedBuild
from trtllm_dflash.options.shared import ALLOW_LINKS

if TYPE_CHECKING:
    from trtllm_dflash.models.base import TargetConfig
    from trtllm_dflash.models.drafter import DrafterConfig

DTYPE_BYTES = {"float32": 4, "bfloat16": 2}
FP8_CACHE = "fp8"
WEIGHT_ONLY = ("int8", "int4")
_DEFAULT_SEQ_LEN = 2048
_DEFAULT_NUM_TOKENS = 512


@dataclass(frozen=True)
class BuildConfig:
    """What to build; `resolve` replaces None and "auto" by values for the models.

    Raises:
        UsageError: for a value that no model could make right.
    """

    target: str = field(
        metadata=cli_option(
            "the target: a Hugging Face directory, a name of `dflash-trt list`, or a hub name",
            metavar="DIR|NAME",
        )
    )
    output_dir: Path = field(
        metadata=cli_option(
            "the engine directory to write [default: engines/TARGET-ARCH]",
            metavar="DIR",
            derived=True,
        )
    )
    drafter: str | None = field(
        default=None,
        metadata=cli_option(
            "its DFlash drafter: a directory or hub name [default: a listed target's own]",
            metavar="DIR|NAME",
        ),
    )
    arch: str = field(
        default="cpu",
        metadata=cli_option(
            f"what the engine runs on: {', '.join(ARCHS)}, or a GPU's name, as b200",
            metavar="ARCH|GPU",
            choices=tuple(ARCHS),
            parse=arch_named,
        ),
    )
    dtype: str = field(
        default="auto",
        metadata=cli_option(
            "type of weights and caches; auto: float32 on cpu, bfloat16 on sm*",
            choices=("auto", *DTYPE_BYTES),
            other_values=DTYPE_NAMES,
        ),
    )
    kv_cache_dtype: str = field(
        default="auto",
        metadata=cli_option(
            "type of the target's caches; auto: fp8 where its checkpoint says so, else --dtype",
            choices=("auto", FP8_CACHE, *DTYPE_BYTES),
            other_values=DTYPE_NAMES,
        ),
    )
    weight_only_precision: str | None = field(
        default=None,
        metadata=cli_option(
            "make integers of the weights, by block, for quick products on cpu [default: as they"
            " are]",
            choices=WEIGHT_ONLY,
        ),
    )
    max_batch_size: int = field(
        default=1,
        metadata=cli_option("sequences that generate together", low=1, high=MAX_SLOTS),
    )
    max_seq_len: int | None = field(
        default=None,
        metadata=cli_option(
            "tokens of prompt and answer together [default: the target's own, up to"
            f" {_DEFAULT_SEQ_LEN}]",
            low=2,
            high=MAX_SEQ_LEN,
        ),
    )
    max_input_len: int | None = field(
        default=None,
        metadata=cli_option("tokens of the longest prompt [default: max-seq-len - 1]", low=1),
    )
    max_num_tokens: int | None = field(
        default=None,
        metadata=cli_option(
            "tokens of the widest step; longer prompts are split into chunks of it"
            f" [default: up to {_DEFAULT_NUM_TOKENS}]",
            low=1,
        ),
    )
    block_size: int | None = field(
        default=None,
        metadata=cli_option(
            "tokens of a block: anchor and drafts [default: as the drafter was trained]", low=2
        ),
    )
    draft_len: int | str | None = field(
        default=None,
        metadata=cli_option(
            "drafts verified in a step where a request does not say; auto: as many as pay"
            f" [default: {AUTO}]",
            metavar="INTEGER|auto",
            parse=parse_own_draft_len,
        ),
    )
    draft_vocab: str | None = field(
        default=None,
        metadata=cli_option(
            "JSON list of the token ids that may be drafted: drafting reads only their rows of"
            " the head",
            metavar="FILE",
        ),
    )
    timing_cache: str | None = field(
        default=None,
        metadata=cli_option(
            "file of tactic timings to reuse and extend (sm90, sm100, sm103) [default: none]",
            metavar="FILE",
        ),
    )
    plugins: bool | None = field(
        default=None,
        metadata=cli_option(
            "the CUDA kernels of dflash-trt, or the operators' ONNX bodies as TensorRT compiles"
            " them [default: plugins on sm*]"
        ),
    )

    allow_links: bool = field(default=False, metadata=ALLOW_LINKS)

    chat_template_kwargs: str | None = field(
        default=None,
        metadata=cli_option(
            "options of the chat template for all chats that give no others [default: as a"
            " published drafter was trained]",
            metavar="JSON",
            parse=typed_text,
        ),
    )
    eos_token_ids: str | None = field(
        default=None,
        metadata=cli_option(
            "token ids that end an answer, with commas between [default: those of the"
            " checkpoint's configuration, else the tokenizer's eos_token]",
            metavar="IDS",
        ),
    )
    gather_generation_logits: bool | None = field(
        default=None,
        metadata=cli_option(
            "make the logits an output, so that `logprobs` can be asked for; on a GPU they take"
            " memory in every slot [default: on cpu]"
        ),
    )

    def __post_init__(self) -> None:
        """Check everything that can be judged without the models."""
        check_fields(self)
        check_draft_len(self.draft_len, low=1, name="--draft-len")
        _ = self.template_options, self.stop_token_ids
        self._check_dtypes(ARCHS[self.arch])
        if self.plugins and not ARCHS[self.arch].is_gpu:
            raise UsageError(
                f"--plugins are CUDA kernels, and --arch {self.arch} is no GPU; leave the"
                " option out"
            )
        if self.weight_only_precision and ARCHS[self.arch].is_gpu:
            raise UsageError(
                f"--weight-only-precision {self.weight_only_precision} is for --arch cpu:"
                f" {ARCHS[self.arch].backend} has no product for its blocks. For --arch"
                f" {self.arch}, `dflash-trt quantize` makes a checkpoint in a format of GPUs"
            )
        if self.timing_cache and ARCHS[self.arch].backend != "tensorrt":
            raise UsageError(
                "--timing-cache is for TensorRT, and nothing is timed in a build for"
                f" --arch {self.arch}"
            )
        if self.drafter is None:
            for name in ("block_size", "draft_len", "draft_vocab"):
                if getattr(self, name) is not None:
                    raise UsageError(
                        f"{option_name(name)} is about drafts: it needs a drafter, and this"
                        " build has none"
                    )

    @property
    def template_options(self) -> dict[str, Any] | None:
        """Return the options of the chat template, None where none were given."""
        if self.chat_template_kwargs is None:
            return None
        return parse_json_object("--chat-template-kwargs", self.chat_template_kwargs)

    @property
    def stop_token_ids(self) -> tuple[int, ...] | None:
        """Return the stop tokens, None where none were given."""
        if self.eos_token_ids is None:
            return None
        return parse_integers("--eos-token-ids", self.eos_token_ids)

    @property
    def with_plugins(self) -> bool:
        """Return `plugins`, or its default for the arch."""
        return ARCHS[self.arch].is_gpu if self.plugins is None else self.plugins

    @property
    def with_logits(self) -> bool:
        """Return `gather_generation_logits`, or its default for the arch."""
        asked = self.gather_generation_logits
        return not ARCHS[self.arch].is_gpu if asked is None else asked

    def _check_dtypes(self, arch: Arch) -> None:
        """Raise UsageError for a plain dtype that the arch does not compute with."""
        for name in ("dtype", "kv_cache_dtype"):
            value = getattr(self, name)
            if value in DTYPE_BYTES and value not in arch.dtypes:
                raise UsageError(
                    f"{option_name(name)} {value} cannot be built for --arch {arch.name}:"
                    f" {arch.backend} runs this graph in {' or '.join(arch.dtypes)} there"
                )

    def resolve(self, target: TargetConfig, drafter: DrafterConfig | None) -> ResolvedBuild:
        """Return every size, checked against the models.

        Raises:
            UsageError: for a size that this target or drafter cannot have.
        """
        block_size = self._block_size(drafter)
        max_seq_len = self.max_seq_len or min(_DEFAULT_SEQ_LEN, target.longest_context)
        max_input_len = self.max_input_len or max_seq_len - 1
        auto = drafter is not None and self.draft_len in (None, AUTO)
        default_num_tokens = max(min(_DEFAULT_NUM_TOKENS, max_input_len), block_size)
        resolved = ResolvedBuild(
            gpu_arch=self.arch,
            backend=ARCHS[self.arch].backend,
            dtype=ARCHS[self.arch].dtypes[0] if self.dtype == "auto" else self.dtype,
            max_batch_size=self.max_batch_size,
            max_input_len=max_input_len,
            max_seq_len=max_seq_len,
            max_num_tokens=self.max_num_tokens or default_num_tokens,
            block_size=block_size,
            draft_len=block_size - 1 if self.draft_len in (None, AUTO) else int(self.draft_len),
            auto_draft_len=auto,
            plugins=self.with_plugins,
            gather_generation_logits=self.with_logits,
            weight_only_precision=self.weight_only_precision,
        )
        resolved.check_against(target)
        return resolved

    def _block_size(self, drafter: DrafterConfig | None) -> int:
        if drafter is None:
            return 1
        if self.block_size is None:
            return drafter.block_size
        if self.block_size > drafter.block_size:
            raise UsageError(
                f"--block-size {self.block_size} is more than the {drafter.block_size} that the"
                " drafter was trained with: it has not learned to draft at later positions"
            )
        return self.block_size
