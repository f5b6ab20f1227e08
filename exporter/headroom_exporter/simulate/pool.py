"""
The paged KV pool: how many blocks are free, and which freed ones can still be found.

Behaviour of vLLM 0.32 (v1/core/block_pool.py): blocks come from the head of a free queue; freed
full blocks go to its tail, the last of a request first, so that the start of a prompt survives
longest; a freed block that was not full holds nothing findable and goes to the head. Only a
request's own blocks are followed here: they are what makes recomputation after preemption cheap.
"""

from __future__ import annotations

from collections import deque


class Freed:
    """Freed blocks of one preempted request that nobody has taken yet."""

    __slots__ = ("blocks",)

    def __init__(self, blocks: int) -> None:
        self.blocks = blocks


class BlockPool:
    """
    Free blocks in the order in which they will be taken.

    Attributes:
        free: Blocks that can be taken.
    """

    __slots__ = ("_queue", "free")

    def __init__(self, blocks: int) -> None:
        self.free = blocks
        self._queue: deque[Freed] = deque([Freed(blocks)])

    def take(self, blocks: int) -> None:
        """Take blocks from the head; there must be enough (``free``)."""
        self.free -= blocks
        queue = self._queue
        while blocks:
            head = queue[0]
            if head.blocks > blocks:
                head.blocks -= blocks
                return
            blocks -= head.blocks
            head.blocks = 0
            queue.popleft()

    def give_back(self, full: int, partial: int, *, findable: bool) -> Freed | None:
        """
        Free a request's blocks.

        Args:
            full: Blocks with every token computed.
            partial: Its blocks that are not full: the last, or what a step under way would fill.
            findable: Whether its owner may come back for them.

        Returns:
            What to hand to ``reclaim``; None where nothing can be found again.
        """
        self.free += full + partial
        queue = self._queue
        if partial:
            queue.appendleft(Freed(partial))
        if not full:
            return None
        freed = Freed(full)
        queue.append(freed)
        return freed if findable else None

    def reclaim(self, freed: Freed, wanted: int) -> int:
        """Take back blocks with their content: as many as are still there, at most ``wanted``."""
        blocks = min(freed.blocks, wanted)
        freed.blocks -= blocks
        self.free -= blocks
        return blocks
