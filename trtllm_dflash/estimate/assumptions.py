"""What the figures of an estimate rest on, in words."""

from __future__ import annotations

from pathlib import Path

from jinja2 import Environment, StrictUndefined

from trtllm_dflash.estimate.models import source_of
from trtllm_dflash.estimate.pair import ModelPair
from trtllm_dflash.estimate.roofline import Roofline
from trtllm_dflash.options.estimate import EstimateConfig

TEMPLATE = Path(__file__).with_name("assumptions.j2")


def list_assumptions(
    config: EstimateConfig, pair: ModelPair, roofline: Roofline, acceptance_source: str
) -> list[str]:
    """Return one line for each assumption, with its value and reason."""
    counts = pair.format_counts()
    environment = Environment(
        undefined=StrictUndefined, autoescape=False, trim_blocks=True, lstrip_blocks=True
    )
    text = environment.from_string(TEMPLATE.read_text(encoding="utf-8")).render(
        config=config,
        draft_len=pair.drafter.config.block_size - 1,
        acceptance_source=acceptance_source,
        target_source=source_of(pair.target),
        drafter_source=source_of(pair.drafter),
        formats=pair.usual_formats(),
        kv_cache=pair.formats.kv_cache,
        exceptions=sum(each.total() - max(each.values(), default=0) for each in counts.values()),
        gpu=roofline.gpu,
        runtime=roofline.runtime,
        constants=roofline.constants.rows(),
        moe=pair.target.config.moe,
    )
    return text.splitlines()
