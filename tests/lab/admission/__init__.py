"""RBAC and admission policies on a real API server: what agent, controller and people may and may not do."""
