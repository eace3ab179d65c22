"""gpu: ONNX Runtime's providers for NVIDIA GPUs."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import onnx_ir as ir

from graphcompress.errors import DataError, UsageError
from graphcompress.files.runtime import provider_session, runner_of, session_of
from graphcompress.graph.match import is_standard
from graphcompress.graph.model import Model
from graphcompress.plugin.base import Lowering, Target
from graphcompress.plugin.capabilities import Capabilities
from graphcompress.plugin.context import Context
from graphcompress.plugin.options import option
from graphcompress.plugin.schemes import INT8, UINT8, integer_products
from graphcompress.rewrite.rewriter import Rewriter
from graphcompress.rules.normalisations import fuse_normalizations
from graphcompress.rules.opsets.lowering import legalise
from graphcompress.rules.opsets.raising import raise_opset
from graphcompress.targets.common.attention import FusedAttention
from graphcompress.targets.common.form_choice import choose_forms
from graphcompress.targets.nvidia.engine_profile import (
    Profile,
    check_profile,
    fitting,
    graphs_of,
    profiles,
)
from graphcompress.targets.nvidia.engines.provider_options import checked_options, parse_options
from graphcompress.targets.nvidia.float16 import clip_constants, to_half
from graphcompress.targets.nvidia.float16_range import wide_values
from graphcompress.targets.nvidia.refusals import products_stored_in_int8
from graphcompress.targets.nvidia.strongly_typed import OLDEST_OPSET, strongly_typed

if TYPE_CHECKING:
    import onnxruntime

MODEL_FILE, SESSION_FILE = "model.onnx", "session.json"

CUDA, CPU = "CUDAExecutionProvider", "CPUExecutionProvider"
PROVIDERS = {
    "cuda": CUDA,
    "tensorrt": "TensorrtExecutionProvider",
    "nv_tensorrt_rtx": "NvTensorRTRTXExecutionProvider",
}
BESIDE = {"cuda": (CPU,), "tensorrt": (CUDA, CPU), "nv_tensorrt_rtx": (CPU,)}
"""Providers that take the nodes that the chosen one leaves; where TensorRT's is, CUDA's is, too."""


@dataclass(frozen=True)
class Gpu(Target):
    """Lower for ONNX Runtime on NVIDIA GPUs: float16, fused attention, and how to make the session.

    The artifact is ``model.onnx`` in float16 with float32 kept where float16 has no room (sums of squares,
    values observed near its end; LayerNormalization and Softmax compute in float32 inside), and
    ``session.json``: the providers and their options for ``onnxruntime.InferenceSession``. ``options`` adds
    to them; what the provider does not take is refused before the work. For ``cuda`` attention is
    MultiHeadAttention of com.microsoft, which its kernels fuse; the providers of TensorRT take standard
    operators alone, so for them the graph is that of the target tensorrt.

    Of a model that reads its own past, engines of ``nv_tensorrt_rtx`` have two profiles, for the first tokens
    and for steps of one token; ``session.json`` has the shapes of both, and the option by which a run has to
    name its profile. ONNX Runtime runs the first profile of ``tensorrt`` alone, so one covers both there.

    Where the provider is in the installed ONNX Runtime it runs the artifact; elsewhere the CPU provider does,
    which loads the same file.
    """

    name: ClassVar[str] = "gpu"
    also_called: ClassVar[Mapping[str, str]] = {**dict.fromkeys(("cuda", "nvidia"), "gpu")}

    provider: str = option("cuda", "provider of ONNX Runtime", choices=tuple(PROVIDERS))
    opt: str = option("1x128", "batch x length that engines are tuned for, or sizes by name; not for cuda")
    largest: str = option("8x512", "batch x length that engines take at most, or sizes by name; not for cuda")
    options: str = option(
        "", 'further options of the provider, such as "use_tf32=1;gpu_mem_limit=2000000000"'
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.provider == "cuda":
            self.refuse_idle("opt largest", "the provider cuda builds no engines")
        check_profile(self.name, self.opt, self.largest)
        parse_options(self.options, PROVIDERS[self.provider])

    def check_model(self, model: Model) -> None:
        """Refuse sizes that do not fit the inputs, or names of inputs that the provider cannot read.

        Raises:
            UsageError: names the option.
        """
        if self.provider == "cuda":
            return
        for graph in graphs_of(model, self.opt, self.largest):
            self._recipe(graph)

    @property
    def capabilities(self) -> Capabilities:
        """What the provider runs: with calibrated scales, and around zero where TensorRT multiplies."""
        return Capabilities(integer_products(*((INT8, UINT8) if self.provider == "cuda" else (INT8,))))

    @property
    def timed(self) -> bool:
        """Whether the installed ONNX Runtime has the provider."""
        import onnxruntime

        return PROVIDERS[self.provider] in onnxruntime.get_available_providers()

    @property
    def loading(self) -> tuple[str, ...]:
        """What ``session.json`` says, as arguments of ``onnxruntime.InferenceSession``."""
        return (
            "import json, onnxruntime, pathlib",
            f'recipe = json.loads(pathlib.Path("{SESSION_FILE}").read_text())',
            'level = recipe["session_options"]["graph_optimization_level"]',
            "options = onnxruntime.SessionOptions()",
            "options.graph_optimization_level = getattr(onnxruntime.GraphOptimizationLevel, level)",
            'providers = [(name, given) for name, given in recipe["providers"]]',
            f'session = onnxruntime.InferenceSession("{self.model_file}", options, providers=providers)',
        )

    def lower(self, model: Model, folder: Path, ctx: Context) -> Lowering:
        """Write the graph and the recipe of its session; ``model`` itself is not changed.

        Raises:
            UnsupportedModelError: TensorRT refuses something in it; the message names the node.
        """
        if self.provider == "cuda":
            lowered, notes, details = _for_cuda(model, ctx)
        else:
            typed = strongly_typed(model, ctx, half=True)
            lowered, notes, details = typed.model, typed.notes, typed.record
        lowered.save(folder / MODEL_FILE)
        recipe = self._recipe(model)
        (folder / SESSION_FILE).write_text(json.dumps(recipe, indent=1), encoding="utf-8")
        provider = PROVIDERS[self.provider]
        proof = (
            f"run by {provider}" if self.timed else f"not run by {provider}; numerics on ONNX Runtime's {CPU}"
        )
        return Lowering(notes, proof, details={**details, "session": recipe})

    def session(self, folder: Path) -> Callable[[Mapping[str, Any]], dict[str, Any]]:
        """Run ``model.onnx`` as ``session.json`` says where the provider is here, else on the CPU."""
        if self.timed:
            try:
                recipe = json.loads((folder / SESSION_FILE).read_text(encoding="utf-8"))
                level = recipe["session_options"]["graph_optimization_level"]
                providers = [(str(name), dict(given)) for name, given in recipe["providers"]]
                phases = [
                    (dict(one["shapes"]), dict(one["run_options"])) for one in recipe.get("profiles", ())
                ]
            except (OSError, ValueError, LookupError, TypeError, RecursionError) as error:
                raise UsageError(
                    f"{folder / SESSION_FILE}: not readable ({error}); build the artifact again"
                ) from error
            session = provider_session(folder / MODEL_FILE, providers, level)
            return _phased(session, phases) if phases else runner_of(session)
        # Unfused: the int8 products of a CPU may saturate, those of a GPU do not.
        return runner_of(session_of(folder / MODEL_FILE, optimize=False))

    def _recipe(self, model: Model) -> dict[str, Any]:
        """Arguments of InferenceSession: providers in their order, each with its options."""
        name = PROVIDERS[self.provider]
        if self.provider == "cuda":
            # By default the provider times all algorithms of a convolution at every new shape, and computes
            # float32 products in TF32, with the 10 digits of float16.
            options, level = {"cudnn_conv_algo_search": "HEURISTIC", "use_tf32": "0"}, "ORT_ENABLE_ALL"
            shapes: dict[str, Profile] = {}
        else:
            # As it is: ONNX Runtime would put further pairs of QuantizeLinear and DequantizeLinear into the
            # regions that TensorRT fuses.
            shapes = profiles(model, self.opt, self.largest, apart=self.provider == "nv_tensorrt_rtx")
            options, level = _engine_options(self.provider, list(shapes.values())), "ORT_DISABLE_ALL"
        options = checked_options({**options, **parse_options(self.options, name)}, name)
        recipe = {
            "model": MODEL_FILE,
            "providers": [[name, options], *([beside, {}] for beside in BESIDE[self.provider])],
            "session_options": {"graph_optimization_level": level},
        }
        phases = [
            {"for": phase, "shapes": profile, "run_options": {"nv_profile_index": str(number)}}
            for number, (phase, profile) in enumerate(shapes.items())
        ]
        return recipe | ({"profiles": phases} if len(phases) > 1 else {})


def _for_cuda(model: Model, ctx: Context) -> tuple[Model, tuple[str, ...], Mapping[str, Any]]:
    lowered = model.clone()
    reason = legalise(lowered, ctx)
    with Rewriter(lowered, ctx) as rw:
        reason = raise_opset(rw, OLDEST_OPSET) or reason
        fuse_normalizations(rw)  # of a model whose own opset had no operator for them
        clipped = clip_constants(rw)
    # Before attention is one operator, inside of which nothing can be observed. What is found is kept by its
    # name, for the forms that are chosen make values anew.
    wide = wide_values(lowered, ctx)
    names = {value.name for value in wide}
    fused = sum(choice.sites for choice in choose_forms(lowered, (FusedAttention(),), (), ctx, cache=None))
    with Rewriter(lowered, ctx) as rw:
        values = [value for node in lowered.graph for value in node.outputs if value.name in names]
        halved = to_half(rw, values)
    details = {
        "opset": lowered.opset,
        "attentions_fused": fused,
        "constants_clipped_for_float16": clipped,
        "float16_nodes": halved.half,
        "float32_nodes": list(halved.kept),
        "casts": halved.casts,
        "values_beyond_float16": sorted(name or "" for name in names),
        **({} if reason is None else {"opset_reason": reason}),
    }
    return lowered, tuple(_notes_for_cuda(lowered)), details


def _notes_for_cuda(model: Model) -> list[str]:
    notes = []
    guarded = [node for node in model.graph if is_standard(node, "Softmax") and _is_guarded(node)]
    if guarded:
        notes.append(
            f"{len(guarded)} attentions are not fused: a guard against NaN is behind their Softmax (such as "
            f"{guarded[0].name}); where float inputs are finite, simplify{{finite_inputs=true}} drops it"
        )
    stored = products_stored_in_int8(model)
    if stored:
        notes.append(
            f"{len(stored)} products have int8 weights, which the CUDA provider makes float16 at every call: "
            "smaller, not faster; provider=tensorrt multiplies them in int8"
        )
    return notes


def _is_guarded(softmax: ir.Node) -> bool:
    return any(is_standard(reader, "IsNaN") for reader in softmax.outputs[0].consumers())


def _engine_options(provider: str, shapes: Sequence[Profile]) -> dict[str, str]:
    """Options of a TensorRT provider: shapes, and a cache so that engines are built once.

    A name that comes again belongs to the next profile (``ParseProfileShapes`` of both providers).
    """
    prefix = "trt" if provider == "tensorrt" else "nv"
    options = (
        {"trt_engine_cache_enable": "1", "trt_engine_cache_path": "engines", "trt_fp16_enable": "1"}
        | {"trt_int8_enable": "1"}
        if provider == "tensorrt"
        else {"nv_runtime_cache_path": "engines"}
    )
    for number, kind in enumerate(("min", "opt", "max")):
        texts = [
            f"{name}:{'x'.join(map(str, bounds[number]))}"
            for profile in shapes
            for name, bounds in profile.items()
        ]
        options |= {f"{prefix}_profile_{kind}_shapes": ",".join(texts)} if texts else {}
    return options | ({"nv_multi_profile_enable": "1"} if len(shapes) > 1 else {})


def _phased(
    session: onnxruntime.InferenceSession, phases: Sequence[tuple[Profile, Mapping[str, str]]]
) -> Callable[[Mapping[str, Any]], dict[str, Any]]:
    """A function from a feed to outputs: each run says which profile it is of."""
    import onnxruntime

    names = [output.name for output in session.get_outputs()]

    def run(feed: Mapping[str, Any]) -> dict[str, Any]:
        shapes = {name: list(np.shape(array)) for name, array in feed.items()}
        number = fitting([profile for profile, _ in phases], shapes)
        if number is None:
            raise DataError(
                f"inputs of shapes {shapes} are in no profile of the engine; build for larger ones"
            )
        options = onnxruntime.RunOptions()
        for name, value in phases[number][1].items():
            options.add_run_config_entry(name, value)
        return dict(zip(names, session.run(names, dict(feed), options), strict=True))

    return run
