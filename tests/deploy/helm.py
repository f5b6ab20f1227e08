"""The chart, rendered and linted by Helm's own engine (helm-python-sdk) in this process."""

from __future__ import annotations

import json
import shutil
from functools import cache
from pathlib import Path

import yaml
from helm_python import chart as helm
from helm_python import registry

from deploy.kubernetes_schemas import OLDEST, documents

ROOT = Path(__file__).resolve().parents[2]
CHART = ROOT / "deploy" / "helm" / "headroom-exporter"
EXAMPLES = ROOT / "deploy" / "helm" / "examples"
RELEASE, NAMESPACE = "headroom-exporter", "monitoring"


@cache
def loaded(path=CHART):
    """The chart in a directory, read once."""
    return helm.Chart.load(path)


def texts(values=None, *, path=CHART, release=RELEASE, namespace=NAMESPACE):
    """
    Template -> what came out of it, NOTES.txt included.

    Args:
        values: Beside the chart's defaults: a dict, or YAML as a user would write it in a file.
    """
    if isinstance(values, str):
        values = helm.values_from_yaml(values)
    return _texts(json.dumps(values or {}), path, release, namespace)


@cache
def _texts(values, path, release, namespace):
    rendered = loaded(path).render(json.loads(values), name=release, namespace=namespace)
    return {name.split("templates/", 1)[1]: text for name, text in rendered.items()}


def manifests(values=None, **where):
    """Every object that Helm would install, tests included; a key given twice is an error."""
    found = texts(values, **where)
    return [
        manifest
        for name, text in sorted(found.items())
        if not name.endswith("NOTES.txt")
        for manifest in documents(text)
    ]


def lint(values=None, path=CHART):
    """What ``helm lint --strict`` has to say for the oldest Kubernetes, the wish for an icon apart."""
    report = helm.lint(path, values or {}, strict=True, kube_version=f"v{OLDEST}")
    said = [message["error"] for message in report["messages"] if message["severity"] > 0]
    return [each for each in [*said, *report["errors"]] if each != "icon is recommended"]


def with_chart_as_dependency(example, into):
    """A copy of an example chart after ``helm dependency update``, our chart where it looks for it."""
    shutil.copytree(CHART, into / CHART.name)
    copy = into / EXAMPLES.name / example
    shutil.copytree(EXAMPLES / example, copy)
    registry.dependency_update(copy)
    return copy


def dependencies(path):
    """Name -> status of each dependency: ok where the packed chart fits what is asked for."""
    return {each["name"]: each["status"] for each in helm.dependency_list(path)}


def nested(path, value):
    """``a.b`` and a value as the mapping {a: {b: value}}."""
    for key in reversed(path.split(".")):
        value = {key: value}
    return value


def default_values():
    """values.yaml."""
    return yaml.safe_load((CHART / "values.yaml").read_text(encoding="utf-8"))
