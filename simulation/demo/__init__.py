"""The demo: the whole product on a laptop, on the embedded Kubernetes API and simulated GPUs."""
