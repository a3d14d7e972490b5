"""Settings are described by their docstrings."""

from __future__ import annotations

import subprocess
import sys

from pydantic import Field

from proxy.reference import described
from proxy.settings.base import Strict


class Inner(Strict):
    deep: int = 1
    """Of one
    that is inside."""


class Shared(Strict):
    common: int = 1
    """Of the base."""


class Outer(Shared):
    inner: dict[str, Inner] = Field(default_factory=dict)
    own: int = Field(1, description="Its own.")
    """Not this."""
    silent: int = 1


def test_fields_are_described_by_their_docstrings_at_any_depth() -> None:
    schema = described(Outer).model_json_schema()
    said = {name: one.get("description") for name, one in schema["properties"].items()}
    assert said == {"common": "Of the base.", "inner": None, "own": "Its own.", "silent": None}
    assert schema["$defs"]["Inner"]["properties"]["deep"]["description"] == "Of one\nthat is inside."
    assert Outer.model_validate({"inner": {"x": {"deep": 2}}}).inner["x"].deep == 2


def test_a_class_without_source_code_has_no_descriptions() -> None:
    made = type("Made", (Strict,), {"__annotations__": {"one": int}, "one": 1})
    assert "description" not in described(made).model_json_schema()["properties"]["one"]


def test_a_server_starts_without_this_module() -> None:
    code = "import proxy.cli, proxy.server, proxy.worker, sys; print('proxy.reference' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
