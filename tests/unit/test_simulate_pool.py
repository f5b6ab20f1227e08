"""The simulated KV pool: what is taken first and what can still be found."""

from __future__ import annotations

from headroom_exporter.simulate.pool import BlockPool


def test_blocks_are_conserved():
    pool = BlockPool(10)
    pool.take(7)
    pool.give_back(3, 1, findable=True)
    assert pool.free == 7
    pool.take(7)
    assert pool.free == 0


def test_the_oldest_free_blocks_are_taken_first():
    pool = BlockPool(10)
    pool.take(8)
    freed = pool.give_back(4, 0, findable=True)
    assert freed is not None
    pool.take(3)  # two that were never used, one of the four
    assert pool.reclaim(freed, 4) == 3
    assert pool.free == 0


def test_a_block_that_was_not_full_is_taken_before_all_others():
    pool = BlockPool(4)
    pool.take(4)
    freed = pool.give_back(2, 1, findable=True)
    assert freed is not None
    pool.take(1)
    assert pool.reclaim(freed, 2) == 2


def test_no_more_is_reclaimed_than_wanted_and_the_rest_stays_free():
    pool = BlockPool(4)
    pool.take(4)
    freed = pool.give_back(3, 0, findable=True)
    assert freed is not None
    assert pool.reclaim(freed, 2) == 2
    assert pool.free == 1
    pool.take(1)
    assert pool.reclaim(freed, 1) == 0


def test_blocks_of_a_finished_request_are_not_found_again():
    pool = BlockPool(4)
    pool.take(4)
    assert pool.give_back(3, 1, findable=False) is None
    assert pool.free == 4
