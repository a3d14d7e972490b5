"""A record of every call: who asked which model, how long it took, how many tokens it used and what it cost."""

from plugins.usage.plugin import Usage as Usage
