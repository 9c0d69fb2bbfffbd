"""Robustness of linear models by the choice of the optimiser.

norms ─▶ steepest descent, which grows the margin of its norm ─▶ margins and adversarial risk

Source: Faghri et al., "Bridging the gap between adversarial robustness and optimization bias", arXiv 2102.08868.
"""
