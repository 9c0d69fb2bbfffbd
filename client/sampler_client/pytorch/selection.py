"""Which layers are sketched, in which form, and what is left out and why.

By default a convolution is sketched when that costs at most `cost_budget` of its own training step in floating-point
operations, 6 k c for each position with k weights on each of c output channels; the rule looks at shapes of weights
only, so all trainers of a run choose alike. A narrow convolution at high resolution fails it, and so does GroupNorm,
whose step is bound by memory. Linear, Embedding, LayerNorm and RMSNorm are always sketched.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Collection
from typing import Any

from torch import nn

from sampler_client.errors import ConfigError
from sampler_client.pytorch.convolution import COMPRESSED_WIDTH, ConvLayer
from sampler_client.pytorch.layers import AffineLayer, EmbeddingLayer, Layer, LinearLayer
from sampler_client.pytorch.probe import Ledger
from sampler_client.pytorch.projection import canonical_name

logger = logging.getLogger("sampler_client")

LayerChoice = None | str | Collection[str] | Callable[[str, nn.Module], bool]
"""None: those within the budget. "all": all that can be. Or canonical module names, or a predicate (name, module)."""

KINDS: dict[type[nn.Module], Callable[..., Layer]] = {
    nn.Linear: LinearLayer,
    nn.Conv1d: ConvLayer,
    nn.Conv2d: ConvLayer,
    nn.Conv3d: ConvLayer,
    nn.Embedding: EmbeddingLayer,
    nn.LayerNorm: AffineLayer,
    nn.RMSNorm: AffineLayer,
    nn.GroupNorm: AffineLayer,
}

TOO_DEAR = "left out by the cost budget"


def select(model: nn.Module, ledger: Ledger, choice: LayerChoice, **options: Any) -> tuple[list[Layer], dict[str, str]]:
    """The layers to hook, and {module name: reason} for those with trainable parameters that are not."""
    names = {id(value): canonical_name(name) for name, value in model.named_parameters()}
    chosen = _chooser(model, choice)
    layers: list[Layer] = []
    skipped: dict[str, str] = {}
    refused = _refusals(model)
    for full_name, module in model.named_modules():
        trainable = [role for role, value in module.named_parameters(recurse=False) if value.requires_grad]
        if not trainable:
            continue
        name = canonical_name(full_name)
        kind = kind_of(module)
        reason = refused.get(module) or (
            chosen(name, module, options) if kind else f"{type(module).__name__} is not supported"
        )
        if kind is None or reason:
            label = name or ", ".join(trainable)
            skipped[label] = reason or ""
            continue
        roles = {role: names[id(value)] for role, value in module.named_parameters(recurse=False)}
        layers.append(kind(name, module, ledger, roles, **options, compressed=is_compressed(module, options)))
    _tell(skipped)
    return layers, skipped


def kind_of(module: nn.Module) -> Callable[..., Layer] | None:
    """The class that sketches `module`, or None: a subclass with a forward of its own may compute anything."""
    for kind, layer in KINDS.items():
        if isinstance(module, kind) and type(module).forward is kind.forward:
            plain = all(
                role in module._parameters for role in ("weight", "bias") if getattr(module, role, None) is not None
            )
            return layer if plain else None
    return None


def relative_cost(module: nn.Module, width: int) -> float:
    """Floating-point operations of a sketch with `width` projections over those of the convolution's step."""
    assert isinstance(module, (nn.Conv1d, nn.Conv2d, nn.Conv3d))
    channels, fan_in = len(module.weight), module.weight[0].numel()
    return width * (module.groups * fan_in + channels) / (3 * channels * fan_in)


def is_compressed(module: nn.Module, options: dict[str, Any]) -> bool:
    if not isinstance(module, (nn.Conv1d, nn.Conv2d, nn.Conv3d)):
        return False
    return relative_cost(module, options["dim"]) > options["cost_budget"]


def _too_dear(module: nn.Module, options: dict[str, Any]) -> bool:
    if isinstance(module, (nn.Conv1d, nn.Conv2d, nn.Conv3d)):
        return relative_cost(module, min(COMPRESSED_WIDTH, options["dim"])) > options["cost_budget"]
    return isinstance(module, nn.GroupNorm)


def _chooser(model: nn.Module, choice: LayerChoice) -> Callable[[str, nn.Module, dict[str, Any]], str]:
    """A function that says why a supported layer is not sketched, or "" when it is."""
    if choice is None:
        return lambda _name, module, options: TOO_DEAR if _too_dear(module, options) else ""
    if choice == "all":
        return lambda _name, _module, _options: ""
    if callable(choice):
        return lambda name, module, _options: "" if choice(name, module) else "not chosen"
    if isinstance(choice, str):
        raise ConfigError(f'layers must be None, "all", a list of module names or a predicate, got {choice!r}')
    wanted = set(choice)
    unknown = wanted - {canonical_name(name) for name, module in model.named_modules() if kind_of(module)}
    if unknown:
        raise ConfigError(f"layers names {sorted(unknown)}, which are no layers that can be sketched")
    return lambda name, _module, _options: "" if name in wanted else "not chosen"


def _refusals(model: nn.Module) -> dict[nn.Module, str]:
    """Layers that a hook on their forward would miss or get wrong."""
    refused: dict[nn.Module, str] = {}
    for module in model.modules():
        if isinstance(module, nn.MultiheadAttention):
            for inner in module.modules():
                refused[inner] = "nn.MultiheadAttention uses its weights without calling its layers; use nn.Linear"
    biased = [m for m in model.modules() if kind_of(m) and isinstance(getattr(m, "bias", None), nn.Parameter)]
    owners = Counter(id(module.bias) for module in biased)
    weights = Counter(id(bias) for bias, _ in {(m.bias, m.weight) for m in biased})
    for module in biased:
        if owners[id(module.bias)] > 1 and weights[id(module.bias)] > 1:
            refused[module] = "its bias is shared with a layer of another weight"
    return refused


def _tell(skipped: dict[str, str]) -> None:
    unexpected = {name: reason for name, reason in skipped.items() if reason not in (TOO_DEAR, "not chosen")}
    if unexpected:
        listed = "; ".join(f"{name} ({reason})" for name, reason in unexpected.items())
        logger.warning("gradient sketches do not cover: %s", listed)
    dear = [name for name, reason in skipped.items() if reason == TOO_DEAR]
    if dear:
        logger.info('gradient sketches leave out %s to save time; layers="all" includes them', ", ".join(dear))
