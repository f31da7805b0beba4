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

{{- define "paywarden.environment" -}}
{{- range .Values.secretEnvironment }}
- name: {{ .name }}
  valueFrom:
    secretKeyRef:
      name: {{ .secret }}
      key: {{ .key }}
{{- end }}
{{- end }}

{{/* The configuration and the secrets of every container of ours. */}}
{{- define "paywarden.mounts" -}}
- name: config
  mountPath: /etc/paywarden
  readOnly: true
{{- if .Values.secretFiles }}
- name: secrets
  mountPath: /run/secrets/paywarden
  readOnly: true
{{- end }}
{{- if .Values.models.claim }}
- name: models
  mountPath: /srv/paywarden/models
  readOnly: true
{{- end }}
- name: tmp
  mountPath: /tmp
{{- end }}

{{- define "paywarden.volumes" -}}
- name: config
  configMap:
    name: {{ include "paywarden.name" . }}
- name: tmp
  emptyDir:
    sizeLimit: 256Mi
{{- if .Values.secretFiles }}
- name: secrets
  secret:
    secretName: {{ .Values.secretFiles }}
    defaultMode: 0440
{{- end }}
{{- if .Values.models.claim }}
- name: models
  persistentVolumeClaim:
    claimName: {{ .Values.models.claim }}
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
  "serve" (dict "metrics" "/dev/shm/paywarden/metrics" "runtime" "/var/lib/paywarden/serve" "admin_host" "0.0.0.0" "admin_port" 8082)
  "http" (dict "host" "0.0.0.0" "port" 8080 "drain_delay_ms" (int $drain))
  "grpc" (dict "host" "0.0.0.0" "port" 8081 "drain_delay_ms" (int $drain))
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
