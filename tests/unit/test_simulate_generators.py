"""Made-up traffic: rates, burstiness, lengths, seeds, and what is refused."""

from __future__ import annotations

from statistics import mean, pvariance, quantiles

import pytest

from headroom_exporter.errors import ConfigError
from headroom_exporter.simulate.generators import KINDS, parse


def times(text: str) -> list[float]:
    return [request.arrival for request in parse(text).requests()]


def counts(arrivals: list[float], window: float, duration: float) -> list[int]:
    made = [0] * round(duration / window)
    for at in arrivals:
        made[int(at / window)] += 1
    return made


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_is_ordered_seeded_and_ends(kind):
    text = f"synthetic:{kind}?duration=900"
    once = list(parse(text).requests())
    assert once == list(parse(text).requests())
    assert once != list(parse(f"{text}&seed=1").requests())
    arrivals = [request.arrival for request in once]
    assert arrivals == sorted(arrivals)
    assert arrivals[0] >= 0
    assert arrivals[-1] < 900


def test_poisson_has_its_rate_and_a_dispersion_of_one():
    arrivals = times("synthetic:poisson?rate=5&duration=20000")
    per_window = counts(arrivals, 10, 20000)
    assert len(arrivals) == pytest.approx(100_000, rel=0.02)
    assert pvariance(per_window) / mean(per_window) == pytest.approx(1, rel=0.12)


@pytest.mark.parametrize("dispersion", [1, 4, 25])
def test_bursty_traffic_has_the_dispersion_it_was_given(dispersion):
    text = f"synthetic:bursty?rate=3&duration=40000&dispersion={dispersion}&burst_seconds=1"
    arrivals = times(text)
    per_window = counts(arrivals, 20, 40_000)
    assert len(arrivals) / 40_000 == pytest.approx(3, rel=0.05)
    assert pvariance(per_window) / mean(per_window) == pytest.approx(dispersion, rel=0.15)


def test_a_ramp_grows_linearly():
    arrivals = times("synthetic:ramp?rate=1&rate_end=9&duration=4000")
    quarters = [count / 1000 for count in counts(arrivals, 1000, 4000)]
    assert quarters == pytest.approx([2, 4, 6, 8], rel=0.06)


def test_a_ramp_may_fall_to_nothing():
    arrivals = times("synthetic:ramp?rate=8&rate_end=0&duration=2000")
    first, second = (count / 1000 for count in counts(arrivals, 1000, 2000))
    assert first == pytest.approx(6, rel=0.06)
    assert second == pytest.approx(2, rel=0.1)


def test_a_spike_begins_and_ends():
    arrivals = times("synthetic:spike?rate=4&factor=5&at=1000&seconds=500&duration=3000")
    inside = [at for at in arrivals if 1000 <= at < 1500]
    before = [at for at in arrivals if at < 1000]
    after = [at for at in arrivals if at >= 1500]
    assert len(inside) / 500 == pytest.approx(20, rel=0.05)
    assert len(before) / 1000 == pytest.approx(4, rel=0.06)
    assert len(after) / 1500 == pytest.approx(4, rel=0.06)


def test_a_day_has_its_peak_and_its_night():
    text = "synthetic:diurnal?rate=2&amplitude=0.5&duration=172800&peak_at=50400"
    hours = [count / 3600 for count in counts(times(text), 3600, 172_800)]
    assert mean(hours[13:15]) == pytest.approx(3, rel=0.05)
    assert mean(hours[1:3]) == pytest.approx(1, rel=0.08)
    assert mean(hours) == pytest.approx(2, rel=0.02)
    assert mean(hours[24:]) == pytest.approx(mean(hours[:24]), rel=0.03)


def test_drift_lengthens_prompts_and_leaves_the_rest():
    text = "synthetic:drift?rate=10&duration=4000&prompt_growth=3&prompt_max=100000"
    requests = list(parse(text).requests())
    early = [r for r in requests if r.arrival < 400]
    late = [r for r in requests if r.arrival >= 3600]
    assert median(r.prompt_tokens for r in early) == pytest.approx(512 * 1.1, rel=0.06)
    assert median(r.prompt_tokens for r in late) == pytest.approx(512 * 2.9, rel=0.06)
    assert median(r.output_tokens for r in late) == pytest.approx(200, rel=0.06)
    assert len(early) == pytest.approx(len(late), rel=0.06)


def median(values) -> float:
    return quantiles(values, n=2)[0]


def test_lengths_are_those_asked_for():
    text = "synthetic:poisson?rate=10&prompt_p50=100&prompt_p95=400&prompt_max=450&output_p95=200"
    requests = list(parse(text).requests())
    cuts = quantiles([request.prompt_tokens for request in requests], n=20)
    assert cuts[9] == pytest.approx(100, rel=0.03)
    assert cuts[18] == pytest.approx(400, rel=0.04)
    assert max(request.prompt_tokens for request in requests) == 450
    # p50 and p95 alike: all the same.
    assert {request.output_tokens for request in requests} == {200}


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("synthetic:wave", "kind 'wave': must be one of poisson, bursty"),
        ("synthetic:ramp?speed=1", "'speed': must be one of rate, duration"),
        ("synthetic:poisson?dispersion=2", "'dispersion': must be one of"),
        ("synthetic:poisson?rate=fast", "rate 'fast': must be a number, at least 0"),
        ("synthetic:poisson?rate=", "rate '': must be a number"),
        ("synthetic:poisson?rate=0", "rate 0: must be above 0"),
        ("synthetic:poisson?rate=-1", "rate '-1'"),
        ("synthetic:poisson?duration=inf", "duration 'inf': must be a number, above 0"),
        ("synthetic:bursty?dispersion=0.5", "dispersion 0.5: must be at least 1"),
        ("synthetic:diurnal?amplitude=2", "amplitude 2: must be 0 to 1"),
        ("synthetic:poisson?prompt_p50=3000", r"lengths p50 3000.0, p95 2048"),
        ("synthetic:drift?output_p50=1&output_growth=0.5", "lengths p50 0.5"),
    ],
)
def test_what_makes_no_traffic_is_refused_with_the_reason(text, reason):
    with pytest.raises(ConfigError, match=reason) as caught:
        parse(text)
    assert str(caught.value).startswith(text)
