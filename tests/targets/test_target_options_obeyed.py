"""Every option of every installed target changes what it says it changes, or is refused where it cannot."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import onnx_ir as ir
import pytest
from bert import Bert

from graphcompress.errors import UsageError
from graphcompress.graph.model import Model
from graphcompress.passes.simplify.simplify import Simplify
from graphcompress.plugin.base import Lowering
from graphcompress.plugin.context import Context
from graphcompress.plugin.registry import TARGETS
from graphcompress.plugin.targeting import parse_target


@dataclass(frozen=True)
class Seen:
    """What a target wrote, and what it says of it."""

    folder: Path
    lowering: Lowering

    @property
    def bytes(self) -> int:
        """Of the artifact."""
        return sum(file.stat().st_size for file in self.folder.rglob("*") if file.is_file())


@dataclass(frozen=True)
class Shown:
    """A target with a place for the option, two settings, and what has to hold of what is seen of them."""

    target: str
    settings: tuple[str, str]
    seen: Callable[[Seen], object]
    holds: Callable[[object, object], bool]


def _session(seen: Seen) -> tuple[str, dict[str, str]]:
    """Name and options of the first provider that the artifact's session asks for."""
    name, options = seen.lowering.record["session"]["providers"][0]
    return name, options


def _is_half(node: ir.Node) -> bool:
    return node.op_type != "Cast" and node.outputs[0].dtype == ir.DataType.FLOAT16


SHOWN = {
    "cpu.measure": Shown(
        "cpu{{{}}}",
        ("measure=false", "measure=true shapes=1x4 allow_slower=true"),
        lambda s: s.lowering.measured,
        lambda a, b: (a, b) == (False, True),
    ),
    "cpu.float_storage": Shown(
        "cpu{{measure=false {}}}",
        ("float_storage=fp32", "float_storage=fp16"),
        lambda s: s.bytes,
        lambda a, b: b < 0.7 * a,
    ),
    "mobile.shape": Shown(
        "mobile{{bundle=false {}}}",
        ("shape=1x8", "shape=2x16"),
        lambda s: sorted(s.lowering.details["fixed_sizes"].values()),
        lambda a, b: (a, b) == ([1, 8], [2, 16]),
    ),
    "mobile.bundle": Shown(
        "mobile{{shape=1x8 {}}}",
        ("bundle=false", "bundle=true"),
        lambda s: (s.folder / "web").exists(),
        lambda a, b: (a, b) == (False, True),
    ),
    "cpu.padding": Shown(
        "cpu{{measure=false {}}}",
        ("padding=keep", "padding=remove"),
        lambda s: "NonZero" in {node.op_type for node in Model.load(s.folder / "model.onnx").graph},
        lambda a, b: (a, b) == (False, True),
    ),
    "gpu.provider": Shown(
        "gpu{{{}}}",
        ("provider=cuda", "provider=tensorrt"),
        lambda s: _session(s)[0],
        lambda a, b: (a, b) == ("CUDAExecutionProvider", "TensorrtExecutionProvider"),
    ),
    "gpu.options": Shown(
        "gpu{{{}}}",
        ("provider=cuda", 'options="use_tf32=1"'),
        lambda s: _session(s)[1].get("use_tf32"),
        lambda a, b: (a, b) == ("0", "1"),
    ),
    "gpu.opt": Shown(
        "gpu{{provider=tensorrt {}}}",
        ("opt=1x16", "opt=2x8"),
        lambda s: _session(s)[1]["trt_profile_opt_shapes"].partition(",")[0],
        lambda a, b: (a, b) == ("input_ids:1x16", "input_ids:2x8"),
    ),
    "gpu.largest": Shown(
        "gpu{{provider=tensorrt opt=1x8 {}}}",
        ("largest=2x16", "largest=4x32"),
        lambda s: _session(s)[1]["trt_profile_max_shapes"].partition(",")[0],
        lambda a, b: (a, b) == ("input_ids:2x16", "input_ids:4x32"),
    ),
    "tensorrt.opt": Shown(
        "tensorrt{{build=never {}}}",
        ("opt=1x16", "opt=2x8"),
        lambda s: s.lowering.record["profiles"]["all"]["input_ids"][1],
        lambda a, b: (a, b) == ([1, 16], [2, 8]),
    ),
    "tensorrt.largest": Shown(
        "tensorrt{{build=never opt=1x8 {}}}",
        ("largest=2x16", "largest=4x32"),
        lambda s: s.lowering.record["profiles"]["all"]["input_ids"][2],
        lambda a, b: (a, b) == ([2, 16], [4, 32]),
    ),
    "tensorrt.precision": Shown(
        "tensorrt{{build=never {}}}",
        ("precision=fp32", "precision=fp16"),
        lambda s: {node.op_type for node in Model.load(s.folder / "model.onnx").graph if _is_half(node)},
        lambda a, b: not a and "MatMul" in b,
    ),
}

ELSEWHERE = {
    "cpu.allow_slower": "test_a_slower_artifact_can_be_allowed_and_the_report_says_so",
    "cpu.isa": "test_named_isa_wins",
    "cpu.newest_opset": "test_attention_is_an_operator_where_it_is_fastest_and_its_opset_may_be_written",
    "cpu.profile": "test_a_build_by_profile_is_the_build_that_measured",
    "cpu.provider": "test_nothing_is_measured_that_was_not_asked_for",
    "cpu.shapes": "test_other_shapes_are_measured_anew",
    "mobile.factors": "test_factors_stay_factors_in_the_file",
    "mobile.platform": "test_it_is_timed_only_where_the_file_is_made_for_this_processor",
    "mobile.provider": "test_nnapi_takes_the_whole_graph",
    "tensorrt.build": "test_requiring_engines_is_refused_where_the_whole_of_tensorrt_has_no_gpu",
    "tensorrt.compute": "test_a_gpu_is_compiled_for_by_what_knows_it",
    "tensorrt.timeout": "test_the_time_for_an_engine_is_what_was_given",
}
"""Options that a test of their own shows by two settings, or by a setting beside the default."""


def every_option() -> list[str]:
    return [
        f"{name}.{field.name}" for name in TARGETS.names() for field in dataclasses.fields(TARGETS.find(name))
    ]


def run(target: str, folder: Path) -> Seen:
    folder.mkdir()
    model = Model(ir.from_proto(Bert(layers=1).model()))
    Simplify().run(model, Context())
    return Seen(folder, parse_target(target).lower(model, folder, Context()))


@pytest.mark.parametrize("option", every_option())
def test_an_option_changes_what_it_says(option: str, tmp_path: Path) -> None:
    if option in ELSEWHERE:
        tests = Path(__file__).parents[1].rglob("test_*.py")
        assert any(f"def {ELSEWHERE[option]}(" in path.read_text(encoding="utf-8") for path in tests)
        return
    shown = SHOWN[option]
    one, two = (
        shown.seen(run(shown.target.format(setting), tmp_path / str(number)))
        for number, setting in enumerate(shown.settings)
    )
    assert shown.holds(one, two), (one, two)


@pytest.mark.parametrize(
    ("target", "why"),
    [
        ("cpu{measure=false shapes=1x8}", "shapes would change nothing"),
        ("cpu{measure=false allow_slower=true}", "allow_slower would change nothing"),
        ("cpu{profile=p.json allow_slower=true}", "allow_slower would change nothing"),
        ("cpu{profile=p.json measure=false}", "leave one of them out"),
        ("cpu{measure=false padding=auto}", "give keep or remove"),
        ("cpu{profile=p.json padding=auto}", "give keep or remove"),
        ("gpu{opt=1x64}", "opt would change nothing"),
        ("gpu{provider=cuda largest=8x64}", "largest would change nothing"),
        ("tensorrt{build=never compute=86}", "compute would change nothing"),
        ("tensorrt{build=never timeout=5}", "timeout would change nothing"),
    ],
)
def test_an_option_that_would_change_nothing_is_refused(target: str, why: str) -> None:
    with pytest.raises(UsageError, match=why):
        parse_target(target)
