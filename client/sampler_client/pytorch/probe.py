"""How a sketch leaves the backward pass: as the gradient of a tensor of zeros.

Every sketched layer passes its output through a *tap*, an identity whose backward also returns, as the gradient of
a shared tensor z of zeros, that layer's entry (b, d + 1): d sketch numbers and the squared gradient norm. Autograd
adds the entries of all layers, and z's own backward writes the sum into the `Ledger`. Nothing here is a module
backward hook, so `torch.compile(fullgraph=True)`, activation checkpointing and DDP see ordinary operators.

Small layers on the CPU, not compiled, take a shorter way, without tap or z (`Ledger.late`). There a step's time goes
into first calls: a layer's matrix products leave nothing else in the caches, and an operator called between two of
them takes several times as long as its next call. So these layers' entries wait for the end of the backward pass and
are made in one go, and a hook on the autograd node, which is cheaper than a tap, keeps what they are made of. What is
written into them meanwhile spoils the entries, which autograd's own version counters tell; a write through `.data`
does not count there and goes unseen.

Every entry is of first derivatives: with `create_graph=True` later passes reach weights by other ways than the
layers' outputs. Hooks on the nodes of taps, too, tell the ledger of such a pass.

Shapes: b examples, d sketch length; width = d + 1.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from itertools import count
from typing import Any
from weakref import WeakValueDictionary

import torch
from torch import Tensor
from torch._C import _autograd

LATE_NUMBERS = 1 << 22
"""How many numbers of inputs and outputs of a forward pass may be kept for `Ledger.late`: 16 MiB in float32."""

SECOND_DERIVATIVES = (
    "a backward pass with create_graph=True came through sketched layers, and what second derivatives add to a "
    "gradient is in no sketch: sketch the plain loss alone, with the penalty's forward passes inside of "
    "sketcher.paused(), or set enabled=False (or close() the sketcher) for penalised steps and don't take() them"
)
OVERWRITTEN = (
    "a sketched layer's input or its output's gradient was written into before the backward pass had ended: write "
    "after backward(), or leave that layer out (`layers`)"
)

AddEntry = Callable[[Tensor, Tensor, Tensor], None]
"""Adds a layer's entry to (b, d + 1), given the layer's input and the gradient of its output."""


class Hook:
    """A hook on a module, in whose place a copied or pickled module has this one, which does nothing."""

    def __call__(self, *_args: Any, **_kwargs: Any) -> Any:
        return None

    def __reduce__(self) -> tuple[type[Hook], tuple[()]]:
        return Hook, ()


class Ledger:
    """What the taps of one sketcher have written since the last `take`."""

    def __init__(self, width: int, anchor: Tensor, batch_dim: int) -> None:
        self.width = width
        self.anchor = anchor  # a leaf, so that autograd walks back to z at all
        self.batch_dim = batch_dim
        self.enabled = True
        self.batch_size: int | None = None  # of the current forward pass, where the model's inputs tell
        self.zeros: Tensor | None = None  # z of the current forward pass, made by its first sketched layer
        self.sums: dict[int, Tensor] = {}  # what backward passes of b examples brought, (b, width)
        self._kept = 0  # numbers of the current forward pass that wait for `late`
        self._late: dict[int, list[tuple[AddEntry, Tensor, Tensor, int]]] = {}  # by backward pass
        self.spoilt: str | None = None  # why the sums can't be used
        self.odd_shapes: dict[str, str] = {}  # layers met without the batch dimension, and their shape
        self.norm_forms: dict[str, str] = {}  # layers met in eager mode, and how their norm is found
        self.key = next(_KEYS)
        _LEDGERS[self.key] = self

    def begin(self, batch_size: int | None) -> None:
        """A forward pass of the model starts. No tensor is made yet: the compiler may see this as code of its own."""
        self.batch_size, self.zeros, self._kept = batch_size, None, 0

    def _open(self, batch_size: int) -> Tensor:
        """A new z."""
        if torch.compiler.is_compiling():
            return torch.ops.sampler_client.open_ledger(self.anchor, batch_size, self.width, self.key)
        z = self.anchor.new_zeros((batch_size, self.width), requires_grad=True)
        z.register_post_accumulate_grad_hook(self._turn)
        return z

    def listens(self, y: Tensor) -> bool:
        """Whether a backward pass can come through y: no evaluation, reentrant checkpoint or torch.func."""
        if not self.enabled or not y.requires_grad:
            return False
        return torch.compiler.is_compiling() or not torch._C._are_functorch_transforms_active()

    def find_batch(self, name: str, shape: torch.Size) -> int | None:
        """The dimension that is the batch in a layer's output of this shape; None where there is none."""
        last = len(shape) - 1
        if self.batch_size is None:  # only a part of the model is called, and its first output is all there is
            self.batch_size = shape[self.batch_dim if last > 1 else 0]
        for dim in (self.batch_dim, 0):
            if dim < last and shape[dim] == self.batch_size:
                return dim
        if name not in self.odd_shapes:
            self.odd_shapes[name] = f"{tuple(shape)} in a batch of {self.batch_size}"
        return None

    def page(self) -> Tensor:
        """z of the current forward pass."""
        if self.zeros is None:
            assert self.batch_size is not None  # find_batch comes first
            self.zeros = self._open(self.batch_size)
        return self.zeros

    def late(self, add: AddEntry, x: Tensor, y: Tensor, parameter: Tensor | None) -> bool:
        """Have an entry added at the end of each backward pass through y that accumulates the parameter's gradient.

        Returns False, having done nothing, where a tap must do: not on the CPU, or no room for x and y's gradient.
        """
        kept = self._kept + x.numel() + y.numel()
        if kept > LATE_NUMBERS or not y.is_cpu or y.grad_fn is None or parameter is None:
            return False
        self._kept = kept
        y.grad_fn.register_prehook(partial(self._keep, add, [x], x._version, parameter))
        return True

    def watch(self, y: Tensor) -> None:
        """Notice a backward pass through the tap that made y, if it is one that builds a graph."""
        if y.grad_fn is not None:
            y.grad_fn.register_prehook(self._look)

    def _look(self, _grads: tuple[Tensor | None, ...]) -> None:
        if torch.is_grad_enabled():
            self.spoilt = SECOND_DERIVATIVES

    def _keep(
        self, add: AddEntry, cell: list[Tensor], version: int, parameter: Tensor, grads: tuple[Tensor | None, ...]
    ) -> None:
        """Before the node of a layer's output runs; the cell holds the layer's input while it may run again."""
        self._look(grads)
        if not cell:
            return  # autograd has let go of its own copy, too
        x = cell[0]
        if x.numel() and not _keeps_graph():  # a bias alone may run twice all the same
            cell.clear()
        this = torch._C._current_graph_task_id()  # also a reentrant checkpoint's, inside of another
        if this not in self._late:
            if not _accumulates(parameter):
                return
            self._late[this] = []
            torch.autograd.Variable._execution_engine.queue_callback(partial(self._add_late, this))
        if grads[0] is not None:
            self._late[this].append((add, x, grads[0].detach(), version + grads[0]._version))

    def _add_late(self, backward_pass: int) -> None:
        for add, x, g, versions in self._late.pop(backward_pass, ()):
            if x._version + g._version != versions:
                self.spoilt = OVERWRITTEN
            if len(g) not in self.sums:
                self.sums[len(g)] = g.new_zeros((len(g), self.width), dtype=torch.float32)
            add(self.sums[len(g)], x, g)

    def _turn(self, z: Tensor) -> None:
        if z.grad is not None:
            self.write(z.grad.detach())
            z.grad = None  # a second backward pass through z begins anew

    def write(self, entries: Tensor) -> None:
        known = self.sums.get(len(entries))
        self.sums[len(entries)] = entries if known is None else known + entries

    def clear(self) -> None:
        self.begin(None)
        self.sums, self._late, self.spoilt, self.anchor.grad = {}, {}, None, None


def _accumulates(parameter: Tensor) -> bool:
    """Whether the backward pass that is running will add to the parameter's `.grad`: autograd.grad() does not."""
    node = torch.autograd.graph.get_gradient_edge(parameter).node
    try:
        return torch._C._will_engine_execute_node(node)
    except RuntimeError:  # it was asked for this very gradient
        return False


_keeps_graph: Callable[[], bool] = getattr(_autograd, "_get_current_graph_task_keep_graph", lambda: True)
"""Whether another backward pass may follow the one that is running; where torch can't say, inputs are kept."""

_KEYS = count()
_LEDGERS: WeakValueDictionary[int, Ledger] = WeakValueDictionary()


# z inside compiled code. Custom operators, because the compiler must neither look into the ledger nor drop the write.
@torch.library.custom_op("sampler_client::open_ledger", mutates_args=())
def _open_ledger(anchor: Tensor, batch_size: int, width: int, key: int) -> Tensor:  # noqa: ARG001
    return anchor.new_zeros((batch_size, width))


@torch.library.custom_op("sampler_client::write_ledger", mutates_args=())
def _write_ledger(entries: Tensor, key: int) -> Tensor:
    ledger = _LEDGERS.get(key)
    if ledger is not None:
        ledger.write(entries.clone())  # compiled code may reuse the memory of `entries`
    return entries.new_zeros(())


@_open_ledger.register_fake
def _(anchor: Tensor, batch_size: int, width: int, key: int) -> Tensor:  # noqa: ARG001
    return anchor.new_empty((batch_size, width))


@_write_ledger.register_fake
def _(entries: Tensor, key: int) -> Tensor:  # noqa: ARG001
    return entries.new_empty(())


def _remember_key(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:  # noqa: ARG001
    ctx.key = inputs[3]


def _write(ctx: Any, entries: Tensor) -> tuple[Tensor, None, None, None]:
    return torch.ops.sampler_client.write_ledger(entries, ctx.key), None, None, None


_open_ledger.register_autograd(_write, setup_context=_remember_key)
