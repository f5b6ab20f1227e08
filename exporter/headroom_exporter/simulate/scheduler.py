"""
Which sequences the next step computes: the scheduler of vLLM V1 (0.32, v1/core/sched/scheduler.py).

Running sequences come first, in the order of their admission, one token each; then the prompt that
the token budget cut last; then the waiting queue, first come first served, while there is a slot,
token budget and room for the head's *whole* prompt. A sequence that needs a block when none is free
preempts the last admitted one, which goes back to the head of the queue and is computed again,
generated tokens included; in such a step nobody is admitted.

The running sequences advance together, one token a step. So nothing is kept up token by token: a
decoding sequence is the step at which its token 0 would have been computed (``base``), and the rest
follows from the number of the step: its tokens, the steps at which it needs a block (equal to
``base`` modulo the block size: one ring of sets) and the step at which it ends (one heap).
"""

from __future__ import annotations

from collections import deque
from heapq import heappop, heappush
from typing import TYPE_CHECKING

from headroom_exporter.samples import Constraint
from headroom_exporter.simulate.pool import BlockPool
from headroom_exporter.simulate.requests import Sequence

if TYPE_CHECKING:
    from headroom_exporter.simulate.profiles import Profile
    from headroom_exporter.simulate.requests import Request


class Scheduler:
    """
    Queue, running sequences and their blocks.

    Attributes:
        waiting: First in, first out; preempted sequences return to its head.
        running: In the order of admission: the last is the first to be preempted.
        decoding: How many of the running take one token a step.
        chunks: Prompts and parts of prompts that the step under way computes, with their tokens.
        looked_up: Prompt tokens looked up in the prefix cache for the step under way.
        found: Those of them that were there.
        resident: Tokens computed and held, of all running sequences.
        pool: Free blocks.
        ring: Decoding sequences by the step at which they need a block, modulo the block size.
    """

    def __init__(self, profile: Profile) -> None:
        self.waiting: deque[Sequence] = deque()
        self.running: dict[Sequence, None] = {}
        self.decoding = 0
        self.chunks: list[tuple[Sequence, int]] = []
        self.looked_up = 0
        self.found = 0
        self.resident = 0
        self.pool = BlockPool(profile.usable_blocks)
        self.ring: list[dict[Sequence, None]] = [{} for _ in range(profile.block_tokens)]
        self._profile = profile
        # The one prompt that was cut by the token budget: always the last of the running.
        self._partial: Sequence | None = None
        self._admitted = 0
        self._ends: list[tuple[int, int, Sequence]] = []

    def accept(self, request: Request, now: float) -> Sequence:
        """Queue a request."""
        sequence = Sequence(request, now, self._profile.max_model_len)
        self.waiting.append(sequence)
        return sequence

    @property
    def steady(self) -> bool:
        """
        Whether the next step only adds a token to every running sequence.

        Blocks apart. It stays so until a sequence ends, lacks a block, or a request arrives: while
        nobody ends, free blocks only become fewer, so a head that does not fit now will not.
        """
        return 0 < self.decoding == len(self.running) and not (
            self.waiting
            and len(self.running) < self._profile.max_num_seqs
            and self.decoding < self._profile.max_num_batched_tokens
            and self._blocks(self.waiting[0].tokens) <= self.pool.free
        )

    @property
    def blocked(self) -> Constraint | None:
        """
        Why the head of the queue waits: the truth that the exporter can only infer.

        Returns:
            None when nothing waits; slots when all are taken; kv_cache when the head's whole prompt
            does not fit the free blocks (after a preemption it never does: the head is the victim, and
            part of what it held was needed); else prefill: the step's token budget went to other
            prompts, or the next step has yet to begin.
        """
        if not self.waiting:
            return None
        if len(self.running) >= self._profile.max_num_seqs:
            return Constraint.SLOTS
        if self._blocks(self.waiting[0].tokens) > self.pool.free:
            return Constraint.KV_CACHE
        return Constraint.PREFILL

    def next_end(self) -> int:
        """Number of the first step that ends a sequence; one must be decoding."""
        ends = self._ends
        while ends[0][2].ends != ends[0][0]:  # preempted since
            heappop(ends)
        return ends[0][0]

    # --- the start of a step ---------------------------------------------------------------------

    def schedule(self, step: int, now: float) -> None:
        """
        Decide what a step computes: a token for each of ``decoding``, and ``chunks``.

        Args:
            step: Its number.
            now: When it begins, virtual seconds.
        """
        preempted = self._grow_decoding(step, now)
        budget = self._profile.max_num_batched_tokens - self.decoding
        if self._partial is not None:
            tokens = min(self._partial.tokens - self._partial.computed, budget)
            preempted = not self._continue_prompt(self._partial, tokens, step, now)
            budget -= tokens
        if not preempted:
            self._admit(budget, now)

    def _blocks(self, tokens: int) -> int:
        """Blocks that hold so many tokens."""
        return -(-tokens // self._profile.block_tokens)

    def _grow_decoding(self, step: int, now: float) -> bool:
        """
        Give a block to every decoding sequence whose last one is full.

        Returns:
            Whether anybody was preempted.
        """
        needing = self.ring[step % self._profile.block_tokens]
        if len(needing) <= self.pool.free:
            self.pool.take(len(needing))
            return False
        for sequence in sorted(needing, key=lambda each: each.order):
            while not self.pool.free and sequence in self.running:
                self._preempt_last(step, now)
            if sequence not in self.running:
                break  # and neither is any that was admitted after it
            self.pool.take(1)
        return True

    def _preempt_last(self, step: int, now: float) -> None:
        """Put the sequence that was admitted last back to the head of the queue."""
        victim = self.running.popitem()[0]
        self._release(victim, step, findable=self._profile.prefix_caching, now=now)
        victim.preemptions += 1
        victim.unreported += 1
        victim.computed = 0
        self.waiting.appendleft(victim)

    def _continue_prompt(self, sequence: Sequence, tokens: int, step: int, now: float) -> bool:
        """
        Compute the next part of the prompt that was cut.

        Returns:
            False if it had to be preempted for lack of blocks.
        """
        need = self._blocks(sequence.computed + tokens) - self._blocks(sequence.computed)
        if need > self.pool.free:
            self._preempt_last(step, now)  # nobody was admitted after it
            return False
        self.pool.take(need)
        if tokens:
            self.chunks.append((sequence, tokens))
        return True

    def _admit(self, budget: int, now: float) -> None:
        """Start waiting requests."""
        while budget and self.waiting and len(self.running) < self._profile.max_num_seqs:
            sequence = self.waiting[0]
            if self._blocks(sequence.tokens) > self.pool.free:
                return
            self.waiting.popleft()
            if sequence.scheduled < 0:
                self._find_cached(sequence)
                held = 0
                sequence.scheduled = now
            else:
                sequence.computed = self._find_freed(sequence)
                held = self._blocks(sequence.computed)
            self.resident += sequence.computed
            tokens = min(sequence.tokens - sequence.computed, budget)
            budget -= tokens
            self.pool.take(self._blocks(sequence.computed + tokens) - held)
            sequence.order = self._admitted
            self._admitted += 1
            self.running[sequence] = None
            self.chunks.append((sequence, tokens))

    def _find_cached(self, sequence: Sequence) -> None:
        """
        Skip what the prefix cache holds of a prompt that is looked up for the first time.

        Its blocks were free, findable ones, so they are taken like others: what was found saves
        computing, not memory. vLLM does the same unless a running sequence shares the blocks.
        """
        if not self._profile.prefix_caching:
            return
        block_tokens = self._profile.block_tokens
        most = min(sequence.request.cached_tokens, sequence.tokens - 1)
        sequence.cached = sequence.computed = most // block_tokens * block_tokens
        self.looked_up += sequence.tokens
        self.found += sequence.cached

    def _find_freed(self, sequence: Sequence) -> int:
        """Tokens of a preempted sequence whose blocks nobody took; never its last token."""
        if sequence.freed is None:
            return 0
        block_tokens = self._profile.block_tokens
        blocks = self.pool.reclaim(sequence.freed, (sequence.tokens - 1) // block_tokens)
        sequence.freed = None
        return blocks * block_tokens

    # --- the end of a step -----------------------------------------------------------------------

    def compute(self, sequence: Sequence, tokens: int, next_step: int) -> bool:
        """
        Add the computed part of a prompt.

        Returns:
            Whether the prompt is complete: then it has given a token, and the sequence decodes
            from the next step on.
        """
        sequence.computed += tokens
        self.resident += tokens
        if sequence.computed < sequence.tokens:
            self._partial = sequence
            return False
        if sequence is self._partial:
            self._partial = None
        sequence.base = next_step - sequence.computed
        # Step s leaves s + 1 - base tokens computed; all but the last output token are, at the end.
        sequence.ends = sequence.base + sequence.request.prompt_tokens + sequence.target - 2
        self.ring[sequence.base % self._profile.block_tokens][sequence] = None
        self.decoding += 1
        heappush(self._ends, (sequence.ends, sequence.order, sequence))
        return True

    def finish(self, step: int) -> list[Sequence]:
        """Remove the sequences whose last token this step gave; in the order of admission."""
        ended: list[Sequence] = []
        while self._ends and self._ends[0][0] <= step:
            ends, _, sequence = heappop(self._ends)
            if sequence.ends == ends:  # else it was preempted since
                del self.running[sequence]
                self._release(sequence, step + 1, findable=False)
                ended.append(sequence)
        return ended

    def drop(self, sequence: Sequence, step: int) -> None:
        """
        Remove a sequence during a step, before what the step computes is counted.

        Args:
            sequence: Waiting or running.
            step: Number of the step under way.
        """
        if sequence not in self.running:
            self.waiting.remove(sequence)
            return
        del self.running[sequence]
        if sequence.ends >= 0:  # it holds the block of the token under way, not the token
            computed = step - sequence.base
            held = computed + 1
            sequence.ends = -1
            self.decoding -= 1
            del self.ring[sequence.base % self._profile.block_tokens][sequence]
        else:
            computed = sequence.computed
            held = computed + sum(tokens for each, tokens in self.chunks if each is sequence)
            self.chunks = [chunk for chunk in self.chunks if chunk[0] is not sequence]
            if sequence is self._partial:
                self._partial = None
        self.resident -= computed
        full = computed // self._profile.block_tokens
        self.pool.give_back(full, self._blocks(held) - full, findable=False)

    def _release(
        self, sequence: Sequence, next_step: int, *, findable: bool, now: float = 0.0
    ) -> None:
        """Free the blocks of a sequence that was just removed from the running."""
        block_tokens = self._profile.block_tokens
        if sequence is self._partial:
            self._partial = None
        else:
            sequence.computed = next_step - sequence.base
            sequence.tokens = sequence.computed + 1
            sequence.last_token = now
            sequence.ends = -1
            self.decoding -= 1
            del self.ring[sequence.base % block_tokens][sequence]
        self.resident -= sequence.computed
        full, rest = divmod(sequence.computed, block_tokens)
        sequence.freed = self.pool.give_back(full, 1 if rest else 0, findable=findable)
