"""SGLang's ranks: whatever order series and labels come in, nothing is counted twice."""

from __future__ import annotations

from typing import TYPE_CHECKING

from hypothesis import given
from hypothesis import strategies as st

from headroom_exporter.engines.sglang_ranks import counted, level

if TYPE_CHECKING:
    from random import Random

RANKS = st.sampled_from(["0", "1", "2", "3"])
LABELS = st.fixed_dictionaries(
    {"model_name": st.sampled_from(["a", "b"])},
    optional=dict.fromkeys(("tp_rank", "pp_rank", "moe_ep_rank", "dp_rank", "x_rank"), RANKS),
)
VALUES = st.floats(allow_nan=True, allow_infinity=True, width=32)
# A page holds no series twice.
SERIES = st.lists(
    st.tuples(LABELS, VALUES), max_size=24, unique_by=lambda row: frozenset(row[0].items())
)


@given(SERIES)
def test_ranks_never_count_for_more_than_the_largest_of_them(
    series: list[tuple[dict[str, str], float]],
) -> None:
    for found in (counted(series), level(series)):
        for (rank, model), value in found.items():
            own = [
                value
                for labels, value in series
                if labels.get("dp_rank") == rank and labels["model_name"] == model
            ]
            assert value in own
            assert value == max(known for known in own if 0 <= known < float("inf"))


@given(SERIES, st.randoms(use_true_random=False))
def test_the_order_of_series_and_labels_makes_no_difference(
    series: list[tuple[dict[str, str], float]], random: Random
) -> None:
    shuffled = [
        (dict(random.sample(sorted(row.items()), len(row))), value) for row, value in series
    ]
    random.shuffle(shuffled)
    assert counted(shuffled) == counted(series)
    assert level(shuffled) == level(series)


@given(
    st.lists(st.integers(0, 1000), min_size=1, max_size=5),
    st.lists(st.sampled_from(["0", "1", "2"]), min_size=1, max_size=3, unique=True),
)
def test_parts_are_summed_once_however_many_ranks_repeat_them(
    parts: list[int], ranks: list[str]
) -> None:
    series = [
        ({"model_name": "m", "is_streaming": str(i), "tp_rank": rank}, float(part))
        for rank in ranks
        for i, part in enumerate(parts)
    ]
    assert counted(series) == {(None, "m"): float(sum(parts))}
