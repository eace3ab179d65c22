"""The edge bundle elsewhere: Node.js, Chromium, an emulated ARM64; its Kotlin, compiled.

Set GRAPHCOMPRESS_PROOFS to their names, joined by commas, or to ``all`` to run them.
"""

import os

import pytest

from edge import arm64, kotlin_compiler, web_chromium, web_node
from edge.proof import CannotRunError, agreement, cache_folder, cases
from graphcompress.build.optimize import optimize
from graphcompress.targets.mobile.bundle import write_bundle
from graphcompress.targets.mobile.interface import Interface, Port
from graphcompress.targets.mobile.kotlin_and_swift import TYPES

PROOFS = {"node": web_node, "chromium": web_chromium, "arm64": arm64}
KOTLIN = "kotlin"
ASKED = os.environ.get("GRAPHCOMPRESS_PROOFS", "").replace("all", ",".join([*PROOFS, KOTLIN])).split(",")


@pytest.fixture(scope="module", params=["float", "int8 of fixed sizes"])
def bundle(request, tiny_bert_path, tiny_samples, tmp_path_factory):
    """An edge bundle of the small model."""
    if not set(ASKED) & set(PROOFS):
        pytest.skip("installs browsers and emulators: set GRAPHCOMPRESS_PROOFS=all, or make proofs")
    passes, target, allow = {"float": ("kron{ratio=0.5}", "mobile", ("kron",))}.get(
        request.param, ("int8", "mobile{shape=2x32}", ())
    )
    folder = tmp_path_factory.mktemp("bundle") / "artifact"
    optimize(tiny_bert_path, passes, target=target, data=tiny_samples, output=folder, allow=allow)
    return folder


@pytest.mark.timeout(900)
@pytest.mark.parametrize("name", PROOFS)
def test_the_bundle_answers_the_same(name, bundle):
    if name not in ASKED:
        pytest.skip(f"GRAPHCOMPRESS_PROOFS does not name {name}")
    given = cases(bundle)
    try:
        seen = PROOFS[name].prove(bundle, given, cache_folder())
    except CannotRunError as error:
        pytest.skip(str(error))
    found = agreement(bundle, given, seen)
    assert found.passes, str(found)


def ports(fixed):
    """An input of every type, and some whose names are keywords or come twice."""
    names = [*TYPES, "inputs", "in", "x.1", "x_1", "$x"]
    return tuple(Port(name, name if name in TYPES else "int64", (1, 4), fixed) for name in names)


@pytest.mark.timeout(500)
def test_the_example_for_android_compiles(tmp_path):
    if KOTLIN not in ASKED:
        pytest.skip(f"GRAPHCOMPRESS_PROOFS does not name {KOTLIN}")
    examples = []
    for provider, output in zip(("cpu", "xnnpack", "nnapi", "coreml", "cpu"), TYPES, strict=True):
        fixed = None if provider == "nnapi" else (1, 4)
        interface = Interface(ports(fixed), (Port("y", output, (1, 4), fixed),))
        folder = tmp_path / output
        folder.mkdir()
        write_bundle(folder, interface, provider=provider, parts="")
        examples.append(folder / "android" / "GraphCompressModel.kt")
    try:
        kotlin_compiler.compiled(examples, cache_folder())
    except CannotRunError as error:
        pytest.skip(str(error))
