{{/* Labels of every object: those of manifests/base. Without release name and version, so that one installation can replace the other. */}}
{{- define "portmapping.labels" -}}
app.kubernetes.io/part-of: portmapping
{{- end }}

{{- define "portmapping.image" -}}
{{- $image := index .images .name -}}
{{- with .images.registry }}{{ trimSuffix "/" . }}/{{ end }}{{ $image.repository }}{{ if $image.digest }}@{{ $image.digest }}{{ else }}:{{ .images.tag }}{{ end }}
{{- end }}

{{- define "portmapping.meshes" -}}
sidecar.istio.io/inject: "false"
istio.io/dataplane-mode: none
{{- end }}

{{/* Memory limit of the keeper in MiB: a held port costs up to 6.4 KiB of kernel memory; 64 MiB for the process and for a handover. */}}
{{- define "portmapping.keeperMemory" -}}
{{- $ports := splitList "-" .Values.range -}}
{{- $count := add 1 (sub (last $ports | int) (first $ports | int)) -}}
{{- add 64 (div (add (mul $count 64) 9999) 10000) -}}Mi
{{- end }}

{{/* Objects of a file of manifests/base, in the namespace of the release. */}}
{{- define "portmapping.file" -}}
{{- $root := .root }}
{{- range splitList "\n---\n" ($root.Files.Get .path | required (printf "the chart lacks %s" .path)) }}
{{- $object := fromYaml (replace "portmapping-system" $root.Release.Namespace .) }}
{{- if or (not $.skip) (not (has (printf "%s/%s" $object.kind $object.metadata.name) $.skip)) }}
{{- $_ := set $object.metadata "labels" (include "portmapping.labels" $root | fromYaml) }}
---
{{ toYaml $object }}
{{- end }}
{{- end }}
{{- end }}

{{- define "portmapping.pullSecrets" -}}
{{- with .Values.images.pullSecrets }}
imagePullSecrets:
{{- range . }}
- name: {{ . }}
{{- end }}
{{- end }}
{{- end }}

{{/* The nodes that run an enforcer. */}}
{{- define "portmapping.enforcerNodes" -}}
nodeSelector:
  kubernetes.io/os: linux
  {{- with .Values.enforcer.nodeSelector }}
  {{- toYaml . | nindent 2 }}
  {{- end }}
{{- with .Values.enforcer.tolerations }}
tolerations: {{- toYaml . | nindent 0 }}
{{- end }}
affinity:
  {{- with .Values.enforcer.affinity }}
  {{- toYaml . | nindent 2 }}
  {{- else }}
  {{- include "portmapping.imageNodes" . | nindent 2 }}
  {{- end }}
{{- end }}

{{/* The nodes that can have rules. Not the enforcer's of now: an earlier nodeSelector may have permitted more, and a taint may be new. */}}
{{- define "portmapping.anyNode" -}}
nodeSelector: {kubernetes.io/os: linux}
tolerations: [{operator: Exists}]
affinity:
  {{- include "portmapping.imageNodes" . | nindent 2 }}
{{- end }}

{{- define "portmapping.imageNodes" -}}
nodeAffinity:
  requiredDuringSchedulingIgnoredDuringExecution:
    nodeSelectorTerms:
    - matchExpressions:
      - {key: kubernetes.io/arch, operator: In, values: [amd64, arm64]} # the images exist for these
      - {key: type, operator: NotIn, values: [virtual-kubelet]}
      - {key: eks.amazonaws.com/compute-type, operator: NotIn, values: [fargate]}
{{- end }}
