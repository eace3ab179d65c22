"""mobile: ONNX Runtime on phones and in browsers, as an edge bundle."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from platform import machine as processor
from typing import Any, ClassVar

from graphcompress.data.load import Samples
from graphcompress.data.made_up import synthetic_samples
from graphcompress.files.runtime import runner_of, session_of
from graphcompress.files.temporary import Temporary
from graphcompress.graph.model import Model
from graphcompress.plugin.base import Lowering, Target
from graphcompress.plugin.capabilities import Capabilities
from graphcompress.plugin.context import Context
from graphcompress.plugin.options import option
from graphcompress.plugin.schemes import INT8, UINT8, integer_products
from graphcompress.rewrite.rewriter import Rewriter
from graphcompress.rules.everything import simplify
from graphcompress.rules.opsets.lowering import legalise
from graphcompress.targets.common.fix_sizes import fix_shapes, is_fixed, parse_shape, sizes_of
from graphcompress.targets.common.form_choice import choose_forms
from graphcompress.targets.common.gelu import Gelu
from graphcompress.targets.common.integer_linear import IntegerLinear
from graphcompress.targets.common.kronecker_factors import multiply_factors
from graphcompress.targets.common.unsigned_activations import unsigned_activations
from graphcompress.targets.mobile.advice import advice
from graphcompress.targets.mobile.bundle import unknown_types, write_bundle, write_example
from graphcompress.targets.mobile.fitted_feeds import fitted
from graphcompress.targets.mobile.flattened_products import flatten_products
from graphcompress.targets.mobile.interface import Interface, interface_of, model_of, read_interface
from graphcompress.targets.mobile.nnapi_operators import (
    normalisation_by_means,
    reciprocal_as_division,
    rows_by_int32,
    without_erf,
)
from graphcompress.targets.mobile.ort_format import (
    MODEL_FILE,
    OPERATORS_FILE,
    compare_converted,
    convert,
    write_operators,
)
from graphcompress.targets.mobile.partitions import described, partitions, write_partitions
from graphcompress.targets.mobile.where_as_arithmetic import where_as_arithmetic

SAMPLE_LENGTH = 24
"""Made-up samples have this many tokens, about a sentence."""
PROOF = "reloaded from the ORT format and run on ONNX Runtime's CPU provider"
_PROCESSORS = {"arm": ("arm64", "aarch64"), "amd64": ("x86_64", "amd64")}


@dataclass(frozen=True)
class Mobile(Target):
    """Lower for phones and browsers: ``model.ort``, what a reduced build needs, and examples that load it.

    The artifact is an edge bundle: the model in ONNX Runtime's own format (in the Fixed style, for ARM),
    ``required_operators.config``, tokenizer, recipe, loading examples for Android, iOS and the browser, and
    a report of what XNNPACK, NNAPI and CoreML would take of the graph. It is loaded again and compared.

    The file is small first. A session that loads this format folds no constants, so Kronecker factors are
    multiplied with instead of expanded (``factors=expand`` stores what they expand to: larger, and int8).
    ``Where`` becomes arithmetic. With ``shape`` sizes are fixed: shape arithmetic goes, products become those
    of matrices, and a caller fills shorter inputs up with zeros; the model should have a mask then.

    ``provider`` is what runs the graph beside the CPU provider. ``nnapi`` has no Erf, LayerNormalization or
    Reciprocal, none of ONNX Runtime's own operators, and looks up no rows by int64: all that is written in
    elementary operators with the same numbers up to rounding, slower on a CPU. ``coreml`` asks for an ML
    program. Neither these two nor ``xnnpack`` multiply by int8 weights as ``int8`` stores them: leave that
    pass out for them. Where it was run, ``nnapi`` and ``coreml`` keep QuantizeLinear and DequantizeLinear;
    for ``cpu`` and ``xnnpack`` they become the integer products of the CPU provider.

    Latency is measured only where this machine's processor is of ``platform``.
    """

    name: ClassVar[str] = "mobile"
    also_called: ClassVar[Mapping[str, str]] = {
        **dict.fromkeys(("android", "ios", "web", "wasm", "browser", "edge", "phone"), "mobile")
    }
    model_file: ClassVar[str] = MODEL_FILE

    shape: str = option("", 'sizes to fix: batch x length such as 1x128, or "batch=1,sequence=128"')
    provider: str = option(
        "cpu", "what runs the graph beside the CPU", choices=("cpu", "xnnpack", "nnapi", "coreml")
    )
    platform: str = option("arm", "processors that the file is made for", choices=("arm", "amd64"))
    factors: str = option("multiply", "Kronecker factors at run time", choices=("multiply", "expand"))
    bundle: bool = option(True, "write the loading examples, the page and the README too")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.shape:
            parse_shape(self.shape)

    @property
    def capabilities(self) -> Capabilities:
        """What the CPU provider of a device executes; weights leave room, so that x86 answers the same."""
        dynamic = self.provider in ("cpu", "xnnpack")
        return Capabilities(integer_products(UINT8, INT8, dynamic=dynamic, weight_bits=7))

    @property
    def timed(self) -> bool:
        """Whether this machine's processor is one that the file is made for."""
        return processor().lower() in _PROCESSORS[self.platform]

    def interface(self, folder: Path) -> Model:
        """What ``interface.json`` says: nothing here reads the ORT format."""
        return model_of(read_interface(folder))

    def lower(self, model: Model, folder: Path, ctx: Context) -> Lowering:
        """Write the bundle; ``model`` itself is not changed."""
        sizes = sizes_of(model, self.shape) if self.shape else {}
        interface = interface_of(model, sizes)
        lowered = model.clone()
        newer = legalise(lowered, ctx)
        before = partitions(lowered)
        operators = _histogram(lowered)
        rewritten = self._rewrite(lowered, sizes, ctx)
        after = partitions(lowered)
        samples = ctx.samples or synthetic_samples(model, length=_length(interface), seed=ctx.seed)
        interface.write(folder)
        with Temporary() as scratch:
            source = lowered.save(scratch / "model.onnx")
            convert(source, folder / MODEL_FILE, arm=self.platform == "arm")
            feeds = [samples.batch([index]) for index in range(min(2, len(samples)))]
            reloaded = compare_converted(source, folder / MODEL_FILE, interface, feeds)
        write_operators(folder / MODEL_FILE, folder / OPERATORS_FILE)
        tips = advice(after)
        write_partitions(folder, before, after, tips)
        notes = advice(after, self.provider) if self.provider != "cpu" else []
        unknown = unknown_types(interface)
        if self.bundle and unknown:
            notes.append(f"no loading examples: they have no word for {', '.join(unknown)}; bundle=false")
        elif self.bundle:
            write_bundle(folder, interface, provider=self.provider, parts=described(before, after, tips))
            # The smallest sample: an example is read by people, and left out when it is large.
            feed = samples.batch([min(range(len(samples)), key=lambda index: _numbers(samples, index))])
            write_example(folder, feed, self.session(folder)(feed))
        details = {
            "opset": lowered.opset,
            "fixed_sizes": sizes,
            "rewritten": rewritten,
            "operators_before": operators,
            "operators": _histogram(lowered),
            "reloaded": asdict(reloaded),
            "partitions_before": [asdict(item) for item in before],
            "partitions": [asdict(item) for item in after],
            **({} if newer is None else {"opset_reason": newer}),
        }
        return Lowering(tuple(notes), f"{PROOF} ({processor()})", details=details)

    def session(self, folder: Path) -> Callable[[Mapping[str, Any]], dict[str, Any]]:
        """Run ``model.ort`` on the CPU provider; inputs are filled up to the sizes that it was made for."""
        return fitted(runner_of(session_of(folder / MODEL_FILE)), read_interface(folder))

    def _rewrite(self, model: Model, sizes: Mapping[str, int], ctx: Context) -> dict[str, Any]:
        """Bring ``model`` into the forms of a device; what was done."""
        done: dict[str, Any] = {}
        if sizes:
            done["nodes of shape arithmetic and others removed"] = fix_shapes(model, sizes, ctx)
        with Rewriter(model, ctx) as rw:
            simplify(rw)  # first: a guard against NaN can be dropped as a Where, not as arithmetic
            done["Where as arithmetic"] = where_as_arithmetic(rw)
            weights = multiply_factors(rw, expand=self.factors == "expand")
            done["linears multiplied by factors"] = weights.linears
            done["tables looked up in factors"] = weights.tables
            done["expressions stored expanded"] = list(weights.expanded)
            rw.clean()
            simplify(rw)
            if self.provider == "nnapi":
                done["GELU and Erf as arithmetic"] = without_erf(rw)
                done["LayerNormalization as means"] = normalisation_by_means(rw)
                done["Reciprocal as division"] = reciprocal_as_division(rw)
                done["rows looked up by int32"] = rows_by_int32(rw)
            rw.clean()
            if is_fixed(model):  # last: simplify gives linears back the axes that a caller's Reshape took
                done["products of matrices"] = flatten_products(rw)
        if self.provider in ("cpu", "xnnpack"):
            done["activations as uint8"] = unsigned_activations(model, ctx, saturates=True)
            # Nothing is measured: this machine is not the device.
            for choice in choose_forms(model, (IntegerLinear(), Gelu()), (), ctx, cache=None):
                key = f"{choice.family} as {choice.form}"
                done[key] = done.get(key, 0) + choice.sites
        return done


def _length(interface: Interface) -> int:
    """Tokens of made-up samples: no more than were fixed."""
    fixed = [size for port in interface.inputs for size in (port.fixed or ())[1:]]
    return min([SAMPLE_LENGTH, *fixed])


def _numbers(samples: Samples, index: int) -> int:
    return sum(array.size for array in samples.feeds[index].values())


def _histogram(model: Model) -> dict[str, int]:
    counts = Counter(f"{node.domain}:{node.op_type}" if node.domain else node.op_type for node in model.graph)
    return dict(sorted(counts.items()))
