"""The builds that these tests look at."""

from tests.fixtures.builds import config, logs, pair

__all__ = ["config", "logs", "pair"]
