{{- define "headroom-exporter.name" -}}
{{- default .Chart.Name .Values.nameOverride | trunc 63 | trimSuffix "-" -}}
{{- end -}}

{{/* 52: a suffix of 11 ("-recording" ...) keeps names below 63, and a DaemonSet's hash has room. */}}
{{- define "headroom-exporter.fullname" -}}
{{- if .Values.fullnameOverride -}}
{{- .Values.fullnameOverride | trunc 52 | trimSuffix "-" -}}
{{- else -}}
{{- $name := include "headroom-exporter.name" . -}}
{{- if contains $name .Release.Name -}}
{{- .Release.Name | trunc 52 | trimSuffix "-" -}}
{{- else -}}
{{- printf "%s-%s" .Release.Name $name | trunc 52 | trimSuffix "-" -}}
{{- end -}}
{{- end -}}
{{- end -}}

{{/* Labels of every object. */}}
{{- define "headroom-exporter.labels" -}}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" | trunc 63 | trimSuffix "-" }}
app.kubernetes.io/name: {{ include "headroom-exporter.name" . }}
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
{{- with .Values.commonLabels }}
{{ toYaml . }}
{{- end }}
{{- end -}}

{{/* What tells the DaemonSet's pods from everything else, the test's pod included. Never changes. */}}
{{- define "headroom-exporter.selectorLabels" -}}
app.kubernetes.io/name: {{ include "headroom-exporter.name" . }}
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/component: node
{{- end -}}

{{- define "headroom-exporter.serviceAccountName" -}}
{{- if .Values.serviceAccount.create -}}
{{- default (include "headroom-exporter.fullname" .) .Values.serviceAccount.name -}}
{{- else -}}
{{- default "default" .Values.serviceAccount.name -}}
{{- end -}}
{{- end -}}

{{/* Takes the chart's values and its app version: a sidecar calls it from another chart. */}}
{{- define "headroom-exporter.image" -}}
{{- $tag := .image.tag | default .appVersion -}}
{{- if .image.digest -}}
{{- if .image.tag -}}
{{ .image.repository }}:{{ .image.tag }}@{{ .image.digest }}
{{- else -}}
{{ .image.repository }}@{{ .image.digest }}
{{- end -}}
{{- else -}}
{{ .image.repository }}:{{ $tag }}
{{- end -}}
{{- end -}}

{{/* The configuration file of node mode: what values say, and the kubelet's socket, asked only where it is mounted. */}}
{{- define "headroom-exporter.config" -}}
{{- $config := deepCopy .Values.config -}}
{{- if $config.discovery -}}
{{- $kubelet := dict "enabled" false -}}
{{- if .Values.gpuMapping.enabled -}}
{{- $kubelet = dict "enabled" true "socket" (printf "%s/kubelet.sock" .Values.gpuMapping.path) -}}
{{- end -}}
{{- $_ := set $config.discovery "kubelet" $kubelet -}}
{{- end -}}
{{- toYaml $config -}}
{{- end -}}

{{- define "headroom-exporter.hasWeb" -}}
{{- if or .Values.web.tlsSecret .Values.web.configSecret -}}true{{- end -}}
{{- end -}}

{{- define "headroom-exporter.scheme" -}}
{{- if .Values.web.tlsSecret -}}https{{- else -}}http{{- end -}}
{{- end -}}

{{/*
What lies in /etc/headroom, one projected volume: config.yaml where there is one, and web/ with the web
configuration and its certificate. Takes root, name (the volume's), configMap ("": none), mode (of what is secret).
*/}}
{{- define "headroom-exporter.filesVolume" -}}
- name: {{ .name }}
  projected:
    sources:
      {{- $web := .root.Values.web }}
      {{- $writes := and $web.tlsSecret (not $web.configSecret) }}
      {{- with .configMap }}
      - configMap:
          name: {{ . }}
          items:
            {{- if $.hasConfig }}
            - key: config.yaml
              path: config.yaml
            {{- end }}
            {{- if $writes }}
            - key: web.yml
              path: web/web.yml
            {{- end }}
      {{- end }}
      {{- with $web.configSecret }}
      - secret:
          name: {{ . }}
          items:
            - key: web.yml
              path: web/web.yml
              mode: {{ $.mode }}
      {{- end }}
      {{- with $web.tlsSecret }}
      - secret:
          name: {{ . }}
          items:
            - key: tls.crt
              path: web/tls.crt
            - key: tls.key
              path: web/tls.key
              mode: {{ $.mode }}
      {{- end }}
{{- end -}}

{{/* The web configuration that the chart writes: TLS alone. */}}
{{- define "headroom-exporter.webYml" -}}
{{- if and .Values.web.tlsSecret (not .Values.web.configSecret) -}}
web.yml: |
  tls_server_config:
    cert_file: tls.crt
    key_file: tls.key
{{- end -}}
{{- end -}}

{{/* NVML and nothing else: no CUDA, no graphics. */}}
{{- define "headroom-exporter.nvidiaEnv" -}}
- name: NVIDIA_VISIBLE_DEVICES
  value: {{ . | quote }}
- name: NVIDIA_DRIVER_CAPABILITIES
  value: utility
{{- end -}}

{{/* One probe's way of asking; takes root and path. */}}
{{- define "headroom-exporter.probe" -}}
{{- if eq .root.Values.probes.kind "tcp" -}}
tcpSocket:
  port: headroom
{{- else -}}
httpGet:
  path: {{ .path }}
  port: headroom
  {{- if eq (include "headroom-exporter.scheme" .root) "https" }}
  scheme: HTTPS
  {{- end }}
{{- end -}}
{{- end -}}

{{/* What no schema can say: values that do not fit each other. */}}
{{- define "headroom-exporter.validate" -}}
{{- if and (eq .Values.mode "none") (eq .Values.monitoring.kind "serviceMonitor") -}}
{{- fail "monitoring.kind: serviceMonitor needs the chart's Service, which mode: none does not make; use podMonitor for sidecars" -}}
{{- end -}}
{{- if and (eq .Values.mode "none") .Values.gpuMapping.enabled -}}
{{- fail "gpuMapping.enabled: has no exporter to map for in mode: none" -}}
{{- end -}}
{{- if and (eq .Values.mode "none") .Values.networkPolicy.enabled -}}
{{- fail "networkPolicy.enabled: there are no pods to protect in mode: none; the engine's pods are their own chart's" -}}
{{- end -}}
{{- if and (eq .Values.mode "node") (not .Values.config.discovery) (not .Values.config.engines) -}}
{{- fail "config.discovery: mode: node needs it, or config.engines; without both the exporter would look for an engine on localhost" -}}
{{- end -}}
{{- if and .Values.gpuMapping.enabled (not .Values.config.discovery) -}}
{{- fail "gpuMapping.enabled: needs config.discovery" -}}
{{- end -}}
{{- if and (eq .Values.mode "node") (not .Values.serviceAccount.create) (not .Values.serviceAccount.name) .Values.rbac.create -}}
{{- fail "serviceAccount.name: must name an existing account where serviceAccount.create is false; rights on pods would go to every pod that runs as \"default\"" -}}
{{- end -}}
{{- if and .Values.monitoring.sidecars.enabled (ne .Values.monitoring.kind "podMonitor") -}}
{{- fail "monitoring.sidecars.enabled: needs monitoring.kind: podMonitor" -}}
{{- end -}}
{{- $sidecars := and (eq .Values.monitoring.kind "podMonitor") (or (eq .Values.mode "none") .Values.monitoring.sidecars.enabled) -}}
{{- if and $sidecars .Values.monitoring.basicAuth (not .Values.monitoring.sidecars.namespaces) -}}
{{- fail "monitoring.sidecars.namespaces: must name the sidecars' namespaces where monitoring.basicAuth is set; the login would go to any pod of the cluster that carries the label" -}}
{{- end -}}
{{- end -}}
