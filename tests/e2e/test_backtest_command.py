"""
``headroom-exporter backtest`` whole: traffic in, a real Prometheus in between, report out; a browser looks.

``--update-golden`` writes docs/images/backtest-report.png.
"""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
import zipfile
from importlib import resources
from pathlib import Path

import pytest

from chromium import chromium

REPOSITORY = Path(__file__).parents[2]
TRACE = "tests/fixtures/traffic/azure2023_conv.csv.gz"
IMAGE = REPOSITORY / "docs" / "images" / "backtest-report.png"
MAX_IMAGE_BYTES = 200_000
SECONDS = 60.0
LOADED = "document.readyState === 'complete' && !!document.querySelector('h1')"
PLAN = """
plans:
  - name: chat on an RTX 4090
    match: {model_name: "meta-llama/Llama-3.1-8B"}
    concurrency: 24
    max_num_seqs: 256
    prompt_tokens: {p50: 1020, p95: 4900}
    output_tokens: {p50: 129, p95: 600}
    request_rate: 2.2
    slo: {ttft_p95_seconds: 2.0, tpot_p95_seconds: 0.2}
"""


def command(folder: Path, *arguments: str) -> list[str]:
    plan = folder / "chat.yaml"
    plan.write_text(PLAN)
    program = [sys.executable, "-m", "headroom_exporter", "backtest", "--plan", str(plan)]
    return [*program, *arguments]


def environment(folder: Path) -> dict[str, str]:
    """Temporary files where a test can look for what was left behind."""
    temporary = folder / "temporary"
    temporary.mkdir(exist_ok=True)
    return {**os.environ, "TMPDIR": str(temporary), "COLUMNS": "100"}


def run(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command(folder, *arguments),
        cwd=REPOSITORY,
        env=environment(folder),
        capture_output=True,
        text=True,
        timeout=SECONDS,
    )


@pytest.fixture(scope="module")
def hour(tmp_path_factory):
    """The public trace of 58 minutes at half its rate: it outgrows the card once, after half an hour."""
    folder = tmp_path_factory.mktemp("hour")
    done = run(
        folder,
        *("--trace", TRACE, "--keep-every", "2", "--profile", "rtx4090-llama-3.1-8b"),
        *("--out", str(folder / "report.html"), "--json", str(folder / "report.json")),
    )
    assert done.returncode == 0, done.stderr
    return folder, done


def test_it_says_when_each_alert_fired_beside_what_users_felt(hour):
    _, done = hour
    assert done.stderr == ""  # no terminal: no progress, and no words of the poller
    assert re.search(r"^users +·+▒+·+$", done.stdout, re.MULTILINE)
    assert re.search(r"^HeadroomExhausted +·+░?█+", done.stdout, re.MULTILINE)
    assert re.search(r"critical +HeadroomExhausted +bound by kv_cache", done.stdout)
    assert "Every sustained breach was paged for" in done.stdout
    assert "✓ false pages: 0 of" in done.stdout


def test_the_json_says_the_same(hour):
    folder, done = hour
    said = json.loads((folder / "report.json").read_text())
    assert (said["score"]["missed"], said["score"]["false_pages"]) == (0, 0)
    assert said["score"]["caught"] >= 1
    (breach,) = (each for each in said["users"]["breaches"] if each["sustained"])
    assert breach["constraint"] == "kv_cache"
    first = min(each["fired_at"] for each in said["alerts"] if each["severity"] == "critical")
    assert said["score"]["lead"] == breach["begin"] - first
    minutes = int(breach["begin"] // 60)
    assert f"\n0:{minutes:02} " in done.stdout
    assert all(
        query["lines"] for name, query in said["series"].items() if name in ("capacity", "ttft_p95")
    )
    assert said["traffic"]["requests"] == 9683


async def test_the_page_asks_nobody_for_anything_and_fits_a_phone(hour):
    folder, _ = hour
    url = (folder / "report.html").as_uri()
    async with chromium() as tab:
        await tab.size(390, 844, mobile=True)
        await tab.open(url)
        await tab.until(LOADED)
        assert await tab.run("document.documentElement.scrollWidth") == 390
        assert await tab.run("document.querySelectorAll('svg .bar.firing').length") > 0
        assert tab.requests == [url]
        assert tab.complaints == []


@pytest.mark.parametrize("scheme", ["light", "dark"])
async def test_axe_finds_no_serious_fault(hour, scheme):
    folder, _ = hour
    axe = resources.files("axe_core_python").joinpath("axe.min.js").read_text(encoding="utf-8")
    async with chromium() as tab:
        await tab.size(1240)
        await tab.scheme(scheme)
        await tab.open((folder / "report.html").as_uri())
        await tab.until(LOADED)
        await tab.send("Runtime.evaluate", expression=axe)
        found = await tab.run("axe.run(document, {resultTypes: ['violations']})")
    assert found["passes"], "axe looked at nothing"
    serious = [each for each in found["violations"] if each["impact"] in ("serious", "critical")]
    assert [(each["id"], each["nodes"][0]["html"][:200]) for each in serious] == []


async def test_its_picture_is_small_enough_to_be_committed(hour, request, tmp_path):
    folder, _ = hour
    path = IMAGE if request.config.getoption("--update-golden") else tmp_path / IMAGE.name
    async with chromium() as tab:
        await tab.size(1240)
        await tab.scheme("light")
        await tab.open((folder / "report.html").as_uri())
        await tab.until(LOADED)
        # What follows are tables of facts; and where the files lay is nobody's business.
        await tab.run(
            "document.querySelectorAll('main > section').forEach((each, index) => index > 2 && each.remove())"
        )
        await tab.screenshot(path)
    assert 10_000 < path.stat().st_size < MAX_IMAGE_BYTES


def test_json_on_standard_output_stands_alone(tmp_path):
    done = run(
        tmp_path,
        "--trace",
        "synthetic:poisson?rate=0.5&duration=300",
        "--json",
        "-",
        "--ranks",
        "2",
    )
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout)
    assert said["profile"]["ranks"] == 2
    assert said["users"]["breaches"] == []
    # Two ranks with 256 slots each are one server of 512.
    slots = [
        line
        for line in said["series"]["capacity"]["lines"]
        if line["labels"]["constraint"] == "slots"
    ]
    assert {value for line in slots for value in line["values"]} == {512.0}


def test_rules_of_ones_own_are_evaluated_instead(tmp_path):
    rules = tmp_path / "rules.yaml"
    rules.write_text(
        "groups: [{name: mine, interval: 30s, rules: [{alert: MyTraffic, labels: {severity: critical},"
        " expr: 'headroom_running_sequences > 0', for: 1m}]}]"
    )
    done = run(
        tmp_path,
        *("--trace", "synthetic:poisson?rate=2&duration=600", "--rules", str(rules)),
        *("--from", "60", "--event", "restart@200"),
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert re.search(r"critical +MyTraffic", done.stdout)
    assert "Headroom" not in done.stdout
    assert re.search(r"Users felt no sustained breach; [1-9] false page", done.stdout)
    assert re.search(r"\d+ requests were lost", done.stdout)


# --- ending --------------------------------------------------------------------------------------


def children(parent: int) -> dict[int, str]:
    found = {}
    for status in Path("/proc").glob("[0-9]*/stat"):
        try:
            if status.read_text().rpartition(")")[2].split()[1] == str(parent):
                found[int(status.parent.name)] = (status.parent / "comm").read_text().strip()
        except OSError:
            continue
    return found


def alive(process: int) -> bool:
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_the_prometheus_that_was_started_and_leaves_nothing(tmp_path, number):
    arguments = command(tmp_path, "--trace", "synthetic:poisson?rate=0.2&duration=7200")
    process = subprocess.Popen(
        arguments,
        env=environment(tmp_path),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # Whoever was started in the background ignores SIGINT, and so would its children.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # noqa: PLW1509
    )
    try:
        end = time.monotonic() + SECONDS
        lasting: set[int] = set()
        while not lasting:
            assert time.monotonic() < end
            assert process.poll() is None, process.communicate()
            found = children(process.pid)
            # Seen in the act of being started it would not be known yet to who must end it; and the one
            # that only loads the rules may have ended meanwhile: then wait for the next.
            time.sleep(0.02)
            still = children(process.pid)
            lasting = {each for each in found if found[each] == still.get(each) == "prometheus"}
        process.send_signal(number)
        out, err = process.communicate(timeout=SECONDS)
    finally:
        process.kill()
        process.communicate()
    assert (process.returncode, out, err) == (0, "", "")
    assert not any(alive(each) for each in found)
    assert list((tmp_path / "temporary").iterdir()) == []


# --- the wheel -----------------------------------------------------------------------------------


def test_the_wheel_carries_the_rules_as_they_stand(tmp_path):
    build = [sys.executable, "-m", "build", "--no-isolation", "--wheel", "--outdir", str(tmp_path)]
    done = subprocess.run(build, cwd=REPOSITORY, capture_output=True, text=True, timeout=SECONDS)
    assert done.returncode == 0, done.stdout + done.stderr
    (wheel,) = tmp_path.glob("*.whl")
    shipped = "headroom_exporter/backtest/shipped/"
    rules = REPOSITORY / "rules"
    expected = {
        str(file.relative_to(rules)): file.read_bytes()
        for folder in ("recording", "alerts")
        for file in (rules / folder).glob("*.yaml")
    }
    with zipfile.ZipFile(wheel) as archive:
        found = {
            name.removeprefix(shipped): archive.read(name)
            for name in archive.namelist()
            if name.startswith(shipped)
        }
        assert "headroom_exporter/backtest/page.css" in archive.namelist()
    assert expected
    assert found == expected
