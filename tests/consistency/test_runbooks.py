"""Runbooks, alerts, rules and catalog say the same, and what stands there to paste can be pasted."""

from __future__ import annotations

import re
import shutil
import subprocess
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from headroom_exporter.backtest import Series, evaluate
from headroom_exporter.backtest.play import Run, Server, play
from headroom_exporter.backtest.record import EPOCH
from headroom_exporter.catalog import BY_NAME, Kind
from headroom_exporter.config import Lengths, PlanConfig
from headroom_exporter.gpus.simulated import SimulatedGpus
from headroom_exporter.samples import Constraint, GpuState
from headroom_exporter.simulate import generators
from headroom_exporter.simulate.frontend import Frontend
from headroom_exporter.simulate.profiles import find

REPOSITORY = Path(__file__).parents[2]
DOCS = REPOSITORY / "docs"
RUNBOOKS = DOCS / "runbooks"
OVERVIEW = DOCS / "alerting.md"
PAGES = sorted(RUNBOOKS.glob("*.md"))
TEXTS = [*PAGES, OVERVIEW, REPOSITORY / "rules" / "README.md"]

SECTIONS = [
    "Meaning",
    "Impact",
    "Diagnosis",
    "Mitigation",
    "Why this threshold",
    "When it is wrong, and how to silence it",
]
BY_CONSTRAINT = ["HeadroomExhausted", "HeadroomBudgetBurn"]
CLASSES = {"critical": "Page", "warning": "Ticket", "info": "Info"}
# Of `vllm serve --help=all`, 0.32: a flag that is not here was not looked up.
VLLM_FLAGS = {
    "--disable-log-stats",
    "--enable-chunked-prefill",
    "--enable-prefix-caching",
    "--gpu-memory-utilization",
    "--kv-cache-dtype",
    "--long-prefill-token-threshold",
    "--max-model-len",
    "--max-num-active-seqs",
    "--max-num-batched-tokens",
    "--max-num-queued-reqs",
    "--max-num-queued-tokens",
    "--max-num-seqs",
    "--override-generation-config",
    "--scheduler-reserve-full-isl",
    "--tensor-parallel-size",
    "--watermark",
}
OTHER_FLAGS = {
    *("--comment", "--duration"),  # amtool
    "--gpu-reset",  # nvidia-smi
    *("--as", "--field-selector", "--previous", "--raw"),  # kubectl
}
BLOCK = re.compile(r"^ *```promql\n(.*?)^ *```$", re.MULTILINE | re.DOTALL)
# Words of the language that are followed by no bracket, or by a list of labels.
KEYWORDS = {"and", "or", "unless", "offset", "bool", "inf", "nan"}
LABEL_LISTS = re.compile(
    r"\b(by|without|on|ignoring|group_left|group_right)\b\s*(\([^)]*\))?", re.IGNORECASE
)
# No answer from two servers that outgrow their plan within three quarters of an hour: nothing of the kind
# happened, or it takes days to know. All others must find something.
EMPTY = {
    "HeadroomConfigReloadFailed:query_1",  # no reload failed
    *(f"HeadroomDiscoveryStale:query_{number}" for number in (1, 2, 3, 4)),  # no node mode
    *(
        "HeadroomEngineDown:query_1",
        "HeadroomEngineDown:query_4",
    ),  # no poll failed, no card is lost
    *("HeadroomExhaustionForecast:query_1", "HeadroomExhaustionForecast:query_2"),  # eight days
    *(
        "HeadroomBudgetBurnSlow:query_4",
        "HeadroomExhaustionForecast:query_3",
        "HeadroomPlanOversized:query_3",
    ),  # a day seen nearly whole
    "HeadroomExporterStale:query_1",  # none is down
    "HeadroomExporterStale:query_3",  # virtual time has no process
    *(f"HeadroomGpuUnhealthy:query_{number}" for number in (1, 2, 3, 4)),  # a healthy card
    "HeadroomPlanMissing:query_1",  # both have a plan
}
# Added by the scrape, or by Prometheus.
TARGET_LABELS = {"instance", "job", "namespace", "cluster"}
NOT_OURS = {"up"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Query:
    """One fenced block of PromQL; ``where`` is unique and a legal part of a rule's name."""

    page: str
    where: str
    text: str


def rules() -> list[dict[str, Any]]:
    files = sorted((REPOSITORY / "rules").glob("[ar]*/*.yaml"))
    groups = [
        group for path in files for group in yaml.safe_load(path.read_text("utf-8"))["groups"]
    ]
    return [rule for group in groups for rule in group["rules"]]


def alerts() -> dict[str, list[dict[str, Any]]]:
    found: dict[str, list[dict[str, Any]]] = {}
    for rule in rules():
        if "alert" in rule:
            found.setdefault(rule["alert"], []).append(rule)
    return found


ALERTS = alerts()
RECORDED = {rule["record"] for rule in rules() if "record" in rule}


def sections(path: Path) -> dict[str, str]:
    """The second-level sections of a page, in order."""
    parts = re.split(r"^## (.+)$", path.read_text("utf-8"), flags=re.MULTILINE)
    return dict(zip(parts[1::2], parts[2::2], strict=True))


def queries() -> list[Query]:
    found = []
    for path in TEXTS:
        blocks = BLOCK.findall(path.read_text("utf-8"))
        found += [
            Query(page=path.name, where=f"{path.stem}:query_{number}", text=text)
            for number, text in enumerate(blocks, 1)
        ]
    return found


QUERIES = queries()
each_page = pytest.mark.parametrize("page", PAGES, ids=lambda path: path.stem)
each_text = pytest.mark.parametrize("path", TEXTS, ids=lambda path: path.stem)
each_query = pytest.mark.parametrize("query", QUERIES, ids=lambda query: query.where)


# --- a page for each alert -----------------------------------------------------------------------


def test_every_alert_has_a_page_and_every_page_an_alert() -> None:
    assert {path.stem for path in PAGES} == set(ALERTS)
    assert len(PAGES) >= 20


@each_page
def test_a_page_has_its_sections_in_order(page: Path) -> None:
    assert page.read_text("utf-8").startswith(f"# {page.stem}\n\n")
    assert list(sections(page)) == SECTIONS
    for text in sections(page).values():
        assert text.strip()


@each_page
def test_a_page_opens_with_severity_durations_and_what_to_do_first(page: Path) -> None:
    head = page.read_text("utf-8").split("\n## ")[0]
    said = re.findall(r"\*\*(\w+)\*\* \((\w+)\), after (\w+)(?:, held (\w+))?", head)
    assert sorted(said) == sorted(
        (
            CLASSES[rule["labels"]["severity"]],
            rule["labels"]["severity"],
            rule["for"],
            rule.get("keep_firing_for", ""),
        )
        for rule in ALERTS[page.stem]
    )
    assert "\n\n**First:** " in head


@each_page
def test_a_page_explains_every_number_its_rule_compares_with(page: Path) -> None:
    """0 and 1 aside: is and is not, more than nothing, beyond the limit."""
    why = sections(page)["Why this threshold"]
    for rule in ALERTS[page.stem]:
        for number in re.findall(r"[<>]=? *([\d.]+(?:e\d+)?)(?![\w.])", rule["expr"]):
            if float(number) not in (0, 1):
                assert re.search(rf"(?<![\d.]){re.escape(number)}(?!\d)", why), number


@pytest.mark.parametrize("name", BY_CONSTRAINT)
def test_a_page_for_capacity_has_a_part_for_each_constraint_that_can_bind(name: str) -> None:
    mitigation = sections(RUNBOOKS / f"{name}.md")["Mitigation"]
    parts = re.split(r"^### Bound by (.+)$", mitigation, flags=re.MULTILINE)
    limiting = [str(constraint) for constraint in Constraint if constraint != Constraint.PLAN]
    assert sorted(parts[1::2]) == sorted([*limiting, "what cannot be told"])
    for constraint, part in zip(parts[1::2], parts[2::2], strict=True):
        assert re.search(r"^1\. ", part, re.MULTILINE), constraint
        # Before anything else: less traffic. It needs no restart, and is right whatever binds.
        assert "Spread or shed" in part or "1. Spread:" in part, constraint


@each_page
def test_the_larger_card_is_never_advised_before_the_flags(page: Path) -> None:
    mitigation = sections(page)["Mitigation"]
    for part in re.split(r"^### ", mitigation, flags=re.MULTILINE):
        buy = re.search(r"larger card|card with more", part)
        flags = [match.start() for match in re.finditer(r"`--(max-num|kv-cache)", part)]
        assert buy is None or not flags or min(flags) < buy.start()


# --- what stands there to paste ------------------------------------------------------------------


def test_every_query_parses(tmp_path: Path) -> None:
    binary = shutil.which("promtool")
    if binary is None:
        pytest.fail("promtool is missing: install the Debian package prometheus", pytrace=False)
    path = tmp_path / "queries.yaml"
    group = {
        "name": "runbooks",
        "rules": [{"record": f"runbook:{query.where}", "expr": query.text} for query in QUERIES],
    }
    path.write_text(yaml.safe_dump({"groups": [group]}), encoding="utf-8")
    done = subprocess.run(
        [binary, "check", "rules", str(path)], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"{len(QUERIES)} rules found" in done.stdout


@each_page
def test_a_page_has_queries_and_says_what_their_answers_mean(page: Path) -> None:
    diagnosis = sections(page)["Diagnosis"]
    assert diagnosis.count("```promql") >= 2
    assert not diagnosis.rstrip().endswith("```")


@each_query
def test_a_query_reads_only_series_that_exist(query: Query) -> None:
    names = metric_names(query.text)
    assert names
    assert {name for name in names if not exists(name)} == set()


@each_query
def test_a_query_selects_only_by_labels_that_its_metric_has(query: Query) -> None:
    for name, matchers in re.findall(r"([a-z_:0-9]+)\{([^}]*)\}", query.text):
        used = set(re.findall(r"(\w+) *(?:=~|!~|!=|=)", re.sub(r'"[^"]*"', '""', matchers)))
        assert used <= labels_of(name), name
        for value in re.findall(r'constraint=~?"([^"]*)"', matchers):
            assert set(value.split("|")) <= {str(constraint) for constraint in Constraint}


@each_query
def test_a_query_finds_its_series_on_a_real_prometheus(
    query: Query, answers: dict[str, tuple[Series, ...]]
) -> None:
    """Labels of both sides match, ranks and replicas included: what does not match is empty."""
    assert bool(answers[query.where]) == (query.where not in EMPTY)


@pytest.fixture(scope="module")
def answers(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Series, ...]]:
    folder = tmp_path_factory.mktemp("runbooks")
    profile = find("rtx4090-llama-3.1-8b")
    traffic = "synthetic:ramp?rate=1&rate_end=9&duration=2700&seed="
    run = Run(
        servers=[
            Server(
                name=name,
                frontend=Frontend(profile, ranks=2),
                arrivals=generators.parse(f"{traffic}{seed}").requests(),
            )
            for seed, name in enumerate(("llama-8b", "other"))
        ],
        plan=PlanConfig(
            name="chat",
            concurrency=24,
            max_num_seqs=256,
            prompt_tokens=Lengths(p50=512, p95=2048),
            output_tokens=Lengths(p50=200, p95=600),
            request_rate=2.0,
            ttft_p95_seconds=2.0,
            tpot_p95_seconds=0.2,
        ),
        seconds=2700,
        gpus=throttled,
    )
    played = play(run, folder)
    model = re.search(r'model_name="([^"]+)"', played.samples.read_text("utf-8"))
    assert model is not None
    return dict(
        evaluate(
            played.samples,
            [REPOSITORY / "rules" / "recording" / "headroom.yaml"],
            start=EPOCH,
            seconds=2700,
            extra_queries={query.where: adapted(query.text, model[1]) for query in QUERIES},
            workdir=folder,
        ).series
    )


def throttled(at: float) -> GpuState:
    read = SimulatedGpus(lambda: 1.0, monotonic=lambda: at).read()
    cards = tuple(replace(card, clock_events={"hw_slowdown": True}) for card in read.gpus)
    return GpuState(up=True, driver_version="simulated", gpus=cards, read_at=at)


def adapted(text: str, model: str) -> str:
    """The page's examples with the run's names; days and hours become minutes."""
    text = text.replace("meta-llama/Llama-3.1-8B-Instruct", model)
    text = text.replace("10.0.0.7:9890", "llama-8b:9890")
    text = re.sub(r"offset \d[dw]", "offset 10m", text)
    return re.sub(r"\[\d[hd]\]", "[20m]", text)


def metric_names(text: str) -> set[str]:
    """What a query reads: identifiers that are no function, keyword, label or string."""
    text = re.sub(r'"[^"]*"', '""', text)
    text = re.sub(r"\{[^}]*\}|\[[^\]]*\]", " ", text)
    text = LABEL_LISTS.sub(" ", text)
    found = re.findall(r"(?<![\w.:])([a-zA-Z_:][\w:]*)(?!\w)(?!\s*\()", text)
    return {name for name in found if name.lower() not in KEYWORDS}


def family(name: str) -> str:
    for suffix in ("_bucket", "_count", "_sum"):
        stem = name.removesuffix(suffix)
        if stem != name and stem in BY_NAME and BY_NAME[stem].kind == Kind.HISTOGRAM:
            return stem
    return name


def exists(name: str) -> bool:
    return (
        name in RECORDED
        or name in NOT_OURS
        or name.startswith("headroom_process_")
        or (
            family(name) in BY_NAME
            # A histogram itself has no series.
            and (BY_NAME[family(name)].kind == Kind.HISTOGRAM) == (family(name) != name)
        )
    )


def labels_of(name: str) -> set[str]:
    if family(name) in BY_NAME:
        return {*BY_NAME[family(name)].labels, *TARGET_LABELS, "le"}
    return {"engine", "rank", "model_name", "constraint", "dimension", *TARGET_LABELS}


# --- names, flags and links in the prose ---------------------------------------------------------


@each_text
def test_a_text_names_only_metrics_and_alerts_that_exist(path: Path) -> None:
    text = re.sub(r"```.*?```", "", path.read_text("utf-8"), flags=re.DOTALL)
    metrics = re.findall(r"`((?:\w+:)?headroom_\w+(?::\w+)*)", text)
    assert {name for name in metrics if family(name) not in BY_NAME and not exists(name)} == set()
    assert set(re.findall(r"\bHeadroom[A-Z]\w+", text)) <= set(ALERTS)


@each_page
def test_a_page_names_only_flags_that_were_looked_up(page: Path) -> None:
    flags = set(re.findall(r"(?<![\w-])--[a-z][a-z-]+", page.read_text("utf-8")))
    assert flags <= VLLM_FLAGS | OTHER_FLAGS


@each_text
def test_a_link_leads_somewhere(path: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", path.read_text("utf-8")):
        if target.startswith("https://"):
            continue
        file, _, anchor = target.partition("#")
        linked = (path.parent / file).resolve() if file else path
        assert linked.exists(), target
        if anchor:
            assert anchor in anchors(linked), target


def anchors(path: Path) -> set[str]:
    """As the repository's site makes them: lower case, punctuation gone, blanks to hyphens."""
    headings = re.findall(r"^#+ (.+)$", path.read_text("utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", text.lower()).replace(" ", "-") for text in headings}


@each_text
def test_prose_lines_are_short(path: Path) -> None:
    text = re.sub(r"```.*?```", "", path.read_text("utf-8"), flags=re.DOTALL)
    assert [line for line in text.splitlines() if len(line) > 110 and "|" not in line] == []


# --- the table of all alerts ---------------------------------------------------------------------


def test_the_table_of_alerts_is_what_the_rules_say() -> None:
    rows = re.findall(
        r"^\| \[(\w+)\]\(runbooks/(\w+)\.md\) \| (\w+) \| [^|]+ \| (\w+) \|$",
        OVERVIEW.read_text("utf-8"),
        re.MULTILINE,
    )
    assert all(name == page for name, page, _, _ in rows)
    assert sorted((name, severity, wait) for name, _, severity, wait in rows) == sorted(
        (name, rule["labels"]["severity"], rule["for"])
        for name, group in ALERTS.items()
        for rule in group
    )
