"""An embedded Kubernetes API: the part of it that Sickbay calls, without etcd, root or a second machine."""
