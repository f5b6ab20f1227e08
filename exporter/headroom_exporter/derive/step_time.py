"""
What an engine step costs: fixed + per sequence + per computed prompt token.

Fitted to windows of a few busy seconds, from counters alone (no sampling error): batch per step =
generated tokens / steps, time per step = seconds / steps.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from headroom_exporter.samples import RankSample, StepFit

WINDOW_SECONDS = 2.0
MAX_WINDOW_SECONDS = 6.0
# Fewer steps give a time per step of more than 10 % error at the window's edges.
MIN_STEPS = 10
# Half of the evidence is older than this much busy time.
HALF_LIFE = 1800.0
MIN_WINDOWS = 10.0
MIN_SPAN = 0.3
MAX_RELATIVE_ERROR = 0.25
# How much of the cost of a prompt token the second, opposite estimate must find, too.
MIN_AGREEMENT = 0.75
# A window whose steps take this much longer than tokens are apart was idle for a part of it. In the 95
# busy windows of tests/fixtures/recordings the ratio is 0.89 to 1.03.
IDLE_FACTOR = 1.15
# Tokens this much further apart than the counted steps: the steps are counted more than once (seen 2.0 on
# vLLM 0.32 with two API servers). Preempted sequences stretch gaps too, to 1.1 in the recordings.
SHARED_FACTOR = 1.3
KNEE_EFFICIENCY = 0.8
# Of the sequences that run, those whose gaps must be timed for the gaps to tell the batch.
MIN_TIMED = 0.5


@dataclass(frozen=True, slots=True, kw_only=True)
class Window:
    """
    Means over one busy window.

    Attributes:
        batch: Sequences decoded per step.
        prefill: Prompt tokens computed per step.
        step: Seconds per step.
        seconds: Length of the window.
    """

    batch: float
    prefill: float
    step: float
    seconds: float


def window(before: RankSample, after: RankSample, seconds: float) -> Window | None:
    """
    The means between two samples; None where counters are missing or too little was done.

    Under speculative decoding a step yields more than one token a sequence, so tokens are divided by the
    mean accepted length. An engine that counts no steps still times the gaps between tokens: a sequence
    that decodes has one gap per step, so all gaps' seconds per second are the batch (Little's law).
    """
    if after.steps is None:
        return _window_of_gaps(before, after, seconds)
    steps = _delta(before.steps, after.steps)
    tokens = _delta(before.generation_tokens, after.generation_tokens)
    total = _delta(before.step_tokens, after.step_tokens)
    if steps is None or tokens is None or steps < MIN_STEPS or tokens <= 0 or seconds <= 0:
        return None
    step = seconds / steps
    gaps, gap_seconds = (
        _delta(before.inter_token_count, after.inter_token_count),
        _delta(before.inter_token_seconds, after.inter_token_seconds),
    )
    # vLLM observes one gap per sequence and step, however many tokens the step yields it. Without gaps
    # nothing says that the engine was busy throughout.
    if not gaps or gap_seconds is None or step > IDLE_FACTOR * gap_seconds / gaps:
        return None
    if gap_seconds / gaps > SHARED_FACTOR * step:
        if _delta(before.preemptions, after.preemptions):
            return None
        # Each of several API servers counts its own share of a step as a step: then only the gaps tell.
        step = gap_seconds / gaps
        steps = seconds / step
    return Window(
        batch=tokens / steps / _accepted_length(before, after),
        prefill=max(0.0, (total or tokens) - tokens) / steps,
        step=step,
        seconds=seconds,
    )


def _window_of_gaps(before: RankSample, after: RankSample, seconds: float) -> Window | None:
    """
    A window of an engine that counts no steps.

    None where the gaps account for less than half of what runs: some engines time answers only from some
    token on, or leave out those that are not streamed, and then they tell no batch.
    """
    gaps = _delta(before.inter_token_count, after.inter_token_count)
    gap_seconds = _delta(before.inter_token_seconds, after.inter_token_seconds)
    if not gaps or not gap_seconds or gaps < 0 or gap_seconds < 0 or seconds <= 0:
        return None
    step, batch = gap_seconds / gaps, gap_seconds / seconds
    running = min(before.running or 0.0, after.running or 0.0)
    if seconds < MIN_STEPS * step or batch < MIN_TIMED * running:
        return None
    return Window(batch=batch, prefill=0.0, step=step, seconds=seconds)


def _accepted_length(before: RankSample, after: RankSample) -> float:
    drafts = _delta(before.spec_drafts, after.spec_drafts)
    accepted = _delta(before.spec_accepted_tokens, after.spec_accepted_tokens)
    return 1.0 + accepted / drafts if drafts and accepted is not None else 1.0


def _delta(before: float | None, after: float | None) -> float | None:
    return None if before is None or after is None else after - before


class StepMeter:
    """
    Least squares with forgetting, each window weighted for a constant relative error.

    Two fits share the evidence. fixed and per_sequence come from the batch alone: what a sequence of
    today's mix adds, its share of prompts included, which is what capacity and knee ask. Only
    per_prefill_token comes from the joint fit, because batch and prompts mostly rise together.
    """

    def __init__(self) -> None:
        # Upper triangle of sum(w x x^T) and sum(w x y) for x = (1, batch, prefill), y = step.
        self._a = [[0.0] * 3 for _ in range(3)]
        self._y = [0.0] * 3
        self._yy = 0.0
        # Sum of w x r x^T and of w x r x y, r being prompt tokens per second.
        self._instrument = [0.0] * 4
        self._n = 0.0
        self._busy = 0.0
        # Coefficients and errors of the fit to the batch alone.
        self._line: tuple[list[float], list[float]] | None = None
        # (min, max) of batch and of prefill, of the current half-life and of the one before.
        self._spans: list[list[tuple[float, float]]] = [[], []]

    def add(self, seen: Window) -> None:
        """Take one window into the fit."""
        keep = 0.5 ** (seen.seconds / HALF_LIFE)
        weight = 1.0 / self._expected(seen) ** 2
        x = (1.0, seen.batch, seen.prefill)
        for i in range(3):
            for j in range(3):
                self._a[i][j] = self._a[i][j] * keep + weight * x[i] * x[j]
            self._y[i] = self._y[i] * keep + weight * x[i] * seen.step
        self._yy = self._yy * keep + weight * seen.step * seen.step
        rate = seen.prefill / seen.step
        for j, value in enumerate((*x, seen.step)):
            self._instrument[j] = self._instrument[j] * keep + weight * rate * value
        self._n = self._n * keep + 1.0
        self._busy += seen.seconds
        if self._busy >= HALF_LIFE:
            self._busy = 0.0
            self._spans = [self._spans[1], []]
        self._spans[1] = _widen(self._spans[1], (seen.batch, seen.prefill))
        self._line = _solve(self._a, self._y, self._yy, self._n, 2)

    def _expected(self, seen: Window) -> float:
        """
        The step that the fit so far expects, for the weight.

        The step seen would do, but it favours windows that happened to be fast: by 10 % where steps scatter
        by 23 %, as they do while sequences are preempted.
        """
        if self._line is None or self._n < MIN_WINDOWS:
            return seen.step
        fixed, per_sequence = self._line[0]
        return min(2.0 * seen.step, max(0.5 * seen.step, fixed + per_sequence * seen.batch))

    def read(self) -> StepFit:
        """The fit; each coefficient None until the evidence identifies it."""
        batches, prefills = self._span(0), self._span(1)
        fixed = per_sequence = per_token = None
        if self._line is not None and self._n >= MIN_WINDOWS and _spans_enough(batches):
            values, errors = self._line
            if values[0] >= 0 and 0 < errors[1] < MAX_RELATIVE_ERROR * values[1]:
                fixed, per_sequence = values[0], values[1]
        if self._n >= MIN_WINDOWS and _spans_enough(prefills):
            joint = _solve(self._a, self._y, self._yy, self._n, 3)
            if joint is not None:
                values, errors = joint
                sane = values[0] >= 0 and values[1] >= 0
                if sane and 0 < errors[2] < MAX_RELATIVE_ERROR * values[2]:
                    second = self._by_rate()
                    agreed = second is not None and second >= MIN_AGREEMENT * values[2]
                    per_token = values[2] if agreed else None
        return StepFit(
            fixed=fixed,
            per_sequence=per_sequence,
            per_prefill_token=per_token,
            batch_max=batches[1],
            windows=self._n,
        )

    def _by_rate(self) -> float | None:
        """
        Seconds per prompt token, with prompt tokens per second as the instrument.

        Prompts arrive at their own rate, so a slow step finds more of them, whatever slowed it: least
        squares takes that effect for a cause and finds too much, at a constant rate all of the engine's
        time. This estimate asks only what goes with the rate, and errs towards too little (where the same
        clients wait for answers, a slow step lowers the rate). Where the two agree, the truth lies between.
        """
        inverse = _invert([self._a[0], self._a[1], self._instrument[:3]])
        if inverse is None:
            return None
        known = (self._y[0], self._y[1], self._instrument[3])
        return sum(factor * value for factor, value in zip(inverse[2], known, strict=True))

    def _span(self, which: int) -> tuple[float, float]:
        spans = [spans[which] for spans in self._spans if spans]
        if not spans:
            return 0.0, 0.0
        return min(low for low, _ in spans), max(high for _, high in spans)


def _widen(
    spans: list[tuple[float, float]], values: tuple[float, ...]
) -> list[tuple[float, float]]:
    if not spans:
        return [(value, value) for value in values]
    return [
        (min(low, value), max(high, value))
        for (low, high), value in zip(spans, values, strict=True)
    ]


def _spans_enough(span: tuple[float, float]) -> bool:
    low, high = span
    return high > 0 and high - low >= MIN_SPAN * high


def _solve(
    a: list[list[float]], y: list[float], yy: float, n: float, size: int
) -> tuple[list[float], list[float]] | None:
    """
    Weighted least squares from its sums.

    Returns:
        Coefficients and their standard errors, shape (size,) each; None where the evidence is singular.
    """
    inverse = _invert([row[:size] for row in a[:size]])
    if inverse is None or n <= size:
        return None
    values = [sum(inverse[i][j] * y[j] for j in range(size)) for i in range(size)]
    residual = yy - sum(values[i] * y[i] for i in range(size))
    variance = max(residual, 1e-12) / (n - size)
    errors = [math.sqrt(max(0.0, variance * inverse[i][i])) for i in range(size)]
    return values, errors


def _invert(matrix: list[list[float]]) -> list[list[float]] | None:
    """Inverse of a small matrix by Gauss-Jordan, scaled to its diagonal; None if singular."""
    size = len(matrix)
    scale = [math.sqrt(matrix[i][i]) for i in range(size)]
    if min(scale) <= 0:
        return None
    rows = [
        [matrix[i][j] / scale[i] / scale[j] for j in range(size)]
        + [1.0 if i == j else 0.0 for j in range(size)]
        for i in range(size)
    ]
    for i in range(size):
        pivot = max(range(i, size), key=lambda r: abs(rows[r][i]))
        if abs(rows[pivot][i]) < 1e-9:
            return None
        rows[i], rows[pivot] = rows[pivot], rows[i]
        rows[i] = [value / rows[i][i] for value in rows[i]]
        for r in range(size):
            if r != i:
                factor = rows[r][i]
                rows[r] = [a - factor * b for a, b in zip(rows[r], rows[i], strict=True)]
    return [[rows[i][size + j] / scale[i] / scale[j] for j in range(size)] for i in range(size)]


def step_seconds(fit: StepFit | None, batch: float) -> float | None:
    """Seconds of a step with ``batch`` sequences; None until the fit is identified."""
    if fit is None or fit.fixed is None or fit.per_sequence is None:
        return None
    return fit.fixed + fit.per_sequence * batch


def traffic_multiple(fit: StepFit | None, base: float, capacity: float) -> float:
    """
    How many times the traffic that keeps ``base`` sequences busy fills ``capacity`` of them.

    Twice the requests are more than twice the sequences: steps take longer, so each stays longer. What
    traffic is served grows with throughput, b / t(b) (Little's law), so the multiple is
    (capacity / base) x t(base) / t(capacity).

    Args:
        fit: Step time; while it is not known, steps are taken to cost the same at any batch, which is
            the most that the multiple can be.
        base: Sequences, above 0.
        capacity: Sequences.
    """
    multiple = capacity / base
    now, then = step_seconds(fit, base), step_seconds(fit, capacity)
    if now is None or not then or multiple <= 1.0:
        return multiple
    return max(1.0, multiple * now / then)


def knee(fit: StepFit | None) -> float | None:
    """
    Batch at which 80 % of a step is paid per sequence: beyond it batching mostly adds latency.

    Efficiency eta(b) = beta b / t(b) reaches 0.8 at b = 4 alpha / beta.
    """
    if fit is None or fit.fixed is None or not fit.per_sequence:
        return None
    return KNEE_EFFICIENCY / (1 - KNEE_EFFICIENCY) * fit.fixed / fit.per_sequence


def marginal_gain(fit: StepFit | None, batch: float) -> float | None:
    """Tokens per second that one more sequence adds, relative to the first one: (alpha / t(b))^2."""
    step = step_seconds(fit, batch)
    if fit is None or fit.fixed is None or not step:
        return None
    return (fit.fixed / step) ** 2


# A straight line holds near where it was seen; beyond this multiple of the largest batch it is a guess.
MAX_EXTRAPOLATION = 4.0


def latency_capacity(
    fit: StepFit | None, tpot_p95: float | None, p95_to_mean: float | None
) -> float | None:
    """
    Batch at which mean step time x (p95 / mean of inter-token latency) reaches the planned TPOT p95.

    Args:
        fit: Step time.
        tpot_p95: Planned time per output token, seconds.
        p95_to_mean: Spread of inter-token latency seen lately, 1 or more.

    Returns:
        Whole sequences, 0 or more; None where a part is unknown or the batch lies too far beyond the
        largest one seen.
    """
    if fit is None or fit.fixed is None or not fit.per_sequence:
        return None
    if tpot_p95 is None or p95_to_mean is None:
        return None
    batch = (tpot_p95 / p95_to_mean - fit.fixed) / fit.per_sequence
    if batch > MAX_EXTRAPOLATION * fit.batch_max:
        return None
    return float(max(0, math.floor(batch + 1e-9)))


# Share of engine time that prompts may take. Provisional: from the queueing habit of 80 % utilisation.
MAX_PREFILL_SHARE = 0.8


def prefill_multiple(fit: StepFit | None, prompt_tokens_per_second: float | None) -> float | None:
    """
    How many times today's flow of prompts takes 80 % of the engine's time.

    The share of time is rho = seconds per prompt token x computed prompt tokens per second; the multiple is
    0.8 / rho. Prompts are a flow: what they can be compared with is a mean over minutes, never the
    sequences that happen to run at one moment.

    Args:
        fit: Step time.
        prompt_tokens_per_second: Computed ones, mean over some minutes; cached ones cost nothing.
    """
    if fit is None or fit.per_prefill_token is None or not prompt_tokens_per_second:
        return None
    return MAX_PREFILL_SHARE / (fit.per_prefill_token * prompt_tokens_per_second)
