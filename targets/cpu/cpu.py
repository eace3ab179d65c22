"""cpu: ONNX Runtime's CPU provider."""

from __future__ import annotations

import platform
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

from graphcompress.errors import UsageError
from graphcompress.files.reading.hashes import sha256
from graphcompress.files.runtime import runner_of, session_of
from graphcompress.graph.model import Model
from graphcompress.measure.cache import MeasurementCache, Measurements, Times, cpu_flags
from graphcompress.measure.profile import Profile, Recorder, read_profile
from graphcompress.measure.shapes import DEFAULT_SHAPES, Shape, format_shapes, parse_shapes
from graphcompress.measure.timing import is_slower
from graphcompress.plugin.base import Lowering, Target
from graphcompress.plugin.capabilities import Capabilities
from graphcompress.plugin.context import Context
from graphcompress.plugin.options import option
from graphcompress.plugin.schemes import INT8, INT8_CACHE, UINT8, integer_products
from graphcompress.rules.opsets.lowering import legalise
from graphcompress.rules.opsets.raising import why_not_raised
from graphcompress.rules.opsets.versions import NEWEST_OPSET
from graphcompress.targets.common.attention import OPERATOR, OPERATOR_OPSET, FusedAttention
from graphcompress.targets.common.family import Family
from graphcompress.targets.common.form_choice import take_forms
from graphcompress.targets.common.gelu import Gelu
from graphcompress.targets.common.integer_linear import IntegerLinear
from graphcompress.targets.common.unsigned_activations import unsigned_activations
from graphcompress.targets.cpu.cached_attention import CachedAttention
from graphcompress.targets.cpu.formed_model import (
    ARTIFACT,
    INPUT,
    FormedModel,
    give_forms,
    refuse_slower,
    take_back,
    times_against_input,
)
from graphcompress.targets.cpu.fp16_storage import store_floats_as_fp16
from graphcompress.targets.cpu.int8_tables import DequantisedRows
from graphcompress.targets.cpu.kronecker import Kronecker, KroneckerTable
from graphcompress.targets.cpu.notes import forms_text, notes_on
from graphcompress.targets.cpu.packed_linears import Packed
from graphcompress.targets.cpu.padding_choice import AUTO, KEEP, REMOVE, choose_padding
from graphcompress.targets.cpu.pinned import Pinned, read_pinned
from graphcompress.targets.cpu.provider_choice import (
    OPENVINO,
    PROVIDERS,
    SESSION_FILE,
    ProviderChoice,
    choose_provider,
    openvino,
)
from graphcompress.targets.cpu.residual import Residual

NOTHING_MEASURED = "nothing was measured (measure=false): default forms, speed not compared with the input"

_NEWER_RUNTIME = (
    f"attention is an operator of opset {OPERATOR_OPSET}, which ONNX Runtime reads since 1.23; "
    f"cpu{{newest_opset={NEWEST_OPSET}}} does without"
)
_VNNI = frozenset({"avx512_vnni", "avx_vnni", "amx_int8"})


@dataclass(frozen=True)
class Cpu(Target):
    """Lower for ONNX Runtime on CPU, in the operator forms that are measured to be fastest on this machine.

    The artifact is one ``model.onnx`` for ``onnxruntime.InferenceSession`` with its default options.
    Measurements are kept in the user's cache folder: a second build takes the same forms without measuring.
    An artifact's recipe holds what was chosen, so that it makes the same bytes on any machine.
    ``profile`` brings the measurements of another machine, so that one machine builds for the processor of
    another: ``graphcompress tune --out profile.json MODEL`` writes it there.

    Where OpenVINO's provider is installed (the plugin ``onnxruntime-ep-openvino`` for Intel's processors, or
    ``onnxruntime-openvino`` in place of ``onnxruntime``), it is measured as an alternative. It is taken when
    it is faster and answers the same at every length from 1 to 64; the artifact then says so in
    ``session.json``, with the lines that load it, and ``graphcompress.session`` does so by itself.

    ``float_storage=fp16`` halves what stays float in the file; ONNX Runtime makes it float32 again when the
    session is made. Weights are rounded to 11 bits, which the comparison of the artifact with the model that
    came in shows; a file with many float weights may run somewhat slower, which ``bench`` shows.

    ``padding=remove`` is for batches of very different lengths: token-wise work sees the real tokens only. It
    costs a little where nothing is padded, and outputs at padding are those of other tokens. ``padding=auto``
    measures both on a padded batch of eight samples, and so decides by the lengths that the data has.

    The lowered model is timed against the file that came in. When it is slower, the forms that slow it down
    are taken back; when it still is, nothing is written, unless ``allow_slower`` says so. Only a difference
    that several measurements in a row show is believed.

    ``isa`` names the processors that int8 weights are made for. On x86 without VNNI or AMX, ONNX Runtime's
    u8×s8 products saturate, so weights must leave room; ``avx2`` does that, and such an artifact answers the
    same everywhere. ``vnni`` and ``arm`` use all 8 bits, for artifacts that never meet an older x86; ``auto``
    is what this machine is.
    """

    name: ClassVar[str] = "cpu"
    also_called: ClassVar[Mapping[str, str]] = {
        **dict.fromkeys(("x86", "onnx", "ort", "onnxruntime", "avx2", "vnni", "intel", "amd"), "cpu"),
        **dict.fromkeys(("fp16", "float16", "half"), "'cpu{float_storage=fp16}'"),
    }

    measure: bool = option(True, "measure the operator forms on this machine; false takes the default forms")
    shapes: str = option(DEFAULT_SHAPES, "batch x sequence length to measure at", unit="samples x tokens")
    profile: str | None = option(
        None, "file that graphcompress tune wrote on another machine; nothing is measured here then"
    )
    isa: str = option(
        "avx2", "processors that int8 weights are made for", choices=("auto", "avx2", "vnni", "arm")
    )
    provider: str = option(
        "auto",
        "what runs the artifact; auto also measures OpenVINO, where its provider is installed",
        choices=PROVIDERS,
    )
    float_storage: str = option(
        "fp32", "how float weights are stored; fp16 halves them, and rounds", choices=("fp32", "fp16")
    )
    padding: str = option(
        "keep",
        "remove: linears and all else that works token by token get the real tokens of a padded batch only; "
        "auto: where a batch of the samples measures faster so",
        choices=(KEEP, REMOVE, AUTO),
    )
    newest_opset: int = option(
        OPERATOR_OPSET,
        "newest opset to write; below 23, which ONNX Runtime reads since 1.23, attention is not an operator",
        minimum=NEWEST_OPSET,
        maximum=OPERATOR_OPSET,
    )
    allow_slower: bool = option(False, "write an artifact even when it is slower than the model that came in")

    def __post_init__(self) -> None:
        super().__post_init__()
        parse_shapes(self.shapes)
        if self.isa == "auto":  # what this machine is decides, also where a recipe is built again
            object.__setattr__(self, "isa", detected_isa())
        if self.profile is not None and not self.measure:
            raise UsageError("cpu{profile=… measure=false}: a profile is measurements; leave one of them out")
        if not self.measure:
            self.refuse_idle("shapes allow_slower", "with measure=false nothing is measured")
        elif self.profile is not None:
            self.refuse_idle("allow_slower", "with a profile the artifact is not timed here")
        if self.padding == AUTO and (self.profile is not None or not self.measure):
            raise UsageError(f"{self}: padding=auto measures, which is not done here; give keep or remove")

    @property
    def capabilities(self) -> Capabilities:
        """What the CPU provider executes."""
        bits = 7 if self._saturates else 8
        products = integer_products(UINT8, INT8, dynamic=True, weight_bits=bits)
        return Capabilities((*products, INT8_CACHE))

    @property
    def _saturates(self) -> bool:
        """Whether products of uint8 and all 8 bits of int8 overflow the 16 bits in which two are added."""
        return self.isa == "avx2"

    @property
    def files_read(self) -> tuple[str, ...]:
        """The profile: a recipe holds its hash."""
        return () if self.profile is None else (self.profile,)

    def check(self) -> None:
        """Refuse a profile that cannot be used, and OpenVINO where it cannot be.

        Raises:
            UsageError: so it is.
            MissingExtraError: OpenVINO is asked for and not installed.
        """
        if self.profile is not None:
            self._shapes_of(read_profile(self.profile))
        if self.provider == OPENVINO:
            openvino().check()

    @property
    def tuned_at(self) -> list[Shape]:
        """The option ``shapes``."""
        return parse_shapes(self.shapes)

    def runs_on_cpu_provider(self, folder: Path) -> bool:
        """Unless the artifact is for OpenVINO."""
        return not (folder / SESSION_FILE).is_file()

    def lower(self, model: Model, folder: Path, ctx: Context) -> Lowering:
        """Write ``model.onnx`` in the fastest forms; ``model`` itself is not changed.

        Raises:
            SpeedError: measured as a whole, it is slower than the file that the model came from.
        """
        legal, about = self._legal(model, ctx)
        if self.measure and self.profile is None and str(self) in ctx.pinned:
            return self._as_pinned(read_pinned(ctx.pinned[str(self)]), legal, folder, ctx)
        if self.measure and self.profile is None:
            return self._finished(self._lower_by_measuring(legal, model.path, folder, ctx), about)
        asked, shapes, profile = NOTHING_MEASURED, [], None
        if self.profile is not None:
            profile = read_profile(self.profile)
            shapes = self._shapes_of(profile)
            asked = f"forms as measured on {profile.name}; speed not compared with the input on this machine"
            about["profile"] = {"machine": profile.name, "sha256": sha256(Path(self.profile))}
        formed = give_forms(legal, self.families_for(legal), shapes, ctx, profile)
        lowered = self._padded(formed, ctx, profile)
        artifact = lowered.model.save(folder / self.model_file)
        provider = choose_provider(self.provider, artifact, legal, shapes, ctx, None)
        return self._finished(_lowering(lowered, provider, asked), about)

    def _as_pinned(self, pinned: Pinned, legal: Model, folder: Path, ctx: Context) -> Lowering:
        """What an earlier build measured and chose, made again; its record is that of the earlier build."""
        file, details = folder / self.model_file, pinned.details
        if pinned.provider == OPENVINO:
            found = choose_provider(OPENVINO, file, legal, [], ctx, None)
            details = {**details, **found.details}
        else:
            model = legal.clone()
            families = [each for each in self.families_for(legal) if each.name not in pinned.taken_back]
            take_forms(model, families, pinned.forms, ctx)
            choose_padding(model, pinned.padding, ctx, None)[0].save(file)
        return Lowering(pinned.notes, forms=pinned.text, details=details, measured=True)

    def _finished(self, found: Lowering, about: dict[str, Any]) -> Lowering:
        """``found`` with what was done before any form was chosen; of that, what to know is a note, too."""
        notes = [about["float_storage"]] if "float_storage" in about else []
        opset = found.details["opset"]
        if opset > self.newest_opset:
            notes.append(f"written in opset {opset}, not {self.newest_opset}: {about['opset_reason']}")
        return replace(found, notes=(*notes, *found.notes), details={**found.details, **about})

    def _legal(self, model: Model, ctx: Context) -> tuple[Model, dict[str, Any]]:
        """A copy that the runtime takes, before any form is chosen, and what to record about it."""
        legal = model.clone()
        newer = legalise(legal, ctx)
        about: dict[str, Any] = {} if newer is None else {"opset_reason": newer}
        unsigned_activations(legal, ctx, saturates=self._saturates)
        if self.float_storage == "fp16":
            about["float_storage"] = store_floats_as_fp16(legal, ctx)
        return legal, about

    def _padded(self, formed: FormedModel, ctx: Context, cache: Measurements | None) -> FormedModel:
        """``formed``, or the same without the padding of a batch, as asked or as measured."""
        model, note = choose_padding(formed.model, self.padding, ctx, cache)
        padding = KEEP if model is formed.model else REMOVE
        notes = (*formed.notes, note) if note else formed.notes
        return replace(formed, model=model, notes=notes, padding=padding)

    def families_for(self, legal: Model) -> tuple[Family[Any], ...]:
        """All forms that ``legal`` may get: attention as an operator where its opset can be written."""
        newer = self.newest_opset >= OPERATOR_OPSET and why_not_raised(legal, OPERATOR_OPSET) is None
        return families(attention_operator=newer)

    def _shapes_of(self, profile: Profile) -> list[Shape]:
        if self.shapes != DEFAULT_SHAPES and parse_shapes(self.shapes) != list(profile.shapes):
            raise UsageError(
                f"{self}: the profile was measured at {format_shapes(profile.shapes)}, not at {self.shapes}; "
                "leave shapes out, or make a profile at these shapes with graphcompress tune"
            )
        return list(profile.shapes)

    def _lower_by_measuring(self, legal: Model, source: Path | None, folder: Path, ctx: Context) -> Lowering:
        cache, shapes = MeasurementCache(), parse_shapes(self.shapes)
        formed = give_forms(legal, self.families_for(legal), shapes, ctx, cache)
        lowered = self._padded(formed, ctx, cache)
        artifact = lowered.model.save(folder / self.model_file)
        provider = choose_provider(self.provider, artifact, legal, shapes, ctx, cache)
        if source is None or not source.is_file():
            asked = "speed not compared with the input, which is not a file"
            return replace(_lowering(lowered, provider, asked), measured=True)

        def against_input() -> tuple[Times, str]:
            return times_against_input(source, artifact, legal, shapes, ctx, cache, opener=provider.opener)

        times, reason = against_input()
        # Each form was faster by itself; only as a whole it shows when one of them slows down what follows.
        # OpenVINO runs the standard forms, of which none can be taken back.
        if times and is_slower(times, ARTIFACT, INPUT) and provider.lowering is None:
            formed = take_back(legal, formed, self.families_for(legal), shapes, ctx, cache)
            lowered = self._padded(formed, ctx, cache)
            lowered.model.save(artifact)
            times, reason = against_input()
        slower = bool(times) and is_slower(times, ARTIFACT, INPUT)
        if not (self.allow_slower or ctx.on_trial):
            refuse_slower(times, shapes, "--target 'cpu{allow_slower=true}'")
        asked = f"speed not compared with the input: {reason}" if reason else ""
        asked = "slower than the input, which allow_slower=true accepts" if slower else asked
        speed = {"slower_than_input": slower, "compared": bool(times), "whole_ms": times}
        found = _lowering(lowered, provider, asked)
        return replace(found, details={**found.details, "speed": speed}, measured=True)

    def tune(self, model: Model, ctx: Context) -> Mapping[str, Mapping[str, Sequence[float]]]:
        """Times of every form of every site that :meth:`lower` would meet in ``model``, measured here."""
        seen = Recorder(MeasurementCache())
        legal, _ = self._legal(model, ctx)
        give_forms(legal, self.families_for(legal), parse_shapes(self.shapes), ctx, seen)
        return seen.times

    def session(self, folder: Path) -> Callable[[Mapping[str, Any]], dict[str, Any]]:
        """Run ``model.onnx`` on the provider that it was written for.

        Raises:
            MissingExtraError, UsageError: that is OpenVINO's, and it cannot be used here.
        """
        if not self.runs_on_cpu_provider(folder):
            return openvino().session(folder)
        return runner_of(session_of(folder / self.model_file))


def families(*, attention_operator: bool = False) -> tuple[Family[Any], ...]:
    """Every family of forms, in this order: one sees the forms that were chosen before it."""
    return (
        Kronecker(),
        KroneckerTable(),
        DequantisedRows(),
        IntegerLinear(),
        Packed(),
        Residual(),
        Gelu(),
        *((CachedAttention(),) if attention_operator else ()),
        FusedAttention(operator=attention_operator),
    )


def _lowering(lowered: FormedModel, provider: ProviderChoice, asked: str) -> Lowering:
    """What lies in the artifact: the model in its forms, or what another provider runs in place of it."""
    if provider.lowering is not None:
        lowered = FormedModel(lowered.model, ())
    choices = lowered.choices
    operator = any(choice.form == OPERATOR for choice in choices)
    notes = [
        *provider.notes,
        *notes_on(lowered, families(attention_operator=True), asked),
        *([_NEWER_RUNTIME] if operator else []),
    ]
    details = {
        "forms": [each.record for each in choices],
        "taken_back": list(lowered.taken_back),
        "padding": lowered.padding,
        "opset": lowered.model.opset,
        **provider.details,
    }
    return Lowering(tuple(notes), forms=forms_text(choices), details=details)


def detected_isa() -> str:
    """``vnni``, ``arm`` or ``avx2``, by what this processor says; ``avx2``, safe everywhere, when unknown."""
    if platform.machine().lower() in ("aarch64", "arm64"):
        return "arm"
    return "vnni" if cpu_flags() & _VNNI else "avx2"
