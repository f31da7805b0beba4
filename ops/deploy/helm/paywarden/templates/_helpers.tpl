{{/* The names of everything, and what all pods have in common. */}}

{{- define "paywarden.name" -}}
{{- if contains .Chart.Name .Release.Name }}{{ .Release.Name | trunc 40 | trimSuffix "-" }}{{ else }}{{ printf "%s-%s" .Release.Name .Chart.Name | trunc 40 | trimSuffix "-" }}{{ end -}}
{{- end }}

{{- define "paywarden.image" -}}
{{- if .Values.image.digest -}}
{{ .Values.image.repository }}@{{ .Values.image.digest }}
{{- else -}}
{{ .Values.image.repository }}:{{ .Values.image.tag | default .Chart.AppVersion }}
{{- end -}}
{{- end }}

{{/* Labels that select pods of a part: (list . "scoring"). They never change. */}}
{{- define "paywarden.selector" -}}
app.kubernetes.io/name: paywarden
app.kubernetes.io/instance: {{ (index . 0).Release.Name }}
app.kubernetes.io/component: {{ index . 1 }}
{{- end }}

{{- define "paywarden.labels" -}}
{{ include "paywarden.selector" . }}
app.kubernetes.io/version: {{ (index . 0).Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ (index . 0).Release.Service }}
helm.sh/chart: {{ printf "%s-%s" (index . 0).Chart.Name (index . 0).Chart.Version }}
{{- end }}

{{- define "paywarden.priorityClass" -}}
{{- if .Values.priorityClass.create }}{{ include "paywarden.name" . }}-scoring{{ else }}{{ .Values.priorityClass.name }}{{ end -}}
{{- end }}

{{/* What a pod may do: nothing but its work. */}}
{{- define "paywarden.podSecurity" -}}
runAsNonRoot: true
runAsUser: 10001
runAsGroup: 10001
fsGroup: 10001
fsGroupChangePolicy: OnRootMismatch
seccompProfile:
  type: RuntimeDefault
{{- end }}

{{- define "paywarden.containerSecurity" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
privileged: false
capabilities:
  drop: [ALL]
{{- end }}

{{/* (list . CPU MEGABYTES). Memory is the same in requests and limits: nobody takes it away from a mirror. */}}
{{- define "paywarden.resources" -}}
requests:
  cpu: {{ index . 1 | quote }}
  memory: {{ index . 2 }}Mi
limits:
  memory: {{ index . 2 }}Mi
{{- end }}

{{/*
Which processes read the secrets of a section of the settings. A section that is not named here is read by all but `topics`.
"models.key_file" is the one setting that differs from its section.
*/}}
{{- define "paywarden.readers" -}}
{{- $kafka := list "topics" "stream" "companion" "shadow" "lead" "console" -}}
{{- dict
  "kafka" $kafka
  "registry" $kafka
  "topics" $kafka
  "aerospike" (list "stream" "companion")
  "decision_index" (list "console")
  "console" (list "console")
  "auth" (list "serve")
  "tls" (list "serve")
  "exploration" (list "serve")
  "models.key_file" (list "lead")
  | toJson -}}
{{- end }}

{{/* "true" if a process reads a setting: (list PROCESS SECTION SETTING). */}}
{{- define "paywarden.isRead" -}}
{{- $readers := include "paywarden.readers" . | fromJson -}}
{{- $setting := printf "%s.%s" (index . 1) (index . 2) -}}
{{- if hasKey $readers $setting -}}
{{- if has (index . 0) (get $readers $setting) }}true{{ end -}}
{{- else if hasKey $readers (index . 1) -}}
{{- if has (index . 0) (get $readers (index . 1)) }}true{{ end -}}
{{- else if ne (index . 0) "topics" }}true{{ end -}}
{{- end }}

{{/* The section of a variable, such as "kafka" of PAYWARDEN_KAFKA_SASL_PASSWORD, if `readers` names it. */}}
{{- define "paywarden.sectionOf" -}}
{{- $name := . -}}
{{- range $section, $_ := include "paywarden.readers" . | fromJson -}}
{{- if hasPrefix (printf "PAYWARDEN_%s_" (upper $section)) $name }}{{ $section }}{{ end -}}
{{- end -}}
{{- end }}

{{/* The secret variables that a process reads: (list . PROCESS). */}}
{{- define "paywarden.environment" -}}
{{- $process := index . 1 }}
{{- range (index . 0).Values.secretEnvironment }}
{{- if include "paywarden.isRead" (list $process (include "paywarden.sectionOf" .name) "") }}
- name: {{ .name }}
  valueFrom:
    secretKeyRef:
      name: {{ .secret }}
      key: {{ .key }}
{{- end }}
{{- end }}
{{- end }}

{{/*
The secret files that settings of a process name, as a JSON object {"files": […]}: (list . PROCESS). An empty name stands for
the folder itself, with all files: a setting such as console.keys asks for a folder.
*/}}
{{- define "paywarden.secretFiles" -}}
{{- $top := index . 0 }}
{{- $process := index . 1 }}
{{- $folder := "/run/secrets/paywarden/" }}
{{- $files := list }}
{{- if eq $process "key" }}
{{- $files = list $top.Values.lead.key }}
{{- else }}
{{- range $section, $settings := $top.Values.config }}
{{- range $name, $value := $settings }}
{{- if include "paywarden.isRead" (list $process $section $name) }}
{{- range (kindIs "slice" $value | ternary $value (list $value)) }}
{{- if and (kindIs "string" .) (hasPrefix $folder (print . "/")) }}
{{- $files = append $files (trimPrefix $folder (print (trimSuffix "/" .) "/") | trimSuffix "/") }}
{{- end }}
{{- end }}
{{- end }}
{{- end }}
{{- end }}
{{- end }}
{{- dict "files" ($files | uniq | sortAlpha) | toJson }}
{{- end }}

{{/* The configuration and the secrets of a container of ours: (list . PROCESS). */}}
{{- define "paywarden.mounts" -}}
{{- $top := index . 0 }}
- name: config
  mountPath: /etc/paywarden
  readOnly: true
{{- if and $top.Values.secretFiles (include "paywarden.secretFiles" . | fromJson).files }}
- name: secrets-{{ index . 1 }}
  mountPath: /run/secrets/paywarden
  readOnly: true
{{- end }}
{{- if $top.Values.models.claim }}
- name: models
  mountPath: /srv/paywarden/models
  readOnly: true
{{- end }}
- name: tmp
  mountPath: /tmp
{{- end }}

{{/* (list . PROCESS…), the processes of the pod. */}}
{{- define "paywarden.volumes" -}}
{{- $top := index . 0 }}
- name: config
  configMap:
    name: {{ include "paywarden.name" $top }}
- name: tmp
  emptyDir:
    sizeLimit: 256Mi
{{- range $process := rest . }}
{{- $files := (include "paywarden.secretFiles" (list $top $process) | fromJson).files }}
{{- if and $top.Values.secretFiles $files }}
- name: secrets-{{ $process }}
  secret:
    secretName: {{ $top.Values.secretFiles }}
    defaultMode: 0440
    {{- if not (has "" $files) }}
    items:
      {{- range $files }}
      - {key: {{ . | quote }}, path: {{ . | quote }}}
      {{- end }}
    {{- end }}
{{- end }}
{{- end }}
{{- if $top.Values.models.claim }}
- name: models
  persistentVolumeClaim:
    claimName: {{ $top.Values.models.claim }}
    readOnly: true
{{- end }}
{{- end }}

{{/* Probes of a process whose health is at a port: (list PORT SECONDS-TO-START). */}}
{{- define "paywarden.probes" -}}
startupProbe:
  httpGet: {path: /livez, port: {{ index . 0 }}}
  periodSeconds: 2
  timeoutSeconds: 5
  failureThreshold: {{ div (index . 1) 2 }}
livenessProbe:
  httpGet: {path: /livez, port: {{ index . 0 }}}
  periodSeconds: 10
  timeoutSeconds: 5
  failureThreshold: 3
{{- end }}

{{- define "paywarden.readiness" -}}
readinessProbe:
  httpGet: {path: /readyz, port: {{ . }}}
  periodSeconds: 2
  timeoutSeconds: 5
  failureThreshold: 2
{{- end }}

{{- define "paywarden.pullSecrets" -}}
{{- with .Values.image.pullSecrets }}
imagePullSecrets:
{{- range . }}
  - name: {{ . }}
{{- end }}
{{- end }}
{{- end }}

{{/* (list . PART) */}}
{{- define "paywarden.spread" -}}
{{- $top := index . 0 }}
{{- $part := index . 1 }}
{{- with $top.Values.topologySpread.keys }}
topologySpreadConstraints:
{{- range . }}
  - topologyKey: {{ . }}
    maxSkew: 1
    whenUnsatisfiable: {{ $top.Values.topologySpread.whenUnsatisfiable }}
    labelSelector:
      matchLabels:
        {{- include "paywarden.selector" (list $top $part) | nindent 8 }}
{{- end }}
{{- end }}
{{- end }}

{{/* The table of answered payments, counts and claims, in MiB. */}}
{{- define "paywarden.answeredMb" -}}
{{- add (div (mul .Values.scoring.answered.payments 24) 1048576) 65 -}}
{{- end }}

{{/* paywarden.toml: what the chart decides, over what the values say. */}}
{{- define "paywarden.toml" -}}
{{- $config := deepCopy .Values.config }}
{{- $drain := mul .Values.scoring.drainSeconds 1000 }}
{{- $fixed := dict
  "store" (dict "kind" "aerospike")
  "mirror" (dict "path" "/dev/shm/paywarden/mirror" "size_mb" (int .Values.scoring.mirror.sizeMb))
  "answered" (dict "path" "/dev/shm/paywarden/answered" "payments_max" (int .Values.scoring.answered.payments))
  "outbox" (dict "directory" "/var/lib/paywarden/outbox")
  "serve" (dict "metrics" "/dev/shm/paywarden/metrics" "runtime" "/var/lib/paywarden/serve" "admin_host" "0.0.0.0" "admin_port" 8082 "drain_delay_ms" (int $drain))
  "http" (dict "host" "0.0.0.0" "port" 8080)
  "grpc" (dict "host" "0.0.0.0" "port" 8081)
  "companion" (dict "http_host" "0.0.0.0" "http_port" 8083)
  "stream" (dict "http_host" "0.0.0.0" "http_port" 8084)
  "shadow" (dict "http_host" "0.0.0.0" "http_port" 8085)
}}
{{- if .Values.console.enabled }}
{{- $_ := set $fixed "console" (dict "host" "0.0.0.0" "port" 8090 "folder" "/var/lib/paywarden/console") }}
{{- end }}
{{- range $section, $settings := mergeOverwrite $config $fixed }}
[{{ $section }}]
{{- range $name, $value := $settings }}
{{- if kindIs "float64" $value }}
{{ $name }} = {{ if eq $value (floor $value) }}{{ int64 $value }}{{ else }}{{ $value }}{{ end }}
{{- else }}
{{ $name }} = {{ $value | toJson }}
{{- end }}
{{- end }}
{{ end }}
{{- end }}
