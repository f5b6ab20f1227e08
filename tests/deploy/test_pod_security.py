"""The rules of the restricted Pod Security Standard: each notices what it is there for."""

from __future__ import annotations

import copy

import pytest

from deploy.pod_security import CONTROLS, violations

GOOD = {
    "securityContext": {"runAsNonRoot": True, "seccompProfile": {"type": "RuntimeDefault"}},
    "containers": [
        {
            "name": "one",
            "image": "one",
            "ports": [{"containerPort": 9890}],
            "livenessProbe": {"httpGet": {"path": "/", "port": 1}},
            "securityContext": {
                "allowPrivilegeEscalation": False,
                "capabilities": {"drop": ["ALL"]},
                "runAsUser": 65532,
            },
        }
    ],
    "volumes": [{"name": "a", "emptyDir": {}}],
}
CONTAINER = ("containers", 0, "securityContext")
BREAKS = [
    ("HostProcess", (*CONTAINER, "windowsOptions"), {"hostProcess": True}),
    ("HostProcess", ("securityContext", "windowsOptions"), {"hostProcess": True}),
    ("Host Namespaces", ("hostNetwork",), True),
    ("Host Namespaces", ("hostPID",), True),
    ("Host Namespaces", ("hostIPC",), True),
    ("Privileged Containers", (*CONTAINER, "privileged"), True),
    ("Capabilities (Baseline)", (*CONTAINER, "capabilities", "add"), ["SYS_ADMIN"]),
    ("HostPath Volumes", ("volumes",), [{"name": "a", "hostPath": {"path": "/"}}]),
    ("Host Ports", ("containers", 0, "ports"), [{"containerPort": 1, "hostPort": 1}]),
    (
        "Host Probes / Lifecycle Hooks",
        ("containers", 0, "livenessProbe", "httpGet", "host"),
        "10.0.0.1",
    ),
    (
        "Host Probes / Lifecycle Hooks",
        ("containers", 0, "lifecycle"),
        {"preStop": {"tcpSocket": {"port": 1, "host": "10.0.0.1"}}},
    ),
    ("AppArmor", (*CONTAINER, "appArmorProfile"), {"type": "Unconfined"}),
    ("SELinux", (*CONTAINER, "seLinuxOptions"), {"type": "spc_t"}),
    ("SELinux", ("securityContext", "seLinuxOptions"), {"role": "system_r"}),
    ("/proc Mount Type", (*CONTAINER, "procMount"), "Unmasked"),
    ("Sysctls", ("securityContext", "sysctls"), [{"name": "kernel.msgmax", "value": "1"}]),
    ("Volume Types", ("volumes",), [{"name": "a", "nfs": {"server": "a", "path": "/"}}]),
    ("Privilege Escalation", (*CONTAINER, "allowPrivilegeEscalation"), True),
    ("Privilege Escalation", (*CONTAINER, "allowPrivilegeEscalation"), None),
    ("Running as Non-root", ("securityContext", "runAsNonRoot"), None),
    ("Running as Non-root", (*CONTAINER, "runAsNonRoot"), False),
    ("Running as Non-root user", (*CONTAINER, "runAsUser"), 0),
    ("Running as Non-root user", ("securityContext", "runAsUser"), 0),
    ("Seccomp", ("securityContext", "seccompProfile"), None),
    ("Seccomp", ("securityContext", "seccompProfile"), {"type": "Unconfined"}),
    ("Seccomp", (*CONTAINER, "seccompProfile"), {"type": "Unconfined"}),
    ("Capabilities", (*CONTAINER, "capabilities"), {"drop": ["NET_RAW"]}),
    ("Capabilities", (*CONTAINER, "capabilities"), None),
    ("Capabilities", (*CONTAINER, "capabilities", "add"), ["CHOWN"]),
]


def broken(path, value):
    pod = copy.deepcopy(GOOD)
    here = pod
    for step in path[:-1]:
        here = here[step]
    if value is None:
        del here[path[-1]]
    else:
        here[path[-1]] = value
    return pod


def controls(found):
    return {name for name in CONTROLS for each in found if each.startswith(f"{name}: ")}


def test_a_restricted_pod_violates_nothing():
    assert violations(GOOD) == []


@pytest.mark.parametrize(("control", "path", "value"), BREAKS)
def test_breaking_a_control_is_named(control, path, value):
    assert control in controls(violations(broken(path, value)))


@pytest.mark.parametrize("kind", ["initContainers", "ephemeralContainers"])
def test_every_kind_of_container_is_looked_at(kind):
    pod = {**GOOD, kind: [{"name": "two", "securityContext": {"privileged": True}}]}
    assert {"Privileged Containers", "Capabilities", "Privilege Escalation"} <= controls(
        violations(pod)
    )


def test_an_unconfined_profile_in_an_old_annotation_is_found():
    annotations = {"container.apparmor.security.beta.kubernetes.io/one": "unconfined"}
    assert controls(violations(GOOD, {"annotations": annotations})) == {"AppArmor"}


def test_every_control_is_broken_once_here():
    assert {control for control, _, _ in BREAKS} == set(CONTROLS)
