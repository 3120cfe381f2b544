"""Random instances and legal schedules, for setting the relaxation against them."""

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parents[1] / "domain"))  # random_schedules
