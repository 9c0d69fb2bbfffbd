"""Which sampler trains best: policies of the service and the strongest alternatives, on real data.

tasks ─▶ methods (peers in process, policies through a real service) ─▶ cells, resumed ─▶ tables, plots, headline
"""

import os

# Read when torch is imported. Threads that spin while they wait for one another keep the service from its core, and on
# a machine with other work they make a step of two threads three times as long.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
