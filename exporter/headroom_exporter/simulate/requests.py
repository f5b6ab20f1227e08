"""What goes into the simulated engine, what comes out, and what it is in between."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from headroom_exporter.simulate.pool import Freed


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """
    One request.

    Attributes:
        arrival: Virtual seconds.
        prompt_tokens: At least 1, less than the profile's max_model_len.
        output_tokens: At least 1; cut where the model's length ends.
        id: The caller's; not looked at.
        finish_reason: ``stop`` for a natural end, ``length`` for one forced by max_tokens.
        cached_tokens: Leading prompt tokens that the prefix cache holds when the request is first
            scheduled; whole blocks of them count, and never the prompt's last token.
        abort_after: Seconds after its arrival at which the client hangs up; None for never.
    """

    arrival: float
    prompt_tokens: int
    output_tokens: int
    id: str = ""
    finish_reason: str = "stop"
    cached_tokens: int = 0
    abort_after: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Finished:
    """
    How a request fared. Times are virtual seconds.

    Attributes:
        scheduled: Start of the step that first computed a part of its prompt; None if none did.
        first_token: End of the step that gave its first token; None if none did.
        finished: End of the step that gave its last, or when it was given up.
        output_tokens: Tokens generated.
        preemptions: How often it lost its blocks.
        reason: ``stop``, ``length`` or ``abort`` as in ``request_success_total``; also ``rejected``
            (a queue limit, status 503), ``refused`` (too long, status 400) and ``lost`` (no server
            there, or it stopped before it had answered).
    """

    request: Request
    scheduled: float | None
    first_token: float | None
    finished: float
    output_tokens: int
    preemptions: int
    reason: str


OnFinish = Callable[[Finished], None]


class Sequence:
    """
    A request inside the engine.

    Attributes:
        accepted: When the scheduler first saw it; later than its arrival by part of a step.
        target: Tokens it will generate.
        tokens: Tokens to compute before the next can be generated: the prompt, and when it
            resumes after a preemption also what it had generated.
        computed: Tokens computed; kept up only while it is not decoding.
        base: Number of the step that would have computed its token 0, were it always decoding.
        ends: Number of the step that gives its last token; -1 while it is not decoding.
        order: Position in the order of admissions.
        unreported: Preemptions its next output will report: vLLM counts them only then.
        freed: Its blocks from before a preemption.
        cached: Prompt tokens found in the prefix cache when it was first scheduled.
        over: Whether it ended, one way or another.
    """

    __slots__ = (
        "accepted",
        "base",
        "cached",
        "computed",
        "ends",
        "first_token",
        "freed",
        "last_token",
        "order",
        "over",
        "preemptions",
        "request",
        "scheduled",
        "target",
        "tokens",
        "unreported",
    )

    def __init__(self, request: Request, accepted: float, max_model_len: int) -> None:
        self.request = request
        self.accepted = accepted
        self.target = min(request.output_tokens, max_model_len - request.prompt_tokens)
        self.tokens = request.prompt_tokens
        self.computed = 0
        self.base = 0
        self.ends = -1
        self.order = -1
        self.scheduled = -1.0
        self.first_token = -1.0
        self.last_token = -1.0
        self.preemptions = 0
        self.unreported = 0
        self.freed: Freed | None = None
        self.cached = 0
        self.over = False
