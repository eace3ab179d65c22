"""Trains Transformer-tiny for English–German on Multi30k and writes it as a Marian checkpoint.

    python examples/translation/train.py --data DATA/multi30k --output translation

DATA/multi30k holds train, val and test_2016_flickr as .en.gz and .de.gz, one sentence a line. A joint
byte-pair encoding is learned first, by `tokenizers`. After every epoch the state is kept in OUTPUT/state.pt;
the same command goes on from there, and one seed gives one model. One CPU core needs about an hour; a GPU is
used where there is one, and wants a larger --batch.
"""

from __future__ import annotations

import argparse
import gzip
import random
import time
from collections.abc import Iterator
from pathlib import Path

import torch
from rich.progress import Progress
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from torch.nn.functional import cross_entropy
from transformers import GenerationConfig, MarianConfig, MarianMTModel, PreTrainedTokenizerFast

END, UNKNOWN, PADDING = "</s>", "<unk>", "<pad>"
IGNORED = -100
"""Label of a padded position: it adds nothing to the loss."""

Pair = tuple[list[int], list[int]]
Batch = list[Pair]


def main() -> None:
    """Train with the options of the command line."""
    options = arguments()
    torch.manual_seed(options.seed)
    options.output.mkdir(parents=True, exist_ok=True)
    texts = read(options.data, "train")
    tokenizer = learned_tokenizer([*texts[0], *texts[1]], options.vocabulary)
    model = untrained(tokenizer, options).to("cuda" if torch.cuda.is_available() else "cpu")
    parameters = sum(value.numel() for value in model.parameters())
    print(f"{len(texts[0])} pairs, {len(tokenizer)} tokens, {parameters / 1e6:.2f} M parameters", flush=True)
    fit(model, encoded(tokenizer, texts), encoded(tokenizer, read(options.data, "val")), options)
    model.save_pretrained(options.output)
    tokenizer.save_pretrained(options.output)
    print(f"written to {options.output}")


def fit(
    model: MarianMTModel, train: list[Pair], development: list[Pair], options: argparse.Namespace
) -> None:
    """Train ``model`` in place; an earlier state in the output folder is where it starts."""
    steps = options.epochs * len(epoch_of(train, options, 0))
    optimiser = torch.optim.AdamW(model.parameters(), options.lr, (0.9, 0.98), weight_decay=0.01, fused=True)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimiser, options.lr, total_steps=steps + 1, pct_start=options.warmup, cycle_momentum=False
    )
    state = options.output / "state.pt"
    trained = 0
    if state.exists():
        trained = resumed(state, model, optimiser, schedule)
        print(f"goes on after epoch {trained}", flush=True)
    with Progress() as progress:
        bar = progress.add_task("training", total=steps, completed=schedule.last_epoch)
        for epoch in range(trained, options.epochs):
            torch.manual_seed(options.seed + 1 + epoch)  # the masks of dropout are those of an unbroken run
            started, losses = time.monotonic(), 0.0
            batches = epoch_of(train, options, epoch)
            for batch in batches:
                losses += step(model, batch, optimiser, options)
                schedule.step()
                progress.advance(bar)
            left = loss_on(model, development, options)
            seconds = time.monotonic() - started
            print(
                f"epoch {epoch + 1} of {options.epochs}: loss {losses / len(batches):.3f}, "
                f"validation {left:.3f}, {seconds:.0f} s",
                flush=True,
            )
            keep(state, epoch + 1, model, optimiser, schedule)


def step(
    model: MarianMTModel, batch: Batch, optimiser: torch.optim.Optimizer, options: argparse.Namespace
) -> float:
    """One update; returns the loss."""
    model.train()
    loss = loss_of(model, batch, options.smoothing)
    optimiser.zero_grad()
    loss.backward()  # type: ignore[no-untyped-call]
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimiser.step()
    return loss.item()


def loss_of(model: MarianMTModel, batch: Batch, smoothing: float) -> torch.Tensor:
    """Mean cross-entropy of the target's tokens, with the true answers as the decoder's inputs."""
    padding = model.config.pad_token_id
    source = padded([source for source, _ in batch], padding).to(model.device)
    labels = padded([target for _, target in batch], IGNORED).to(model.device)
    logits = model(input_ids=source, attention_mask=(source != padding).long(), labels=labels).logits
    return cross_entropy(
        logits.flatten(0, 1), labels.flatten(), label_smoothing=smoothing, ignore_index=IGNORED
    )


@torch.no_grad()
def loss_on(model: MarianMTModel, pairs: list[Pair], options: argparse.Namespace) -> float:
    """Mean of the batches' losses, without smoothing and dropout."""
    model.eval()
    found = [loss_of(model, batch, 0.0).item() for batch in batches_of(pairs, options.batch)]
    return sum(found) / len(found)


def epoch_of(pairs: list[Pair], options: argparse.Namespace, epoch: int) -> list[Batch]:
    """Batches of pairs of about one length, in an order of the epoch's own."""
    order = random.Random(options.seed * 1000 + epoch)
    found = list(batches_of(pairs, options.batch))
    order.shuffle(found)
    return found


def batches_of(pairs: list[Pair], tokens: int) -> Iterator[Batch]:
    """Pairs sorted by length, cut where the longer side, padded, would pass ``tokens``."""
    batch: Batch = []
    longest = 0
    for pair in sorted(pairs, key=lambda pair: (len(pair[1]), len(pair[0]))):
        longest = max(longest, *map(len, pair))
        if batch and longest * (len(batch) + 1) > tokens:
            yield batch
            batch, longest = [], max(map(len, pair))
        batch.append(pair)
    yield batch


def padded(rows: list[list[int]], filler: int) -> torch.Tensor:
    """Ids [batch, longest], filled up behind."""
    longest = max(map(len, rows))
    return torch.tensor([row + [filler] * (longest - len(row)) for row in rows])


def resumed(
    state: Path,
    model: MarianMTModel,
    optimiser: torch.optim.Optimizer,
    schedule: torch.optim.lr_scheduler.LRScheduler,
) -> int:
    """Load a kept state; returns its epochs."""
    kept = torch.load(state, weights_only=True)
    model.load_state_dict(kept["model"])
    optimiser.load_state_dict(kept["optimiser"])
    schedule.load_state_dict(kept["schedule"])
    return int(kept["epoch"])


def keep(
    state: Path,
    epoch: int,
    model: MarianMTModel,
    optimiser: torch.optim.Optimizer,
    schedule: torch.optim.lr_scheduler.LRScheduler,
) -> None:
    """Write the state; a kill while writing leaves the state before it."""
    parts = {"model": model, "optimiser": optimiser, "schedule": schedule}
    unfinished = state.with_suffix(".unfinished")
    torch.save({"epoch": epoch, **{name: part.state_dict() for name, part in parts.items()}}, unfinished)
    unfinished.replace(state)


def untrained(tokenizer: PreTrainedTokenizerFast, options: argparse.Namespace) -> MarianMTModel:
    """A Marian model of the options' sizes: one table for the encoder, the decoder and the logits."""
    end, padding = tokenizer.eos_token_id, tokenizer.pad_token_id
    config = MarianConfig(
        vocab_size=len(tokenizer),
        d_model=options.width,
        encoder_layers=options.layers,
        decoder_layers=options.layers,
        encoder_attention_heads=options.heads,
        decoder_attention_heads=options.heads,
        encoder_ffn_dim=2 * options.width,
        decoder_ffn_dim=2 * options.width,
        dropout=options.dropout,
        activation_function="relu",
        max_position_embeddings=256,
        scale_embedding=True,
        share_encoder_decoder_embeddings=True,
        pad_token_id=padding,
        eos_token_id=end,
        decoder_start_token_id=padding,
        forced_eos_token_id=end,
        init_std=options.width**-0.5 / 2,
    )
    model = MarianMTModel(config)
    model.generation_config = GenerationConfig(
        decoder_start_token_id=padding,
        pad_token_id=padding,
        eos_token_id=end,
        forced_eos_token_id=end,
        bad_words_ids=[[padding]],
        max_length=128,
        num_beams=4,
    )
    return model


def learned_tokenizer(texts: list[str], size: int) -> PreTrainedTokenizerFast:
    """A byte-pair encoding of both languages; a text ends in END, and words begin with ▁."""
    tokenizer = Tokenizer(models.BPE(unk_token=UNKNOWN))
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Metaspace(), pre_tokenizers.Punctuation()]
    )
    tokenizer.decoder = decoders.Metaspace()
    trainer = trainers.BpeTrainer(
        vocab_size=size, special_tokens=[END, UNKNOWN, PADDING], show_progress=False
    )
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"$A {END}", special_tokens=[(END, tokenizer.token_to_id(END))]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token=END,
        unk_token=UNKNOWN,
        pad_token=PADDING,
        model_max_length=256,
        model_input_names=["input_ids", "attention_mask"],
    )


def encoded(tokenizer: PreTrainedTokenizerFast, texts: tuple[list[str], list[str]]) -> list[Pair]:
    """Ids of every pair, of at most 128 tokens a side."""
    sources, targets = (tokenizer(side, truncation=True, max_length=128)["input_ids"] for side in texts)
    return list(zip(sources, targets, strict=True))


def read(folder: Path, split: str) -> tuple[list[str], list[str]]:
    """English and German lines of a split."""
    english, german = (lines_of(folder / f"{split}.{language}.gz") for language in ("en", "de"))
    if len(english) != len(german):
        raise SystemExit(f"{folder}: {split} has {len(english)} English and {len(german)} German lines")
    return english, german


def lines_of(path: Path) -> list[str]:
    """Lines of a .gz file."""
    with gzip.open(path, "rt", encoding="utf-8") as lines:
        return [line.strip() for line in lines]


def arguments() -> argparse.Namespace:
    """Options of the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True, help="folder of Multi30k")
    parser.add_argument("--output", type=Path, required=True, help="folder to write")
    parser.add_argument("--epochs", type=int, default=14)
    parser.add_argument("--batch", type=int, default=1024, help="tokens of the longer side, padding included")
    parser.add_argument("--lr", type=float, default=2e-3, help="highest rate")
    parser.add_argument("--warmup", type=float, default=0.1, help="share of the steps in which it rises")
    parser.add_argument("--dropout", type=float, default=0.1)
    parser.add_argument("--smoothing", type=float, default=0.1, help="share of the labels spread over all")
    parser.add_argument("--vocabulary", type=int, default=4000)
    parser.add_argument("--width", type=int, default=128)
    parser.add_argument("--layers", type=int, default=3, help="of the encoder, and as many of the decoder")
    parser.add_argument("--heads", type=int, default=4)
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args()


if __name__ == "__main__":
    main()
