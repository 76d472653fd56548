"""schemathesis sends what the OpenAPI page allows and what it forbids; the page is kept to."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given, settings

from tests.http_server.conftest import MakeEngine
from tests.http_server.running import Running
from trtllm_dflash.http_server.wire import MAX_MODEL_NAME

schemathesis = pytest.importorskip("schemathesis")
from schemathesis import GenerationMode
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    negative_data_rejection,
    response_schema_conformance,
    status_code_conformance,
)

CHECKS = [
    schemathesis.checks.not_a_server_error,
    content_type_conformance,
    negative_data_rejection,
    response_schema_conformance,
    status_code_conformance,
]
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def api(byte_engine: MakeEngine) -> Iterator[Any]:
    with Running({"tiny": byte_engine()}) as server:
        yield schemathesis.openapi.from_url(f"{server.url}/openapi.json")


@pytest.mark.parametrize("mode", list(GenerationMode))
def test_the_page_is_kept_to(api: Any, mode: GenerationMode) -> None:
    labels = []
    for result in api.get_all_operations():
        operation = result.ok()
        labels.append(operation.label)
        cases = operation.as_strategy(generation_mode=mode)

        @settings(max_examples=40)
        @given(case=cases)
        def ask(case: Any) -> None:
            model = case.body.get("model") if isinstance(case.body, dict) else None
            if isinstance(model, str) and len(model) <= MAX_MODEL_NAME:
                case.body["model"] = "tiny"  # nobody guesses it
            case.call_and_validate(checks=CHECKS)

        if mode == GenerationMode.POSITIVE or operation.label.startswith("POST"):
            ask()
    assert {"POST /v1/chat/completions", "POST /v1/completions"} <= set(labels)
