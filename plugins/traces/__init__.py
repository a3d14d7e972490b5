"""A trace of every call, sent by OTLP."""

from plugins.traces.plugin import Traces as Traces
