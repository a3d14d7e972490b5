"""What a request to a plugin's own endpoint says: who asks, and its body as a checked form."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

from aiohttp import web
from pydantic import BaseModel, ValidationError

from proxy.config import Requests
from proxy.edge.body import read_json
from proxy.edge.exchange import exchange_of
from proxy.errors import BadCall
from proxy.types import Caller

Form = TypeVar("Form", bound=BaseModel)


@dataclass(frozen=True, slots=True)
class Counter:
    """bounds: what is taken of a body."""

    bounds: Requests

    def caller(self, request: web.BaseRequest) -> Caller:
        return exchange_of(request).caller

    async def form(self, request: web.BaseRequest, kind: type[Form]) -> Form:
        """Raises BadCall naming the first field that is wrong."""
        body = await read_json(request, self.bounds) if request.body_exists else {}
        try:
            return kind.model_validate(body, strict=True)
        except ValidationError as error:
            first = error.errors()[0]
            name = path_of(first["loc"])
            if first["type"] == "extra_forbidden":
                raise BadCall(f"Unknown parameter: '{name}'.", param=name, code="unknown_parameter") from None
            if first["type"] == "missing":
                message = f"Missing required parameter: '{name}'."
                raise BadCall(message, param=name, code="missing_required_parameter") from None
            said = first["msg"].removeprefix("Value error, ")
            message = f"Invalid '{name}': {said}." if name else f"The body is incomplete: {said}."
            raise BadCall(message, param=name or None, code="invalid_value") from None


def path_of(place: Sequence[str | int]) -> str:
    """As OpenAI writes it: `messages[0].content`."""
    text = "".join(f"[{one}]" if isinstance(one, int) else f".{one}" for one in place)
    return text.removeprefix(".")[:200]
