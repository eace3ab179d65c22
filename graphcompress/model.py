"""A model: an ONNX graph whose weights stay on disk until touched."""

from __future__ import annotations

import contextlib
import logging
import shutil
import tempfile
import weakref
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx_ir as ir
import onnx_ir.passes.common as common
import onnx_shape_inference

from graphcompress.errors import InvalidModelError, UnsupportedModelError
from graphcompress.loading import read_model

OPSETS = (13, 25)
EXTERNAL_DATA_LIMIT_BYTES = 1_500_000_000
"""Above this a model is saved with its weights beside it: protobuf ends at 2 GB."""


class Model:
    """An ONNX graph, its weights, and what has happened to them.

    Attributes:
        ir: the ``onnx_ir`` model; edit it through :class:`graphcompress.rewrite.Rewriter` only.
        path: the file it came from, or None.
        kept: provenance of narrowed values: name → axis → the indices of the original that were kept.
    """

    def __init__(self, model: ir.Model, path: Path | None = None) -> None:
        self.ir = model
        self.path = path
        self.kept: dict[str, dict[int, np.ndarray]] = {}
        self._scratch: Path | None = None
        self._stored = 0
        self.infer_shapes()

    @classmethod
    def load(cls, path: str | Path) -> Model:
        """Read an ONNX file: opset 13–25, one file or with external data, functions inlined; weights are not read.

        Raises:
            InvalidModelError: not an ONNX file, truncated, or weights that are missing or outside its folder.
            UnsupportedModelError: an opset outside 13–25.
        """
        path = Path(path)
        model = read_model(path)
        opset = model.graph.opset_imports.get("", 0)
        if model.functions:
            common.InlinePass()(model)
        if not OPSETS[0] <= opset <= OPSETS[1]:
            raise UnsupportedModelError(
                f"{path}: opset {opset} is not supported (opsets {OPSETS[0]} to {OPSETS[1]} are); "
                "convert it first, for example with onnx.version_converter.convert_version"
            )
        return cls(model, path)

    @property
    def graph(self) -> ir.Graph:
        """The main graph."""
        return self.ir.graph

    @property
    def opset(self) -> int:
        """Version of the standard operator set."""
        return self.graph.opset_imports[""]

    def clone(self) -> Model:
        """A copy with its own graph; weights are shared, not copied."""
        twin = Model(self.ir.clone(), self.path)
        twin.kept = {name: dict(axes) for name, axes in self.kept.items()}
        return twin

    # ---- weights

    def initializers(self) -> Iterator[ir.Value]:
        """Initializers of the main graph and of its subgraphs, in file order."""
        for graph in self.ir.graphs():
            yield from graph.initializers.values()

    @property
    def parameters(self) -> int:
        """Number of floating-point and low-bit weights (integer tables of shapes and indices are not counted)."""
        return sum(int(np.prod(value.shape.numpy())) for value in self.initializers() if is_weight(value))

    @property
    def weight_bytes(self) -> int:
        """Bytes of all initializers as they are stored."""
        return sum(v.const_value.nbytes for v in self.initializers() if v.const_value is not None)

    def check_weights_are_finite(self) -> None:
        """Read every weight once, one at a time.

        Raises:
            InvalidModelError: a weight holds NaN, or infinity where it is not a mask constant.
        """
        for value in self.initializers():
            if not is_weight(value) or value.const_value is None or value.dtype is None:
                continue
            if not value.dtype.is_floating_point():
                continue
            array = value.const_value.numpy()
            if array.size > 1 and not np.isfinite(array.astype(np.float32, copy=False)).all():
                kind = "NaN" if np.isnan(array.astype(np.float32, copy=False)).any() else "infinity"
                raise InvalidModelError(
                    f"weight {value.name!r} holds {kind}; export the model again from a checkpoint that works"
                )

    def store(self, array: np.ndarray, dtype: ir.DataType | None = None) -> ir.TensorProtocol:
        """A tensor of ``array`` kept in scratch on disk (small ones in memory), so that memory follows one weight."""
        tensor = ir.tensor(np.asarray(array, order="C"), dtype=dtype)
        if tensor.nbytes < 1 << 16:
            return tensor
        self._stored += 1
        file = self._scratch_folder() / f"{self._stored}.bin"
        file.write_bytes(tensor.tobytes())
        return ir.ExternalTensor(
            file.name,
            0,
            tensor.nbytes,
            tensor.dtype,
            shape=ir.Shape(array.shape),
            name="",
            base_dir=file.parent,
        )

    def _scratch_folder(self) -> Path:
        if self._scratch is None:
            self._scratch = Path(tempfile.mkdtemp(prefix="graphcompress-"))
            weakref.finalize(self, shutil.rmtree, self._scratch, ignore_errors=True)
        return self._scratch

    # ---- shapes

    def infer_shapes(self) -> None:
        """Infer symbolic shapes of every value anew, from the inputs and the weights alone.

        Shapes written in the file are not trusted: after a pass they are stale.
        """
        outputs = set(self.graph.outputs)
        for node in self.graph:
            for value in node.outputs:
                if value not in outputs:
                    value.shape = None
                if node.op_type != "Constant":
                    value.const_value = None
        with _quiet("onnx_shape_inference"):
            onnx_shape_inference.infer_symbolic_shapes(self.ir, policy="refine", warn_on_missing=False)
        for node in self.graph:
            for value in node.outputs:
                _evaluate_fixed_sizes(value)

    # ---- files

    def save(self, path: str | Path) -> Path:
        """Write the model to ``path`` (weights beside it as ``<name>.data`` when it is large); replaces atomically.

        Raises:
            OSError: the disk is full or not writable; an earlier file at ``path`` is untouched.
        """
        path = Path(path)
        external = f"{path.name}.data" if self.weight_bytes > EXTERNAL_DATA_LIMIT_BYTES else None
        with tempfile.TemporaryDirectory(prefix=".graphcompress-", dir=path.parent) as folder:
            self.write(Path(folder) / path.name, external)
            for file in sorted(Path(folder).iterdir(), key=lambda file: file.name == path.name):
                file.replace(path.parent / file.name)
        return path

    def write(self, path: Path, external: str | None = None) -> None:
        """Write the model straight to ``path``; ``external`` names a file beside it for the weights."""
        if external is not None:
            ir.save(self.ir, path, external_data=external, size_threshold_bytes=1024)
            return
        initializers = list(self.initializers())
        tensors = [value.const_value for value in initializers]
        try:
            for value in initializers:
                if isinstance(value.const_value, ir.ExternalTensor):
                    value.const_value = ir.tensor(
                        value.const_value.numpy(), dtype=value.dtype, name=value.name
                    )
            ir.save(self.ir, path)
        finally:
            for value, tensor in zip(initializers, tensors, strict=True):
                value.const_value = tensor


def is_weight(value: ir.Value) -> bool:
    """Whether an initializer is a weight rather than a shape, an index or another small integer table."""
    if value.dtype is None or value.shape is None:
        return False
    return value.dtype not in (ir.DataType.INT64, ir.DataType.INT32, ir.DataType.BOOL, ir.DataType.STRING)


def _evaluate_fixed_sizes(value: ir.Value) -> None:
    """Write a size such as the symbol ``12`` as the number that it is."""
    if value.shape is None or value.shape.frozen:
        return
    for axis, size in enumerate(value.shape):
        if isinstance(size, ir.SymbolicDim) and size.value is not None and size.value.isdecimal():
            value.shape[axis] = int(size.value)


@contextlib.contextmanager
def _quiet(logger: str) -> Iterator[None]:
    target = logging.getLogger(logger)
    level = target.level
    target.setLevel(logging.ERROR)
    try:
        yield
    finally:
        target.setLevel(level)
