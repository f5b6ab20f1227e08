"""
A vLLM V1 engine in virtual time: scheduler and block pool are vLLM's, the model is a formula.

Counters move and gauges are set when a step ends, each at the moment and by the rule of vLLM 0.32
(v1/metrics/stats.py): a prompt counts when its first token comes, a preemption when the preempted
request gives its next token, a step only if it gives output, a request when it ends; one whose
client hung up is never counted, though its tokens are.

A step costs a few additions whatever its batch, since the running sequences advance together (see
scheduler.py), and steps between two events are run in one tight loop.
"""

from __future__ import annotations

from bisect import bisect_left
from heapq import heappop, heappush
from math import inf, nextafter
from typing import TYPE_CHECKING

from headroom_exporter.simulate.counters import Counters, Gauges, Integrals
from headroom_exporter.simulate.requests import Finished, OnFinish, Request, Sequence
from headroom_exporter.simulate.scheduler import Scheduler

if TYPE_CHECKING:
    from headroom_exporter.samples import Constraint
    from headroom_exporter.simulate.profiles import Profile


class SimulatedEngine:
    """
    One engine (one data-parallel rank) in virtual seconds.

    Args:
        profile: Model, device and limits.
        start: Virtual seconds at which it begins, ready for requests.
        slowdown: Of its GPU; 1 for a healthy one.
        gauge_steps: Decode steps between two refreshes of the gauges; a step that computes a prompt always
            refreshes them. vLLM: every step; SGLang: 40.

    Attributes:
        profile: Model, device and limits.
        counters: What it has counted up to now.
        gauges: What the last step left; None before the first step. Kept while idle.
        integrals: True levels integrated over time, up to the start of the step under way.
        clock: The time it was last advanced to.
        steps: Steps that ended, with output or without.
        hung_up: Requests whose client left before they ended.
        prefilling_tokens: Prompt tokens of unfinished requests that have given no token yet.
        sleep_level: As it was put to sleep; None while awake.
        slowdown: How many times as long as the profile says every step takes that begins from now on.
    """

    def __init__(
        self,
        profile: Profile,
        start: float = 0.0,
        slowdown: float = 1.0,
        gauge_steps: int = 1,
    ) -> None:
        self.profile = profile
        self.counters = Counters(profile.max_model_len)
        self.gauges: Gauges | None = None
        self.integrals = Integrals()
        self.clock = start
        self.steps = 0
        self.hung_up = 0
        self.prefilling_tokens = 0
        self.sleep_level: int | None = None
        self.slowdown = slowdown
        # Start of the next step, or of the one under way.
        self._now = start
        self._step_end: float | None = None
        self._arrivals: list[tuple[float, int, Request]] = []
        self._aborts: list[tuple[float, int, Sequence]] = []
        self._submitted = 0
        self._scheduler = Scheduler(profile)
        self._gauge_steps = gauge_steps

    @property
    def running(self) -> int:
        """Sequences that run now."""
        return len(self._scheduler.running)

    @property
    def waiting(self) -> int:
        """Requests the scheduler holds back now."""
        return len(self._scheduler.waiting)

    @property
    def blocked(self) -> Constraint | None:
        """Why the head of the queue waits; see ``Scheduler.blocked``."""
        return self._scheduler.blocked

    @property
    def unfinished(self) -> int:
        """Requests submitted and not finished, those still to arrive included."""
        return len(self._arrivals) + self.waiting + self.running

    @property
    def used_blocks(self) -> int:
        """Blocks held by running sequences."""
        return self.profile.usable_blocks - self._scheduler.pool.free

    @property
    def resident_tokens(self) -> int:
        """Tokens computed and held, of all running sequences."""
        return self._scheduler.resident

    @property
    def promised_tokens(self) -> int:
        """Prompts and whole answers of the sequences that run: what an engine that reserves would hold."""
        return sum(
            sequence.request.prompt_tokens + sequence.target for sequence in self._scheduler.running
        )

    def submit(self, request: Request) -> None:
        """
        Let a request arrive; one whose time has passed arrives at the next step.

        Raises:
            ValueError: lengths that no engine of this profile accepts.
        """
        limit = self.profile.max_model_len
        if not 1 <= request.prompt_tokens < limit or request.output_tokens < 1:
            raise ValueError(
                f"request {request.id!r}: prompt {request.prompt_tokens} and output "
                f"{request.output_tokens} tokens: the prompt must be 1 to {limit - 1}, the output "
                "at least 1"
            )
        heappush(self._arrivals, (request.arrival, self._submitted, request))
        self._submitted += 1
        self.prefilling_tokens += request.prompt_tokens

    def advance(
        self, until: float, on_finish: OnFinish | None = None, max_steps: int | None = None
    ) -> bool:
        """
        Run until a time.

        A step that would end later stays under way: gauges and counters are those of the last
        step that ended. Every request that arrives before ``until`` must have been submitted.

        Args:
            until: Virtual seconds.
            on_finish: Called at each end, an abort too; may submit requests (a closed loop).
            max_steps: Stop after so many steps.

        Returns:
            Whether ``until`` was reached.
        """
        limit = inf if max_steps is None else self.steps + max_steps
        while self.steps < limit:
            if self._step_end is not None:
                if self._step_end > until:
                    break
                self._end_step(self._step_end, on_finish)
            if self.sleep_level is not None:
                self._now = max(self._now, until)
                break
            self._accept(on_finish)
            if not self.running and not self.waiting:
                if not self._arrivals or self._arrivals[0][0] >= until:
                    self._now = max(self._now, until)
                    break
                self._now = self._arrivals[0][0]
            elif self._now >= until:
                break
            elif not (self._scheduler.steady and self._run_steady(until, limit)):
                self._begin_step()
        else:
            self.clock = max(self.clock, self._now)
            return False
        self.clock = max(self.clock, until)
        return True

    def _accept(self, on_finish: OnFinish | None) -> None:
        """Hand over what has arrived, unless its client has already left."""
        arrivals = self._arrivals
        while arrivals and arrivals[0][0] <= self._now:
            arrival, number, request = heappop(arrivals)
            sequence = self._scheduler.accept(request, self._now)
            self.integrals.waiting += self._now - arrival
            if request.abort_after is not None:
                heappush(self._aborts, (arrival + request.abort_after, number, sequence))
                if arrival + request.abort_after <= self._now:
                    self._hang_up(on_finish)

    # --- requests that do not end by themselves --------------------------------------------------

    def _hang_up(self, on_finish: OnFinish | None) -> None:
        """
        Drop the requests whose clients have left.

        What the step under way computes for them is thrown away. The API server has forgotten them
        by then, so they appear in no counter of ended requests.
        """
        aborts = self._aborts
        while aborts and aborts[0][0] <= self._now:
            sequence = heappop(aborts)[2]
            if sequence.over:
                continue
            record = self._end(sequence, self._generated(sequence), "abort")
            self._scheduler.drop(sequence, self.steps)
            self.hung_up += 1
            if on_finish is not None:
                on_finish(record)

    def _next_hang_up(self) -> float:
        """When the next client leaves whose request has not ended; infinity for never."""
        aborts = self._aborts
        while aborts and aborts[0][2].over:
            heappop(aborts)
        return aborts[0][0] if aborts else inf

    def sleep(self, level: int, on_finish: OnFinish | None = None) -> None:
        """
        Give every request up and stop computing; what arrives waits until it is woken.

        The requests count as ended by abort, since here the engine says so and not the client.
        (v1/engine/core.py of vLLM 0.32: sleep with the pause mode "abort".)

        Args:
            level: 0 stops the scheduler only, 1 also puts the weights aside, 2 drops them.
            on_finish: Called for each request that is given up.
        """
        self.sleep_level = level
        given_up = self._leave(on_finish)
        for sequence in given_up:
            record = self._end(sequence, self._generated(sequence), "abort")
            self.counters.count_ended(record)
            if on_finish is not None:
                on_finish(record)
        self.refresh_gauges()

    def wake(self) -> None:
        """Go on with what arrived in the meantime."""
        self.sleep_level = None

    def stop(self, on_finish: OnFinish | None = None) -> int:
        """
        End with the process; nothing more is counted, and this engine is not to be used again.

        Returns:
            Requests that were cut off, those still to arrive not included.
        """
        cut_off = self._leave(on_finish)
        for sequence in cut_off:
            record = self._end(sequence, self._generated(sequence), "lost")
            if on_finish is not None:
                on_finish(record)
        return len(cut_off)

    def _leave(self, on_finish: OnFinish | None) -> list[Sequence]:
        """Empty the scheduler; the step under way is broken off."""
        scheduler = self._scheduler
        self._integrate(
            self.clock - self._now,
            self.used_blocks / self.profile.usable_blocks * (self.clock - self._now),
        )
        self._now, self._step_end = self.clock, None
        self._accept(on_finish)
        self._scheduler = Scheduler(self.profile)
        return [*scheduler.running, *scheduler.waiting]

    def _generated(self, sequence: Sequence) -> int:
        """Tokens that a sequence which did not end has generated, those of whole steps only."""
        if sequence.ends >= 0:
            return self.steps - sequence.base - sequence.request.prompt_tokens + 1
        return max(0, sequence.tokens - sequence.request.prompt_tokens)

    # --- many steps at once ----------------------------------------------------------------------

    def _run_steady(self, until: float, limit: float) -> bool:
        """
        Run the steps ahead in which every sequence only gains a token.

        It stops before a step that ends a sequence, lacks a block, loses a client or ends after
        ``until``, and at an arrival. One loop with everything in local names: nearly all steps of a
        run pass here.

        Returns:
            Whether a step was run.
        """
        profile, scheduler = self.profile, self._scheduler
        ring, block_tokens, batch = scheduler.ring, profile.block_tokens, scheduler.decoding
        free, usable = scheduler.pool.free, profile.usable_blocks
        arrival = self._arrivals[0][0] if self._arrivals else inf
        # As in Profile.step_seconds, and to the last bit: how often this is called must not show.
        fixed = profile.step_fixed + profile.step_per_sequence * batch
        per_kv_token, resident = profile.step_per_kv_token, scheduler.resident
        slowdown = self.slowdown
        intervals = self.counters.token_interval
        bounds, counts = intervals.bounds, intervals.counts
        edge = -1.0
        bucket = 0
        # Not beyond the next refresh of the gauges, which then are those of that very step.
        refresh = self.steps + self._gauge_steps - self.steps % self._gauge_steps
        every = inf if self._gauge_steps == 1 else refresh
        step, last = self.steps, min(scheduler.next_end(), limit, every)
        # A step during which a client leaves is none of these.
        latest = min(until, nextafter(self._next_hang_up(), 0.0))
        now, usage = self._now, 0.0
        while step < last and now < arrival:
            need = len(ring[step % block_tokens])
            seconds = slowdown * (fixed + per_kv_token * resident)
            if need > free or now + seconds > latest:
                break
            if seconds > edge:  # steps only become longer
                bucket = bisect_left(bounds, seconds)
                edge = bounds[bucket] if bucket < len(bounds) else inf
            counts[bucket] += batch
            free -= need
            usage += (usable - free) * seconds
            now += seconds
            step += 1
            resident += batch
        steps = step - self.steps
        if steps:
            intervals.sum += batch * (now - self._now)
            scheduler.resident = resident
            scheduler.pool.take(scheduler.pool.free - free)
            self.counters.generation_tokens += batch * steps
            self.counters.step_tokens.observe(batch, steps)
            self._integrate(now - self._now, usage / usable)
            self._now, self.steps = now, step
            if step % self._gauge_steps == 0:
                self.refresh_gauges()
        return steps > 0

    # --- one step --------------------------------------------------------------------------------

    def _begin_step(self) -> None:
        """Decide what the next step computes and when it ends."""
        scheduler = self._scheduler
        scheduler.schedule(self.steps, self._now)
        self._step_end = self._now + self.slowdown * self.profile.step_seconds(
            scheduler.decoding + len(scheduler.chunks),
            scheduler.resident,
            sum(tokens for _, tokens in scheduler.chunks),
        )

    def _end_step(self, end: float, on_finish: OnFinish | None) -> None:
        """Give every scheduled sequence its token, let some end, publish."""
        scheduler, counters = self._scheduler, self.counters
        seconds = end - self._now
        self._integrate(seconds, self.used_blocks / self.profile.usable_blocks * seconds)
        self._now, self._step_end = end, None
        self._hang_up(on_finish)
        step = self.steps
        self.steps += 1
        generated = scheduler.decoding
        prompts = 0
        scheduler.resident += generated
        if generated:
            counters.token_interval.observe(seconds, generated)
        for sequence, tokens in scheduler.chunks:
            if scheduler.compute(sequence, tokens, self.steps):
                generated += 1
                prompts += self._count_prompt_end(sequence)
        counters.prefix_queries += scheduler.looked_up
        counters.prefix_hits += scheduler.found
        counters.generation_tokens += generated
        if generated:
            counters.step_tokens.observe(prompts + generated)
        scheduler.looked_up = scheduler.found = 0
        prefilled = bool(scheduler.chunks)
        scheduler.chunks.clear()
        records = [self._finish(sequence) for sequence in scheduler.finish(step)]
        if prefilled or self.steps % self._gauge_steps == 0:
            self.refresh_gauges()
        if on_finish is not None:
            for record in records:
                on_finish(record)

    def _count_prompt_end(self, sequence: Sequence) -> int:
        """
        Count a prompt and the token that its end gives.

        Returns:
            Prompt tokens computed: none where the prompt was complete before a preemption.
        """
        counters = self.counters
        counters.preemptions += sequence.unreported
        sequence.unreported = 0
        if sequence.first_token >= 0:
            counters.token_interval.observe(self._now - sequence.last_token)
            return 0
        request = sequence.request
        sequence.first_token = self._now
        self.prefilling_tokens -= request.prompt_tokens
        counters.first_token.observe(self._now - request.arrival)
        counters.prompt_tokens += request.prompt_tokens
        counters.cached_prompt_tokens += sequence.cached
        return request.prompt_tokens - sequence.cached

    def _finish(self, sequence: Sequence) -> Finished:
        """End a request that has given its last token."""
        whole = sequence.target == sequence.request.output_tokens
        reason = sequence.request.finish_reason if whole else "length"
        record = self._end(sequence, sequence.target, reason)
        self.counters.count_finished(sequence, record)
        return record

    def _end(self, sequence: Sequence, output_tokens: int, reason: str) -> Finished:
        """Write down how a request fared."""
        sequence.over = True
        if sequence.first_token < 0:
            self.prefilling_tokens -= sequence.request.prompt_tokens
        return Finished(
            request=sequence.request,
            scheduled=sequence.scheduled if sequence.scheduled >= 0 else None,
            first_token=sequence.first_token if sequence.first_token >= 0 else None,
            finished=self._now,
            output_tokens=output_tokens,
            preemptions=sequence.preemptions,
            reason=reason,
        )

    def refresh_gauges(self) -> None:
        """Set the gauges to what is."""
        self.gauges = Gauges(
            running=self.running,
            waiting=self.waiting,
            kv_usage=self.used_blocks / self.profile.usable_blocks,
            at=self._now,
            generation_tokens=self.counters.generation_tokens,
            prompt_tokens=self.counters.prompt_tokens,
        )

    def _integrate(self, seconds: float, usage_seconds: float) -> None:
        """Add the levels that held during steps of so many seconds."""
        integrals = self.integrals
        integrals.running += self.running * seconds
        integrals.waiting += self.waiting * seconds
        integrals.kv_usage += usage_seconds
        integrals.busy += seconds
