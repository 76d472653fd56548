"""Health, metrics, the page, several models."""

from __future__ import annotations

from tests.http_server.conftest import MakeEngine
from tests.http_server.load import gauge
from tests.http_server.running import Running
from tests.patience import wait_for
from trtllm_dflash.runtime.metric_table import METRICS


def test_metrics_are_those_of_the_table(server: Running) -> None:
    before = server.client.get("/metrics").text
    server.complete("ab", max_tokens=7, ignore_eos=True)
    text = server.client.get("/metrics").text
    for metric in METRICS:
        assert f"\n{metric.name}" in text
    for name, more in (("dflash_output_tokens_total", 7), ("dflash_requests_total", 1)):
        assert gauge(text, name) == gauge(before, name) + more
    assert 'dflash_ready{model="tiny"} 1.0' in text
    assert "_created" not in text


def test_several_models_by_name(byte_engine: MakeEngine) -> None:
    engines = {"one": byte_engine(), "two/b": byte_engine(max_batch_size=2)}
    with Running(engines) as server:
        rows = server.client.get("/v1/models").json()["data"]
        assert [(row["id"], row["dflash"]["slots"]) for row in rows] == [
            ("one", 3),
            ("two/b", 2),
        ]
        assert server.client.get("/v1/models/two/b").json()["id"] == "two/b"
        for name in engines:
            assert server.complete("ab", model=name).json()["model"] == name
        text = server.client.get("/metrics").text
        assert 'dflash_requests_total{model="two/b"} 1.0' in text


def test_an_engine_that_fails_is_told(byte_engine: MakeEngine) -> None:
    engine = byte_engine()
    with Running({"tiny": engine}) as server:
        assert server.client.get("/ready").json() == {"status": "ready"}
        model = server.models["tiny"]
        model._server._thread._scheduler.drop_failed = None  # type: ignore
        engine._session.prefill = None  # type: ignore[method-assign]
        response = server.complete("ab")
        assert response.status_code == 500
        assert "the server failed" in response.json()["error"]["message"]
        wait_for(lambda: model.has_failed)
        assert server.client.get("/health").status_code == 503
        assert server.client.get("/ready").status_code == 503
        assert 'dflash_ready{model="tiny"} 0.0' in server.client.get("/metrics").text


def test_a_closing_server_says_so(byte_engine: MakeEngine) -> None:
    with Running({"tiny": byte_engine()}) as server:
        server.models["tiny"].close()
        assert server.client.get("/ready").status_code == 503
        assert server.client.get("/health").status_code == 200
        assert server.complete("ab").status_code == 503


def test_the_page_loads_nothing_from_elsewhere(server: Running) -> None:
    response = server.client.get("/")
    policy = response.headers["content-security-policy"]
    assert policy.startswith("default-src 'none'")
    assert "unsafe" not in policy
    assert "http" not in policy
    assert response.headers["x-content-type-options"] == "nosniff"


def test_openapi_describes_every_field(server: Running) -> None:
    page = server.client.get("/openapi.json").json()
    schema = page["components"]["schemas"]["ChatBody"]
    assert schema["additionalProperties"] is False
    assert {"messages", "temperature", "top_k", "dflash"} <= schema["properties"].keys()
