"""Which replica serves which request: routing policies, for the fleet simulator and the live router alike."""
