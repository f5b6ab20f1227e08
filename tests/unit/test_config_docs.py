"""docs/configuration.md says what the file means: every key, every default, a working example."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml

from headroom_exporter.config import (
    Config,
    DiscoveryConfig,
    EngineConfig,
    PlanConfig,
    plan_for,
    table,
)
from headroom_exporter.config.checks import KINDS
from headroom_exporter.config.file import parse, to_yaml
from headroom_exporter.errors import ConfigError

DOC = (Path(__file__).parents[2] / "docs" / "configuration.md").read_text(encoding="utf-8")
ROWS = dict(re.findall(r"^\| `([a-z0-9_.\[\]]+)` \| (.+?) \|", DOC, re.MULTILINE))
(EXAMPLE,) = re.findall(r"^```yaml\n(.*?)^```", DOC, re.MULTILINE | re.DOTALL)


def keys(level: table.Keys, prefix: str = "") -> list[str]:
    """Every key that takes a value, as the tables write it: ``engines[].tls.ca_file``."""
    found: list[str] = []
    for key, spec in level.items():
        if isinstance(spec, table.Each) and isinstance(spec.item, table.Record):
            found += keys(spec.item.keys, f"{prefix}{key}[].")
        elif isinstance(spec, table.Record | table.Group):
            found += keys(spec.keys, f"{prefix}{key}.")
        else:
            found.append(prefix + key)
    return found


def flat(value: object, prefix: str = "") -> dict[str, object]:
    """Key to value; of a list of mappings, all of them together."""
    if isinstance(value, dict):
        return {
            name: leaf
            for key, part in value.items()
            for name, leaf in flat(part, f"{prefix}.{key}" if prefix else key).items()
        }
    if isinstance(value, list) and value and isinstance(value[0], dict):
        return {name: leaf for part in value for name, leaf in flat(part, f"{prefix}[]").items()}
    return {prefix: value}


ALL = keys(table.CONFIG.keys)


def test_every_key_has_its_row_and_every_row_its_key() -> None:
    assert list(ROWS) == ALL


def test_the_example_is_right_and_shows_every_key() -> None:
    config = parse(EXAMPLE, "example")
    assert [engine.name for engine in config.engines] == ["llama-8b", "llama-70b"]
    assert set(flat(yaml.safe_load(EXAMPLE))) == set(ALL)


def test_every_kind_is_documented() -> None:
    (row,) = re.findall(r"^\| `engines\[\]\.kind` .*$", DOC, re.MULTILINE)
    for kind in KINDS:
        assert f"`{kind}`" in row


def test_the_documented_defaults_are_the_defaults() -> None:
    bare = Config(
        engines=(EngineConfig(name="x"),),
        discovery=DiscoveryConfig(),
        plans=(PlanConfig(name="x"),),
    )
    effective = flat(yaml.safe_load(to_yaml(bare)))
    for key, said in ROWS.items():
        if key.endswith("].name"):  # computed: said in words
            continue
        shown = yaml.safe_load(said.strip("`")) if said != "none" else None
        assert effective.get(key) == shown, key


def test_the_documented_order_of_plans_is_the_order() -> None:
    rows = re.findall(r"^\| `(\{.*?\})` \| .+ \|$", DOC, re.MULTILINE)
    text = "\n".join(f"  - {{name: '{place}', match: {row}}}" for place, row in enumerate(rows))
    plans = parse(f"plans:\n{text}", "doc").plans
    assert len(plans) == 9
    for place in range(9):
        # Reversed, so that the order in the file cannot be what decides.
        rest = tuple(reversed(plans[place:]))
        best = plan_for(rest, "llama-8b", "meta-llama/Llama-3.1-8B-Instruct")
        assert best is plans[place]


def test_the_documented_complaints_are_what_it_says() -> None:
    (block,) = re.findall(r"^```\n(config\.yaml: .*?)^```", DOC, re.MULTILINE | re.DOTALL)
    text = "poll: {max_back_off: 1}\nplans: [{headroom: {floor_ratio: 1.7}}]"
    with pytest.raises(ConfigError) as caught:
        parse(text, "config.yaml")
    assert sorted(str(caught.value).split("\n")) == sorted(block.strip().split("\n"))
