"""A real Kubernetes on one machine, for tests and for people (`make lab`)."""
