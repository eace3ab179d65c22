"""A model: an ONNX graph whose weights stay on disk until touched."""

from __future__ import annotations

import contextlib
import html
import logging
import math
import tempfile
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx_ir as ir
import onnx_shape_inference

from graphcompress.errors import InvalidModelError
from graphcompress.files.declared import Declared
from graphcompress.files.joining import read_model_or_parts, separated
from graphcompress.files.part_files import save_parts
from graphcompress.files.parts import SUBFOLDER, Part
from graphcompress.files.scratch import Scratch
from graphcompress.files.stored import IN_MEMORY_BYTES, StoredTensor
from graphcompress.files.temporary import Temporary
from graphcompress.graph.inference import inferable, overridable

EXTERNAL_DATA_LIMIT_BYTES = 1_500_000_000
"""A model of more bytes is saved with its weights beside it: protobuf refuses messages above 2 GiB, and the
graph needs room, too."""


@dataclass(frozen=True)
class InPlace:
    """A model without copies of its large weights.

    Attributes:
        proto: the ONNX model; those weights are external data.
        weights: the folder that their locations begin at.
        bytes_on_disk: of the model when it is saved.
    """

    proto: bytes
    weights: Path
    bytes_on_disk: int


class Model:
    """An ONNX graph, its weights, and what has happened to them.

    Attributes:
        ir: the ``onnx_ir`` model; edit it through :class:`graphcompress.rewrite.rewriter.Rewriter` only.
        files: that it came from: the ONNX file, and those of its external data.
        declared: what the file says about the shapes of inputs and outputs.
        parts: of a model that writes sequences, the files that its graph was joined from, or the one file
            that reads what it has returned; empty for an ordinary model.
        tokens: ids of the vocabulary that are left; None for all.
        kept: provenance of narrowed values: name → axis → the indices of the original that were kept.
    """

    def __init__(
        self,
        model: ir.Model,
        files: Sequence[Path] = (),
        parts: Sequence[Part] = (),
        *,
        inferred: bool = False,
    ) -> None:
        """A model of ``model``; an ``inferred`` one has its shapes from a model that it is a part of."""
        self.ir = model
        self.files = tuple(files)
        self.parts = tuple(parts)
        self.kept: dict[str, dict[int, np.ndarray]] = {}
        self.tokens: frozenset[int] | None = None
        self._scratch = Scratch()
        self.declared = Declared(model)
        if not inferred:
            self.infer_shapes()

    @classmethod
    def load(cls, path: str | Path) -> Model:
        """Read an ONNX file, opset 13–25, with or without external data; functions are inlined.

        Weights stay on disk. A folder holds the files of a model that writes sequences, which are joined in
        one graph (:mod:`graphcompress.files.joining`), or one file.

        Raises:
            InvalidModelError: not an ONNX file, truncated, or weights that are missing or outside its folder;
                files that are no model together.
            UnsupportedModelError: an opset outside 13–25, or sparse weights.
        """
        path = Path(path)
        try:
            return cls(*read_model_or_parts(path))
        except (onnx_shape_inference.ShapeInferenceError, onnx_shape_inference.OpUsageError) as error:
            raise InvalidModelError(
                f"{path}: its shapes contradict each other ({error}); export it again"
            ) from error

    @property
    def path(self) -> Path | None:
        """The ONNX file it came from, or None."""
        return self.files[0] if self.files else None

    @property
    def joined(self) -> bool:
        """Whether it was read from several files that feed each other."""
        return any(part.prefix for part in self.parts)

    @property
    def source(self) -> Path | None:
        """What it was read from: the folder of its files where there are several, else the file, or None."""
        if self.path is None or not self.joined:
            return self.path
        folder = self.path.parent
        return folder.parent if folder.name == SUBFOLDER else folder

    @property
    def graph(self) -> ir.Graph:
        """The main graph."""
        return self.ir.graph

    @property
    def opset(self) -> int:
        """Version of the standard operator set."""
        return self.graph.opset_imports[""]

    def __str__(self) -> str:
        name = self.path.name if self.path else "a model"
        lines = [
            f"{name}: opset {self.opset}, {self.parameters:,} parameters, {len(self.graph)} nodes",
            *(f"  in  {value.name}: {value.dtype} {value.shape}" for value in self.graph.inputs),
            *(f"  out {value.name}: {value.dtype} {value.shape}" for value in self.graph.outputs),
        ]
        return "\n".join(lines)

    def _repr_html_(self) -> str:
        return f"<pre>{html.escape(str(self))}</pre>"

    def clone(self) -> Model:
        """A copy with its own graph; weights are shared, not copied."""
        twin = Model(self.ir.clone(), self.files, self.parts)
        twin.declared = self.declared.copy()
        twin.kept = {name: dict(axes) for name, axes in self.kept.items()}
        twin.tokens = self.tokens
        twin._scratch = self._scratch
        return twin

    def fitted(self, feed: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """``feed``, which may be of the model as it came in, with what is left of its cut inputs (caches)."""
        found = dict(feed)
        for value in self.graph.inputs:
            array = found.get(value.name or "")
            for axis, index in self.kept.get(value.name or "", {}).items():
                if array is not None and value.shape is not None and array.shape[axis] != value.shape[axis]:
                    array = found[value.name or ""] = np.take(array, index, axis=axis)
        return found

    def separate(self) -> list[tuple[Part, Model]]:
        """Every part by itself, with the names of its own file; weights are shared, not copied."""
        found = []
        for part in self.parts:
            with self.declared.shown(self.graph):
                graph = separated(self.ir, part)
            # A branch of a merged decoder has no file of its own.
            twin = Model(graph, () if part.whole else (part.path,))
            twin._scratch = self._scratch
            found.append((part, twin))
        return found

    # ---- weights

    def initializers(self) -> Iterator[ir.Value]:
        """Initializers of the main graph and of its subgraphs, in file order."""
        for graph in self.ir.graphs():
            yield from graph.initializers.values()

    @property
    def parameters(self) -> int:
        """Number of floating-point and low-bit weights (tables of shapes and indices are not counted)."""
        return sum(number_of_parameters(value) for value in self.initializers())

    @property
    def weight_bytes(self) -> int:
        """Bytes of all initializers as they are stored."""
        return sum(v.const_value.nbytes for v in self.initializers() if v.const_value is not None)

    def check_weights_are_finite(self) -> None:
        """Read every weight once, one at a time; a mask of zeros and infinities is a constant, not a weight.

        Raises:
            InvalidModelError: a weight holds NaN or infinity.
        """
        for value in self.initializers():
            if value.const_value is None or value.dtype is None or not value.dtype.is_floating_point():
                continue
            problem = _not_finite(value.const_value.numpy())
            if problem is not None:
                raise InvalidModelError(
                    f"{self.path or 'the model'}: weight {value.name!r} holds {problem}; "
                    "export the model again from a checkpoint that works"
                )

    def store(self, array: np.ndarray, dtype: ir.DataType | None = None) -> ir.TensorProtocol:
        """A tensor of ``array``, kept in scratch on disk (small ones in memory)."""
        return self._scratch.store(array, dtype)

    def own(self, folder: Temporary) -> None:
        """Delete ``folder``, where weights of this model may lie, when it and its copies are gone."""
        self._scratch.own(folder)

    # ---- shapes

    def infer_shapes(self) -> None:
        """Infer symbolic shapes of every value anew, from the inputs and the weights alone.

        Shapes written in the file are not trusted: after a pass they are stale, and before it they are a
        promise that nobody checked. Those of custom operators' outputs are kept, which cannot be inferred.
        """
        for graph in self.ir.graphs():
            for node in graph:
                for value in node.outputs:
                    value.shape = None if inferable(self.ir, node) else value.shape
                    value.const_value = value.const_value if node.op_type == "Constant" else None
        with _quiet("onnx_shape_inference"), overridable(self.graph):
            onnx_shape_inference.infer_symbolic_shapes(
                self.ir, policy="refine", warn_on_missing=False, adopt_declared_symbols=False
            )
        self._drop_notes_of_inference()
        for node in self.graph:
            for value in node.outputs:
                _evaluate_fixed_sizes(value)

    def fix_sizes(self, sizes: Mapping[str, int]) -> None:
        """Give variable sizes of inputs and outputs (by name) these numbers, and infer shapes anew.

        A size of an output that is computed from them becomes what inference finds.
        """
        self.declared.fix(self.graph, sizes)
        self.infer_shapes()

    def _drop_notes_of_inference(self) -> None:
        """Remove the notes of shape inference from values: stale after an edit, and not the user's."""
        for graph in self.ir.graphs():
            for value in (*graph.inputs, *graph.initializers.values()):
                value.metadata_props.pop(onnx_shape_inference.SYM_DATA_KEY, None)
            for node in graph:
                for value in node.outputs:
                    value.metadata_props.pop(onnx_shape_inference.SYM_DATA_KEY, None)

    # ---- files

    def save(self, path: str | Path) -> Path:
        """Write the model to ``path``, the weights of a large one to ``<name>.data`` beside it; atomically.

        A model of several files is written to the folder ``path``, under the names of those files.

        Raises:
            OSError: the disk is full or not writable; an earlier file at ``path`` is untouched.
        """
        path = Path(path)
        if self.joined:
            return self._save_parts(path)
        self._hold({path.resolve(), path.with_name(f"{path.name}.data").resolve()})
        external = f"{path.name}.data" if self.weight_bytes > EXTERNAL_DATA_LIMIT_BYTES else None
        with Temporary(path.parent) as folder:
            self.write(folder / path.name, external)
            for file in sorted(folder.iterdir(), key=lambda file: file.name == path.name):
                file.replace(path.parent / file.name)
        return path

    def _save_parts(self, folder: Path) -> Path:
        """Write every part into ``folder``, under the name of its file."""
        folder.mkdir(parents=True, exist_ok=True)
        self._hold({file.resolve() for file in folder.rglob("*")})
        with Temporary(folder) as stage, contextlib.ExitStack() as stack:
            models = self.separate()
            for _, model in models:
                stack.enter_context(model.declared.shown(model.graph))
            save_parts([(part, model.ir) for part, model in models], stage)
            for file in sorted((file for file in stage.rglob("*") if file.is_file()), reverse=True):
                place = folder / file.relative_to(stage)
                place.parent.mkdir(exist_ok=True)
                file.replace(place)
        return folder

    def _hold(self, files: Collection[Path]) -> None:
        """Map the weights that are read from ``files``, which will be replaced: a map outlives the name."""
        for value in self.initializers():
            tensor = value.const_value
            if isinstance(tensor, StoredTensor) and tensor.file in files:
                value.const_value = ir.tensor(tensor.numpy(), dtype=tensor.dtype, name=tensor.name)

    def in_place(self) -> InPlace:
        """The model as bytes that refer to its large weights where they lie.

        None of these is copied but such as lie in memory or on another drive, which are stored in scratch.

        Raises:
            OutputError: no room for temporary files.
        """
        root = Path(Path(tempfile.gettempdir()).resolve().anchor)
        stored: dict[ir.Value, StoredTensor] = {}
        for value in self.initializers():
            tensor = value.const_value
            if tensor is None or tensor.nbytes < IN_MEMORY_BYTES or tensor.dtype == ir.DataType.STRING:
                continue
            if not isinstance(tensor, StoredTensor) or tensor.file.anchor != root.anchor:
                tensor = self.store(tensor.numpy(), tensor.dtype)
            if isinstance(tensor, StoredTensor):
                stored[value] = tensor
        try:
            for value, tensor in stored.items():
                value.const_value = tensor.below(root)
            with self.declared.shown(self.graph):
                proto = ir.to_proto(self.ir).SerializeToString()
        finally:
            for value, tensor in stored.items():
                value.const_value = tensor
        return InPlace(proto, root, len(proto) + sum(tensor.nbytes for tensor in stored.values()))

    def write(self, path: Path, external: str | None = None) -> None:
        """Write the model straight to ``path``; ``external`` names a file beside it for the weights."""
        with self.declared.shown(self.graph):
            if external is None:
                ir.save(self.ir, path)
            else:
                ir.save(self.ir, path, external_data=external, size_threshold_bytes=1024)


def is_weight(value: ir.Value) -> bool:
    """Whether an initializer is a weight rather than a shape, an index or another small integer table."""
    if value.dtype is None or value.shape is None:
        return False
    return value.dtype not in (ir.DataType.INT64, ir.DataType.INT32, ir.DataType.BOOL, ir.DataType.STRING)


def number_of_parameters(value: ir.Value) -> int:
    """Parameters of a weight; 0 for an initializer that is none."""
    if not is_weight(value) or value.shape is None:
        return 0
    return math.prod(int(size) for size in value.shape.numpy())


def _not_finite(array: np.ndarray) -> str | None:
    """What a weight holds that is no number, or None; a scalar or a mask may be infinite."""
    array = array.astype(np.float32) if array.dtype.kind not in "fc" else array
    finite = np.isfinite(array)
    if finite.all():
        return None
    if np.isnan(array).any():
        return "NaN"
    return None if array.size == 1 or not array[finite].any() else "infinity"


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
