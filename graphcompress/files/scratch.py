"""Scratch space on disk for weights, samples and outputs: memory follows what is in use, not all there is."""

from __future__ import annotations

import errno
import tempfile
import weakref
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

import numpy as np
import onnx_ir as ir

from graphcompress.errors import OutputError
from graphcompress.files.runtime import Feed
from graphcompress.files.stored import IN_MEMORY_BYTES, StoredTensor
from graphcompress.files.temporary import Temporary


class Scratch:
    """A temporary folder that lives as long as what uses it: a model with its copies, a list of feeds."""

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


class _OnDisk(Mapping[str, np.ndarray]):
    """Arrays by name, mapped anew by every look-up: what nobody holds takes no memory and no open file."""

    def __init__(self, feed: Feed, scratch: Scratch) -> None:
        self._scratch = scratch  # the folder lives as long as it
        self._tensors = {
            name: array if _is_small(array) else scratch.store(array) for name, array in feed.items()
        }

    def __getitem__(self, name: str) -> np.ndarray:
        found = self._tensors[name]
        return found if isinstance(found, np.ndarray) else found.numpy()

    def __iter__(self) -> Iterator[str]:
        return iter(self._tensors)

    def __len__(self) -> int:
        return len(self._tensors)


class Renamed(Mapping[str, np.ndarray]):
    """Some arrays of ``feed`` under the keys of ``names`` (new → old); each look-up is one in ``feed``."""

    def __init__(self, feed: Feed, names: Mapping[str, str]) -> None:
        self._feed, self._names = feed, names

    def __getitem__(self, name: str) -> np.ndarray:
        return self._feed[self._names[name]]

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)


def on_disk(feeds: Iterable[Feed]) -> list[Feed]:
    """``feeds`` with their large arrays in temporary files, which are deleted with the last of the feeds.

    ``feeds`` are taken one after the other, so that memory is bounded by one of them where they are made as
    they are asked for, such as the outputs of a model on many samples.

    Raises:
        OutputError: no room for temporary files.
    """
    scratch = Scratch()
    return [feed if all(map(_is_small, feed.values())) else _OnDisk(feed, scratch) for feed in feeds]


def _is_small(array: np.ndarray) -> bool:
    # Texts are objects, which lie in no file.
    return array.nbytes < IN_MEMORY_BYTES or array.dtype.hasobject


def no_room(error: OSError, size_bytes: int) -> OutputError:
    """The error for a temporary file of ``size_bytes`` that could not be written."""
    full = "the disk is full" if error.errno in (errno.ENOSPC, errno.EDQUOT) else str(error.strerror or error)
    return OutputError(
        f"{tempfile.gettempdir()}: no room for a temporary file of {size_bytes:,} bytes ({full}); "
        "free some space, or set TMPDIR to a folder with room; nothing was written"
    )
