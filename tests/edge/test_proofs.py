"""The edge bundle elsewhere: Node.js, Chromium, an emulated ARM64. Set GRAPHCOMPRESS_PROOFS=1 to run them."""

import os

import pytest

from edge import arm64, web_chromium, web_node
from edge.proof import CannotRunError, allowed, cache_folder, cases
from graphcompress.build import optimize

PROOFS = {"node": web_node, "chromium": web_chromium, "arm64": arm64}


@pytest.fixture(scope="module", params=["float", "int8 of fixed sizes"])
def bundle(request, tiny_bert_path, tiny_samples, tmp_path_factory):
    """An edge bundle of the small model."""
    if os.environ.get("GRAPHCOMPRESS_PROOFS") != "1":
        pytest.skip("installs browsers and emulators: set GRAPHCOMPRESS_PROOFS=1, or make proofs")
    passes, target, allow = {"float": ("kron{ratio=0.5}", "mobile", ("kron",))}.get(
        request.param, ("int8", "mobile{shape=2x32}", ())
    )
    folder = tmp_path_factory.mktemp("bundle") / "artifact"
    optimize(tiny_bert_path, passes, target=target, data=tiny_samples, output=folder, allow=allow)
    return folder


@pytest.mark.timeout(900)
@pytest.mark.parametrize("name", PROOFS)
def test_the_bundle_answers_the_same(name, bundle):
    try:
        found = PROOFS[name].prove(bundle, cases(bundle), cache_folder())
    except CannotRunError as error:
        pytest.skip(str(error))
    assert found <= allowed(bundle)
