"""
The fast engine against a slow one that walks every token of every block, step by step.

The reference is written from the description of vLLM's scheduler alone: block ids in a free queue,
contents remembered per block, no arithmetic on step numbers.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from hypothesis import given, settings
from hypothesis import strategies as st

from headroom_exporter.simulate.engine import SimulatedEngine
from headroom_exporter.simulate.requests import Finished, Request
from simulation import TINY_CPU

if TYPE_CHECKING:
    from headroom_exporter.simulate.profiles import Profile


@dataclass(eq=False)
class Slow:
    request: Request
    target: int
    generated: int = 0
    computed: int = 0
    blocks: list[int] = field(default_factory=list)
    decoding: bool = False
    scheduled: float | None = None
    first_token: float | None = None
    preemptions: int = 0

    @property
    def tokens(self) -> int:
        return self.request.prompt_tokens + self.generated


class SlowEngine:
    def __init__(self, profile: Profile, requests: list[Request]) -> None:
        self.profile = profile
        self.arrivals = deque(sorted(requests, key=lambda each: each.arrival))
        self.free = deque(range(profile.usable_blocks))
        self.why: str | None = None
        self.content: dict[int, tuple[str, int]] = {}
        self.waiting: deque[Slow] = deque()
        self.running: list[Slow] = []
        self.now = 0.0
        self.finished: list[tuple[str, float | None, float | None, float, int, str]] = []
        self.gauges: list[tuple[float, int, int, int]] = []
        # Middle of each step and why the head of the queue is not in it.
        self.blocked: list[tuple[float, str | None]] = []

    def need(self, tokens: int) -> int:
        return -(-tokens // self.profile.block_tokens)

    def grow(self, each: Slow, tokens: int) -> bool:
        more = self.need(tokens) - len(each.blocks)
        if more > len(self.free):
            return False
        for _ in range(more):
            block = self.free.popleft()
            self.content.pop(block, None)
            each.blocks.append(block)
        return True

    def release(self, each: Slow) -> None:
        full = each.computed // self.profile.block_tokens
        for index in reversed(range(len(each.blocks))):
            block = each.blocks[index]
            if index < full:
                self.content[block] = (each.request.id, index)
                self.free.append(block)
            else:
                self.free.appendleft(block)
        each.blocks.clear()

    def preempt(self) -> Slow:
        victim = self.running.pop()
        self.release(victim)
        victim.computed = 0
        victim.decoding = False
        victim.preemptions += 1
        self.waiting.appendleft(victim)
        return victim

    def find(self, each: Slow) -> None:
        """Take the leading blocks whose content is still in the free queue, or was there before."""
        if each.scheduled is None and self.profile.prefix_caching:
            most = min(each.request.cached_tokens, each.tokens - 1)
            each.computed = most // self.profile.block_tokens * self.profile.block_tokens
            assert self.grow(each, each.computed)
            return
        where = {content: block for block, content in self.content.items() if block in self.free}
        for index in range((each.tokens - 1) // self.profile.block_tokens):
            block = where.get((each.request.id, index))
            if block is None or not self.profile.prefix_caching:
                return
            self.free.remove(block)
            del self.content[block]
            each.blocks.append(block)
            each.computed += self.profile.block_tokens

    def schedule(self) -> dict[Slow, int]:
        budget = self.profile.max_num_batched_tokens
        work: dict[Slow, int] = {}
        preempted = False
        index = 0
        while index < len(self.running) and budget:
            each = self.running[index]
            tokens = min(each.tokens - each.computed, budget)
            while not self.grow(each, each.computed + tokens):
                preempted = True
                if self.preempt() is each:
                    break
            if each not in self.running:
                break
            work[each] = tokens
            budget -= tokens
            index += 1
        while not preempted and budget and self.waiting:
            each = self.waiting[0]
            full = len(self.running) == self.profile.max_num_seqs
            if full or self.need(each.tokens) > len(self.free):
                break
            self.running.append(self.waiting.popleft())
            self.find(each)
            work[each] = min(each.tokens - each.computed, budget)
            assert self.grow(each, each.computed + work[each])
            budget -= work[each]
            if each.scheduled is None:
                each.scheduled = self.now
        self.why = self.held_back(preempted=preempted)
        return work

    def held_back(self, *, preempted: bool) -> str | None:
        if not self.waiting:
            return None
        if len(self.running) == self.profile.max_num_seqs:
            return "slots"
        lacking = self.need(self.waiting[0].tokens) > len(self.free)
        return "kv_cache" if lacking or preempted else "prefill"

    def step(self) -> None:
        work = self.schedule()
        prefill = sum(tokens for each, tokens in work.items() if not each.decoding)
        resident = sum(each.computed for each in self.running)
        seconds = self.profile.step_seconds(len(work), resident, prefill)
        self.blocked.append((self.now + seconds / 2, self.why))
        self.now += seconds
        self.hang_up()
        for each, tokens in work.items():
            if each not in self.running:
                continue
            each.computed += tokens
            if each.computed < each.tokens:
                continue
            each.generated += 1
            each.decoding = True
            if each.first_token is None:
                each.first_token = self.now
            if each.generated == each.target:
                self.running.remove(each)
                self.release(each)
                self.record(each, "stop" if each.target == each.request.output_tokens else "length")
        used = self.profile.usable_blocks - len(self.free)
        self.gauges.append((self.now, len(self.running), len(self.waiting), used))

    def record(self, each: Slow, reason: str) -> None:
        times = (each.scheduled, each.first_token, self.now)
        self.finished.append((each.request.id, *times, each.preemptions, reason))

    def hang_up(self) -> None:
        for each in [*self.running, *self.waiting]:
            patience = each.request.abort_after
            if patience is None or each.request.arrival + patience > self.now:
                continue
            if each in self.running:
                self.running.remove(each)
                self.release(each)
            else:
                self.waiting.remove(each)
            self.record(each, "abort")

    def run(self) -> None:
        while self.arrivals or self.waiting or self.running:
            if not self.waiting and not self.running:
                self.now = max(self.now, self.arrivals[0].arrival)
            while self.arrivals and self.arrivals[0].arrival <= self.now:
                request = self.arrivals.popleft()
                room = self.profile.max_model_len - request.prompt_tokens
                self.waiting.append(Slow(request, min(request.output_tokens, room)))
            self.hang_up()
            if self.waiting or self.running:
                self.step()


profiles = st.builds(
    lambda block, seqs, budget, pool, kv, caching: replace(
        TINY_CPU,
        block_tokens=block,
        max_num_seqs=seqs,
        max_num_batched_tokens=seqs + budget,
        max_model_len=40,
        num_gpu_blocks=1 + -(-40 // block) + pool,
        step_per_kv_token=kv,
        prefix_caching=caching,
    ),
    block=st.integers(1, 9),
    seqs=st.integers(1, 8),
    budget=st.integers(0, 40),
    pool=st.integers(0, 12),
    kv=st.sampled_from([0.0, 1e-6]),
    caching=st.booleans(),
)
workloads = st.lists(
    st.tuples(
        st.floats(0, 0.3),
        st.integers(1, 39),
        st.integers(1, 30),
        st.one_of(st.just(0), st.integers(0, 45)),
        st.one_of(st.none(), st.floats(0, 0.2)),
    ),
    min_size=1,
    max_size=25,
)


@given(profile=profiles, workload=workloads)
@settings(deadline=None, max_examples=300)
def test_the_fast_engine_does_what_the_slow_one_does(profile, workload):
    requests = [
        Request(
            arrival=arrival,
            prompt_tokens=prompt,
            output_tokens=output,
            id=str(number),
            cached_tokens=cached,
            abort_after=patience,
        )
        for number, (arrival, prompt, output, cached, patience) in enumerate(
            sorted(workload, key=lambda row: row[0])
        )
    ]
    slow = SlowEngine(profile, requests)
    slow.run()
    fast = SimulatedEngine(profile)
    for request in requests:
        fast.submit(request)
    finished: list[tuple[str, float | None, float | None, float, int, str]] = []

    def note(record: Finished) -> None:
        times = (record.scheduled, record.first_token, record.finished)
        finished.append((record.request.id, *times, record.preemptions, record.reason))

    for (middle, why), (now, running, waiting, used) in zip(slow.blocked, slow.gauges, strict=True):
        fast.advance(middle, note)
        assert fast.blocked == why
        fast.advance(now, note)
        assert fast.gauges is not None
        assert (fast.gauges.running, fast.gauges.waiting) == (running, waiting)
        assert fast.gauges.kv_usage == used / profile.usable_blocks
    fast.advance(slow.now + 1.0, note)  # clients that left before they were looked at
    assert sorted(finished) == sorted(slow.finished)
