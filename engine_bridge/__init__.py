"""What connects slo-opt to a live engine. Imports domain, policies and solvers.dp only; never an offline solver."""
