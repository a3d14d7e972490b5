"""The `options` of a request: their types, and those that a model is loaded with."""

from dataclasses import dataclass
from typing import Any

from .models import Model
from .refusals import Refused

INTEGERS = frozenset(
    {
        *("num_keep", "seed", "num_predict", "top_k", "repeat_last_n", "num_ctx", "num_batch"),
        *("num_gpu", "main_gpu", "num_thread", "draft_num_predict"),
    }
)
FLOATS = frozenset(
    {
        *("top_p", "min_p", "typical_p", "temperature"),
        *("repeat_penalty", "presence_penalty", "frequency_penalty"),
    }
)
DEFAULT_CONTEXT = 4096


def checked_options(options: dict[str, Any]) -> dict[str, Any]:
    """The options that Ollama knows; unknown ones are ignored, wrong types are a server error."""
    known = {name: value for name, value in options.items() if value is not None}
    for name, value in known.items():
        if want := _missed(name, value):
            raise Refused(500, f'option "{name}" must be of {want}')
    return {name: int(value) if name in INTEGERS else value for name, value in known.items()}


def _missed(name: str, value: Any) -> str:
    """The type that the value should have, or "" if it has it."""
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if name in INTEGERS and not (number and value == int(value)):
        return "type integer"
    if name in FLOATS and not number:
        return "type float32"
    if name == "use_mmap" and not isinstance(value, bool):
        return "type boolean"
    return _missed_stop(value) if name == "stop" else ""


def _missed_stop(value: Any) -> str:
    if not isinstance(value, list):
        return "type array"
    return "" if all(isinstance(item, str) for item in value) else "an array of strings"


@dataclass(frozen=True, slots=True)
class LoadOptions:
    """The options a model is loaded with; a request with different ones makes Ollama reload it."""

    num_ctx: int | None = None
    num_batch: int | None = None
    num_gpu: int | None = None
    main_gpu: int | None = None
    use_mmap: bool | None = None
    num_thread: int | None = None
    draft_num_predict: int | None = None
    shift: bool = True

    def room(self, model: Model) -> int:
        """Tokens of context, as requested or by default."""
        return clamped(self.num_ctx or DEFAULT_CONTEXT, model)


def load_options(options: dict[str, Any], shift: bool | None, model: Model) -> LoadOptions:
    num_gpu = options.get("num_gpu")
    num_ctx = options.get("num_ctx")
    return LoadOptions(
        num_ctx=clamped(num_ctx, model) if num_ctx else None,
        num_batch=options.get("num_batch"),
        num_gpu=num_gpu if num_gpu is not None and num_gpu >= 0 else None,
        main_gpu=options.get("main_gpu"),
        use_mmap=options.get("use_mmap"),
        num_thread=options.get("num_thread"),
        draft_num_predict=options.get("draft_num_predict"),
        shift=shift is not False,
    )


def clamped(num_ctx: int, model: Model) -> int:
    return max(2048 if model.can("vision") else 4, min(num_ctx, model.context))
