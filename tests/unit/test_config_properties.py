"""Properties of reading and writing the configuration, over whatever Hypothesis thinks of."""

from __future__ import annotations

import json

import yarl
from hypothesis import given
from hypothesis import strategies as st

from headroom_exporter.config import (
    Config,
    DiscoveryConfig,
    EngineConfig,
    GpuConfig,
    KubeletConfig,
    KubernetesConfig,
    Lengths,
    PlanConfig,
    PollConfig,
    WebConfig,
    plan_for,
    table,
)
from headroom_exporter.config.checks import KINDS
from headroom_exporter.config.file import parse, to_yaml
from headroom_exporter.errors import ConfigError


def survives(text: str) -> None:
    """Either it is a configuration, or the answer is one ConfigError of tidy lines."""
    says = ""
    try:
        config = parse(text, "f.yaml")
    except ConfigError as error:
        says = str(error)
    else:
        assert parse(to_yaml(config), "again") == config
    for line in says.splitlines():
        assert line.startswith("f.yaml: ")
        assert line.isprintable()


# --- what people and machines may feed it --------------------------------------------------------


def _known(level: table.Keys) -> set[str]:
    found = set(level)
    for spec in level.values():
        inner = spec.item if isinstance(spec, table.Each) else spec
        if isinstance(inner, table.Record | table.Group):
            found |= _known(inner.keys)
    return found


KEYS = st.sampled_from(sorted(_known(table.CONFIG.keys))) | st.text(max_size=8)
SCALARS = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=30)
    | st.sampled_from(["1s", "250ms", "1m30s", "auto", "GPU-1", "http://h:1", "http://a@b", "*"])
)
TREES = st.recursive(
    SCALARS,
    lambda deeper: st.lists(deeper, max_size=3) | st.dictionaries(KEYS, deeper, max_size=4),
    max_leaves=20,
)
# Pieces that mean something to YAML, so that random text gets past its first character.
TOKENS = st.sampled_from(
    [*"[]{},:-?&*!|>'\"%@`#~", ": ", "- ", "? ", "\n", "\n  ", "---", "...", "&a ", "*a", "<<: *a",
     "!!int ", "!!bool x", "!!binary ", "!<%0A> ", "%YAML 1.1\n", "\t", "\0", "\x85", "\u2028",
     "\ud800", "0x1f", ".inf", "1e5", "plans", "engines: ", "poll: ", "interval: ", "null"]
)  # fmt: skip


def _shaped(level: table.Keys, depth: int = 0) -> st.SearchStrategy[object]:
    """Trees of the right shape whose leaves are anything: most reach the checks of values."""
    parts: dict[str, st.SearchStrategy[object]] = {}
    for key, spec in level.items():
        inner = spec.item if isinstance(spec, table.Each) else spec
        part: st.SearchStrategy[object] = SCALARS
        if isinstance(inner, table.Record | table.Group):
            part = _shaped(inner.keys, depth + 1)
        parts[key] = st.lists(part, max_size=2) if isinstance(spec, table.Each) else part
    return st.fixed_dictionaries({}, optional=parts)  # type: ignore[arg-type]


@given(st.text())
def test_any_text_is_read_or_refused(text: str) -> None:
    survives(text)


@given(st.lists(TOKENS | st.text(max_size=3), max_size=25).map("".join))
def test_any_soup_of_yaml_is_read_or_refused(text: str) -> None:
    survives(text)


@given(TREES)
def test_any_structure_is_read_or_refused(tree: object) -> None:
    survives(json.dumps(tree))  # JSON is YAML


@given(_shaped(table.CONFIG.keys))
def test_any_values_under_the_right_keys_are_read_or_refused(tree: object) -> None:
    survives(json.dumps(tree))


# --- what is written is read back ----------------------------------------------------------------

PRINTABLE = st.text(
    st.characters(exclude_categories=("Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp", "Zs"))
    | st.just(" ")
)


def names(longest: int) -> st.SearchStrategy[str]:
    odd = st.sampled_from(["no", "1e3", "~", "- x", "a: b", "#", "'", '"\\n', "12:30", "010", "é%"])
    return odd | PRINTABLE.filter(lambda text: 1 <= len(text) <= longest)


def numbers(low: float, high: float) -> st.SearchStrategy[float]:
    return st.floats(low, high, exclude_min=low == 0, exclude_max=True).map(lambda v: max(v, 1e-9))


def maybe(values: st.SearchStrategy[float]) -> st.SearchStrategy[float | None]:
    return st.none() | values


URLS = st.builds(
    "{}://{}{}{}".format,
    st.sampled_from(["http", "https"]),
    st.sampled_from(["127.0.0.1", "h", "[::1]", "a-b.c_d", "Host"]),
    st.just("") | st.integers(1, 65535).map(":{}".format),
    st.sampled_from(["", "/x", "/x/metric"]),
)
ENGINES = st.builds(
    EngineConfig,
    name=names(128),
    url=URLS,
    kind=st.sampled_from(KINDS),
    bearer_token_file=st.none() | names(4096),
    ca_file=st.none() | names(4096),
    insecure_skip_verify=st.booleans(),
)
LENGTHS = st.tuples(numbers(0, 1e12), numbers(0, 1e12)).map(
    lambda pair: Lengths(p50=min(pair), p95=max(pair))
)
COUNTS = st.integers(1, 10**12).map(float)
PLANS = st.builds(
    PlanConfig,
    name=names(256),
    match_engine=st.none() | names(256),
    match_model_name=st.none() | names(256),
    concurrency=maybe(numbers(0, 1e12)),
    max_num_seqs=maybe(COUNTS),
    prompt_tokens=LENGTHS | st.just(Lengths()) | numbers(0, 1e9).map(lambda v: Lengths(p95=v)),
    output_tokens=LENGTHS | st.just(Lengths()) | numbers(0, 1e9).map(lambda v: Lengths(p50=v)),
    request_rate=maybe(numbers(0, 1e12)),
    ttft_p95_seconds=maybe(numbers(0, 1e6)),
    tpot_p95_seconds=maybe(numbers(0, 1e6)),
    kv_cache_tokens=maybe(COUNTS),
    floor_ratio=numbers(0, 1),
    spike_factor=st.floats(1, 1e12),
    overrun_probability=numbers(0, 0.5),
)
POLLS = st.tuples(
    st.floats(0.1, 60), st.floats(0, 500), st.floats(0.001, 600), st.floats(0, 3000)
).map(
    lambda t: PollConfig(
        interval=t[0],
        fallback_interval=t[0] + t[1],
        full_interval=t[0] + t[1],
        timeout=t[2],
        max_backoff=t[0] + t[3],
    )
)
DEVICES = st.integers(0, 9999).map(str) | st.sampled_from(["GPU-aa-0", "MIG-GPU-a/1/2", "0:1"])
GPUS = st.builds(
    GpuConfig,
    enabled=st.booleans(),
    devices=st.lists(DEVICES, unique=True, max_size=4).map(tuple),
    interval=st.floats(0.1, 5),
    timeout=st.floats(0.001, 600),
)
LABELS = st.from_regex(r"[a-z0-9]([-a-z0-9]{0,10}[a-z0-9])?", fullmatch=True)
DISCOVERIES = st.builds(
    DiscoveryConfig,
    kubernetes=st.builds(
        KubernetesConfig,
        node=st.none() | LABELS | st.just("ip-10-0-0-7.eu-central-1.compute.internal"),
        namespaces=st.lists(LABELS, unique=True, max_size=3).map(tuple),
        label_selector=st.sampled_from(["", "app=vllm", "tier in (a, b),!canary", '"\\']),
        port_names=st.lists(LABELS, unique=True, max_size=3).map(tuple),
    ),
    kubelet=st.builds(
        KubeletConfig, enabled=st.booleans(), socket=st.sampled_from(["/a.sock", "/b/c'\"#.sock"])
    ),
)
SOME_ENGINES = st.lists(ENGINES, min_size=1, max_size=3, unique_by=lambda e: e.name).map(tuple)
CONFIGS = st.builds(
    Config,
    engines=SOME_ENGINES,
    discovery=st.none() | DISCOVERIES,
    plans=st.lists(PLANS, max_size=3).map(tuple),
    poll=POLLS,
    gpus=GPUS,
    web=st.builds(WebConfig, reload=st.booleans()),
) | st.builds(Config, engines=st.just(()), discovery=DISCOVERIES)


@given(CONFIGS)
def test_what_is_written_is_read_back(config: Config) -> None:
    assert parse(to_yaml(config), "again") == config


# --- addresses and patterns ----------------------------------------------------------------------


@given(
    st.builds(
        "http{}://{}".format,
        st.sampled_from(["", "s"]),
        st.text(st.sampled_from(list("aZ0.-_:/[]@?#%\\ \n~v1é")), max_size=15),
    )
)
def test_an_address_that_is_accepted_is_one_the_http_client_understands(url: str) -> None:
    try:
        (engine,) = parse(json.dumps({"engines": [{"name": "e", "url": url}]}), "f").engines
    except ConfigError:
        return
    read = yarl.URL(engine.url + "/metrics")
    assert read.host
    assert not read.user
    assert not read.query_string
    assert read.path.endswith("/metrics")


@given(
    st.lists(PLANS, max_size=5),
    st.text(max_size=10) | st.just("12:30"),
    st.text(max_size=10) | st.just("no"),
)
def test_a_plan_is_found_if_and_only_if_one_matches(
    plans: list[PlanConfig], engine: str, model: str
) -> None:
    alone = [plan for plan in plans if plan_for((plan,), engine, model) is plan]
    assert (plan_for(plans, engine, model) in alone) == bool(alone)
    everything = PlanConfig(name="catch-all")
    assert plan_for([*plans, everything], engine, model) is not None
