"""The builds that these tests look at."""

from tests.fixtures.builds import config, cpu_engine, engine, logs, pair, two_at_once

__all__ = ["config", "cpu_engine", "engine", "logs", "pair", "two_at_once"]
