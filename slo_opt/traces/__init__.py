"""Traces: formats and their readers, scenarios that assign SLOs, generators fitted to published statistics."""
