"""A record of every call: who asked what of which model, what it took and what it cost."""

from plugins.usage.plugin import Usage as Usage
