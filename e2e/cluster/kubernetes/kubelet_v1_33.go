//go:build k8s1.33

package main

import (
	"github.com/spf13/cobra"
	kubelet "k8s.io/kubernetes/cmd/kubelet/app"
)

// Up to 1.33 the constructor takes no context.
func kubeletCommand() *cobra.Command { return kubelet.NewKubeletCommand() }
