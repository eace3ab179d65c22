"""Whether padding is removed: as asked, or as a batch of the user's own samples measures it."""

from __future__ import annotations

from graphcompress.data.samples import Samples, padding_mask
from graphcompress.files.runtime import Feed
from graphcompress.files.temporary import Temporary
from graphcompress.graph.model import Model
from graphcompress.measure.cache import Measurements
from graphcompress.measure.timing import is_slower
from graphcompress.plugin.context import Context
from graphcompress.targets.cpu.file_comparison import Timer, compare_files, timed
from graphcompress.targets.cpu.padding_removal import remove_padding

KEEP, REMOVE, AUTO = "keep", "remove", "auto"
BATCH = 8
"""The batch that is measured has this many samples, evenly spread over the data."""

DIFFER = "token-wise work sees real tokens only; outputs differ at padding"


def choose_padding(
    model: Model, padding: str, ctx: Context, cache: Measurements | None, *, timer: Timer = timed
) -> tuple[Model, str]:
    """``model`` with its padding kept or removed, and a note that says why.

    ``auto`` measures both on one padded batch of samples of the user's own lengths, and removes padding when
    that is clearly faster there. Without samples of different lengths, or without measuring, it is kept.
    """
    if padding == KEEP:
        return model, ""
    removed = model.clone()
    if not remove_padding(removed, ctx):
        return model, "no attention in one operator under a mask of the inputs, so padding is kept"
    if padding == REMOVE:
        return removed, DIFFER
    feed = _padded_batch(ctx.samples)
    if feed is None:
        return model, "padding is kept: there are no samples of different lengths to measure with"
    if cache is None or cache.complete:
        return model, "padding is kept: nothing is measured here"
    return _faster(model, removed, feed, cache, timer)


def _padded_batch(samples: Samples | None) -> Feed | None:
    """A batch of samples in which something is padded; None without one."""
    if samples is None or samples.synthetic:
        return None
    count = samples.batch_size(min(BATCH, len(samples)))
    feed = samples.batch([number * len(samples) // count for number in range(count)])
    mask = padding_mask(feed)
    return None if mask is None or mask.all() else feed


def _faster(kept: Model, removed: Model, feed: Feed, cache: Measurements, timer: Timer) -> tuple[Model, str]:
    with Temporary() as scratch:
        files = {KEEP: scratch / "keep.onnx", REMOVE: scratch / "remove.onnx"}
        kept.save(files[KEEP])
        removed.save(files[REMOVE])
        times = compare_files(files, [feed], cache, subject=KEEP, than=REMOVE, timer=timer)
    mask = padding_mask(feed)
    lengths = mask.sum(axis=1) if mask is not None else []
    where = f"on {len(lengths)} samples of {min(lengths)} to {max(lengths)} tokens"
    # Without times: a note is kept in the artifact, whose bytes are those of every build that chose the same.
    if is_slower(times, KEEP, REMOVE):
        return removed, f"padding is removed, which is faster {where}: {DIFFER}"
    return kept, f"padding is kept: without it nothing is clearly faster {where}"
