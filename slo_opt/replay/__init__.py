"""Load on a live OpenAI-compatible server, and what it was worth under the score rules of slo-opt."""
