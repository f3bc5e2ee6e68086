// The mutating webhook that a Go team would write with controller-runtime, for comparison: it decodes the review and the typed pod,
// collects the container ports, and answers a JSON patch with the request mark and the readiness gate.
package main

import (
	"context"
	"crypto/tls"
	"encoding/json"
	"flag"
	"fmt"
	"net/http"
	"os"

	"github.com/go-logr/logr"
	"gomodules.xyz/jsonpatch/v2"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/runtime"
	clientgoscheme "k8s.io/client-go/kubernetes/scheme"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/webhook"
	"sigs.k8s.io/controller-runtime/pkg/webhook/admission"
)

const (
	annotation = "tkestack.io/portmapping"
	mark       = "tkestack.io/portmapping-request"
	markPath   = "/metadata/annotations/tkestack.io~1portmapping-request"
)

type port struct {
	ContainerPort int32  `json:"containerPort"`
	Protocol      string `json:"protocol"`
	Name          string `json:"name,omitempty"`
}

type mutator struct {
	decoder     admission.Decoder
	wholeObject bool
}

func (m *mutator) Handle(_ context.Context, request admission.Request) admission.Response {
	pod := &corev1.Pod{}
	if err := m.decoder.Decode(request, pod); err != nil {
		return admission.Errored(http.StatusBadRequest, err)
	}
	if value, asked := pod.Annotations[annotation]; !asked || value != "" {
		return admission.Allowed("")
	}
	ports := collect(pod)
	if len(ports) == 0 {
		return admission.Allowed("")
	}
	text, err := json.Marshal(ports)
	if err != nil {
		return admission.Errored(http.StatusInternalServerError, err)
	}
	if m.wholeObject { // the usual way: change the object, and let the library compute the difference
		pod.Annotations[mark] = string(text)
		pod.Spec.ReadinessGates = append(pod.Spec.ReadinessGates, corev1.PodReadinessGate{ConditionType: annotation})
		changed, err := json.Marshal(pod)
		if err != nil {
			return admission.Errored(http.StatusInternalServerError, err)
		}
		return admission.PatchResponseFromRaw(request.Object.Raw, changed)
	}
	// hand-written operations, which are cheaper
	gate := map[string]string{"conditionType": annotation}
	operation := jsonpatch.NewOperation("add", "/spec/readinessGates", []any{gate})
	if pod.Spec.ReadinessGates != nil {
		operation = jsonpatch.NewOperation("add", "/spec/readinessGates/-", gate)
	}
	return admission.Patched("", jsonpatch.NewOperation("add", markPath, string(text)), operation)
}

func collect(pod *corev1.Pod) []port {
	var ports []port
	add := func(container *corev1.Container) {
		for _, p := range container.Ports {
			protocol := string(p.Protocol)
			if protocol == "" {
				protocol = "TCP"
			}
			ports = append(ports, port{p.ContainerPort, protocol, p.Name})
		}
	}
	for i := range pod.Spec.Containers {
		add(&pod.Spec.Containers[i])
	}
	for i := range pod.Spec.InitContainers {
		c := &pod.Spec.InitContainers[i]
		if c.RestartPolicy != nil && *c.RestartPolicy == corev1.ContainerRestartPolicyAlways {
			add(c)
		}
	}
	return ports
}

func main() {
	certificates := flag.String("tls-dir", ".", "folder with tls.crt and tls.key")
	listen := flag.Int("port", 9443, "port on 127.0.0.1")
	wholeObject := flag.Bool("whole-object", false, "answer the difference of the whole object")
	flag.Parse()
	ctrl.SetLogger(logr.Discard())
	scheme := runtime.NewScheme()
	if err := clientgoscheme.AddToScheme(scheme); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	server := webhook.NewServer(webhook.Options{
		Host: "127.0.0.1", Port: *listen, CertDir: *certificates,
		TLSOpts: []func(*tls.Config){func(c *tls.Config) { c.NextProtos = []string{"h2", "http/1.1"} }},
	})
	handler := &mutator{decoder: admission.NewDecoder(scheme), wholeObject: *wholeObject}
	server.Register("/mutate", &admission.Webhook{Handler: handler})
	if err := server.Start(ctrl.SetupSignalHandler()); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}
