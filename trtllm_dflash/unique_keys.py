"""JSON objects with each key once: of two values under one key, readers drop one in silence."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

Pairs = list[tuple[str, Any]]


def unique_keys(refusal: Callable[[str], Exception]) -> Callable[[Pairs], dict[str, Any]]:
    """Return an `object_pairs_hook` of `json.loads`; a repeated key raises `refusal(key)`."""

    def to_object(pairs: Pairs) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) != len(pairs):
            ((repeated, _),) = Counter(key for key, _ in pairs).most_common(1)
            raise refusal(repeated)
        return found

    return to_object
