{{/*
The rules are read, not rendered: their texts have braces that belong to Prometheus. A threshold is an edit of
files/thresholds.yaml; one that does not find its text exactly as often as it says stops the rendering.
*/}}

{{/* One rule file's groups as YAML. Takes root, path, and edits: alert -> list of {in, from, to, value, ...}. */}}
{{- define "headroom-exporter.ruleGroups" -}}
{{- $root := .root -}}
{{- $edits := .edits -}}
{{- $rules := $root.Values.rules -}}
{{- $source := $root.Files.Get .path | required (printf "%s is not in the chart" .path) | fromYaml -}}
{{- $groups := list -}}
{{- range $group := $source.groups -}}
  {{- if not (hasKey $rules.groups $group.name) -}}
    {{- fail (printf "rules.groups: no switch for the group %s" $group.name) -}}
  {{- end -}}
  {{- $kept := list -}}
  {{- range $rule := $group.rules -}}
    {{- if not $rule.alert -}}
      {{- $kept = append $kept $rule -}}
    {{- else -}}
      {{- $change := index $rules.alerts $rule.alert | default dict -}}
      {{- $rule = include "headroom-exporter.alert" (dict "rules" $rules "rule" $rule "change" $change "edits" (index $edits $rule.alert | default list)) | fromYaml -}}
      {{- if ne (toString $change.enabled) "false" -}}
        {{- $kept = append $kept $rule -}}
      {{- end -}}
    {{- end -}}
  {{- end -}}
  {{- if and (index $rules.groups $group.name) $kept -}}
    {{- $groups = append $groups (mergeOverwrite (deepCopy $group) (dict "rules" $kept)) -}}
  {{- end -}}
{{- end -}}
{{- toYaml (dict "groups" $groups) -}}
{{- end -}}

{{/* One alert, changed as values say. */}}
{{- define "headroom-exporter.alert" -}}
{{- $rule := deepCopy .rule -}}
{{- $shipped := "https://github.com/headroom-exporter/headroom-exporter/blob/main/docs/runbooks/" -}}
{{- /* Marks first, values then: no edit can meet what another one wrote. */ -}}
{{- $written := dict -}}
{{- range $number, $edit := .edits -}}
  {{- $holder := ternary $rule $rule.annotations (eq $edit.in "expr") -}}
  {{- $text := index $holder $edit.in -}}
  {{- $found := sub (len (splitList $edit.from $text)) 1 -}}
  {{- if ne (int $found) (int ($edit.occurs | default 1)) -}}
    {{- fail (printf "%s: %q is %d times in the %s of %s, not %d times; files/thresholds.yaml and the rules do not fit each other" $edit.key $edit.from $found $edit.in $rule.alert (int ($edit.occurs | default 1))) -}}
  {{- end -}}
  {{- $mark := printf "@@%d@@" $number -}}
  {{- $_ := set $holder $edit.in (replace $edit.from $mark $text) -}}
  {{- $_ := set $written $mark (ternary $edit.from (replace "{}" (toString $edit.value) $edit.to) (toString $edit.same | eq "true")) -}}
{{- end -}}
{{- range $number, $edit := .edits -}}
  {{- $holder := ternary $rule $rule.annotations (eq $edit.in "expr") -}}
  {{- $mark := printf "@@%d@@" $number -}}
  {{- $_ := set $holder $edit.in (replace $mark (index $written $mark) (index $holder $edit.in)) -}}
{{- end -}}
{{- with .change.for -}}{{- $_ := set $rule "for" . -}}{{- end -}}
{{- with .change.keepFiringFor -}}{{- $_ := set $rule "keep_firing_for" . -}}{{- end -}}
{{- $labels := mergeOverwrite $rule.labels (deepCopy .rules.alertLabels) (deepCopy (.change.labels | default dict)) -}}
{{- with .change.severity -}}{{- $_ := set $labels "severity" . -}}{{- end -}}
{{- if not (hasPrefix $shipped $rule.annotations.runbook_url) -}}
  {{- fail (printf "rules.runbookBaseUrl: the runbook of %s is elsewhere: %s" $rule.alert $rule.annotations.runbook_url) -}}
{{- end -}}
{{- $_ := set $rule.annotations "runbook_url" (printf "%s/%s" (trimSuffix "/" .rules.runbookBaseUrl) (trimPrefix $shipped $rule.annotations.runbook_url)) -}}
{{- with .rules.dashboardBaseUrl -}}
  {{- $_ := set $rule.annotations "dashboard" (printf "%s%s" (trimSuffix "/" .) $rule.annotations.dashboard) -}}
{{- end -}}
{{- toYaml $rule -}}
{{- end -}}

{{/* All edits by alert, each with its value: {edits: {alert: [...]}}. */}}
{{- define "headroom-exporter.edits" -}}
{{- $rules := .Values.rules -}}
{{- $edits := dict -}}
{{- range $key, $threshold := .Files.Get "files/thresholds.yaml" | fromYaml -}}
  {{- $value := $threshold.default -}}
  {{- if hasPrefix "alerts." $key -}}
    {{- $value = dig (index (splitList "." $key) 1) (index (splitList "." $key) 2) $threshold.default $rules.alerts | default $threshold.default -}}
  {{- else -}}
    {{- if not (hasKey $rules.thresholds $key) -}}{{- fail (printf "rules.thresholds.%s: is missing" $key) -}}{{- end -}}
    {{- $value = index $rules.thresholds $key -}}
  {{- end -}}
  {{- range $edit := $threshold.edits -}}
    {{- $written := $value -}}
    {{- if $edit.factor -}}{{- $written = mulf $edit.factor $value -}}{{- end -}}
    {{- $full := merge (dict "key" $key "value" $written "same" (eq (toString $value) (toString $threshold.default))) $edit -}}
    {{- $_ := set $edits $edit.alert (append (index $edits $edit.alert | default list) $full) -}}
  {{- end -}}
{{- end -}}
{{- toYaml (dict "edits" $edits) -}}
{{- end -}}
