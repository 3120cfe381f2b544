"""Event-driven simulation of policies on the engine model."""
