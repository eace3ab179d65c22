"""The files of a model that writes sequences: which file does what, and what one hands to another.

Such a model is exported as an encoder and a decoder, the decoder for a first pass and for steps with past
keys and values; or as one file that takes past of any length, none included. Roles are found by what the
files read and return, as optimum (huggingface.co/docs/optimum-onnx) and transformers.js name it.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np
import onnx

from graphcompress.errors import InvalidModelError
from graphcompress.files.reading.model_file import parse

Role = Literal["encoder", "decoder", "decoder_with_past", "decoder_merged"]
"""What a part does: it encodes, writes from the first token on, continues from past keys and values, or both
of the last two, by a switch."""

Kind = Literal[
    "ids",
    "mask",
    "positions",
    "encoder_states",
    "encoder_mask",
    "past",
    "switch",
    "cache_positions",
    "logits",
    "states",
    "present",
    "other",
]
"""What an input or output holds: token ids; the mask over them and the past; their positions; the encoder's
answer and the mask over it; keys and values before and after; the switch of a merged decoder; scores of the
next token; an encoder's answer. Anything else, such as features of speech or pixels, is ``other``."""

STANDARD_NAMES = (
    "encoder_model.onnx",
    "decoder_model.onnx",
    "decoder_with_past_model.onnx",
    "decoder_model_merged.onnx",
    "model.onnx",
)
"""File names that optimum and transformers.js write; where one of them is there, files of other names, which
are the same in other data types, are not read."""

SUBFOLDER = "onnx"
"""Where transformers.js keeps the files, below the folder with the configuration."""

_PAST = re.compile(r"past(_key_values)?(?=[._]|$)")
_PRESENT = re.compile(r"present(_key_values)?(?=[._]|$)")


@dataclass(frozen=True)
class PartValue:
    """An input or output of a part.

    Attributes:
        name: in the part's own file.
        kind: what it holds.
        dtype: of its numbers.
        shape: a number, or the name of a variable size, for each axis; empty where the file says nothing.
    """

    name: str
    kind: Kind
    dtype: np.dtype
    shape: tuple[int | str, ...]


@dataclass(frozen=True)
class Part:
    """One file of a model that consists of several, or that reads what it has returned.

    Attributes:
        path: of the file.
        role: what it does.
        inputs: in the order of the file.
        outputs: in the order of the file.
        past: past input → the output of this part that continues it from step to step. Keys and values of the
            encoder's states are not among them: the first pass returns them, and they stay.
    """

    path: Path
    role: Role
    inputs: tuple[PartValue, ...]
    outputs: tuple[PartValue, ...]
    past: tuple[tuple[str, str], ...] = ()
    prefix: str = ""
    whole: Part | None = None

    def input(self, kind: Kind) -> str | None:
        """Name of the first input of ``kind``, or None."""
        return next((port.name for port in self.inputs if port.kind == kind), None)

    def output(self, kind: Kind) -> str | None:
        """Name of the first output of ``kind``, or None."""
        return next((port.name for port in self.outputs if port.kind == kind), None)

    def reads(self, kind: Kind) -> tuple[PartValue, ...]:
        """All inputs of ``kind``."""
        return tuple(port for port in self.inputs if port.kind == kind)

    def returns(self, kind: Kind) -> tuple[PartValue, ...]:
        """All outputs of ``kind``."""
        return tuple(port for port in self.outputs if port.kind == kind)


@dataclass(frozen=True)
class Link:
    """An output of one part that is an input of another part, or of the same in the next step.

    Attributes:
        source: the part that returns it, and its name there.
        target: the part that reads it, and its name there.
    """

    source: tuple[Part, str]
    target: tuple[Part, str]


def read_parts(path: str | Path) -> tuple[Part, ...]:
    """The parts of the model in a folder, or of one file, in the order in which they run.

    Empty for an ordinary model: one file that returns no keys and values for a next step. A file that is
    given by itself is ordinary, too, when it is only one part of a model.

    Raises:
        InvalidModelError: no ONNX file, a part is missing, two have one role, or past without a counterpart.
    """
    path = Path(path)
    if not path.is_dir():
        return alone(part_in(path))
    files = model_files(path)
    if not files:
        raise InvalidModelError(
            f"{path}: no ONNX file in this folder; give one that holds {', '.join(STANDARD_NAMES[:3])}"
        )
    return checked_parts([part_in(file) for file in files])


def model_files(folder: Path) -> tuple[Path, ...]:
    """The ONNX files of ``folder``, or of its subfolder ``onnx``; empty where there are none."""
    for place in (folder, folder / SUBFOLDER):
        found = sorted(place.glob("*.onnx"))
        standard = [file for file in found if file.name in STANDARD_NAMES]
        if found:
            return tuple(standard or found)
    return ()


def alone(part: Part) -> tuple[Part, ...]:
    """A file that is given by itself: a whole model that writes, or, empty, an ordinary model."""
    return (part,) if part.past and part.role != "decoder_merged" and not _needs_encoder(part) else ()


def checked_parts(found: Sequence[Part]) -> tuple[Part, ...]:
    """``found``, all files of a folder, in the order in which they run; empty for one ordinary model.

    Raises:
        InvalidModelError: a part is missing, two have one role, or past inputs have no counterpart.
    """
    parts = sorted(found, key=lambda part: _ORDER.index(part.role))
    if len(parts) == 1 and not _is_sequence(parts[0]):
        return ()
    _check_roles(parts)
    _check_past(parts)
    return tuple(parts)


_ORDER: tuple[Role, ...] = ("encoder", "decoder", "decoder_with_past", "decoder_merged")


def links(parts: Sequence[Part]) -> tuple[Link, ...]:
    """What the parts hand on to each other and to the next step.

    The encoder's states go to all that read them, present keys and values to every part with past.
    """
    found = []
    for target in parts:
        for port in target.inputs:
            for source in parts:
                name = _counterpart(source, port)
                if name is not None:
                    found.append(Link((source, name), (target, port.name)))
    return tuple(found)


def handed_on(parts: Sequence[Part]) -> list[tuple[str, str]]:
    """:func:`links` by the names in the graph of all parts: an output, and the input that it is given to."""
    return [
        (link.source[0].prefix + link.source[1], link.target[0].prefix + link.target[1])
        for link in links(parts)
    ]


def _counterpart(source: Part, port: PartValue) -> str | None:
    """The output of ``source`` that the input ``port`` of a part is given."""
    if port.kind == "encoder_states":
        return source.output("states") if source.role == "encoder" else None
    if port.kind != "past":
        return None
    return next(
        (output.name for output in source.returns("present") if _slot(output.name) == _slot(port.name)), None
    )


def _slot(name: str) -> str:
    """Which key or value of which layer a past input or present output is: the rest of its name."""
    return _PRESENT.sub("", _PAST.sub("", name)) or name


# ---- one file


Named = tuple[str, np.dtype, tuple[int | str, ...]]
"""Name, type and sizes of an input or output, as a file has them."""


def part_of(path: Path, reads: Sequence[Named], returns: Sequence[Named]) -> Part:
    """What the file at ``path``, which reads and returns these, does in a model that writes."""
    inputs = tuple(PartValue(name, _input_kind(name), dtype, shape) for name, dtype, shape in reads)
    outputs = tuple(PartValue(name, _output_kind(name), dtype, shape) for name, dtype, shape in returns)
    part = Part(path, _role(inputs, outputs), inputs, outputs)
    own = [(value.name, _counterpart(part, value)) for value in part.reads("past")]
    kept = tuple((name, present) for name, present in own if present is not None and not is_cross(name))
    return replace(part, past=kept)


SHARED_KEY = "graphcompress.shared"
"""Metadata of a weight that several parts read, so that whoever copies it knows that it is stored once."""


def is_cache(name: str) -> bool:
    """Whether an output, by its name in a file or in a joined graph, is keys or values for the next step."""
    return _PRESENT.match(name.rpartition("/")[2].lower()) is not None


def is_handed_on(name: str) -> bool:
    """Whether an output, by its name in a joined graph, is read by another part or by the next step."""
    return is_cache(name) or (name.startswith("encoder/") and _output_kind(name) == "states")


def is_past(name: str) -> bool:
    """Whether an input, by its name in a file or in a joined graph, is keys or values of earlier steps."""
    return _PAST.match(name.rpartition("/")[2].lower()) is not None


def is_cross(name: str) -> bool:
    """Whether a past input or present output belongs to attention over the encoder's states."""
    return "encoder" in name.lower().replace("decoder", "")


def part_in(path: Path) -> Part:
    """The part that the file at ``path`` is."""
    graph = parse(path).graph
    stored = {tensor.name for tensor in graph.initializer}
    given = [value for value in graph.input if value.name not in stored]
    return part_of(path, [_named(value) for value in given], [_named(value) for value in graph.output])


def _named(value: onnx.ValueInfoProto) -> Named:
    tensor = value.type.tensor_type
    dims = tuple(
        dim.dim_value if dim.HasField("dim_value") and dim.dim_value >= 0 else dim.dim_param
        for dim in tensor.shape.dim
    )
    dtype = onnx.helper.tensor_dtype_to_np_dtype(tensor.elem_type or onnx.TensorProto.FLOAT)
    return value.name, np.dtype(dtype), dims


def _is_encoder_states(name: str) -> bool:
    return "encoder" in name and ("hidden_states" in name or "outputs" in name)


def _input_kind(name: str) -> Kind:
    lowered = name.lower()
    if _PAST.match(lowered):
        return "past"
    if lowered.startswith("use_cache"):
        return "switch"
    if lowered == "cache_position":
        return "cache_positions"
    if _is_encoder_states(lowered):
        return "encoder_states"
    if lowered == "encoder_attention_mask":
        return "encoder_mask"
    if "mask" in lowered:
        return "mask"
    if "position" in lowered:
        return "positions"
    return "ids" if lowered.endswith("input_ids") else "other"


def _output_kind(name: str) -> Kind:
    lowered = name.lower()
    if _PRESENT.match(lowered):
        return "present"
    if lowered == "logits":
        return "logits"
    return "states" if lowered.endswith(("last_hidden_state", "encoder_hidden_states")) else "other"


def _role(inputs: Iterable[PartValue], outputs: Iterable[PartValue]) -> Role:
    reads, returns = {port.kind for port in inputs}, {port.kind for port in outputs}
    if "past" in reads:
        return "decoder_merged" if "switch" in reads else "decoder_with_past"
    return "decoder" if returns & {"logits", "present"} or "encoder_states" in reads else "encoder"


def _is_sequence(part: Part) -> bool:
    """Whether a file by itself is a model that writes, or a part of one."""
    lonely = part.role == "encoder" and part.path.name == "encoder_model.onnx"
    return bool(part.past or part.returns("present") or part.reads("encoder_states") or lonely)


# ---- whether they are a model together


def _check_roles(parts: Sequence[Part]) -> None:
    for index, part in enumerate(parts):
        same = next((other for other in parts[:index] if other.role == part.role), None)
        if same is not None:
            raise InvalidModelError(
                f"{part.path}: reads and returns what {same.path.name} does ({part.role}); "
                "keep one of the two in the folder"
            )
    roles = {part.role: part for part in parts}
    merged = roles.get("decoder_merged")
    separate = roles.get("decoder") or roles.get("decoder_with_past")
    if merged is not None and separate is not None:
        raise InvalidModelError(
            f"{merged.path}: a merged decoder beside {separate.path.name}, which does the same; "
            "keep the merged file or the separate ones in the folder"
        )
    writers = [part for part in parts if part.role != "encoder"]
    if not writers:
        raise InvalidModelError(
            f"{parts[0].path}: an encoder without a decoder beside it; put the decoder's files there, too"
        )
    needed = next((part for part in writers if _needs_encoder(part)), None)
    if needed is not None and "encoder" not in roles:
        raise InvalidModelError(
            f"{needed.path}: reads {needed.input('encoder_states') or needed.input('encoder_mask')!r}, "
            "and no encoder lies beside it; give the folder with encoder_model.onnx"
        )
    if "encoder" in roles and needed is None:
        raise InvalidModelError(
            f"{writers[0].path}: reads nothing of {roles['encoder'].path.name} beside it; "
            "the two are parts of different models"
        )


def _needs_encoder(part: Part) -> bool:
    return part.input("encoder_states") is not None or part.input("encoder_mask") is not None


def _check_past(parts: Sequence[Part]) -> None:
    """Refuse past inputs that no part returns, and what is handed on in another size than it is read."""
    handed = links(parts)
    fed = {(link.target[0].path, link.target[1]) for link in handed}
    first = any(part.role in ("decoder", "decoder_merged") for part in parts)
    for part in parts:
        for port in (*part.reads("past"), *part.reads("encoder_states")):
            if (part.path, port.name) in fed:
                continue
            if is_cross(port.name) and port.kind == "past" and not first:
                raise InvalidModelError(
                    f"{part.path}: reads {port.name!r}, which only a first pass returns; put "
                    "decoder_model.onnx or decoder_model_merged.onnx beside it"
                )
            raise InvalidModelError(
                f"{part.path}: no part returns what its input {port.name!r} reads; "
                "export the model again, with its present keys and values as outputs"
            )
    _check_vocabulary(parts)
    for link in handed:
        _check_sizes(link)


def _check_vocabulary(parts: Sequence[Part]) -> None:
    """All decoders score the same tokens."""
    known = [
        (part, value.shape[-1])
        for part in parts
        for value in part.returns("logits")
        if value.shape and isinstance(value.shape[-1], int)
    ]
    for part, size in known:
        first, rows = known[0]
        if size != rows:
            raise InvalidModelError(
                f"{part.path}: scores {size:,} tokens, {first.path.name} beside it {rows:,}; "
                "the files are parts of different models"
            )


def _check_sizes(link: Link) -> None:
    """Two sizes that are numbers must be one; a variable one fits any."""
    (source, output), (target, name) = link.source, link.target
    given = next(port.shape for port in source.outputs if port.name == output)
    wanted = next(port.shape for port in target.inputs if port.name == name)
    if not given or not wanted:
        return
    fits = len(given) == len(wanted) and all(
        a == b for a, b in zip(given, wanted, strict=True) if isinstance(a, int) and isinstance(b, int)
    )
    if not fits:
        raise InvalidModelError(
            f"{target.path}: its input {name!r} is {list(wanted)}, while {source.path.name} returns "
            f"{output!r} as {list(given)}; the files are parts of different models"
        )
