"""Text files made from jinja2 templates that lie beside the modules that use them."""

from __future__ import annotations

from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined


def render(package: str, template: str, **values: Any) -> str:
    """Render a template file of a package; a value that it needs and does not get raises."""
    environment = Environment(
        loader=PackageLoader(package, ""),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        autoescape=False,  # plain text and Markdown
    )
    return environment.get_template(template).render(values)
