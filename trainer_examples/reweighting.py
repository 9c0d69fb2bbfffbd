"""Weights that a batch's examples would like to have had: Ren et al.'s, by differentiating through a training step.

Source: Ren, Zeng, Yang, Urtasun, "Learning to Reweight Examples for Robust Deep Learning", ICML 2018, arXiv 1803.09050,
algorithm 1.

Shapes: b examples of a batch.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F


def meta_weights(
    model: nn.Module, images: Tensor, labels: Tensor, held_out_images: Tensor, held_out_labels: Tensor
) -> Tensor:
    """(b,) weights of sum 1 by which a step lowers the held-out loss; all 0 when no example does.

    theta'(epsilon) = theta - grad_theta sum_i epsilon_i l_i, and w_i = max(0, -dL_held-out(theta')/d epsilon_i) at
    epsilon = 0, divided by their sum, in which the step's learning rate would cancel.
    """
    parameters = {name: value.detach().requires_grad_() for name, value in model.named_parameters()}
    epsilon = torch.zeros(len(labels), requires_grad=True)
    losses = F.cross_entropy(functional_call(model, parameters, images), labels, reduction="none")
    gradients = torch.autograd.grad(epsilon @ losses, list(parameters.values()), create_graph=True)
    stepped = {name: value - step for (name, value), step in zip(parameters.items(), gradients, strict=True)}
    held_out_loss = F.cross_entropy(functional_call(model, stepped, held_out_images), held_out_labels)
    (slope,) = torch.autograd.grad(held_out_loss, epsilon)
    gain = (-slope).clamp(min=0)
    total = gain.sum()
    return gain / total if total > 0 else gain
