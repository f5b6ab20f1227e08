"""
Write what the Helm chart has from elsewhere: rules, boards, Alertmanager example, version, table of values.

    python tools/chart_files.py            write it
    python tools/chart_files.py --check    write nothing; exit status 1 and the names where it is out of date

Helm reads no file outside a chart, so the chart carries copies, byte for byte. The README's table is
made of the comments in values.yaml: every key has one, or stands below one that has.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import yaml

from headroom_exporter import __version__

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

ROOT = Path(__file__).resolve().parents[1]
CHART = ROOT / "deploy" / "helm" / "headroom-exporter"

# Directory in the chart -> (directory in the repository, which files).
COPIES: Mapping[str, tuple[str, str]] = {
    "files/rules/recording": ("rules/recording", "*.yaml"),
    "files/rules/alerts": ("rules/alerts", "*.yaml"),
    "files/dashboards": ("grafana/dashboards", "*.json"),
    "files/alertmanager": ("deploy/alertmanager", "alertmanager.yml"),
}
BEGIN = "<!-- values: written by tools/chart_files.py from values.yaml -->\n"
END = "<!-- end of values -->\n"


class ChartError(Exception):
    """A source that the chart cannot be made from; the text says which and what is missing."""


# --- copies --------------------------------------------------------------------------------------


def copies() -> Iterator[tuple[Path, bytes]]:
    """Every copied file of the chart, and what must be in it."""
    for target, (source, pattern) in COPIES.items():
        for path in sorted((ROOT / source).glob(pattern)):
            yield CHART / target / path.name, path.read_bytes()


def strangers(wanted: Mapping[Path, bytes]) -> list[Path]:
    """Files below files/ that have lost their source."""
    return sorted(
        path
        for target in COPIES
        for path in (CHART / target).glob("*")
        if path.is_file() and path not in wanted
    )


# --- version -------------------------------------------------------------------------------------


def with_version(chart_yaml: str) -> str:
    """Chart.yaml with both versions set to the package's; the chart is released with it."""
    for key, value in (("version", __version__), ("appVersion", f'"{__version__}"')):
        chart_yaml, found = re.subn(rf"(?m)^{key}: .*$", f"{key}: {value}", chart_yaml)
        if found != 1:
            raise ChartError(f"Chart.yaml: {key} is there {found} times, not once")
    return chart_yaml


# --- the table of values -------------------------------------------------------------------------


def value_rows(text: str) -> list[tuple[str, str, str]]:
    """
    (key, default, meaning) for each commented key of values.yaml.

    A comment above a mapping is about the whole of it. Where keys in it have comments too, it becomes
    a row without a default and they follow; where none has, the mapping is one row with its default.

    Raises:
        ChartError: a key that nothing explains.
    """
    root = yaml.compose(text)
    if not isinstance(root, yaml.MappingNode):
        raise ChartError("values.yaml: is no mapping")
    return list(_rows(root, text.splitlines(), "", explained=False))


def _rows(
    node: yaml.MappingNode, lines: list[str], prefix: str, *, explained: bool
) -> Iterator[tuple[str, str, str]]:
    for key, value in node.value:
        path, comment = f"{prefix}{key.value}", _comment(lines, key.start_mark.line)
        below = (
            isinstance(value, yaml.MappingNode) and bool(value.value) and _commented(value, lines)
        )
        if not comment and not explained and not below:
            raise ChartError(f"values.yaml: {path} has no comment")
        if below:
            if comment:
                yield path, "", comment
            yield from _rows(value, lines, f"{path}.", explained=False)
        elif comment:
            yield path, _default(value), comment


def _commented(node: yaml.MappingNode, lines: list[str]) -> bool:
    # Keys of {a: 1} stand in the line of the mapping, below the mapping's comment.
    return not node.flow_style and any(
        _comment(lines, key.start_mark.line)
        or (isinstance(value, yaml.MappingNode) and _commented(value, lines))
        for key, value in node.value
    )


def _comment(lines: list[str], line: int) -> str:
    """The comment directly above a line, in one line; a blank line ends it."""
    indent = len(lines[line]) - len(lines[line].lstrip())
    found: list[str] = []
    while line > 0 and lines[line - 1].startswith(" " * indent + "#"):
        line -= 1
        found.insert(0, lines[line].strip().removeprefix("#").strip())
    return " ".join(found)


def _default(node: yaml.Node) -> str:
    loader = yaml.SafeLoader("")
    try:
        value = loader.construct_document(node)
    finally:
        loader.dispose()
    return f"`{json.dumps(value, ensure_ascii=False)}`"


def table(text: str) -> str:
    """The README's table of a values.yaml."""
    rows = ["| key | default | meaning |", "|---|---|---|"]
    for key, default, meaning in value_rows(text):
        rows.append(f"| `{key}` | {default} | {meaning.replace('|', chr(92) + '|')} |")
    return "\n".join(rows) + "\n"


def with_table(readme: str, values: str) -> str:
    """The README with its table written anew."""
    if readme.count(BEGIN) != 1 or readme.count(END) != 1:
        raise ChartError("README.md: needs the two marks around the table of values, once each")
    head, _, rest = readme.partition(BEGIN)
    _, _, tail = rest.partition(END)
    return f"{head}{BEGIN}\n{table(values)}\n{END}{tail}"


# --- all of it -----------------------------------------------------------------------------------


def wanted() -> dict[Path, bytes]:
    """Every file that this tool writes, and what must be in it."""
    values = (CHART / "values.yaml").read_text(encoding="utf-8")
    readme, chart = CHART / "README.md", CHART / "Chart.yaml"
    return {
        **dict(copies()),
        chart: with_version(chart.read_text(encoding="utf-8")).encode(),
        readme: with_table(readme.read_text(encoding="utf-8"), values).encode(),
    }


def main() -> int:
    parser = argparse.ArgumentParser(description="What the Helm chart has from elsewhere.")
    parser.add_argument(
        "--check", action="store_true", help="write nothing, exit 1 where it differs"
    )
    check = parser.parse_args().check
    files = wanted()
    changed = [
        path for path, text in files.items() if not path.exists() or path.read_bytes() != text
    ]
    lost = strangers(files)
    for path in [] if check else changed:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(files[path])
    for path in [] if check else lost:
        path.unlink()
    verb = "is out of date" if check else "written"
    for path in changed:
        print(f"{path.relative_to(ROOT)}: {verb}", file=sys.stderr)
    for path in lost:
        print(
            f"{path.relative_to(ROOT)}: {'has no source' if check else 'removed'}", file=sys.stderr
        )
    if check and (changed or lost):
        print("write them: python tools/chart_files.py", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
