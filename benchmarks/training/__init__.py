"""Which sampler trains best: policies of the service and the strongest alternatives, on real data.

tasks ─▶ methods (peers in process, policies through a real service) ─▶ cells, resumed ─▶ tables, plots, headline
"""
