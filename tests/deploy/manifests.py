"""Rendering with the real kustomize, and looking things up in what it gives."""

from __future__ import annotations

import os
import subprocess
import sys
from functools import cache
from pathlib import Path

import yaml

from deploy.kubernetes_schemas import documents, pods

ROOT = Path(__file__).resolve().parents[2]
KUSTOMIZE = ROOT / "deploy" / "kustomize"
COMPONENTS = KUSTOMIZE / "components"
EXAMPLES = KUSTOMIZE / "examples"
NAME = "headroom-exporter"


@cache
def kubectl():
    """The path of a kubectl with kustomize 5.1 or newer; fetched where there is none."""
    done = subprocess.run(
        [sys.executable, str(ROOT / "tools" / "kubectl.py")],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def run_kustomize(folder):
    """(exit code, stdout, stderr) of ``kubectl kustomize FOLDER``."""
    done = subprocess.run(
        [kubectl(), "kustomize", str(folder)], capture_output=True, text=True, check=False
    )
    return done.returncode, done.stdout, done.stderr


@cache
def rendered_text(folder):
    """What kustomize makes of a folder; an error of kustomize fails the test."""
    code, out, error = run_kustomize(folder)
    assert code == 0, error
    return out


def render(folder):
    """The manifests of a folder."""
    return documents(rendered_text(folder))


def write(folder, resources, components, config="engines: [{name: one}]\n", **more):
    """A kustomization of manifests (dicts) and of our components; returns its folder."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "all.yaml").write_text(yaml.safe_dump_all(resources), encoding="utf-8")
    (folder / "config.yaml").write_text(config, encoding="utf-8")
    kustomization = {
        "apiVersion": "kustomize.config.k8s.io/v1beta1",
        "kind": "Kustomization",
        "resources": ["all.yaml"],
        "components": [os.path.relpath(COMPONENTS / each, folder) for each in components],
        "configMapGenerator": [
            {
                "name": NAME,
                "files": ["config.yaml"],
                "options": {"disableNameSuffixHash": True},
            }
        ],
        **more,
    }
    kustomization = {key: value for key, value in kustomization.items() if value is not None}
    (folder / "kustomization.yaml").write_text(yaml.safe_dump(kustomization), encoding="utf-8")
    return folder


def only(manifests, kind, name=None):
    """The one manifest of a kind (and name)."""
    found = [
        each
        for each in manifests
        if each["kind"] == kind and name in (None, each["metadata"]["name"])
    ]
    assert len(found) == 1, [(each["kind"], each["metadata"]["name"]) for each in manifests]
    return found[0]


def pod_specs(manifests):
    """Every (manifest, path, pod spec)."""
    return [(each, where, pod) for each in manifests for where, pod in pods(each)]


def exporters(pod):
    """Our containers in a pod spec: (list they stand in, container)."""
    return [
        (kind, container)
        for kind in ("initContainers", "containers")
        for container in pod.get(kind) or ()
        if container["name"] == NAME
    ]


def without_exporter(pod):
    """The pod spec as it would be without our container and volumes."""
    rest = {
        **pod,
        "initContainers": [x for x in pod.get("initContainers") or () if x["name"] != NAME],
        "containers": [x for x in pod.get("containers") or () if x["name"] != NAME],
        "volumes": [x for x in pod.get("volumes") or () if not x["name"].startswith("headroom-")],
    }
    return {key: value for key, value in rest.items() if value}
