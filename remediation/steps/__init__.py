"""The steps of a plan. Each does one small idempotent thing to the cluster and returns; none waits."""
