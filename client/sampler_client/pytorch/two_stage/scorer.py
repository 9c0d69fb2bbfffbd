"""Fresh gradient norms of candidates from one forward pass: the last layer's gradient needs no backward pass.

For softmax cross-entropy over logits z = W h + b the gradient with respect to (W, b) is delta (h, 1)^T with
delta = softmax(z) - onehot(y), so its norm is ||delta|| sqrt(||h||^2 + 1), and its product with random projections
of both factors is a sketch. Sequences sum over their positions.

Source: Katharopoulos and Fleuret, "Not All Samples Are Created Equal", ICML 2018, arXiv 1803.00942 (the last layer's
gradient as the score); Johnson and Guestrin 2018 (the same for its parameters). The sketch, a product of two Gaussian
projections whose inner products are on average those of the gradients, is ours.

Shapes: c candidates, t positions, k classes, h inputs of the head, d sketch length.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import torch
from torch import Tensor, nn

from sampler_client.config import check_whole
from sampler_client.errors import ConfigError
from sampler_client.pytorch.projection import gaussian, unwrapped

log = logging.getLogger(__name__)

Forward = Callable[[nn.Module, Any], tuple[Tensor, Tensor]]
"""(model, item) -> (logits (c, k) or (c, t, k), targets (c,) or (c, t))"""


@dataclass(frozen=True, slots=True)
class Scores:
    """What a forward pass says of the candidates; on any device."""

    norms: Tensor
    """(c,) size of each example's gradient, in any unit but always the same"""
    sketches: Tensor | None = None
    """(c, d)"""


class Scorer(Protocol):
    """Anything that scores a collated item: returns `Scores`, or only the norms, (c,)."""

    def __call__(self, item: Any, /) -> Scores | Tensor: ...


class LastLayerScorer:
    """Norms (and sketches) of the last linear layer's gradient under softmax cross-entropy.

    The model is run in evaluation mode without gradients: running statistics do not move, dropout is off, hooks of
    a `GradientSketcher` stay silent. Its modes come back as they were. Wrappers (DDP, `torch.compile`) are passed by,
    so that ranks with other numbers of candidates do not wait for each other.

    Args:
        model: as it is trained.
        head: name of the linear layer whose output are the logits; by default the last `nn.Linear` of the model. "":
            none, scores are the norms ||delta|| of the logits' gradients alone. So they are, with a warning, where the
            model has no `nn.Linear`, as when a convolution makes the logits.
        forward: how to get logits and targets from an item; default `(model(inputs), targets)` of an (inputs,
            targets) pair, or `model(**inputs)` of a mapping with "labels", as Hugging Face has it.
        autocast: dtype to run the forward pass in; None: as the model is. "auto": bfloat16 for a float32 model where
            the device computes in it, which takes a fraction of the time; scores bias nothing, whatever they are.
        sketch_dim: length of the sketches; 0: none, which saves two small matrix products.
        ignore_index: target that does not count, as in `cross_entropy`.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        head: str | None = None,
        forward: Forward | None = None,
        autocast: torch.dtype | Literal["auto"] | None = "auto",
        sketch_dim: int = 0,
        ignore_index: int = -100,
    ) -> None:
        check_whole("sketch_dim", sketch_dim, 0)
        self.model = unwrapped(model)
        self.device = next((value.device for value in self.model.parameters()), torch.device("cpu"))
        self._forward = forward or _default_forward
        self._autocast = fast_precision(self.model, self.device) if autocast == "auto" else autocast
        self._on_trial = autocast == "auto" and self._autocast is not None
        self._ignore_index = ignore_index
        self._head_name, self._head = _find_head(self.model, head)
        self._inputs: Tensor | None = None
        self.sketch_dim = sketch_dim
        self.autocast_failed = 0
        """passes that failed in the precision of "auto", at most one: the model is scored as it is from then on"""
        self._projections: tuple[Tensor, Tensor] | None = None

    def __call__(self, item: Any, /) -> Scores:
        """Scores of the candidates in `item`.

        Raises:
            ConfigError: logits or targets of a wrong shape, or logits that are not the head's output.
        """
        try:
            scores = self._pass(item)
        except (ConfigError, MemoryError, torch.OutOfMemoryError):  # whatever the precision
            raise
        except Exception as error:
            if not self._on_trial:
                raise
            log.warning(
                "scoring in %s failed, now as the model is, which takes longer: %s: %s",
                *(self._autocast, type(error).__name__, error),
            )
            self._autocast, self.autocast_failed = None, 1
            scores = self._pass(item)
        self._on_trial = False
        return scores

    def _pass(self, item: Any) -> Scores:
        with torch.no_grad(), evaluating(self.model), self._head_inputs(), self._precision():
            logits, targets = self._forward(self.model, item)
            _check(logits, targets)
        with torch.no_grad():
            return self._scores(logits, targets, self._inputs)

    def _scores(self, logits: Tensor, targets: Tensor, inputs: Tensor | None) -> Scores:
        counted = targets != self._ignore_index
        label = targets.where(counted, 0).unsqueeze(-1)
        delta = torch.softmax(logits.float(), dim=-1)
        delta.scatter_add_(-1, label, torch.full_like(delta[..., :1], -1.0))
        if logits.ndim == 3:  # each example's loss is the mean over its positions
            positions = counted.sum(1).clamp(min=1)
            delta *= (counted / positions.unsqueeze(1)).unsqueeze(-1)
        else:
            delta *= counted.unsqueeze(-1)
        self._check_head(inputs, logits)
        inputs = None if inputs is None else inputs.float()
        return Scores(_norms(delta, inputs), self._sketches(delta, inputs))

    def _check_head(self, inputs: Tensor | None, logits: Tensor) -> None:
        if self._head is None:
            return
        if inputs is None:
            what = "was not called in the forward pass"
        elif (*inputs.shape[:-1], self._head.out_features) != logits.shape:
            what = f"makes {(*inputs.shape[:-1], self._head.out_features)}, the logits are {tuple(logits.shape)}"
        else:
            return
        raise ConfigError(
            f'layer {self._head_name!r} {what}; name the layer that makes the logits with head="…", or give head="" '
            "for scores of the logits alone"
        )

    def _sketches(self, delta: Tensor, inputs: Tensor | None) -> Tensor | None:
        """(c, d): sum over positions of (delta R) * ((h, 1) S), R and S Gaussian; keeps inner products on average."""
        if not self.sketch_dim:
            return None
        width = 0 if inputs is None else inputs.shape[-1]
        if self._projections is None:
            shapes = (delta.shape[-1], self.sketch_dim), (width + 1, self.sketch_dim)
            rows, columns = (
                gaussian(0, self._head_name, role, shape) for role, shape in zip("rc", shapes, strict=True)
            )
            self._projections = (rows / self.sketch_dim**0.5).to(delta), columns.to(delta)
        rows, columns = self._projections
        right = columns[-1] if inputs is None else inputs @ columns[:-1] + columns[-1]
        product = (delta @ rows) * right
        return product.sum(1) if product.ndim == 3 else product

    @contextlib.contextmanager
    def _head_inputs(self) -> Iterator[None]:
        """Keep what the head is called with."""
        self._inputs = None
        if self._head is None:
            yield
            return

        def remember(_module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            self._inputs = inputs[0]

        handle = self._head.register_forward_pre_hook(remember)
        try:
            yield
        finally:
            handle.remove()

    def _precision(self) -> contextlib.AbstractContextManager[Any]:
        if self._autocast is None:
            return contextlib.nullcontext()
        return torch.autocast(self.device.type, dtype=self._autocast)


@contextlib.contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Evaluation mode for a while; every module gets its own mode back, also one that was frozen in training."""
    training = [module for module in model.modules() if module.training]
    _set_training(training, False)
    try:
        yield
    finally:
        _set_training(training, True)


def _set_training(modules: list[nn.Module], training: bool) -> None:
    for module in modules:
        # Past Module.__setattr__, which looks for parameters in what it is given: a tenth of a small model's step.
        object.__setattr__(module, "training", training)


def _norms(delta: Tensor, inputs: Tensor | None) -> Tensor:
    """(c,) norm of sum_t delta_t (h_t, 1)^T, or of sum_t delta_t where the inputs are unknown."""
    if delta.ndim == 2:
        size = delta.norm(dim=-1)
        return size if inputs is None else size * (inputs.square().sum(-1) + 1).sqrt()
    if inputs is None:
        return delta.sum(1).norm(dim=-1)
    # ||sum_t delta_t h_t^T||^2 = sum_st (delta_s . delta_t)(h_s . h_t + 1)
    gram = (delta @ delta.mT) * (inputs @ inputs.mT + 1)
    return gram.sum((1, 2)).clamp(min=0).sqrt()


def _default_forward(model: nn.Module, item: Any) -> tuple[Tensor, Tensor]:
    if isinstance(item, Mapping) and "labels" in item:
        output = model(**{key: value for key, value in item.items() if key != "labels"})
        logits = getattr(output, "logits", output)
        if logits.ndim == 2:
            return logits, item["labels"]
        raise ConfigError(
            f"logits of shape {tuple(logits.shape)} may belong to labels as they are or shifted by one; pass "
            "forward=lambda model, item: (logits, targets), with the shift where the model predicts the next token"
        )
    if isinstance(item, list | tuple) and len(item) == 2:
        return model(item[0]), item[1]
    raise ConfigError(
        f"LastLayerScorer knows (inputs, targets) pairs and mappings with 'labels', got a {type(item).__name__}; pass "
        "forward=lambda model, item: (logits, targets)"
    )


def fast_precision(model: nn.Module, device: torch.device) -> torch.dtype | None:
    """bfloat16 where the device computes in it, rather than emulating it, and the model is not in something else."""
    if any(value.dtype != torch.float32 for value in model.parameters()):
        return None
    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else None
    able = torch.cpu.get_capabilities() if device.type == "cpu" else {}
    return torch.bfloat16 if able.get("avx512_bf16") or able.get("amx_bf16") else None


def _find_head(model: nn.Module, name: str | None) -> tuple[str, nn.Linear | None]:
    if name == "":
        return "", None
    linear = {key: module for key, module in model.named_modules() if isinstance(module, nn.Linear)}
    if name is not None:
        if name not in linear:
            raise ConfigError(f"head {name!r} is no nn.Linear of the model; there are {sorted(linear)}")
        return name, linear[name]
    if not linear:
        log.warning(
            '%s has no nn.Linear: it is scored by its logits alone; head="" says that this is meant',
            type(model).__name__,
        )
        return "", None
    return next(reversed(linear.items()))


def _check(logits: Tensor, targets: Tensor) -> None:
    if logits.ndim not in (2, 3) or targets.shape != logits.shape[:-1]:
        raise ConfigError(
            f"scoring needs logits (c, classes) or (c, positions, classes) and a target for each, got logits "
            f"{tuple(logits.shape)} and targets {tuple(targets.shape)}; pass forward=lambda model, item: "
            "(logits, targets)"
        )
    if targets.is_floating_point():
        raise ConfigError(
            f"scoring needs class indices as targets, got {targets.dtype}; write a scorer of your own: any function of "
            "the item that returns the norms"
        )
