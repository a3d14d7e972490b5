"""Documents: kept, cut, searched, and put before a model where a call wants that."""

from plugins.documents.plugin import Documents as Documents
