"""Where models live, and what the operator fixes for them."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, NonNegativeFloat, PositiveFloat, PositiveInt, model_validator

from proxy.settings.base import MIB, BearerKey, KeepAlive, OllamaUrls, OpenAIUrls, Strict


class Demo(Strict):
    """The simulated Ollama."""

    delay: NonNegativeFloat = 0.0
    """Seconds between two pieces of an answer."""
    load_time: NonNegativeFloat = 0.0
    """Seconds that a cold model takes to load."""


class Line(Strict):
    """Where calls wait while every host of an upstream is busy; callers take turns."""

    most: PositiveInt = 256
    """Calls that may wait.  If there are more, the new one gets a 429, or else the last one of the caller with the most
    waiting calls, if the new one's caller has fewer."""
    wait: PositiveFloat = 60.0
    """Seconds that a call may wait; then it is a 429."""
    group: NonNegativeFloat = 10.0
    """Seconds for which calls of a model that a host has loaded may overtake one for which it would have to load
    another, so that two models do not evict each other with every call; 0 turns this off."""


EXTRAS = Literal["top_k", "min_p", "typical_p", "repeat_penalty", "repeat_last_n", "num_keep"]
"""Sampling options that Ollama has and OpenAI has not."""


class Upstream(Strict):
    """Where models live: exactly one of `ollama`, `openai` and `demo`."""

    ollama: OllamaUrls | None = None
    """URL of an Ollama server, or a list of them, which form a pool of equal hosts."""
    openai: OpenAIUrls | None = None
    """Base URL, including `/v1`, of a server with OpenAI's API, or a list of them."""
    demo: Demo | None = None
    """A simulated Ollama inside this process, for trying things out."""
    key: BearerKey | None = None
    """Bearer key for an `openai` upstream, preferably from the environment: `"${OPENAI_API_KEY}"`."""
    options: tuple[EXTRAS, ...] = ()
    """Sampling options beyond OpenAI's that an `openai` upstream understands; others are ignored and reported."""
    slots: PositiveInt | None = None
    """Concurrent calls per host; more wait in line.  If unset, all calls are sent on at once and wait inside Ollama,
    however many there are."""
    line: Line = Line()
    """Where calls wait while every host is busy."""
    share: str | None = None
    """Name of a store, preferably a Redis, through which several workers or servers inform each other of hosts that
    cool down after three failures in a row; if unset, each finds out by itself."""
    allow_cloud: bool = False
    """Whether models that Ollama forwards to ollama.com, such as `gpt-oss:120b-cloud`, and copies of them, may be
    used."""
    embed_batch: PositiveInt = 64
    """Texts sent in one embeddings request; longer lists are split."""
    load_timeout: PositiveFloat = 600.0
    """Seconds that a cold model may take to load."""
    max_answer_bytes: PositiveInt = 64 * MIB
    """Maximum bytes of one line or one whole answer of the upstream."""

    @model_validator(mode="after")
    def _one_kind(self) -> Upstream:
        if sum(kind is not None for kind in (self.ollama, self.openai, self.demo)) != 1:
            raise ValueError("an upstream is one of `ollama: URL`, `openai: URL` and `demo: {}`")
        if self.openai is None and self.model_fields_set & {"key", "options"}:
            raise ValueError("`key` and `options` are for `openai` upstreams")
        if self.openai is not None and self.model_fields_set & {"allow_cloud", "load_timeout"}:
            raise ValueError("`allow_cloud` and `load_timeout` are for `ollama` upstreams")
        return self

    @property
    def urls(self) -> tuple[str, ...]:
        """The addresses of its hosts; none where it is simulated."""
        return self.ollama or self.openai or ()

    @property
    def speaks(self) -> str:
        """Whose API."""
        return "ollama" if self.openai is None else "openai"

    @property
    def answering(self) -> str:
        """What answers depend on besides the digest of the weights, which an `openai` upstream does not tell: which
        servers they come from, and what these are sent of a call."""
        return "" if self.openai is None else " ".join([*sorted(self.openai), *sorted(self.options)])


class Model(Strict):
    """Settings for a model.  The name `*` stands for every model that is not listed."""

    alias: str | None = None
    """Name of the model that is used for calls to this one."""
    upstream: str | None = None
    """Name of the upstream that serves it; if unset, the first that lists it."""
    allowed: bool = True
    """Whether callers may use it."""
    keep_alive: KeepAlive | None = None
    """How long Ollama keeps it loaded after a call: seconds, or a duration such as `10m`; a negative value means
    forever."""
    num_ctx: Annotated[int, Field(ge=4)] | None = None
    """Context window with which it is loaded, in tokens."""
    shift: bool = False
    """Whether Ollama may drop the older half of the context when it overflows while answering."""
    num_batch: PositiveInt | None = None
    """Tokens of a prompt evaluated at once."""
    num_gpu: int | None = None
    """Layers put on the GPU; -1 lets Ollama choose."""
    main_gpu: int | None = None
    """Index of the GPU for small tensors."""
    num_thread: PositiveInt | None = None
    """CPU threads."""
    use_mmap: bool | None = None
    """Whether the weights are memory-mapped."""
    draft_num_predict: int | None = None
    """Tokens drafted ahead by a draft model."""
