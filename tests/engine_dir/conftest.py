"""The engine directories that these tests look at."""

from tests.fixtures.builds import (
    build_tiny,
    built_engine,
    config,
    cpu_engine,
    engine,
    logs,
    pair,
)

__all__ = ["build_tiny", "built_engine", "config", "cpu_engine", "engine", "logs", "pair"]
