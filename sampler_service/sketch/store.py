"""SketchStore: the last report of every row of one shard, in preallocated columns.

Shapes: n rows of the shard, r reported rows, d sketch length.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from sampler_service.errors import ConfigError
from sampler_service.sketch import routing
from sampler_service.types import NEVER, Bool, Float32, Int64, ReportBlock, Sketches

_EXPONENT_BITS = 0x7C00
"""of a float16; all set in infinities and NaNs, and in nothing else"""

Index = NDArray[np.intp] | NDArray[np.int64] | slice


class SketchStore:
    """Rows of sketches with step, loss and norm; the row array is the truth, an index only a view of it.

    A row that comes in the store's own precision is kept as it is; another one as float16 (or float32) numbers below 1
    in magnitude times one power of two, so gradients of 1e-9 and of 1e+9 keep the same eleven bits and none overflows.
    What `rows` returns is what statistics are made of, rounding included. The latest step wins; a NaN loss or norm,
    or a sketch row that is not finite, leaves the stored value as it was.
    """

    def __init__(self, num_rows: int, dim: int, dtype: str = "float16") -> None:
        """Allocate (num_rows, dim) sketches of `dtype`, "float16" or "float32".

        Raises:
            ConfigError: another dtype, or a size that is not positive (num_rows may be 0).
        """
        if dtype not in ("float16", "float32"):
            raise ConfigError(f"sketch dtype must be 'float16' or 'float32', got {dtype!r}")
        if num_rows < 0 or dim < 1:
            raise ConfigError(f"a store needs num_rows >= 0 and dim >= 1, got {num_rows} and {dim}")
        self._mantissa_nd = np.zeros((num_rows, dim), dtype)
        self._exponent_n = np.zeros(num_rows, np.int16)
        self._sketched_n: Bool = np.zeros(num_rows, bool)
        self.step_n: Int64 = np.full(num_rows, NEVER, np.int64)
        """Trainer step of the last report; NEVER (-1) when there is none."""
        self.loss_n: Float32 = np.full(num_rows, np.nan, np.float32)
        self.norm_n: Float32 = np.full(num_rows, np.nan, np.float32)

    def __len__(self) -> int:
        return len(self._sketched_n)

    @property
    def dim(self) -> int:
        return self._mantissa_nd.shape[1]

    @property
    def sketched_n(self) -> Bool:
        """(n,) bool, True where the row has a sketch."""
        return self._sketched_n

    @property
    def num_sketched(self) -> int:
        return int(np.count_nonzero(self._sketched_n))

    @property
    def memory_bytes(self) -> int:
        """Bytes of all columns; 151 a row for 64 float16."""
        columns = (
            self._mantissa_nd,
            self._exponent_n,
            self._sketched_n,
            self.step_n,
            self.loss_n,
            self.norm_n,
        )
        return sum(column.nbytes for column in columns)

    def upsert(self, row_r: Int64, block: ReportBlock) -> None:
        """Write the block's rows at `row_r`, (r,) int64, unique, 0 … n-1.

        A row with a loss that is of an earlier step than the stored one changes nothing: a call that was made again has
        come after the next. Rows without one are a scorer's, whose steps are those of its weights.
        """
        step_r = np.broadcast_to(block.step, len(row_r))
        late_r = (step_r < self.step_n[row_r]) & ~np.isnan(block.losses)
        if late_r.any():
            row_r, step_r, block = row_r[~late_r], step_r[~late_r], routing.take(block, np.flatnonzero(~late_r))
        self.step_n[row_r] = np.maximum(self.step_n[row_r], step_r)
        for column_n, value_r in ((self.loss_n, block.losses), (self.norm_n, block.norms)):
            known_r = ~np.isnan(value_r)
            column_n[row_r[known_r]] = value_r[known_r]
        if block.sketches is not None:
            known_r = finite_rows(block.sketches)
            everything = known_r.all()  # as nearly always: then nothing has to be picked out
            self._write(row_r if everything else row_r[known_r], block.sketches[... if everything else known_r])

    def resize(self, num_rows: int) -> None:
        """Have so many rows, at least as many as before."""
        more = SketchStore(num_rows - len(self), self.dim, self._mantissa_nd.dtype.name)
        for name in ("_mantissa_nd", "_exponent_n", "_sketched_n", "step_n", "loss_n", "norm_n"):
            setattr(self, name, np.concatenate((getattr(self, name), getattr(more, name))))

    def delete(self, row_r: Int64) -> None:
        """Forget all that was reported of these rows."""
        self._sketched_n[row_r] = False
        self._mantissa_nd[row_r], self._exponent_n[row_r] = 0, 0
        self.step_n[row_r] = NEVER
        self.loss_n[row_r] = self.norm_n[row_r] = np.nan

    def forget_gradients(self) -> None:
        """No row has a norm or a sketch any more; losses stay."""
        self._sketched_n[:] = False
        self._mantissa_nd[:], self._exponent_n[:] = 0, 0
        self.norm_n[:] = np.nan

    def rows(self, index: Index) -> Float32:
        """Sketches as stored, (r, d) float32; zeros where a row has none (see `sketched_n`)."""
        return np.ldexp(self._mantissa_nd[index].astype(np.float32), self._exponent_n[index, None])

    def _write(self, row_r: Int64, sketch_rd: Sketches) -> None:
        self._sketched_n[row_r] = True
        if sketch_rd.dtype == self._mantissa_nd.dtype:
            self._mantissa_nd[row_r], self._exponent_n[row_r] = sketch_rd, 0
            return
        sketch_rd = sketch_rd.astype(np.float32)
        largest_r = np.abs(sketch_rd).max(axis=1, initial=0.0)
        exponent_r = np.frexp(largest_r)[1].astype(np.int16)  # sketch = mantissa x 2^exponent, |mantissa| < 1
        self._mantissa_nd[row_r] = np.ldexp(sketch_rd, -exponent_r[:, None])
        self._exponent_n[row_r] = exponent_r


def finite_rows(sketch_rd: NDArray[np.floating]) -> Bool:
    """(r,) bool, True where every number of the row is finite."""
    if sketch_rd.dtype == np.float16:  # by its bits: numpy would convert every number first
        finite_rd = (sketch_rd.view(np.uint16) & _EXPONENT_BITS) != _EXPONENT_BITS
    else:
        finite_rd = np.isfinite(sketch_rd)
    return np.ones(len(sketch_rd), bool) if finite_rd.all() else np.all(finite_rd, axis=1)
