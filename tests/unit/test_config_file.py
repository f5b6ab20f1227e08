"""The configuration file: what it means, and what each mistake is answered with."""

from __future__ import annotations

from pathlib import Path

import pytest

from headroom_exporter.config import (
    Config,
    EngineConfig,
    GpuConfig,
    Lengths,
    PlanConfig,
    PollConfig,
    WebConfig,
    table,
)
from headroom_exporter.config.checks import KINDS
from headroom_exporter.config.file import load, parse, to_yaml
from headroom_exporter.engines import ENGINES
from headroom_exporter.errors import ConfigError
from headroom_exporter.expose import GPU_STALE_SECONDS


def complaints(text: str, source: str = "f.yaml") -> list[str]:
    with pytest.raises(ConfigError) as caught:
        parse(text, source)
    return str(caught.value).split("\n")


def complaint(text: str) -> str:
    (only,) = complaints(text)
    return only


# --- what a right file means ---------------------------------------------------------------------


@pytest.mark.parametrize("text", ["", "\n", "# only a comment\n", "---\n", "{}", "null", "--- ~\n"])
def test_an_empty_file_gives_the_defaults(text: str) -> None:
    assert parse(text, "f.yaml") == Config()


def test_sections_whose_lines_are_all_commented_out_give_the_defaults() -> None:
    text = "engines:\npoll:\ngpus:\n  devices:\nweb:\nplans:\n  # - concurrency: 3\n"
    assert parse(text, "f.yaml") == Config()


def test_every_key_fills_its_field() -> None:
    text = """
engines:
  - name: llama-8b
    url: https://h:8443/prefix/
    kind: vllm
    bearer_token_file: /t
    tls: {ca_file: /ca, insecure_skip_verify: true}
poll: {interval: 250ms, fallback_interval: 3, full_interval: 1m30s, timeout: 1.5, max_backoff: 1h}
gpus: {enabled: false, devices: [0, "1", "2:3", GPU-aa-bb, MIG-GPU-aa/1/2], interval: 2, timeout: 9s}
web: {reload: true}
plans:
  - name: chat
    match: {engine: "llama-*", model_name: m}
    concurrency: 32
    max_num_seqs: 64
    prompt_tokens: {p50: 512, p95: 2048}
    output_tokens: {p50: 200, p95: 600}
    request_rate: 4.5
    kv_cache_tokens: 240000
    slo: {ttft_p95_seconds: 1, tpot_p95_seconds: 5e-2}
    headroom: {floor_ratio: 0, spike_factor: 1, overrun_probability: 1e-3}
"""
    assert parse(text, "f.yaml") == Config(
        engines=(
            EngineConfig(
                name="llama-8b",
                url="https://h:8443/prefix",
                kind="vllm",
                bearer_token_file="/t",
                ca_file="/ca",
                insecure_skip_verify=True,
            ),
        ),
        poll=PollConfig(
            interval=0.25, fallback_interval=3, full_interval=90, timeout=1.5, max_backoff=3600
        ),
        gpus=GpuConfig(
            enabled=False,
            devices=("0", "1", "2:3", "GPU-aa-bb", "MIG-GPU-aa/1/2"),
            interval=2,
            timeout=9,
        ),
        web=WebConfig(reload=True),
        plans=(
            PlanConfig(
                name="chat",
                match_engine="llama-*",
                match_model_name="m",
                concurrency=32,
                max_num_seqs=64,
                prompt_tokens=Lengths(p50=512, p95=2048),
                output_tokens=Lengths(p50=200, p95=600),
                request_rate=4.5,
                ttft_p95_seconds=1,
                tpot_p95_seconds=0.05,
                kv_cache_tokens=240000,
                floor_ratio=0,
                spike_factor=1,
                overrun_probability=0.001,
            ),
        ),
    )


@pytest.mark.parametrize(
    ("url", "name"),
    [
        ("http://10.0.0.7:8000", "10.0.0.7:8000"),
        ("http://gateway/llama", "gateway:80"),
        ("https://Gateway", "gateway:443"),
        ("http://[::1]:8000", "[::1]:8000"),
    ],
)
def test_an_engine_without_a_name_is_called_by_its_address(url: str, name: str) -> None:
    (engine,) = parse(f"engines: [{{url: '{url}'}}]", "f.yaml").engines
    assert engine.name == name
    assert engine.url == url


def test_an_engine_with_neither_name_nor_url_is_the_default_one() -> None:
    assert parse("engines: [{}]", "f.yaml").engines == Config().engines


def test_a_plan_without_a_name_is_called_by_its_model_or_its_place() -> None:
    plans = parse("plans: [{}, {match: {model_name: 'm*'}}, {match: {engine: e}}]", "f").plans
    assert [plan.name for plan in plans] == ["plan-0", "m*", "plan-2"]


def test_a_slow_interval_takes_the_other_rhythms_with_it_unless_they_are_given() -> None:
    poll = parse("poll: {interval: 30s, full_interval: 45s}", "f.yaml").poll
    assert (poll.fallback_interval, poll.full_interval, poll.max_backoff) == (30, 45, 30)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("250ms", 0.25), ("1s", 1), ("1m30s", 90), ("0.5s", 0.5), ("1m0s500ms", 60.5), ("2", 2)],
)
def test_durations(text: str, seconds: float) -> None:
    assert parse(f"poll: {{timeout: {text}}}", "f.yaml").poll.timeout == pytest.approx(seconds)


@pytest.mark.parametrize("kind", ["auto", *(engine.name for engine in ENGINES)])
def test_every_engine_there_is_may_be_named(kind: str) -> None:
    assert parse(f"engines: [{{kind: {kind}}}]", "f.yaml").engines[0].kind == kind


@pytest.mark.parametrize("interval", [0.1, 5])
def test_the_slowest_reading_of_gpus_is_still_fresh_when_the_next_one_fails(
    interval: float,
) -> None:
    assert parse(f"gpus: {{interval: {interval}}}", "f.yaml").gpus.interval == interval
    assert 2 * interval < GPU_STALE_SECONDS


# --- files ---------------------------------------------------------------------------------------


def test_paths_in_a_file_are_relative_to_its_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "conf").mkdir()
    text = "engines: [{name: a, bearer_token_file: t, tls: {ca_file: /abs/ca}}, {name: b}]"
    (tmp_path / "conf" / "c.yaml").write_text(text)
    monkeypatch.chdir(tmp_path)
    first, second = load(Path("conf/c.yaml")).engines
    assert first.bearer_token_file == str(tmp_path / "conf" / "t")
    assert first.ca_file == "/abs/ca"
    assert (second.bearer_token_file, second.ca_file) == (None, None)


def test_a_linked_file_keeps_the_directory_of_the_link(tmp_path: Path) -> None:
    """A mounted ConfigMap: config.yaml -> ..data/config.yaml -> ..2026_01_01/config.yaml."""
    (tmp_path / "..2026").mkdir()
    (tmp_path / "..2026" / "c.yaml").write_text("engines: [{bearer_token_file: t}]")
    (tmp_path / "c.yaml").symlink_to(tmp_path / "..2026" / "c.yaml")
    assert load(tmp_path / "c.yaml").engines[0].bearer_token_file == str(tmp_path / "t")


def test_a_byte_order_mark_is_no_part_of_the_first_key(tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_bytes(b"\xef\xbb\xbfweb: {reload: true}")
    assert load(tmp_path / "c.yaml").web.reload


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        load(tmp_path / "c.yaml")
    assert str(caught.value) == f"{tmp_path}/c.yaml: cannot be read: No such file or directory"


# --- mistakes ------------------------------------------------------------------------------------

_DEVICE = (
    "must be an index such as 0 (of a MIG instance 0:1), or a UUID that begins with GPU- or MIG-"
)
_RHYTHM = "must be a duration from 0.1s to 60s, such as 250ms, 1s or 1m30s"
_GPU_RHYTHM = "must be a duration from 0.1s to 5s, such as 250ms, 1s or 1m30s"
_DEADLINE = "must be a duration from 0.001s to 600s, such as 250ms, 1s or 1m30s"
_PLAN = (
    "must be a mapping of name, match, concurrency, max_num_seqs, prompt_tokens, output_tokens, "
    "request_rate, kv_cache_tokens, slo, headroom"
)
_ADDED = "must be the base address http://h:8000: /metrics is added to it"
_BASE = "must be a base address such as http://127.0.0.1:8000 or https://host:8443"


@pytest.mark.parametrize(
    ("text", "says"),
    [
        # types
        ("3", "3: must be a mapping of engines, discovery, poll, gpus, web, plans"),
        ("[]", "a list: must be a mapping of engines, discovery, poll, gpus, web, plans"),
        ("web: 1", "web: 1: must be a mapping of reload"),
        ("engines: {name: x}", "engines: a mapping: must be a list"),
        ("engines: []", "engines: must not be empty; leave the key out for the default"),
        ("plans: [3]", f"plans[0]: 3: {_PLAN}"),
        ("web: {reload: yes}", "web.reload: 'yes': must be true or false"),
        ("web: {reload: 1}", "web.reload: 1: must be true or false"),
        ("web: {reload: }", "web.reload: null: must be true or false"),
        ("plans: [{concurrency: '3'}]", "plans[0].concurrency: '3': must be a number above 0"),
        ("plans: [{concurrency: true}]", "plans[0].concurrency: true: must be a number above 0"),
        # names
        ("engines: [{name: ''}]",
         "engines[0].name: '': must be text of 1 to 128 printable characters"),
        ("engines: [{name: 7}]",
         "engines[0].name: 7: must be text of 1 to 128 printable characters; put it in quotes"),
        ('engines: [{name: "a\\nb"}]',
         "engines[0].name: 'a\\nb': must be text of 1 to 128 printable characters"),
        (f"engines: [{{name: {'x' * 129}}}]",
         f"engines[0].name: '{'x' * 57}...': must be text of 1 to 128 printable characters"),
        ("engines: [{name: a}, {name: a}]",
         "engines[1].name: 'a': must be unique; it is also the name of engines[0]"),
        ("engines: [{}, {name: '127.0.0.1:8000', url: 'http://h'}]",
         "engines[1].name: '127.0.0.1:8000': must be unique; it is also the name of engines[0]"),
        (f"engines: [{{url: 'http://{'x.' * 63}h'}}]",
         "engines[0].name: must be given: the address is too long to be the name"),
        ("engines: [{kind: vlm}]", f"engines[0].kind: 'vlm': must be one of {', '.join(KINDS)}"),
        # addresses
        ("engines: [{url: 'localhost:8000'}]", f"engines[0].url: 'localhost:8000': {_BASE}"),
        ("engines: [{url: 'ftp://h'}]", f"engines[0].url: 'ftp://h': {_BASE}"),
        ("engines: [{url: 'http://'}]", f"engines[0].url: 'http://': {_BASE}"),
        ("engines: [{url: 'http://:80'}]", f"engines[0].url: 'http://:80': {_BASE}"),
        ("engines: [{url: 'http://a..b'}]", f"engines[0].url: 'http://a..b': {_BASE}"),
        (f"engines: [{{url: 'http://{'x' * 64}'}}]",
         f"engines[0].url: 'http://{'x' * 50}...': {_BASE}"),
        ("engines: [{url: 'http://h:0'}]", f"engines[0].url: 'http://h:0': {_BASE}"),
        ("engines: [{url: 'http://h:99999'}]", f"engines[0].url: 'http://h:99999': {_BASE}"),
        ("engines: [{url: 'http://[::1'}]", f"engines[0].url: 'http://[::1': {_BASE}"),
        ("engines: [{url: 'http://a b'}]", f"engines[0].url: 'http://a b': {_BASE}"),
        ("engines: [{url: 3}]", f"engines[0].url: 3: {_BASE}"),
        ("engines: [{url: 'http://h:8000/metrics/'}]",
         "engines[0].url: 'http://h:8000/metrics/': " + _ADDED),
        ("engines: [{url: 'http://bob:s3cret@h'}]",
         "engines[0].url: '***@h': must hold no credentials; use bearer_token_file"),
        ("engines: [{url: 'http://bob:s3/?c@r@h'}]",
         "engines[0].url: '***@h': must hold no credentials; use bearer_token_file"),
        ("engines: [{url: 'http://h/?token=s3cret'}]",
         "engines[0].url: 'http://h/?***': must hold no query and no fragment"),
        # rhythms
        ("poll: {interval: 50ms}", f"poll.interval: '50ms': {_RHYTHM}"),
        ("poll: {interval: 61}", f"poll.interval: 61: {_RHYTHM}"),
        ("poll: {timeout: 0}", f"poll.timeout: 0: {_DEADLINE}"),
        ("poll: {timeout: 1.2.3s}", f"poll.timeout: '1.2.3s': {_DEADLINE}"),
        ("poll: {timeout: true}", f"poll.timeout: true: {_DEADLINE}"),
        ("poll: {interval: 5, full_interval: 4}",
         "poll.full_interval: 4: must be at least the interval (5s)"),
        ("poll: {fallback_interval: 500ms}",
         "poll.fallback_interval: 0.5: must be at least the interval (1s)"),
        ("poll: {max_backoff: 0.1}", "poll.max_backoff: 0.1: must be at least the interval (1s)"),
        # GPUs
        ("gpus: {interval: 99ms}", f"gpus.interval: '99ms': {_GPU_RHYTHM}"),
        ("gpus: {interval: 5001ms}", f"gpus.interval: '5001ms': {_GPU_RHYTHM}"),
        ("gpus: {devices: 0}", "gpus.devices: 0: must be a list"),
        ("gpus: {devices: [cuda0]}", f"gpus.devices[0]: 'cuda0': {_DEVICE}"),
        ("gpus: {devices: [0, -1]}", f"gpus.devices[1]: -1: {_DEVICE}"),
        ("gpus: {devices: [true]}", f"gpus.devices[0]: true: {_DEVICE}"),
        ("gpus: {devices: [1, '1']}", "gpus.devices[1]: '1': must not be listed twice"),
        # plans
        ("plans: [{concurrency: 0}]", "plans[0].concurrency: 0: must be a number above 0"),
        ("plans: [{concurrency: .nan}]", "plans[0].concurrency: '.nan': must be a number above 0"),
        ("plans: [{concurrency: 1e999}]", "plans[0].concurrency: inf: must be a number above 0"),
        ("plans: [{concurrency: 1e13}]",
         "plans[0].concurrency: 10000000000000: must be a number above 0, in size from 1e-9 to 1e12"),
        ("plans: [{max_num_seqs: 64.5}]",
         "plans[0].max_num_seqs: 64.5: must be a whole number from 1"),
        ("plans: [{kv_cache_tokens: 0}]",
         "plans[0].kv_cache_tokens: 0: must be a whole number from 1"),
        ("plans: [{}, {prompt_tokens: {p50: 512, p95: 100}}]",
         "plans[1].prompt_tokens.p95: 100: must be at least p50 (512)"),
        ("plans: [{output_tokens: {p50: -1}}]",
         "plans[0].output_tokens.p50: -1: must be a number above 0"),
        ("plans: [{slo: {ttft_p95_seconds: 0}}]",
         "plans[0].slo.ttft_p95_seconds: 0: must be a number above 0"),
        ("plans: [{headroom: {floor_ratio: 1.7}}]",
         "plans[0].headroom.floor_ratio: 1.7: must be a number from 0 to below 1"),
        ("plans: [{headroom: {floor_ratio: 1}}]",
         "plans[0].headroom.floor_ratio: 1: must be a number from 0 to below 1"),
        ("plans: [{headroom: {spike_factor: 0.9}}]",
         "plans[0].headroom.spike_factor: 0.9: must be a number from 1"),
        ("plans: [{headroom: {overrun_probability: 0.5}}]",
         "plans[0].headroom.overrun_probability: 0.5: must be a number above 0 and below 0.5"),
        ("plans: [{headroom: {overrun_probability: 0}}]",
         "plans[0].headroom.overrun_probability: 0: must be a number above 0 and below 0.5"),
    ],
)  # fmt: skip
def test_a_wrong_value_is_named_with_what_is_allowed(text: str, says: str) -> None:
    assert complaint(text) == f"f.yaml: {says}"


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("pol: {}", "pol: unknown key; did you mean poll?"),
        ("engines: [{knd: vllm}]", "engines[0].knd: unknown key; did you mean kind?"),
        ("engines: [{ca_file: x}]", "engines[0].ca_file: unknown key; did you mean tls.ca_file?"),
        ("plans: [{maxNumSeqs: 3}]", "plans[0].maxNumSeqs: unknown key; did you mean max_num_seqs?"),
        ("plans: [{floor-ratio: 0.1}]",
         "plans[0].floor-ratio: unknown key; did you mean headroom.floor_ratio?"),
        ("full_interval: 3", "full_interval: unknown key; did you mean poll.full_interval?"),
        ("xyz: 3", "xyz: unknown key; known here: engines, discovery, poll, gpus, web, plans"),
        ("on: 3", "on: unknown key; known here: engines, discovery, poll, gpus, web, plans"),
        ('web: {"a\\nb": 3}', "web['a\\nb']: unknown key; known here: reload"),
    ],
)  # fmt: skip
def test_an_unknown_key_is_answered_with_the_closest_known_one(text: str, says: str) -> None:
    assert complaint(text) == f"f.yaml: {says}"


def test_the_value_of_an_unknown_key_is_not_printed() -> None:
    assert "s3cret" not in complaint("engines: [{bearer_token: s3cret}]")


def test_all_mistakes_are_told_at_once_each_on_its_line() -> None:
    says = complaints(
        "poll: {interval: 0}\nweb: {relod: true}\nplans: [{concurrency: x, name: a, name: b}]"
    )
    assert [line.split(": ")[1] for line in says] == [
        "plans[0].name",
        "poll.interval",
        "web.relod",
        "plans[0].concurrency",
    ]


def test_a_value_that_is_wrong_itself_is_not_compared_with_its_neighbours() -> None:
    assert complaint("poll: {interval: x, full_interval: 0.5}").startswith("f.yaml: poll.interval:")


def test_more_than_twenty_mistakes_are_counted() -> None:
    says = complaints("plans: [" + "{concurrency: 0}, " * 25 + "]")
    assert len(says) == 21
    assert says[-1] == "f.yaml: and 5 more"


# --- writing -------------------------------------------------------------------------------------


def test_the_effective_configuration_shows_the_defaults() -> None:
    assert (
        to_yaml(Config())
        == """\
engines:
  - name: "127.0.0.1:8000"
    url: "http://127.0.0.1:8000"
    kind: "auto"
    tls:
      insecure_skip_verify: false
poll:
  interval: 1s
  fallback_interval: 2s
  full_interval: 10s
  timeout: 5s
  max_backoff: 15s
gpus:
  enabled: true
  devices: []
  interval: 1s
  timeout: 5s
web:
  reload: false
plans: []
"""
    )


def test_ordinary_yaml_readers_agree_on_what_was_written() -> None:
    import yaml

    config = parse("engines: [{name: 'no \"1\" \\ é'}]\nplans: [{concurrency: 1e-5}]", "f.yaml")
    raw = yaml.safe_load(to_yaml(config))
    assert raw["engines"][0]["name"] == 'no "1" \\ é'
    assert raw["poll"]["interval"] == "1s"


def test_every_field_of_every_record_is_filled_by_some_key() -> None:
    """The table and the dataclasses cannot drift apart."""
    import dataclasses

    def filled(keys: table.Keys) -> set[str]:
        names: set[str] = set()
        for key, spec in keys.items():
            if isinstance(spec, table.Group):
                names |= filled(spec.keys)
            else:
                names.add((isinstance(spec, table.Leaf) and spec.attribute) or key)
        return names

    for record in (
        table.CONFIG,
        table.ENGINE,
        table.PLAN,
        table.LENGTHS,
        *(spec for spec in table.CONFIG.keys.values() if isinstance(spec, table.Record)),
    ):
        fields = {part.name for part in dataclasses.fields(record.make)}  # type: ignore[arg-type]
        assert filled(record.keys) == fields


@pytest.mark.parametrize(
    ("name", "absent"),
    [
        # 2.8 MiB, which a sidecar without a file need not spend.
        ("app", "yaml"),
        # What everyone imports stays light.
        ("config", "headroom_exporter.config.table"),
        ("config", "yaml"),
    ],
)
def test_what_a_file_needs_is_imported_with_the_file(name: str, absent: str) -> None:
    import subprocess
    import sys

    code = f"import sys, headroom_exporter.{name}; sys.exit({absent!r} in sys.modules)"
    source = {"PYTHONPATH": str(Path(table.__file__).parents[2])}
    assert subprocess.run([sys.executable, "-c", code], env=source, check=False).returncode == 0
