"""How often each template was used."""

from __future__ import annotations

from collections import Counter

from plugins.templates.template import Template


class Uses:
    """pending: by the ids of custom templates and the names of others; bounded by the number of templates.

    With a database they are moved there regularly; without one they are the uses since the start.
    """

    def __init__(self) -> None:
        self.pending: Counter[str] = Counter()

    def note(self, template: Template) -> None:
        self.pending[template.id or template.document.name] += 1
