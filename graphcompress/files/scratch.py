"""Scratch space on disk for weights that passes make, so that memory follows one weight and not the model."""

from __future__ import annotations

import errno
import tempfile
import weakref
from pathlib import Path

import numpy as np
import onnx_ir as ir

from graphcompress.errors import OutputError
from graphcompress.files.stored import IN_MEMORY_BYTES, StoredTensor
from graphcompress.files.temporary import Temporary


class Scratch:
    """A temporary folder that lives as long as a model that uses it; copies of a model share one."""

    def __init__(self) -> None:
        self._folder: Temporary | None = None
        self._stored = 0

    def store(self, array: np.ndarray, dtype: ir.DataType | None = None) -> ir.TensorProtocol:
        """A tensor of ``array``, kept on disk when it is large; floats are rounded to a float ``dtype``.

        Raises:
            OutputError: no room for temporary files.
        """
        array = np.asarray(array, order="C")
        if dtype is not None and dtype.is_floating_point() and array.dtype.kind == "f":
            array = array.astype(dtype.numpy(), copy=False)
        tensor = ir.tensor(array, dtype=dtype)
        if tensor.nbytes < IN_MEMORY_BYTES:
            return tensor
        self._stored += 1
        try:
            folder = self._made()
            file = folder / f"{self._stored}.bin"
            file.write_bytes(tensor.tobytes())
        except OSError as error:
            raise no_room(error, tensor.nbytes) from error
        return StoredTensor(
            ir.ExternalTensor(
                file.name,
                0,
                tensor.nbytes,
                tensor.dtype,
                shape=ir.Shape(array.shape),
                name="",
                base_dir=folder,
            )
        )

    def own(self, folder: Temporary) -> None:
        """Delete ``folder`` when the last model that uses this scratch is gone."""
        weakref.finalize(self, folder.remove)

    def _made(self) -> Path:
        if self._folder is None:
            self._folder = Temporary()
            self.own(self._folder)
        return self._folder.path


def no_room(error: OSError, size_bytes: int) -> OutputError:
    """The error for a temporary file of ``size_bytes`` that could not be written."""
    full = "the disk is full" if error.errno in (errno.ENOSPC, errno.EDQUOT) else str(error.strerror or error)
    return OutputError(
        f"{tempfile.gettempdir()}: no room for a temporary file of {size_bytes:,} bytes ({full}); "
        "free some space, or set TMPDIR to a folder with room; nothing was written"
    )
