{{/*
For charts that depend on this one and put the exporter into their own pods. Each template takes this chart's scope:

    {{- $headroom := index .Subcharts "headroom-exporter" }}

    metadata.labels            {{ include "headroom-exporter.sidecarLabels" $headroom }}
    metadata.annotations       {{ include "headroom-exporter.sidecarAnnotations" $headroom }}
    spec.initContainers        {{ include "headroom-exporter.sidecar" $headroom }}
    spec.volumes               {{ include "headroom-exporter.sidecarVolumes" $headroom }}

deploy/helm/examples/vllm-with-sidecar is a chart that does so. Set `headroom-exporter.mode: none` there.
*/}}

{{/* The pod label by which the sidecars' PodMonitor finds it. */}}
{{- define "headroom-exporter.sidecarLabels" -}}
headroom-exporter/sidecar: "true"
{{- end -}}

{{/* Tells an exporter in node mode that this engine has one; and Prometheus, where `monitoring.kind` is `annotations`. */}}
{{- define "headroom-exporter.sidecarAnnotations" -}}
headroom-exporter/scrape: "false"
{{- if eq .Values.monitoring.kind "annotations" }}
prometheus.io/scrape: "true"
prometheus.io/port: "9890"
prometheus.io/path: /metrics
prometheus.io/scheme: {{ include "headroom-exporter.scheme" . }}
{{- end -}}
{{- end -}}

{{- define "headroom-exporter.sidecarConfigMap" -}}
{{ include "headroom-exporter.fullname" . }}-sidecar
{{- end -}}

{{- define "headroom-exporter.sidecarHasConfigMap" -}}
{{- if or .Values.sidecar.config (and (eq .Values.mode "none") (include "headroom-exporter.webYml" .)) -}}true{{- end -}}
{{- end -}}

{{- define "headroom-exporter.sidecarHasFiles" -}}
{{- if or (include "headroom-exporter.sidecarHasConfigMap" .) (include "headroom-exporter.hasWeb" .) -}}true{{- end -}}
{{- end -}}

{{/*
One item of a pod's initContainers: a native sidecar. No startupProbe: the engine would wait for it. No
readinessProbe: a bad moment of the exporter would take the engine out of its Service.
*/}}
{{- define "headroom-exporter.sidecar" -}}
- name: headroom-exporter
  image: {{ include "headroom-exporter.image" (dict "image" .Values.image "appVersion" .Chart.AppVersion) | quote }}
  imagePullPolicy: {{ .Values.image.pullPolicy }}
  restartPolicy: Always
  args:
    - run
    {{- if .Values.sidecar.config }}
    - --config=/etc/headroom/config.yaml
    - --config.tolerate-invalid
    {{- end }}
    - --log.level={{ .Values.log.level }}
    - --log.format={{ .Values.log.format }}
    {{- if include "headroom-exporter.hasWeb" . }}
    - --web.config.file=/etc/headroom/web/web.yml
    {{- end }}
    {{- with .Values.sidecar.extraArgs }}
    {{- toYaml . | nindent 4 }}
    {{- end }}
  {{- if or .Values.sidecar.visibleDevices .Values.sidecar.extraEnv }}
  env:
    {{- with .Values.sidecar.visibleDevices }}
    {{- include "headroom-exporter.nvidiaEnv" . | nindent 4 }}
    {{- end }}
    {{- with .Values.sidecar.extraEnv }}
    {{- toYaml . | nindent 4 }}
    {{- end }}
  {{- end }}
  ports:
    - name: headroom
      containerPort: 9890
      protocol: TCP
  {{- if and .Values.sidecar.livenessProbe (ne .Values.probes.kind "none") }}
  # Five minutes of silence. Restarts this container alone, but the pod is not ready until it is back.
  livenessProbe:
    {{- include "headroom-exporter.probe" (dict "root" . "path" "/healthz") | nindent 4 }}
    initialDelaySeconds: 30
    periodSeconds: 30
    timeoutSeconds: 10
    failureThreshold: 10
  {{- end }}
  terminationMessagePolicy: FallbackToLogsOnError
  resources:
    {{- toYaml .Values.sidecar.resources | nindent 4 }}
  {{- /* The pod's own context is the engine's: everything is said here. */}}
  {{- $pod := omit .Values.podSecurityContext "fsGroup" "fsGroupChangePolicy" "supplementalGroups" "supplementalGroupsPolicy" "sysctls" }}
  securityContext:
    {{- mergeOverwrite (deepCopy $pod) (deepCopy .Values.securityContext) | toYaml | nindent 4 }}
  {{- if or (include "headroom-exporter.sidecarHasFiles" .) .Values.sidecar.hideServiceAccountToken }}
  volumeMounts:
    {{- if include "headroom-exporter.sidecarHasFiles" . }}
    - name: headroom-config
      mountPath: /etc/headroom
      readOnly: true
    {{- end }}
    {{- if .Values.sidecar.hideServiceAccountToken }}
    # Where something is mounted already, no token is: the sidecar needs none, whatever the engine needs.
    - name: headroom-no-token
      mountPath: /var/run/secrets/kubernetes.io/serviceaccount
      readOnly: true
    {{- end }}
  {{- end }}
{{- end -}}

{{/* What the sidecar mounts. Empty where nothing is to be mounted. */}}
{{- define "headroom-exporter.sidecarVolumes" -}}
{{- if include "headroom-exporter.sidecarHasFiles" . -}}
{{- $configMap := ternary (include "headroom-exporter.sidecarConfigMap" .) "" (not (empty (include "headroom-exporter.sidecarHasConfigMap" .))) -}}
{{- /* Readable for all: the engine's pod need not have our group, and nobody else mounts it. */ -}}
{{- include "headroom-exporter.filesVolume" (dict "root" . "name" "headroom-config" "configMap" $configMap "hasConfig" (not (empty .Values.sidecar.config)) "mode" "0444") }}
{{ end -}}
{{- if .Values.sidecar.hideServiceAccountToken -}}
- name: headroom-no-token
  emptyDir: {}
{{- end -}}
{{- end -}}
