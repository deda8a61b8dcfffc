"""How a process of ours runs: logs, tracing, HTTP endpoint, Kubernetes session, clock."""

import os

# grpcio 1.85 closes its descriptors in a forked child and aborts there, or in the parent, now and then: a program that
# was only to be executed never is. No child of ours uses gRPC before it executes another program. It is read when
# grpcio is first used, so it stands where everything of ours passes by.
os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "0")
