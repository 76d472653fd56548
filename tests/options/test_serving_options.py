"""What `serve` refuses before it loads anything."""

from __future__ import annotations

from typing import Any

import pytest

from trtllm_dflash.errors import UsageError
from trtllm_dflash.options.serving import ServeConfig


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"host": "0.0.0.0"}, "there is no API key"),
        ({"host": "::"}, "there is no API key"),
        ({"host": "example.org"}, "there is no API key"),
        ({"api_key": ""}, "the API key is empty"),
        ({"api_key": "a\nb"}, "characters that no header can hold"),
        ({"cors_origin": ("*",)}, "expected scheme, host and port"),
        ({"cors_origin": ("http://a/b",)}, "expected scheme, host and port"),
        ({"temperature": -1.0}, "--temperature"),
        ({"generation_config": "vllm"}, "--generation-config"),
        ({"timeout_seconds": 0.0}, "--timeout-seconds"),
        ({"port": 70000}, "--port"),
        ({"engines": ("a", "b"), "served_model_name": ("c",)}, "is for one engine"),
    ],
)
def test_wrong_options(options: dict[str, Any], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        ServeConfig(**options)


@pytest.mark.parametrize(
    ("engines", "words"),
    [
        (("x=a", "x=b"), "two engines have the name"),
        (("a b=c",), "the model's name is"),
        (("=c",), "the model's name is"),
    ],
)
def test_wrong_names(engines: tuple[str, ...], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        ServeConfig(engines=engines).named_engines()


def test_hosts_that_need_no_key() -> None:
    for host in ("127.0.0.1", "localhost", "::1", "[::1]", "127.0.0.2"):
        assert ServeConfig(host=host).is_loopback
    ServeConfig(host="0.0.0.0", api_key="k")
    ServeConfig(host="0.0.0.0", insecure_no_api_key=True)


def test_names_of_engines() -> None:
    assert ServeConfig(engines=("demo/cpu",)).named_engines().keys() == {"cpu"}
    assert ServeConfig(engines=("a=b", "c")).named_engines().keys() == {"a", "c"}
    named = ServeConfig(engines=("b",), served_model_name=("x", "org/y")).named_engines()
    assert len(set(named.values())) == 1
    assert named.keys() == {"x", "org/y"}
