"""Tensors that lie in a file and are mapped only while somebody holds their array."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
import onnx_ir as ir

IN_MEMORY_BYTES = 1 << 16
"""Tensors of fewer bytes (64 KiB) stay in memory: a file for each would cost more than it saves."""


class StoredTensor(ir.LazyTensor):
    """A tensor in a file: each array of it is mapped anew, and unmapped with its last reference.

    So memory follows the weights in use, and nobody has to say when a weight is no longer needed.

    Attributes:
        file: where the bytes are.
        offset: of its first byte.
    """

    def __init__(self, external: ir.ExternalTensor) -> None:
        """Read what ``external`` describes; its folder has been checked by whoever made it."""
        self.file = Path(external.path).resolve()
        self.offset = external.offset or 0
        length = external.length or external.nbytes

        def mapped() -> ir.ExternalTensor:
            return ir.ExternalTensor(
                str(self.file),
                self.offset,
                length,
                external.dtype,
                shape=external.shape,
                name=external.name or "",
                base_dir="",  # no boundary: the file is known by its whole path
            )

        super().__init__(
            mapped,
            dtype=external.dtype,
            shape=external.shape,
            name=external.name,
            doc_string=external.doc_string,
            metadata_props=dict(external.metadata_props),
        )

    def below(self, root: Path) -> ir.ExternalTensor:
        """The same bytes as external data of a model that lies in ``root``."""
        place = self.file.relative_to(root).as_posix()
        return ir.ExternalTensor(
            place, self.offset, self.nbytes, self.dtype, shape=self.shape, name=self.name or "", base_dir=root
        )


def stored(tensor: ir.ExternalTensor) -> ir.TensorProtocol:
    """``tensor`` as a :class:`StoredTensor`; a small one as an array in memory."""
    if tensor.nbytes >= IN_MEMORY_BYTES:
        return StoredTensor(tensor)
    array = StoredTensor(tensor).numpy().copy()
    made = ir.tensor(array, dtype=tensor.dtype, name=tensor.name, doc_string=tensor.doc_string)
    made.metadata_props.update(tensor.metadata_props)
    return made


class Sink(Protocol):
    """What bytes can be written to: a file, or what stands for one."""

    def write(self, data: Any, /) -> int:  # noqa: ANN401 - bytes, or an array of ctypes of any rank
        """Take ``data``."""
        ...


@dataclass(frozen=True)
class _Through:
    """A file of which only ``write`` is known."""

    write: Callable[[Any], int]


@runtime_checkable
class _WritesItself(Protocol):
    """What all tensors of onnx_ir can, which its protocol does not say."""

    def tofile(self, file: Any, /) -> None:  # noqa: ANN401 - all that has write
        """Write the bytes to ``file``."""


def write_bytes(tensor: ir.TensorProtocol, file: Sink) -> None:
    """Write the bytes of ``tensor`` to ``file``, from where they lie where that is known."""
    if isinstance(tensor, _WritesItself):
        # Without its descriptor: given that, numpy writes by itself and names no full disk.
        tensor.tofile(_Through(file.write))
    else:
        file.write(tensor.tobytes())


def digest_of(tensor: ir.TensorProtocol) -> bytes:
    """SHA-256 of the bytes of ``tensor``, which are read where they lie: of a large one no copy is made."""
    digest = _Digest()
    write_bytes(tensor, digest)
    return digest.sha256.digest()


class _Digest:
    """A file that only adds what is written to a digest."""

    def __init__(self) -> None:
        self.sha256 = hashlib.sha256()

    def write(self, data: Any, /) -> int:  # noqa: ANN401 - as the protocol has it
        view = np.frombuffer(data, np.uint8).data
        self.sha256.update(view)
        return view.nbytes
