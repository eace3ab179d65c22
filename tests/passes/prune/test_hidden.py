"""A narrower model: what is cut, and that nothing but what is cut is lost."""

from __future__ import annotations

import numpy as np
import pytest
from sequence_models import saved, text
from streams import NORMS, WIDTH, distance, sentences, stream, streamed

from graphcompress.coupling.couplings import HIDDEN, couplings
from graphcompress.data.made_up import varied_samples
from graphcompress.errors import UsageError
from graphcompress.graph.model import Model
from graphcompress.narrowing.features import narrow
from graphcompress.narrowing.rotation import directions, rotate
from graphcompress.numerics.rotation import basis
from graphcompress.passes.prune.prune import Prune
from graphcompress.passes.simplify.simplify import Simplify
from graphcompress.plugin.context import Context, no_progress
from graphcompress.rewrite.rewriter import Rewriter
from graphcompress.training.taps import HIDDEN as HIDDEN_STATES
from graphcompress.training.taps import shared

EXACT = 1e-5
"""Of the range of the answers."""


def pruned(model: Model, **options: object):
    twin = model.clone()
    return twin, Prune(**options).run(twin, Context(samples=sentences()))


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("norm", NORMS)
def test_a_rotation_alone_changes_nothing(norm: str, tied: bool) -> None:
    model = streamed(norm, tied=tied)
    twin = model.clone()
    found = stream(twin)
    assert (found.unturned, len(found.norms)) == ("", 3)
    moment = directions(twin, found, sentences(), no_progress)
    onto = basis(moment, WIDTH, centred=norm == "LayerNormalization")
    np.testing.assert_allclose(onto.T @ onto, np.eye(WIDTH), atol=1e-12)
    with Rewriter(twin, Context()) as rw:
        rotate(rw, found, onto)
    assert distance(model, twin) < EXACT
    moved = (
        twin.graph.initializers["table"].const_value.numpy()
        - model.graph.initializers["table"].const_value.numpy()
    )
    assert np.abs(moved).max() > 0.1


@pytest.mark.parametrize("norm", NORMS)
def test_directions_that_nothing_is_written_into_go_for_free(norm: str) -> None:
    """A LayerNorm needs one more feature than directions: the one that its mean takes off."""
    model = streamed(norm, rank=22)
    twin, record = pruned(model, hidden=0.25, refit=False)
    assert stream(twin).width == 24
    assert distance(model, twin) < EXACT
    assert "100.0% of its energy is left" in record.notes[0]
    assert "error of the outputs 0.000" in record.notes[1]


@pytest.mark.parametrize("norm", NORMS[1:])
@pytest.mark.parametrize("post", [False, True])
def test_features_that_are_zero_everywhere_go_for_free(norm: str, post: bool) -> None:
    model = streamed(norm, post=post)
    keep = np.arange(WIDTH) % 4 > 0
    with Rewriter(model, Context()) as rw:
        for part in stream(model).group.slices:
            if "gain" not in (part.value.name or "") or post:
                array = np.moveaxis(part.value.const_value.numpy().copy(), part.axis, 0)
                array[~keep] = 0
                rw.overwrite(part.value, np.moveaxis(array, 0, part.axis))
    twin = model.clone()
    with Rewriter(twin, Context()) as rw:
        narrow(rw, stream(twin), keep)
    assert stream(twin).width == 24
    # Between two norms of the post-norm model nothing else than the gain says that a feature is zero.
    assert distance(model, twin) < EXACT
    by_itself, _ = pruned(model, hidden=0.25, importance="magnitude", rotate=False, refit=False)
    assert distance(model, by_itself) < EXACT


@pytest.mark.parametrize("norm", NORMS[:2])
def test_a_rotation_and_a_refit_lose_less_than_either_alone(norm: str) -> None:
    model = streamed(norm)
    lost = {
        (turn, refit): distance(model, pruned(model, hidden=0.25, rotate=turn, refit=refit)[0])
        for turn in (True, False)
        for refit in (True, False)
    }
    assert lost[True, True] < lost[True, False]
    assert lost[False, True] < lost[False, False]
    assert lost[True, True] < lost[False, True]


def test_a_norm_behind_the_sum_is_told_and_features_are_chosen() -> None:
    model = streamed("LayerNormalization", post=True)
    twin, record = pruned(model, hidden=0.25)
    assert "by obs; not rotated: what a normalisation gives is added to it" in record.notes[0]
    assert stream(twin).width == 24
    plain, _ = pruned(model, hidden=0.25, refit=False)
    assert distance(model, twin) < 0.8 * distance(model, plain)


@pytest.mark.parametrize("post", [False, True])
def test_what_is_held_against_a_tied_table_is_refitted_to_the_features_that_stay(post: bool) -> None:
    model = streamed("LayerNormalization", post=post, tied=True, transform=True)
    lost = [distance(model, pruned(model, hidden=0.25, refit=refit)[0]) for refit in (True, False)]
    assert lost[0] < 0.8 * lost[1]


def test_a_width_that_is_an_output_stays_and_the_reason_is_told() -> None:
    twin, record = pruned(streamed("RMSNormalization", out=True), hidden=0.25)
    assert twin.parameters == streamed("RMSNormalization", out=True).parameters
    assert {item.name: item.reason for item in record.skipped}["hidden"] == (
        "the width of the residual stream is fixed: it is an output of the graph"
    )


def test_hidden_states_of_a_rotated_student_are_compared_with_none_of_the_teacher() -> None:
    model = streamed("RMSNormalization")
    turned, _ = pruned(model, hidden=0.25)
    chosen, _ = pruned(model, hidden=0.25, rotate=False)
    assert not any(place.kind == HIDDEN_STATES for place in shared(turned, model)[0])
    assert chosen.kept["0.added"][2].shape == (24,)
    assert "0.added" not in turned.kept


def test_heads_and_nodes_go_from_the_narrower_model() -> None:
    twin, record = pruned(streamed("RMSNormalization"), hidden=0.25, ffn=0.5, scope="layer")
    assert sorted(group.size for group in couplings(twin)) == [24, 24, 24]
    assert not record.skipped


def test_the_same_samples_give_the_same_bytes(tmp_path) -> None:
    files = [
        pruned(streamed("LayerNormalization"), hidden=0.25)[0].save(tmp_path / name).read_bytes()
        for name in ("one.onnx", "two.onnx")
    ]
    assert files[0] == files[1]


@pytest.mark.parametrize("name", ["t5", "gpt2", "llama"])
def test_models_that_write_become_narrower_in_all_their_parts(name, sequence_folders, tmp_path) -> None:
    model = Model.load(sequence_folders[name])
    before = model.parameters
    Simplify().run(model, Context())
    Prune(hidden=0.3, refit=False).run(model, Context(samples=varied_samples(model, seed=0)))
    assert {group.size for group in couplings(model) if group.kind == HIDDEN} == {40}
    assert model.parameters < 0.9 * before
    assert text(name, saved(model, tmp_path / "narrow")).shape == text(name, sequence_folders[name]).shape


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"rotate": False}, "rotate would change nothing"),
        ({"hidden": 0.5, "importance": "fisher"}, "importance fisher"),
        ({"hidden": 0.5, "importance": "xmax"}, "does not rank features"),
        ({"hidden": 0.5, "only": "*x*"}, "runs through all weights"),
        ({"hidden": 0.5, "keep": 0.5}, "so does hidden"),
        ({"keep": 0.5, "rotate": False}, "rotate would change nothing"),
    ],
)
def test_what_does_not_go_together_is_refused(options, said) -> None:
    with pytest.raises(UsageError, match=said):
        Prune(**options)
