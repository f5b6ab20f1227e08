"""
Strict validation of Kubernetes manifests, offline.

Built-in kinds are held against the API's own schemas (kubernetes-validate) of the oldest and the
newest supported release, kinds of CRDs in tests/fixtures/crds against their published definition.
For the kinds in ``NO_SCHEMA`` there is no definition here: only the pods in them are validated.
"""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path

import jsonschema
import yaml
from kubernetes_validate import utils
from referencing import Registry, Resource

CRDS = Path(__file__).resolve().parents[1] / "fixtures" / "crds"
# Native sidecars are on by default since 1.29.
OLDEST = "1.29.0"
NEWEST = utils.latest_version()

# Not validated: no schema here. Where their pods are: (path, kind of schema that the value there has).
# A path's "*" stands for every item of a list.
NO_SCHEMA = {
    ("leaderworkerset.x-k8s.io/v1", "LeaderWorkerSet"): (
        ("spec.leaderWorkerTemplate.leaderTemplate", "PodTemplateSpec"),
        ("spec.leaderWorkerTemplate.workerTemplate", "PodTemplateSpec"),
    ),
    ("serving.kserve.io/v1alpha1", "LLMInferenceService"): (("spec.template", "PodSpec"),),
    ("serving.kserve.io/v1alpha2", "LLMInferenceService"): (("spec.template", "PodSpec"),),
    ("serving.kserve.io/v1beta1", "InferenceService"): (
        ("spec.predictor.initContainers.*", "Container"),
        ("spec.predictor.containers.*", "Container"),
        ("spec.predictor.volumes.*", "Volume"),
    ),
    ("serving.kserve.io/v1alpha1", "ServingRuntime"): (
        ("spec.initContainers.*", "Container"),
        ("spec.containers.*", "Container"),
        ("spec.volumes.*", "Volume"),
    ),
    ("serving.kserve.io/v1alpha1", "ClusterServingRuntime"): (
        ("spec.initContainers.*", "Container"),
        ("spec.containers.*", "Container"),
        ("spec.volumes.*", "Volume"),
    ),
    ("cert-manager.io/v1", "Certificate"): (),
    ("cert-manager.io/v1", "Issuer"): (),
}


def documents(text):
    """The manifests in a YAML text, empty documents left out; a key given twice is an error."""
    found = yaml.load_all(text, Loader=_UniqueKeys)
    return [document for document in found if document is not None]


def is_validated(manifest):
    """Whether the whole manifest has a schema here."""
    return (manifest["apiVersion"], manifest["kind"]) not in NO_SCHEMA


def problems(manifest, versions=(OLDEST, NEWEST)):
    """
    What an API server would refuse, as far as schemas and a few of its own rules say.

    Args:
        manifest: One document; a List is taken apart.
        versions: Releases of Kubernetes that must accept it.
    Returns:
        One line for each problem, ``Kind/name: path: what is wrong``; none when it is right.
    """
    if not isinstance(manifest, dict) or not {"apiVersion", "kind"} <= manifest.keys():
        return [f"{manifest!r:.80}: no manifest: apiVersion and kind are needed"]
    if manifest["kind"] == "List":
        return [each for item in manifest["items"] for each in problems(item, versions)]
    name = f"{manifest['kind']}/{(manifest.get('metadata') or {}).get('name')}"
    return [f"{name}: {each}" for each in _unique(_problems(manifest, versions))]


def _problems(manifest, versions):
    known = (manifest["apiVersion"], manifest["kind"])
    if known in NO_SCHEMA:
        yield from _metadata(manifest, versions)
        for path, kind in NO_SCHEMA[known]:
            for where, value in at(manifest, path):
                for version in versions:
                    yield from _errors(_definition(kind, version), value, version, where)
    elif known in _crds():
        yield from _metadata(manifest, versions)
        yield from _errors(_crds()[known], manifest, "its CRD")
    else:
        for version in versions:
            validator = _builtin(*known, version)
            if validator is None:
                yield f"no schema for {known[0]} {known[1]} in Kubernetes {version}"
            else:
                yield from _errors(validator, manifest, version)
    yield from _labels(manifest)
    for where, pod in pods(manifest):
        yield from (f"{where}: {each}" for each in _pod(pod))


def at(value, path, where=""):
    """Every (path, value) below a dotted path; ``*`` is each item of a list."""
    if not path:
        yield where, value
        return
    first, _, rest = path.partition(".")
    if first == "*":
        for index, item in enumerate(value if isinstance(value, list) else ()):
            yield from at(item, rest, f"{where}[{index}]")
    elif isinstance(value, dict) and first in value:
        yield from at(value[first], rest, f"{where}.{first}".lstrip("."))


def pods(manifest):
    """Every (path, pod spec) in a manifest, whatever the kind: where there are containers."""
    return list(_pods(manifest, ""))


def _pods(value, where):
    if isinstance(value, dict):
        if isinstance(value.get("containers"), list) and all(
            isinstance(each, dict) for each in value["containers"]
        ):
            yield where, value
            return
        for key, each in value.items():
            yield from _pods(each, f"{where}.{key}".lstrip("."))
    elif isinstance(value, list):
        for index, each in enumerate(value):
            yield from _pods(each, f"{where}[{index}]")


# --- what schemas do not say and the API server refuses all the same --------------------------------

_LABEL = re.compile(r"(([A-Za-z0-9]([-A-Za-z0-9_.]*[A-Za-z0-9])?)?)$")
_NAME = re.compile(r"[a-z0-9]([-a-z0-9.]*[a-z0-9])?$")
_PORT_NAME = re.compile(r"(?=.*[a-z])[a-z0-9]+(-[a-z0-9]+)*$")


def _labels(manifest):
    metadata = manifest.get("metadata") or {}
    name = metadata.get("name", "")
    # Names of RBAC objects may hold a colon.
    free = metadata.get("generateName") or manifest["apiVersion"].startswith("rbac.")
    if not free and (len(str(name)) > 253 or not _NAME.match(str(name))):
        yield f"metadata.name: {name!r} is no DNS name"
    for key, value in (metadata.get("labels") or {}).items():
        if not isinstance(value, str) or len(value) > 63 or not _LABEL.match(value):
            yield f"metadata.labels.{key}: {value!r} is no label value"


def _pod(pod):
    containers = [*(pod.get("initContainers") or ()), *(pod.get("containers") or ())]
    names = [each.get("name") for each in containers]
    yield from (f"two containers {each!r}" for each in names if names.count(each) > 1)
    volumes = [each.get("name") for each in pod.get("volumes") or ()]
    yield from (f"two volumes {each!r}" for each in volumes if volumes.count(each) > 1)
    for container in containers:
        paths = [each.get("mountPath") for each in container.get("volumeMounts") or ()]
        yield from (
            f"{container.get('name')}: two mounts at {each}"
            for each in paths
            if paths.count(each) > 1
        )
        for mount in container.get("volumeMounts") or ():
            if mount.get("name") not in volumes:
                yield f"{container.get('name')}: no volume {mount.get('name')!r} to mount"
        for port in container.get("ports") or ():
            name = port.get("name", "a")
            if len(name) > 15 or not _PORT_NAME.match(name):
                yield f"{container.get('name')}: {name!r} is no port name"


# --- schemas ----------------------------------------------------------------------------------------


def _errors(validator, value, version, where=""):
    for error in validator.iter_errors(value):
        path = where + "".join(
            f"[{step}]" if isinstance(step, int) else f".{step}" for step in error.absolute_path
        )
        yield f"{path.lstrip('.') or '(top)'}: {_message(error)} ({version})"


def _message(error):
    """The error in a line; of a oneOf or anyOf what stands nearest below it."""
    best = jsonschema.exceptions.best_match([error]) or error
    return " ".join(best.message.split())[:300]


def _unique(lines):
    return list(dict.fromkeys(lines))


@cache
def _registry(version):
    definitions = utils.schema_contents(_file(version, "_definitions"), version)
    return definitions, Resource.from_contents(definitions) @ Registry()


def _file(version, name):
    return f"kubernetes-json-schema/v{version}-local-strict/{name}.json"


@cache
def _builtin(api_version, kind, version):
    """The strict schema of a built-in kind in a release; None where the release has no such kind."""
    # rbac.authorization.k8s.io/v1 is rbac-v1 in the names of the files. A CRD's group has a domain
    # that is not Kubernetes' own: it must not be taken for a built-in kind by its first word.
    group, slash, _ = api_version.partition("/")
    if slash and "." in group and not group.endswith(".k8s.io"):
        return None
    short = re.sub(r"^([^./]*)(?:\.[^/]*)?/", r"\1-", api_version)
    try:
        schema = utils.schema_contents(_file(version, f"{kind.lower()}-{short}"), version)
    except FileNotFoundError:
        return None
    _, registry = _registry(version)
    return jsonschema.Draft202012Validator(
        schema, registry=Resource.from_contents(schema) @ registry
    )


@cache
def _definition(kind, version):
    """The strict schema of a part, such as PodSpec, of the core API."""
    definitions, registry = _registry(version)
    name = f"io.k8s.api.core.v1.{kind}"
    assert name in definitions["$defs"], name
    return jsonschema.Draft202012Validator(
        {"$ref": f"{definitions['$id']}#/$defs/{name}"}, registry=registry
    )


def _metadata(manifest, versions):
    """An object's metadata, whose schema every kind shares and no CRD repeats."""
    twin = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": manifest.get("metadata")}
    for version in versions:
        yield from _errors(_builtin("v1", "ConfigMap", version), twin, version)


@cache
def _crds():
    """Validators of the CRDs in the fixtures: (apiVersion, kind) -> validator."""
    found = {}
    for path in sorted(CRDS.glob("*.yaml")):
        crd = yaml.safe_load(path.read_text(encoding="utf-8"))["spec"]
        for version in crd["versions"]:
            schema = _closed(version["schema"]["openAPIV3Schema"])
            schema["properties"]["metadata"] = {"type": "object"}
            found[f"{crd['group']}/{version['name']}", crd["names"]["kind"]] = _Structural(schema)
    assert found, f"no definitions in {CRDS}"
    return found


def _closed(schema):
    """
    The JSON schema of a structural schema.

    An API server drops fields that a structural schema does not name (strict field validation: it
    refuses them), unless it says additionalProperties or x-kubernetes-preserve-unknown-fields.
    https://kubernetes.io/docs/tasks/extend-kubernetes/custom-resources/custom-resource-definitions/#field-pruning
    """
    closed = dict(schema)
    if "properties" in schema:
        closed["properties"] = {k: _closed(v) for k, v in schema["properties"].items()}
    for key in ("items", "additionalProperties"):
        if isinstance(schema.get(key), dict):
            closed[key] = _closed(schema[key])
    if schema.get("x-kubernetes-preserve-unknown-fields"):
        return closed
    if schema.get("type") == "object" and "additionalProperties" not in schema:
        closed["additionalProperties"] = False
    if schema.get("nullable"):
        return {"anyOf": [{"type": "null"}, closed]}
    return closed


def _map_keys(_, keys, instance, schema):
    """Items of a list that is a map have different keys."""
    if not isinstance(instance, list):
        return
    defaults = {
        key: schema["items"].get("properties", {}).get(key, {}).get("default") for key in keys
    }
    seen = [tuple(item.get(key, defaults[key]) for key in keys) for item in instance]
    for item in dict.fromkeys(seen):
        if seen.count(item) > 1:
            yield jsonschema.ValidationError(f"two items with {dict(zip(keys, item, strict=True))}")


def _list_type(_, kind, instance, schema):
    """Items of a list that is a set differ."""
    if kind == "set" and isinstance(instance, list):
        for index, item in enumerate(instance):
            if item in instance[:index]:
                yield jsonschema.ValidationError(f"{item!r} stands there twice")


_Structural = jsonschema.validators.extend(
    jsonschema.Draft202012Validator,
    {"x-kubernetes-list-map-keys": _map_keys, "x-kubernetes-list-type": _list_type},
)


class _UniqueKeys(yaml.SafeLoader):
    """YAML in which a key stands once: kubectl refuses the other, PyYAML takes the last."""

    def construct_mapping(self, node, deep=False):
        keys = [self.construct_object(key, deep=deep) for key, _ in node.value]
        for key in keys:
            if keys.count(key) > 1:
                raise yaml.constructor.ConstructorError(
                    None, None, f"the key {key!r} stands there twice", node.start_mark
                )
        return super().construct_mapping(node, deep)
