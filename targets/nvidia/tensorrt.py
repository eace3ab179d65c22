"""tensorrt: engines for NVIDIA GPUs."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from graphcompress.errors import UsageError
from graphcompress.files.runtime import runner_of, session_of
from graphcompress.graph.model import Model
from graphcompress.plugin.base import Lowering, Target
from graphcompress.plugin.capabilities import Capabilities
from graphcompress.plugin.context import Context
from graphcompress.plugin.options import option
from graphcompress.plugin.schemes import INT8, integer_products
from graphcompress.targets.nvidia.engine_profile import Profile, check_profile, graphs_of, profiles
from graphcompress.targets.nvidia.engines.builder import (
    FULL,
    INSTALL,
    RTX,
    Engine,
    build_engine,
    is_installed,
    needs_rtx,
)
from graphcompress.targets.nvidia.engines.device import gpu_here
from graphcompress.targets.nvidia.engines.execute import engine_runner
from graphcompress.targets.nvidia.readme import readme
from graphcompress.targets.nvidia.strongly_typed import Typed, strongly_typed

MODEL_FILE, BUILD_FILE = "model.onnx", "build.json"
CAPABILITIES = ("80", "86", "89", "120", "121", "75")
"""Compute capabilities that TensorRT for RTX compiles for; 75 has no int8 products of its own."""

ON_CPU = "numerics on ONNX Runtime's CPU provider"


@dataclass(frozen=True)
class TensorRT(Target):
    """Lower for TensorRT: a strongly typed Q/DQ graph, and engines that are really built, without a GPU.

    ``model.onnx`` has its precisions in it: float16 around symmetric int8, scales of weights per output
    channel, standard operators of opset 19 or 20. TensorRT 10 and 11 read it. What TensorRT refuses is an
    error that names the node.

    With the extra ``tensorrt-rtx``, TensorRT for RTX compiles it for every capability in ``compute``, and the
    build fails unless each int8 product of the graph is one in the engine, too. With a GPU here, the engine
    is made for it, by the whole of TensorRT where that is installed, run and timed; without one, the outputs
    that are compared are those of the same graph on ONNX Runtime's CPU provider.

    Engines take batches and lengths from 1 to ``largest``, or to as many positions as the model has; every
    length of the inputs counts for itself. Sizes of other kinds are given by name:
    ``opt="batch=1,height=224,width=224"``. An engine of a model that reads its own past has two profiles: for
    the first tokens, without past, and for steps, where past and the one new token are up to ``largest``.

    Kronecker weights are multiplied as two int8 products where those save operations; a factor with a side
    below 16, too small for a tensor core, is multiplied for several rows at once. The others are stored
    expanded, with the reason: TensorRT would compute an expression at every call. A packed product (queries,
    keys and values in one) is written as one for each part: divided by TensorRT, it would lose its int8.
    """

    name: ClassVar[str] = "tensorrt"
    also_called: ClassVar[Mapping[str, str]] = {
        **dict.fromkeys(("trt", "nvidia"), "tensorrt"),
        **dict.fromkeys(("fp16", "float16", "half"), "'tensorrt{precision=fp16}'"),
    }

    compute: str = option("80+86+89+120", "compute capabilities to compile for, joined by +")
    build: str = option(
        "auto",
        "compile engines: auto where this machine can (TensorRT for RTX, or TensorRT and a GPU), require "
        "(an error where it cannot), or never",
        choices=("auto", "require", "never"),
    )
    precision: str = option("fp16", "what is computed around int8", choices=("fp16", "fp32"))
    opt: str = option("1x128", "batch x length that engines are tuned for, or sizes by name")
    largest: str = option("8x512", "batch x length that engines take at most, or sizes by name")
    timeout: float = option(600.0, "time for one engine", unit="s", minimum=1.0)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.build == "never":
            self.refuse_idle("compute timeout", "with build=never no engine is compiled")
        check_profile(self.name, self.opt, self.largest)
        wanted = self.capabilities_wanted
        wrong = [capability for capability in wanted if capability not in CAPABILITIES]
        if wrong or not wanted:
            raise UsageError(
                f"tensorrt{{compute={self.compute}}}: expected capabilities joined by +, of "
                f"{', '.join(CAPABILITIES)}, such as compute=86+89"
            )

    def check(self) -> None:
        """Refuse to build engines without a compiler.

        Raises:
            MissingExtraError: engines are required, and nothing here compiles them: the whole of TensorRT
                needs a GPU for that, TensorRT for RTX is not installed.
        """
        if self.build == "require" and _runs_here() is None:
            needs_rtx("tensorrt{build=require}")

    def check_model(self, model: Model) -> None:
        """Refuse sizes that do not fit the inputs.

        Raises:
            UsageError: names the option.
        """
        for graph in graphs_of(model, self.opt, self.largest):
            profiles(graph, self.opt, self.largest)

    @property
    def capabilities_wanted(self) -> list[str]:
        """``compute`` as a list, each once."""
        return list(dict.fromkeys(re.sub(r"(?i)\bsm", "", self.compute).split("+")))

    @property
    def capabilities(self) -> Capabilities:
        """Symmetric int8 with calibrated scales."""
        return Capabilities(integer_products(INT8))

    @property
    def timed(self) -> bool:
        """Whether an engine runs on this machine."""
        return self.build != "never" and _runs_here() is not None

    @property
    def loading(self) -> tuple[str, ...]:
        """The engine for the first of ``compute``, as TensorRT for RTX reads it."""
        file = _engine_file(f"SM{self.capabilities_wanted[0]}")
        return (
            f"import pathlib, {RTX} as tensorrt",
            "runtime = tensorrt.Runtime(tensorrt.Logger(tensorrt.Logger.ERROR))",
            f'engine = runtime.deserialize_cuda_engine(pathlib.Path("{file}").read_bytes())',
            "session = engine.create_execution_context()",
        )

    def lower(self, model: Model, folder: Path, ctx: Context) -> Lowering:
        """Write the graph, the engines and the record of their builds; ``model`` itself is not changed.

        Raises:
            UnsupportedModelError: TensorRT refuses something, or builds an engine with fewer int8 products.
        """
        shapes = profiles(model, self.opt, self.largest)
        typed = strongly_typed(model, ctx, half=self.precision == "fp16")
        graph = typed.model.save(folder / MODEL_FILE)
        engines = self._engines(typed, graph, shapes, ctx)
        (folder / BUILD_FILE).write_text(
            json.dumps(_build_record(typed, engines), indent=1), encoding="utf-8"
        )
        inputs = [f"{value.name} {value.dtype} {value.shape}" for value in typed.model.graph.inputs]
        page = readme(shapes, inputs, self.precision, [engine.file.name for engine in engines])
        (folder / "README.md").write_text(page, encoding="utf-8")
        details = {
            **typed.record,
            "precision": self.precision,
            "profiles": shapes,
            "int8_products_expected": len(typed.int8_products),
            "engines": [
                {
                    "file": engine.file.name,
                    "compute": engine.compute,
                    "compiler": f"{engine.module} {engine.version}",
                    "int8_products": len(engine.int8),
                    "layers": len(engine.layers),
                    "build_ms": round(engine.seconds * 1000),
                }
                for engine in engines
            ],
        }
        return Lowering(
            (*typed.notes, *_engine_notes(engines)),
            self._proof(engines),
            # A device gets the one engine that is its own.
            deployed_bytes=max((engine.file.stat().st_size for engine in engines), default=None),
            details=details,
        )

    def session(self, folder: Path) -> Callable[[Mapping[str, Any]], dict[str, Any]]:
        """The engine for this machine's GPU; without one, the graph on ONNX Runtime's CPU provider."""
        compute = gpu_here()
        module = _compiler_of(folder, compute) if compute is not None else None
        if compute is not None and module is not None and is_installed(module):
            return engine_runner(module, folder / _engine_file(compute))
        # Unfused: the int8 products of a CPU may saturate, those of a GPU do not.
        return runner_of(session_of(folder / MODEL_FILE, optimize=False))

    def _engines(
        self, typed: Typed, graph: Path, shapes: Mapping[str, Profile], ctx: Context
    ) -> list[Engine]:
        self.check()
        here = _runs_here()
        if self.build == "never" or (here is None and not is_installed(RTX)):
            return []
        jobs = {f"SM{number}": RTX for number in self.capabilities_wanted} if is_installed(RTX) else {}
        if here is not None:
            # The GPU of this machine gets the compiler that can also run its engine here.
            jobs[here[1]] = here[0]
        engines = []
        for number, (compute, module) in enumerate(jobs.items()):
            ctx.progress("compile engines", number, len(jobs), compute)
            engines.append(
                build_engine(
                    graph,
                    graph.with_name(_engine_file(compute)),
                    compute=compute,
                    expected=typed.int8_products,
                    profiles=list(shapes.values()),
                    timeout_s=self.timeout,
                    module=module,
                )
            )
        ctx.progress("compile engines", len(jobs), len(jobs))
        return engines

    def _proof(self, engines: Sequence[Engine]) -> str:
        here = _runs_here()
        if not engines:
            reason = "build=never" if self.build == "never" else INSTALL
            return f"not compiled ({reason}); {ON_CPU}"
        names = ", ".join(engine.compute for engine in engines)
        if here is not None and any(engine.compute == here[1] for engine in engines):
            return f"compiled for {names}, run on this machine's GPU ({here[1]})"
        return f"compiled for {names}, not executed; {ON_CPU}"


def _runs_here() -> tuple[str, str] | None:
    """The module that compiles for this machine's GPU and runs it, and the GPU's capability; None without."""
    compute = gpu_here()
    if compute is None:
        return None
    by_rtx = [RTX] if compute.removeprefix("SM") in CAPABILITIES else []  # no cards of data centres
    module = next((module_name for module_name in (FULL, *by_rtx) if is_installed(module_name)), None)
    return None if module is None else (module, compute)


def _compiler_of(folder: Path, compute: str) -> str | None:
    """The module that built the engine for ``compute``, which alone loads it; None without one."""
    if not (folder / BUILD_FILE).is_file() or not (folder / _engine_file(compute)).is_file():
        return None
    try:
        built = json.loads((folder / BUILD_FILE).read_text(encoding="utf-8"))["engines"]
        return str(built[compute]["compiler"]).split()[0] if compute in built else None
    except (OSError, ValueError, LookupError, TypeError, RecursionError) as error:
        raise UsageError(
            f"{folder / BUILD_FILE}: not readable ({error}); build the artifact again"
        ) from error


def _engine_file(compute: str) -> str:
    return f"model-{compute.lower()}.engine"


def _engine_notes(engines: Sequence[Engine]) -> list[str]:
    return [
        f"{engine.compute}: {len(engine.int8)} of {len(engine.expected)} int8 products, "
        f"{len(engine.layers)} layers, by {engine.module} {engine.version}"
        for engine in engines
    ]


def _build_record(typed: Typed, engines: Sequence[Engine]) -> dict[str, Any]:
    return {
        "int8_products": list(typed.int8_products),
        "engines": {
            engine.compute: {
                "compiler": f"{engine.module} {engine.version}",
                "int8_products": list(engine.int8),
                "layers": [str(layer) for layer in engine.layers],
            }
            for engine in engines
        },
    }
