"""Schedulers: what the next batch holds, which requests are admitted, which wait. One file each."""
