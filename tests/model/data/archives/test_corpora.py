import numpy as np
import pytest

from helpers.tars import add_reason
from setok_bench.corpora import BROKEN, write_corpus
from setokim.data.archives import read_entries


def read_all(corpus):
    entries = [entry for shard in corpus.shards for entry in read_entries(shard)]
    found = {}
    for entry in entries:
        add_reason(found, entry.load)
    return [entry.key for entry in entries], found


def test_a_corpus_is_as_it_says(tmp_path):
    corpus = write_corpus(tmp_path / "a", 60, 7, broken=9, seed=3, sides=(16, 40))
    assert [path.name for path in corpus.shards] == [f"shard-{n:05d}.tar" for n in range(7)]
    keys, found = read_all(corpus)
    assert tuple(keys) == corpus.keys and len(set(keys)) == 60
    broken = [name.split(": ")[1] for name, text in found.items() if not isinstance(text, str)]
    assert broken == list(corpus.broken) and set(corpus.broken.values()) == set(BROKEN)
    assert corpus.readable == 51
    captions = [text for text in found.values() if isinstance(text, str)]
    assert {text.split()[1:2] == ["detail"] for text in captions if text} == {True, False}
    assert "" in captions
    images = [
        entry.load().image
        for entry in read_entries(corpus.shards[0])
        if entry.key not in corpus.broken
    ]
    sizes = [side for image in images for side in image.size]
    assert min(sizes) >= 16 and max(sizes) <= 40 and len(set(sizes)) > 4


def test_a_corpus_depends_on_its_seed_alone(tmp_path):
    def contents(name, **options):
        corpus = write_corpus(tmp_path / name, 12, broken=2, sides=(16, 24), **options)
        return [path.read_bytes() for path in corpus.shards], corpus

    (first, corpus), (second, again) = (contents(n, shards=3, seed=1) for n in "ab")
    assert first == second and corpus.broken == again.broken
    assert contents("c", shards=3, seed=2)[0] != first
    _, other = contents("d", shards=1, seed=1)
    assert other.broken == corpus.broken
    with pytest.raises(ValueError, match="within 12, got 2 and 13"):
        contents("e", shards=13, seed=1)
    for ours, theirs in zip(*map(_pixels, (corpus, other)), strict=True):
        assert np.array_equal(ours, theirs)


def _pixels(corpus):
    entries = [entry for shard in corpus.shards for entry in read_entries(shard)]
    return [np.asarray(e.load().image) for e in entries if e.key not in corpus.broken]
