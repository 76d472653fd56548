"""Log probabilities are Hugging Face's log_softmax, with drafts and without."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from tests.e2e import hugging_face
from tests.e2e.conftest import EngineFactory

PAIR = Path(__file__).parents[1] / "fixtures" / "trained_pair"
PROMPTS = [np.random.default_rng(n).integers(0, 40, n).tolist() for n in (1, 9, 27)]


@pytest.mark.slow
@pytest.mark.parametrize("draft", [True, False])
def test_log_softmax_of_hugging_face(engine: EngineFactory, draft: bool) -> None:
    """Of the trained pair, several of whose drafts are accepted in a step."""
    model = hugging_face.load_target(PAIR / "target")
    loaded = engine(PAIR / "target", PAIR / "drafter")
    answers = loaded.generate(
        PROMPTS, max_tokens=30, stop_token_ids=(), logprobs=3, draft=draft
    )
    assert any(max(answer.acceptance_lengths) > 1 for answer in answers) == draft
    for prompt, answer in zip(PROMPTS, answers, strict=True):
        with torch.no_grad():
            logits = model(torch.tensor([prompt + answer.token_ids])).logits[0].double()
        rows = torch.log_softmax(logits[len(prompt) - 1 : -1], -1).numpy()
        assert answer.logprobs is not None
        for row, one in zip(rows, answer.logprobs, strict=True):
            assert one.logprob == pytest.approx(row[one.token_id], abs=1e-4)
            expected = np.sort(row)[::-1][:3]
            np.testing.assert_allclose([value for _, value in one.top], expected, atol=1e-4)
            ids = [token for token, _ in one.top]
            np.testing.assert_allclose(row[ids], expected, atol=1e-4)
