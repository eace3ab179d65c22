"""openvino: OpenVINO's provider of ONNX Runtime."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from graphcompress.errors import DataError, MissingExtraError, UnsupportedModelError
from graphcompress.files.runtime import Feed, first_line, runner_of, runtime_errors
from graphcompress.graph.model import Model
from graphcompress.plugin.base import Lowering, Target
from graphcompress.plugin.capabilities import Capabilities
from graphcompress.plugin.context import Context
from graphcompress.plugin.schemes import INT8, UINT8, integer_products
from graphcompress.rules.opsets.lowering import legalise
from graphcompress.targets.common.unsigned_activations import unsigned_activations
from graphcompress.targets.openvino.agreement import LENGTHS, disagreement
from graphcompress.targets.openvino.provider import PLUGIN, PROVIDER, open_session, package

SESSION_FILE = "session.json"


@dataclass(frozen=True)
class OpenVINO(Target):
    """Lower for OpenVINO on Intel's processors, as a provider of ONNX Runtime.

    The artifact is ``model.onnx`` in standard operators, and ``session.json`` with the lines of Python that
    load it. The build fails where its outputs are not those of the CPU provider at every length of the inputs
    from 1 to 64: a kernel may be wrong at one length alone.

    Two packages bring the provider: the plugin ``onnxruntime-ep-openvino`` beside ``onnxruntime``, for
    Intel's processors, and ``onnxruntime-openvino`` in place of ``onnxruntime``, which runs on others, too.
    The target ``cpu`` measures it by itself and takes it where it is faster.
    """

    name: ClassVar[str] = "openvino"
    also_called: ClassVar[Mapping[str, str]] = {**dict.fromkeys(("ov", "intel"), "openvino")}

    @property
    def capabilities(self) -> Capabilities:
        """What the CPU provider executes on any x86, for the outputs are compared with its own."""
        return Capabilities(integer_products(UINT8, INT8, dynamic=True, weight_bits=7))

    @property
    def loading(self) -> tuple[str, ...]:
        """Those of the package that is installed; of the plugin where none is."""
        try:
            return package().loading
        except MissingExtraError:
            return PLUGIN.loading

    def check(self) -> None:
        """Refuse to work without the provider.

        Raises:
            MissingExtraError: no package brings it.
            UsageError: the plugin does not load, or does not know this processor.
        """
        package()

    def lower(self, model: Model, folder: Path, ctx: Context) -> Lowering:
        """Write ``model.onnx`` and ``session.json``.

        Raises:
            UnsupportedModelError: OpenVINO does not take the model, or gives other outputs.
            DataError: it does not run the model at one of the lengths.
        """
        standard = model.clone()
        newer = legalise(standard, ctx)
        unsigned_activations(standard, ctx, saturates=True)
        found = package()
        # For whoever loads the artifact without this package.
        written = {"provider": PROVIDER, "package": found.name, "load": list(found.loading)}
        (folder / SESSION_FILE).write_text(json.dumps(written, indent=1) + "\n", encoding="utf-8")
        file = standard.save(folder / self.model_file)
        wrong = disagreement(self.session(folder), file, standard, ctx)
        if wrong:
            raise UnsupportedModelError(f"OpenVINO {wrong}; lower for the target cpu{{provider=cpu}}")
        brought = {"package": found.name, "version": found.version, "load": list(found.loading)}
        return Lowering(
            notes=(
                f"answers as the CPU provider at every length from {LENGTHS[0]} to {LENGTHS[-1]}",
                f"load it with graphcompress.session(folder), or as {SESSION_FILE} says",
            ),
            proof=f"run by {found.name} {found.version}",
            details={
                "opset": standard.opset,
                "provider": {"name": PROVIDER, **brought},
                **({} if newer is None else {"opset_reason": newer}),
            },
        )

    def session(self, folder: Path) -> Callable[[Mapping[str, Any]], dict[str, Any]]:
        """Run ``model.onnx`` on OpenVINO; what that does not execute runs on the CPU provider.

        Raises:
            MissingExtraError, UsageError: the provider cannot be used here.
            UnsupportedModelError: it does not take the model.
        """
        run = runner_of(open_session(folder / self.model_file))

        def on_openvino(feed: Feed) -> dict[str, Any]:
            try:
                return run(feed)
            except runtime_errors() as error:
                shape = list(next(iter(feed.values())).shape)
                raise DataError(
                    f"OpenVINO's provider does not run the model on {shape} ({first_line(error)})"
                ) from error

        return on_openvino
