"""From the fault to the healed node, by real Jobs on real kubelets."""
