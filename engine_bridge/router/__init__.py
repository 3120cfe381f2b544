"""An HTTP router in front of several OpenAI-compatible servers: `slo-opt route`."""
