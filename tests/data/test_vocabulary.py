"""A tokenizer without most of its tokens: kept texts are cut as before, others into smaller pieces."""

from __future__ import annotations

import json

import pytest
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

from graphcompress.data.vocabulary import Vocabulary, write_without
from graphcompress.errors import DataError

TEXTS = [
    "the quick brown fox jumps over the lazy dog",
    "a slow red fox walks under the bridge",
    "brown bridges and quick dogs are walking slowly",
    "jumping over foxes is lazy work for the quickest dogs",
] * 5
KEPT = ["the quick brown fox", "a slow red dog"]
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]
LATER = "<|later|>"


def _word_piece() -> Tokenizer:
    made = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    made.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    made.normalizer = normalizers.Lowercase()
    made.train_from_iterator(TEXTS, trainers.WordPieceTrainer(vocab_size=160, special_tokens=SPECIAL))
    return made


def _byte_pairs() -> Tokenizer:
    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=360, special_tokens=SPECIAL, initial_alphabet=alphabet)
    made.train_from_iterator(TEXTS, trainer)
    return made


def _plain_pairs() -> Tokenizer:
    made = Tokenizer(models.BPE(unk_token="[UNK]", continuing_subword_prefix="##"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    trainer = trainers.BpeTrainer(vocab_size=160, special_tokens=SPECIAL, continuing_subword_prefix="##")
    made.train_from_iterator(TEXTS, trainer)
    return made


def _unigram() -> Tokenizer:
    made = Tokenizer(models.Unigram())
    made.pre_tokenizer = pre_tokenizers.Metaspace()
    made.decoder = decoders.Metaspace()
    made.train_from_iterator(
        TEXTS, trainers.UnigramTrainer(vocab_size=120, special_tokens=SPECIAL, unk_token="[UNK]")
    )
    return made


def _words() -> Tokenizer:
    made = Tokenizer(models.WordLevel(unk_token="[UNK]"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    made.train_from_iterator(TEXTS, trainers.WordLevelTrainer(vocab_size=160, special_tokens=SPECIAL))
    return made


KINDS = {
    "WordLevel": _words,
    "WordPiece": _word_piece,
    "byte level": _byte_pairs,
    "BPE": _plain_pairs,
    "Unigram": _unigram,
}


@pytest.fixture(params=KINDS)
def cut(request, tmp_path):
    """A tokenizer, the one without the tokens that KEPT does not use, and the ids that stay."""
    whole = KINDS[request.param]()
    # Added when the tokenizer is there, as chat templates do: they are no part of its model.
    whole.add_special_tokens([LATER])
    whole.add_tokens(["quickest"])
    whole.save(str(tmp_path / "tokenizer.json"))
    used = {index for text in KEPT for index in whole.encode(text).ids}
    vocabulary = Vocabulary.beside(tmp_path)
    assert vocabulary is not None
    kept = vocabulary.closed(used)
    assert write_without(tmp_path, kept)
    return whole, Tokenizer.from_file(str(tmp_path / "tokenizer.json")), kept


def test_texts_of_kept_tokens_are_cut_as_before(cut):
    whole, fewer, _ = cut
    for text in KEPT:
        assert fewer.encode(text).ids == whole.encode(text).ids


def test_other_texts_fall_into_smaller_pieces_that_are_kept(cut):
    whole, fewer, kept = cut
    for text in TEXTS[:4]:
        ids = fewer.encode(text).ids
        assert set(ids) <= kept
        assert len(ids) >= len(whole.encode(text).ids)
    words = isinstance(whole.model, models.WordLevel)  # has no pieces
    assert len(fewer.encode(TEXTS[3]).ids) >= len(whole.encode(TEXTS[3]).ids) + (not words)


def test_special_tokens_keep_their_ids(cut):
    whole, fewer, kept = cut
    for token in (*SPECIAL, LATER, "quickest"):
        assert fewer.token_to_id(token) == whole.token_to_id(token) in kept
        assert fewer.id_to_token(whole.token_to_id(token)) == token
    text = f"a slow{LATER} red dog"
    assert fewer.encode(text).ids == whole.encode(text).ids


def test_tokens_are_gone(cut):
    whole, _, kept = cut
    assert len(kept) < whole.get_vocab_size()


def test_what_is_cut_twice_is_cut_once(cut, tmp_path):
    _, _, kept = cut
    before = json.loads((tmp_path / "tokenizer.json").read_text())
    write_without(tmp_path, kept)
    assert json.loads((tmp_path / "tokenizer.json").read_text()) == before


def test_without_a_tokenizer_nothing_is_written(tmp_path):
    assert not write_without(tmp_path, frozenset({1}))
    assert not list(tmp_path.iterdir())


def test_a_damaged_tokenizer_is_told(tmp_path):
    (tmp_path / "tokenizer.json").write_text('{"model": []}')
    with pytest.raises(DataError, match="no tokenizer can be read from it"):
        Vocabulary.beside(tmp_path)


def test_a_file_that_does_not_say_its_kind_is_read(cut, tmp_path):
    """As older ones do not."""
    settings = json.loads((tmp_path / "tokenizer.json").read_text())
    kind = settings["model"].pop("type")
    assert Vocabulary(settings).kind == kind
