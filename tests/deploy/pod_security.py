"""
The Pod Security Standard "restricted", as rules over a pod spec.

Controls and their names: https://kubernetes.io/docs/concepts/security/pod-security-standards/ (the
page of Kubernetes 1.34). Restricted includes everything that Baseline forbids. Windows pods, for
which some controls are lifted, are not provided for.
"""

from __future__ import annotations

# Baseline.
CAPABILITIES = frozenset(
    {
        *("AUDIT_WRITE", "CHOWN", "DAC_OVERRIDE", "FOWNER", "FSETID", "KILL", "MKNOD"),
        *("NET_BIND_SERVICE", "SETFCAP", "SETGID", "SETPCAP", "SETUID", "SYS_CHROOT"),
    }
)
SELINUX_TYPES = frozenset(
    {"", "container_t", "container_init_t", "container_kvm_t", "container_engine_t"}
)
SYSCTLS = frozenset(
    {
        "kernel.shm_rmid_forced",
        "net.ipv4.ip_local_port_range",
        "net.ipv4.ip_unprivileged_port_start",
        "net.ipv4.tcp_syncookies",
        "net.ipv4.ping_group_range",
        "net.ipv4.ip_local_reserved_ports",
        "net.ipv4.tcp_keepalive_time",
        "net.ipv4.tcp_fin_timeout",
        "net.ipv4.tcp_keepalive_intvl",
        "net.ipv4.tcp_keepalive_probes",
        "net.ipv4.tcp_rmem",
        "net.ipv4.tcp_wmem",
    }
)
# Restricted.
VOLUMES = frozenset(
    {
        *("configMap", "csi", "downwardAPI", "emptyDir", "ephemeral", "image"),
        *("persistentVolumeClaim", "projected", "secret"),
    }
)


def violations(pod, metadata=None):
    """
    Where a pod breaks the standard "restricted".

    Args:
        pod: A pod spec.
        metadata: The pod's metadata, for the AppArmor annotations.
    Returns:
        One line for each violation, ``Control: path: what``, by the controls' names in Kubernetes'
        documentation; none when the pod may run in a namespace that enforces it.
    """
    found = []
    for control, rule in CONTROLS.items():
        found += [f"{control}: {each}" for each in rule(pod, _containers(pod), metadata or {})]
    return found


def _containers(pod):
    return [
        (f"{kind}[{index}]", container)
        for kind in ("initContainers", "containers", "ephemeralContainers")
        for index, container in enumerate(pod.get(kind) or ())
    ]


def _contexts(pod, containers):
    """Security contexts: (path, context), the pod's first."""
    yield "securityContext", pod.get("securityContext") or {}
    for path, container in containers:
        yield f"{path}.securityContext", container.get("securityContext") or {}


def _host_process(pod, containers, _):
    for path, context in _contexts(pod, containers):
        if (context.get("windowsOptions") or {}).get("hostProcess"):
            yield f"{path}.windowsOptions.hostProcess"


def _host_namespaces(pod, _, __):
    for key in ("hostNetwork", "hostPID", "hostIPC"):
        if pod.get(key):
            yield key


def _privileged(_, containers, __):
    for path, container in containers:
        if (container.get("securityContext") or {}).get("privileged"):
            yield f"{path}.securityContext.privileged"


def _capabilities(_, containers, __):
    for path, container in containers:
        capabilities = (container.get("securityContext") or {}).get("capabilities") or {}
        added = set(capabilities.get("add") or ())
        if added - CAPABILITIES:
            yield f"{path}: adds {sorted(added - CAPABILITIES)}"


def _capabilities_dropped(_, containers, __):
    for path, container in containers:
        capabilities = (container.get("securityContext") or {}).get("capabilities") or {}
        if "ALL" not in (capabilities.get("drop") or ()):
            yield f"{path}: does not drop ALL"
        if set(capabilities.get("add") or ()) - {"NET_BIND_SERVICE"}:
            yield f"{path}: adds more than NET_BIND_SERVICE"


def _host_path(pod, _, __):
    for volume in pod.get("volumes") or ():
        if "hostPath" in volume:
            yield f"volumes {volume['name']}"


def _host_ports(_, containers, __):
    for path, container in containers:
        for port in container.get("ports") or ():
            if port.get("hostPort"):
                yield f"{path}: {port['hostPort']}"


def _host_probes(_, containers, __):
    for path, container in containers:
        handlers = {
            key: container.get(key) or {}
            for key in ("livenessProbe", "readinessProbe", "startupProbe")
        }
        for key in ("postStart", "preStop"):
            handlers[f"lifecycle.{key}"] = (container.get("lifecycle") or {}).get(key) or {}
        for key, handler in handlers.items():
            for way in ("httpGet", "tcpSocket"):
                if (handler.get(way) or {}).get("host"):
                    yield f"{path}.{key}.{way}.host"


def _app_armor(pod, containers, metadata):
    for path, context in _contexts(pod, containers):
        kind = (context.get("appArmorProfile") or {}).get("type", "RuntimeDefault")
        if kind not in ("RuntimeDefault", "Localhost"):
            yield f"{path}.appArmorProfile.type: {kind}"
    for key, value in (metadata.get("annotations") or {}).items():
        ours = key.startswith("container.apparmor.security.beta.kubernetes.io/")
        if ours and value != "runtime/default" and not value.startswith("localhost/"):
            yield f"annotation {key}: {value}"


def _selinux(pod, containers, _):
    for path, context in _contexts(pod, containers):
        options = context.get("seLinuxOptions") or {}
        if options.get("type", "") not in SELINUX_TYPES:
            yield f"{path}.seLinuxOptions.type"
        for key in ("user", "role"):
            if options.get(key):
                yield f"{path}.seLinuxOptions.{key}"


def _proc_mount(_, containers, __):
    for path, container in containers:
        if (container.get("securityContext") or {}).get("procMount", "Default") != "Default":
            yield f"{path}.securityContext.procMount"


def _sysctls(pod, _, __):
    for sysctl in (pod.get("securityContext") or {}).get("sysctls") or ():
        if sysctl["name"] not in SYSCTLS:
            yield f"securityContext.sysctls: {sysctl['name']}"


def _volume_types(pod, _, __):
    for volume in pod.get("volumes") or ():
        kinds = set(volume) - {"name"}
        if kinds - VOLUMES:
            yield f"volumes {volume['name']}: {sorted(kinds - VOLUMES)}"


def _privilege_escalation(_, containers, __):
    for path, container in containers:
        context = container.get("securityContext") or {}
        if context.get("allowPrivilegeEscalation") is not False:
            yield f"{path}: allowPrivilegeEscalation is not false"


def _non_root(pod, containers, _):
    of_pod = (pod.get("securityContext") or {}).get("runAsNonRoot")
    if of_pod is False:
        yield "securityContext.runAsNonRoot is false"
    for path, container in containers:
        own = (container.get("securityContext") or {}).get("runAsNonRoot")
        if own is False or (own is None and of_pod is not True):
            yield f"{path}: runAsNonRoot is not true"


def _non_root_user(pod, containers, _):
    for path, context in _contexts(pod, containers):
        if context.get("runAsUser") == 0:
            yield f"{path}.runAsUser is 0"


def _seccomp(pod, containers, _):
    allowed = ("RuntimeDefault", "Localhost")
    of_pod = ((pod.get("securityContext") or {}).get("seccompProfile") or {}).get("type")
    if of_pod is not None and of_pod not in allowed:
        yield f"securityContext.seccompProfile.type: {of_pod}"
    for path, container in containers:
        profile = (container.get("securityContext") or {}).get("seccompProfile") or {}
        if profile.get("type", of_pod) not in allowed:
            yield f"{path}: seccompProfile is {profile.get('type', of_pod)}"


CONTROLS = {
    # Baseline
    "HostProcess": _host_process,
    "Host Namespaces": _host_namespaces,
    "Privileged Containers": _privileged,
    "Capabilities (Baseline)": _capabilities,
    "HostPath Volumes": _host_path,
    "Host Ports": _host_ports,
    "Host Probes / Lifecycle Hooks": _host_probes,
    "AppArmor": _app_armor,
    "SELinux": _selinux,
    "/proc Mount Type": _proc_mount,
    "Sysctls": _sysctls,
    # Restricted; its Seccomp and Capabilities are stricter than Baseline's.
    "Volume Types": _volume_types,
    "Privilege Escalation": _privilege_escalation,
    "Running as Non-root": _non_root,
    "Running as Non-root user": _non_root_user,
    "Seccomp": _seccomp,
    "Capabilities": _capabilities_dropped,
}
