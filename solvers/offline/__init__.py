"""Good offline schedules for whole traces: the primal side of the optimality gap."""
