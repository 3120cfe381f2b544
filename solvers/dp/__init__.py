"""Exact label-setting for the admission plan (level 2), fast enough for a live scheduler."""
