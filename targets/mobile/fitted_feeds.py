"""Runs a model of fixed sizes on feeds of other sizes, as a program on a device has to."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np

from graphcompress.errors import DataError
from graphcompress.files.runtime import Feed
from graphcompress.targets.mobile.interface import Interface, Port

Run = Callable[[Feed], dict[str, np.ndarray]]


def fitted(run: Run, interface: Interface) -> Run:
    """``run``, fed with batches of the fixed size, zeros behind what is shorter; outputs lose them again.

    A mask of zeros hides them from a model that has one. Without a fixed size it is ``run`` itself.
    """
    if all(port.fixed is None or port.fixed == port.sizes for port in interface.inputs):
        return run
    return lambda feed: _run(run, interface, feed)


def _run(run: Run, interface: Interface, feed: Feed) -> dict[str, np.ndarray]:
    sizes = _sizes(interface, feed)
    batched = [
        port for port in interface.inputs if port.fixed and port.sizes and isinstance(port.sizes[0], str)
    ]
    rows = sizes[str(batched[0].sizes[0])] if batched else 1
    step = batched[0].fixed[0] if batched and batched[0].fixed else 1
    pieces: dict[str, list[np.ndarray]] = {}
    for start in range(0, rows, step):
        # What has no batch of its own goes with every piece.
        piece = {
            port.name: _padded(
                feed[port.name][start : start + step] if port in batched else feed[port.name], port
            )
            for port in interface.inputs
        }
        for name, array in run(piece).items():
            pieces.setdefault(name, []).append(array)
    return {port.name: _cut(pieces[port.name], port, sizes) for port in interface.outputs}


def _sizes(interface: Interface, feed: Feed) -> dict[str, int]:
    """The variable sizes that ``feed`` has."""
    sizes: dict[str, int] = {}
    for port in interface.inputs:
        array = feed[port.name]
        for axis, (name, size) in enumerate(zip(port.sizes, array.shape, strict=True)):
            if isinstance(name, str):
                sizes[name] = size
            if port.fixed and axis and size > port.fixed[axis]:
                raise DataError(
                    f"input {port.name!r} is {list(array.shape)}, and the artifact is made for "
                    f"{list(port.fixed)}; give shorter samples, or build with a longer shape"
                )
    return sizes


def _padded(array: np.ndarray, port: Port) -> np.ndarray:
    if port.fixed is None or array.shape == port.fixed:
        return array
    whole = np.zeros(port.fixed, array.dtype)
    whole[tuple(slice(size) for size in array.shape)] = array
    return whole


def _cut(pieces: list[np.ndarray], port: Port, sizes: Mapping[str, int]) -> np.ndarray:
    # Without axes that are known nothing says where the batch and the filling are.
    if pieces[0].ndim == 0 or len(port.sizes) != pieces[0].ndim:
        return pieces[0]
    whole = np.concatenate(pieces)
    return whole[tuple(slice(sizes.get(str(name))) for name in port.sizes)]
