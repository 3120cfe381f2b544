"""Trace file formats, one module each, and the rules that tell them apart."""
