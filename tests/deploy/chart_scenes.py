"""Values that the chart is rendered with: from nothing to everything."""

from __future__ import annotations

import yaml

MINIMAL = """
mode: none
monitoring: {kind: none}
"""

EVERYTHING = """
image:
  repository: registry.example.com:5000/team/headroom-exporter
  tag: 0.1.0-node
  digest: sha256:0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef
  pullPolicy: Always
  pullSecrets: [{name: registry}]
nameOverride: headroom
commonLabels: {team: inference, cost-center: "42"}
config:
  discovery:
    kubernetes:
      namespaces: [chat, search]
      label_selector: app.kubernetes.io/component=inference,tier in (a, b)
      port_names: [vllm, http-vllm]
  engines:
    - name: outside
      url: https://llm.example.com/base
      kind: vllm
      bearer_token_file: /var/run/secrets/token
      tls: {ca_file: /etc/ssl/ca.pem, insecure_skip_verify: false}
  poll: {interval: 500ms, fallback_interval: 2s, full_interval: 10s, timeout: 5, max_backoff: 1m30s}
  gpus: {enabled: true, devices: [0, "1:0", GPU-aaaa], interval: 1s, timeout: 5s}
  web: {reload: true}
  plans:
    - name: chat
      match: {engine: "chat/*", model_name: meta-llama/Llama-3.1-8B-Instruct}
      concurrency: 32
      max_num_seqs: 64
      prompt_tokens: {p50: 512, p95: 2048}
      output_tokens: {p50: 200, p95: 600}
      request_rate: 4.0
      kv_cache_tokens: 24000000
      slo: {ttft_p95_seconds: 1.0, tpot_p95_seconds: 0.00005}
      headroom: {floor_ratio: 0.2, spike_factor: 2.0, overrun_probability: 0.01}
log: {level: debug, format: logfmt}
gpuMapping: {enabled: true, path: /var/lib/k0s/kubelet/pod-resources}
gpus: {runtimeClassName: nvidia, visibleDevices: "0,GPU-5d5ba0d6-d33d-2b2c-524d-9e3d8d2b8a77"}
web: {tlsSecret: headroom-tls, configSecret: headroom-web}
serviceAccount: {create: true, name: watcher, annotations: {example.com/role: none}}
podLabels: {network: metrics}
podAnnotations: {example.com/note: "a: b"}
nodeSelector: {nvidia.com/gpu.present: "true"}
tolerations: [{operator: Exists}]
affinity:
  nodeAffinity:
    requiredDuringSchedulingIgnoredDuringExecution:
      nodeSelectorTerms:
        - matchExpressions: [{key: kubernetes.io/arch, operator: In, values: [amd64]}]
priorityClassName: important
updateStrategy: {type: RollingUpdate, rollingUpdate: {maxUnavailable: 2}}
terminationGracePeriodSeconds: 5
securityContext: {seLinuxOptions: {type: container_t}}
resources: {requests: {cpu: 0.05}, limits: {cpu: "1", memory: 256Mi}}
probes: {kind: tcp}
extraArgs: ["--web.listen-address=[::]:9890"]
extraEnv: [{name: TZ, value: UTC}, {name: POD, valueFrom: {fieldRef: {fieldPath: metadata.name}}}]
service: {annotations: {example.com/x: "yes"}}
monitoring:
  kind: podMonitor
  namespace: observability
  labels: {release: prometheus}
  interval: 30s
  scrapeTimeout: 10s
  tlsConfig:
    ca: {secret: {name: headroom-tls, key: ca.crt}}
    cert: {configMap: {name: scraper, key: cert}}
    keySecret: {name: scraper, key: key}
    serverName: headroom.example.com
    insecureSkipVerify: false
  basicAuth: {username: {name: login, key: user}, password: {name: login, key: password}}
  relabelings: [{action: replace, targetLabel: cluster, replacement: one}]
  metricRelabelings: [{action: labeldrop, regex: endpoint}]
  sidecars: {enabled: true, namespaces: [chat]}
rules:
  enabled: true
  namespace: observability
  labels: {release: prometheus}
  alertLabels: {team: inference}
  runbookBaseUrl: https://wiki.example.com/runbooks
  dashboardBaseUrl: https://grafana.example.com/
  alerts:
    HeadroomPlanMissing: {enabled: false}
    HeadroomEngineDown: {for: 30m, keepFiringFor: 5m, severity: warning, labels: {team: platform}}
dashboards: {enabled: true, namespace: observability, label: board, labelValue: "yes", folder: "GPU: plan"}
networkPolicy:
  enabled: true
  scrapers: [{namespaceSelector: {matchLabels: {kubernetes.io/metadata.name: observability}}}]
  enginePorts: [8000, 8001]
  apiServerPorts: [6443]
  apiServerCidrs: [10.0.0.1/32, "fd00::1/128"]
  extraEgress: [{ports: [{port: 9000, protocol: TCP}], to: [{ipBlock: {cidr: 10.1.0.0/16}}]}]
sidecar:
  config:
    engines: [{name: one, url: "http://127.0.0.1:8000"}]
    plans: [{concurrency: 8}]
"""

SERVICE_MONITOR = """
monitoring: {kind: serviceMonitor}
rules: {enabled: true, kind: configMap}
dashboards: {enabled: true, folder: ""}
web: {tlsSecret: headroom-tls}
gpus: {visibleDevices: all}
networkPolicy: {enabled: true}
"""

SIDECARS = """
mode: none
monitoring: {kind: podMonitor}
rules: {enabled: true}
dashboards: {enabled: true}
sidecar:
  config: {plans: [{concurrency: 8}]}
"""

NO_DISCOVERY = """
config:
  discovery: null
  engines: [{name: one, url: "http://engine.chat.svc:8000"}]
"""

NULLS = """
nameOverride: null
fullnameOverride: null
commonLabels: null
podLabels: null
podAnnotations: null
nodeSelector: null
tolerations: null
affinity: null
priorityClassName: null
updateStrategy: null
terminationGracePeriodSeconds: null
resources: null
extraArgs: null
extraEnv: null
"""

SCENES = {
    "default": "{}",
    "minimal": MINIMAL,
    "everything": EVERYTHING,
    "service monitor": SERVICE_MONITOR,
    "sidecars": SIDECARS,
    "no discovery": NO_DISCOVERY,
    "own account": "serviceAccount: {create: false, name: mine}\nrbac: {create: false}",
    "users": "web: {configSecret: web}",
    "probes off": "probes: {kind: none}",
    "openshift": "podSecurityContext: {runAsUser: null, runAsGroup: null, fsGroup: null}",
    "nulls": NULLS,
    "parent": "enabled: true\nglobal: {anything: [1]}",
}


def values(scene):
    """A scene's values as a dict."""
    return yaml.safe_load(SCENES[scene])
