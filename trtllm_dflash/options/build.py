"""What a build is asked for, and the numbers it resolves to for a given target and drafter."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trtllm_dflash.errors import UsageError
from trtllm_dflash.hardware.archs import ARCHS, Arch
from trtllm_dflash.options.fields import check_fields, cli_option, option_name

if TYPE_CHECKING:
    from trtllm_dflash.models.base import TargetConfig
    from trtllm_dflash.models.drafter import DrafterConfig

DTYPE_BYTES = {"float32": 4, "bfloat16": 2}
FP8_CACHE = "fp8"
_DEFAULT_SEQ_LEN = 2048
_DEFAULT_NUM_TOKENS = 512
_CACHE_ALIGNMENT = 64


@dataclass(frozen=True)
class BuildConfig:
    """What the user asks of a build; `None` and "auto" are resolved against the models by
    `resolve`.

    Raises:
        UsageError: for a value that no model could make right.
    """

    target: str = field(
        metadata=cli_option(
            "the target: a Hugging Face directory, a name of `dflash-trt list`, or a hub name",
            metavar="DIR|NAME",
        )
    )
    output_dir: Path = field(metadata=cli_option("the engine directory to write", metavar="DIR"))
    drafter: str | None = field(
        default=None,
        metadata=cli_option(
            "its DFlash drafter: a directory or hub name [default: a listed target's own]",
            metavar="DIR|NAME",
        ),
    )
    arch: str = field(
        default="cpu", metadata=cli_option("what the engine runs on", choices=tuple(ARCHS))
    )
    dtype: str = field(
        default="auto",
        metadata=cli_option(
            "type of weights and caches; auto: float32 on cpu, bfloat16 on sm*",
            choices=("auto", *DTYPE_BYTES),
        ),
    )
    kv_cache_dtype: str = field(
        default="auto",
        metadata=cli_option(
            "type of the target's caches; auto: fp8 where its checkpoint says so, else --dtype",
            choices=("auto", FP8_CACHE, *DTYPE_BYTES),
        ),
    )
    max_batch_size: int = field(
        default=1, metadata=cli_option("slots that generate together", low=1)
    )
    max_seq_len: int | None = field(
        default=None,
        metadata=cli_option(
            "tokens of prompt and answer together [default: the target's own, up to"
            f" {_DEFAULT_SEQ_LEN}]",
            low=2,
        ),
    )
    max_input_len: int | None = field(
        default=None,
        metadata=cli_option("tokens of the longest prompt [default: max-seq-len - 1]", low=1),
    )
    max_num_tokens: int | None = field(
        default=None,
        metadata=cli_option(
            f"widest step: longer prompts go in chunks of it [default: up to {_DEFAULT_NUM_TOKENS}]",
            low=1,
        ),
    )
    block_size: int | None = field(
        default=None,
        metadata=cli_option(
            "anchor and drafts of a step [default: what the drafter was trained with]", low=2
        ),
    )
    draft_len: int | None = field(
        default=None,
        metadata=cli_option(
            "drafts that `run` verifies in a step by default [default: block-size - 1]",
            low=1,
        ),
    )
    draft_vocab: str | None = field(
        default=None,
        metadata=cli_option(
            "JSON list of the token ids that may be drafted: drafting then reads only their rows of"
            " the head",
            metavar="FILE",
        ),
    )
    timing_cache: str | None = field(
        default=None,
        metadata=cli_option(
            "tactics' timings to start from and to add to (sm90, sm100, sm103) [default: none]",
            metavar="FILE",
        ),
    )
    plugins: bool | None = field(
        default=None,
        metadata=cli_option(
            "our CUDA kernels in the engine, or the operators' bodies as the compiler makes them"
            " [default: plugins on sm*]"
        ),
    )

    def __post_init__(self) -> None:
        """Check everything that can be judged without the models."""
        check_fields(self)
        self._check_dtypes(ARCHS[self.arch])
        if self.plugins and not ARCHS[self.arch].is_gpu:
            raise UsageError(
                f"--plugins are CUDA kernels, and --arch {self.arch} is no GPU; leave the"
                " option out"
            )
        if self.timing_cache and ARCHS[self.arch].backend != "tensorrt":
            raise UsageError(
                "--timing-cache is for TensorRT, and nothing is timed in a build for --arch"
                f" {self.arch}"
            )
        if self.drafter is None:
            for name in ("block_size", "draft_len", "draft_vocab"):
                if getattr(self, name) is not None:
                    raise UsageError(
                        f"{option_name(name)} is about drafts: it needs a drafter, and this build has none"
                    )

    @property
    def with_plugins(self) -> bool:
        """`plugins`, with its default for the arch."""
        return ARCHS[self.arch].is_gpu if self.plugins is None else self.plugins

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
        """Every size as a number, checked against the models.

        Raises:
            UsageError: for a size that this target or drafter cannot have.
        """
        block_size = self._block_size(drafter)
        max_seq_len = self.max_seq_len or min(_DEFAULT_SEQ_LEN, target.max_position_embeddings)
        max_input_len = self.max_input_len or max_seq_len - 1
        resolved = ResolvedBuild(
            gpu_arch=self.arch,
            backend=ARCHS[self.arch].backend,
            dtype=ARCHS[self.arch].dtypes[0] if self.dtype == "auto" else self.dtype,
            max_batch_size=self.max_batch_size,
            max_input_len=max_input_len,
            max_seq_len=max_seq_len,
            max_num_tokens=self.max_num_tokens
            or max(min(_DEFAULT_NUM_TOKENS, max_input_len), block_size),
            block_size=block_size,
            draft_len=block_size - 1 if self.draft_len is None else self.draft_len,
            plugins=self.with_plugins,
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
                " drafter was trained with: its later drafts would be guesses of an untrained"
                " position"
            )
        return self.block_size


@dataclass(frozen=True)
class ResolvedBuild:
    """The sizes an engine is built with; a plain engine has block_size 1 and draft_len 0."""

    gpu_arch: str  # a key of ARCHS: "cpu" too
    backend: str
    dtype: str
    max_batch_size: int
    max_input_len: int
    max_seq_len: int
    max_num_tokens: int
    block_size: int
    draft_len: int
    plugins: bool

    @property
    def cache_len(self) -> int:
        """Rows of a cache of all positions: the sequence, and room for what steps write behind its
        end.

        The step that ends a sequence may begin at its last token but one. It writes a block of
        tokens to verify and, in the drafter's caches, the next block behind those: two blocks. A
        session that looks ahead has one more step under way by then, which begins up to a block
        later: three.
        """
        needed = self.max_seq_len + 3 * self.block_size
        return -(-needed // _CACHE_ALIGNMENT) * _CACHE_ALIGNMENT

    @property
    def ring_width(self) -> int | None:
        """The widest step that a ring of a windowed layer must hold (`engine_dir.ring_cache`); None: no layer
        has a ring.

        A compiler without our kernels has only full caches: TensorRT-RTX 1.7 takes no circular
        TensorScatter.
        """
        return self.max_num_tokens if self.plugins or not ARCHS[self.gpu_arch].is_gpu else None

    def check_against(self, target: TargetConfig) -> None:
        """Raise UsageError, naming both values, where two sizes contradict each other."""
        limits = (
            (
                "max_seq_len",
                target.max_position_embeddings,
                "the target's max_position_embeddings: it was never trained further",
            ),
            (
                "max_input_len",
                self.max_seq_len - 1,
                "max-seq-len - 1: a prompt must leave room for one token",
            ),
            (
                "max_num_tokens",
                self.max_seq_len,
                "max-seq-len: no step can be wider than a sequence",
            ),
            (
                "draft_len",
                self.block_size - 1,
                "block-size - 1: the block's first token is the anchor",
            ),
        )
        for name, limit, reason in limits:
            value = getattr(self, name)
            if value > limit:
                raise UsageError(f"{option_name(name)} {value} is more than {limit}, {reason}")
        if self.max_num_tokens < self.block_size:
            raise UsageError(
                f"--max-num-tokens {self.max_num_tokens} is less than the block of"
                f" {self.block_size} tokens that one step verifies"
            )

    def to_json(self) -> dict[str, Any]:
        """The `build_config` section of the engine's config.json."""
        return {**asdict(self), "cache_len": self.cache_len}
