"""schemathesis sends what the OpenAPI page allows and what it forbids; the page is kept to."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import settings

from tests.http_server.conftest import MakeEngine
from tests.http_server.running import Running

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
def api(byte_engine: MakeEngine) -> Any:
    with Running({"tiny": byte_engine()}) as server:
        schema = schemathesis.openapi.from_url(f"{server.url}/openapi.json")
        schema.config.generation.update(modes=list(GenerationMode))
        yield schema


schema = schemathesis.pytest.from_fixture("api")


@schema.parametrize()
@settings(max_examples=60)
def test_the_page_is_kept_to(case: Any) -> None:
    if isinstance(case.body, dict) and "model" in case.body:
        case.body["model"] = "tiny"  # nobody guesses it
    case.call_and_validate(checks=CHECKS)
