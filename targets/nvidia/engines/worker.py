"""Builds one TensorRT engine; run as ``python -m graphcompress.targets.nvidia.engines.worker request.json``.

A process of its own because the compiler ends it on some graphs, and may not end at all on others. The
request names the files; the result is written as JSON beside the log.
"""

from __future__ import annotations

import importlib
import json
import sys
from pathlib import Path
from typing import Any


def main(request: Path) -> int:
    """Build what ``request`` asks for; the exit code is 0 also when the compiler refuses.

    For a named compute capability the log lists the layers; for this machine's GPU the result does.
    """
    asked = json.loads(request.read_text(encoding="utf-8"))
    with Path(asked["log"]).open("w", encoding="utf-8") as log:
        result = _build(asked, log)
    Path(asked["result"]).write_text(json.dumps(result), encoding="utf-8")
    return 0


def _build(asked: dict[str, Any], log: Any) -> dict[str, Any]:  # noqa: ANN401 (a text stream)
    trt = importlib.import_module(asked["module"])
    logger = _logger(trt, log)
    builder = trt.Builder(logger)
    network = builder.create_network(_flags(trt))
    parser = trt.OnnxParser(network, logger)
    if not parser.parse_from_file(asked["model"]):
        return {"version": trt.__version__, "refused": _parser_errors(parser)}
    config = builder.create_builder_config()
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED
    if asked["compute"]:
        config.num_compute_capabilities = 1
        config.set_compute_capability(getattr(trt.ComputeCapability, asked["compute"]), 0)
    for shapes in asked["profiles"]:
        profile = builder.create_optimization_profile()
        for name, bounds in shapes.items():
            profile.set_shape(name, *(tuple(shape) for shape in bounds))
        config.add_optimization_profile(profile)
    engine = builder.build_serialized_network(network, config)
    if engine is None:
        return {"version": trt.__version__, "refused": [logger.last_error]}
    Path(asked["engine"]).write_bytes(memoryview(engine))
    found = {"version": trt.__version__, "refused": []}
    return found if asked["compute"] else {**found, "layers": _layers(trt, logger, engine)}


def _layers(trt: Any, logger: Any, engine: Any) -> str:  # noqa: ANN401 (objects of the runtime)
    """The layers of an engine for this machine's GPU, by the runtime itself: a builder need not log them."""
    loaded = trt.Runtime(logger).deserialize_cuda_engine(engine)
    return str(loaded.create_engine_inspector().get_engine_information(trt.LayerInformationFormat.ONELINE))


def _flags(trt: Any) -> int:  # noqa: ANN401 (a module)
    """Strongly typed: the graph says what is computed in which precision."""
    flag = getattr(trt.NetworkDefinitionCreationFlag, "STRONGLY_TYPED", None)
    return 0 if flag is None else 1 << int(flag)


def _parser_errors(parser: Any) -> list[str]:  # noqa: ANN401 (an object of the runtime)
    errors = [parser.get_error(index) for index in range(parser.num_errors)]
    return [f"node {error.node_name()!r} ({error.node_operator()}): {error.desc()}" for error in errors]


def _logger(trt: Any, log: Any) -> Any:  # noqa: ANN401 (a module, a text stream, an object of the runtime)
    class Logger(trt.ILogger):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self.last_error = "no reason given"

        def log(self, severity: Any, message: str) -> None:  # noqa: ANN401
            if severity in (trt.ILogger.ERROR, trt.ILogger.INTERNAL_ERROR):
                self.last_error = message
            log.write(f"{message}\n")
            # The compiler may end the process: the last line says where.
            log.flush()

    return Logger()


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
