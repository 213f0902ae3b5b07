import dataclasses
import pickle

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader

from setokim.data import Conversation, Guarded, Sample
from setokim.data.build import GENERATED, Counted, build_dataset
from setokim.data.conversations import MASK, message
from setokim.data.mixture import Mixture
from setokim.data.readers.captions import Pairs
from setokim.data.readers.texts import SlimPajama
from setokim.data.stored_image import StoredImage
from setokim.data.tokens.batches import ImageBatch
from setokim.data.tokens.contents import Contents, contents_of


def stored(n=2, seed=0, dtype=torch.float32, **fields) -> StoredImage:
    generator = torch.Generator().manual_seed(seed)
    tensors = {
        "tokens": torch.randn(n, 5, generator=generator).to(dtype),
        "labels": torch.zeros(6, dtype=torch.int64),
        "masks": torch.rand(n, 6, generator=generator),
        "features": None,
    }
    return StoredImage(
        height=8,
        width=12,
        grid=(1, 2, 3),
        sizes=torch.full((n,), 3),
        positions=torch.rand(n, 3, generator=generator),
        seeds=torch.arange(n),
        **tensors | fields,
    )


class Stored:
    what = ("tokens",)

    def __init__(self):
        self.model = {"fingerprint": {}}

    def __len__(self):
        return 4

    def __getitem__(self, index):
        return Sample(stored(seed=index), "a red ball", (), None, f"stored {index}")


def pictures():
    return build_dataset("shapes-world", size=16)


def assert_same(found, expected):
    assert len(found) == len(expected)
    for a, b in zip(found, expected, strict=True):
        if not isinstance(b, StoredImage):
            assert a is b or a.tobytes() == b.tobytes()
            continue
        for field in dataclasses.fields(StoredImage):
            x, y = getattr(a, field.name), getattr(b, field.name)
            if isinstance(y, torch.Tensor):
                assert x.shape == y.shape and torch.equal(x, y.to(x.dtype)), field.name
            else:
                assert x == y, field.name


BATCHES = {
    "nothing": [],
    "images": [Image.new("RGB", (3, 4)), Image.new("RGB", (5, 6), "red")],
    "stored": [stored(2), stored(3, 1), stored(0, 2)],
    "both": [stored(2), Image.new("RGB", (3, 4)), stored(1, 1)],
    "some masks": [stored(2), stored(2, 1, masks=None, labels=None)],
    "features": [stored(2, tokens=None, features=torch.rand(6, 4))],
    "two dtypes": [stored(2, dtype=torch.bfloat16), stored(2, 1)],
}


@pytest.mark.parametrize("name", BATCHES)
def test_a_batch_keeps_its_images(name):
    images = BATCHES[name]
    batch = ImageBatch(images)
    assert_same(batch, images)
    assert_same(pickle.loads(pickle.dumps(batch)), images)
    assert [type(image) for image in batch] == [type(image) for image in images]
    if images:
        assert_same([batch[-1]], images[-1:])


def test_a_batch_moves_as_one():
    batch = ImageBatch(BATCHES["both"]).to("meta")
    assert batch[0].tokens.device.type == batch[2].positions.device.type == "meta"
    assert batch[0].grid == (1, 2, 3) and isinstance(batch[1], Image.Image)


def test_workers_send_few_tensors():
    """One of each kind, however many images there are."""
    columns = ImageBatch([stored(seed=seed) for seed in range(50)])._columns
    assert len(columns) == 7
    loader = DataLoader(range(4), batch_size=2, num_workers=1, collate_fn=_batch_of)
    for i, batch in enumerate(loader):
        assert_same(batch, [stored(seed=2 * i), stored(seed=2 * i + 1)])


def _batch_of(indices):
    return ImageBatch([stored(seed=index) for index in indices])


def test_samples_and_conversations_of_stored_images():
    sample = Sample(stored(), "a ball", (), np.zeros((8, 12), np.int64), "s")
    assert isinstance(sample.image, StoredImage)
    with pytest.raises(ValueError, match=r"masks: expected shape \(8, 12\), got \(12, 8\)"):
        Sample(stored(), "a ball", (), np.zeros((12, 8), np.int64), "s")
    turns = message("user", stored(), "the ball"), message("assistant", MASK)
    assert Conversation("segment", turns, (np.zeros((8, 12), bool),)).masks
    with pytest.raises(ValueError, match=r"masks\[0\]: expected bool of shape \(8, 12\)"):
        Conversation("segment", turns, (np.zeros((8, 8), bool),))


def test_pairs_of_stored_images():
    pairs = Pairs(Stored(), "both")
    caption, generate = pairs[2], pairs[3]
    assert isinstance(caption.messages[0]["content"][0]["image"], StoredImage)
    assert isinstance(generate.messages[1]["content"][0]["image"], StoredImage)


def test_contents_of_data_sets(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"text": "words"}\n')
    data, texts = Stored(), SlimPajama(tmp_path)
    assert contents_of(data) == Contents(False, (data,))
    assert contents_of(pictures()) == Contents(True)
    assert contents_of(texts) == Contents(False)
    for around in (
        Guarded(data),
        Counted(Guarded(data)),
        Guarded(Pairs(data, "caption")),
        Mixture({"a": data, "b": texts}, {"a": 1, "b": 1}),
    ):
        assert contents_of(around) == Contents(False, (data,))
    mixture = Mixture({"a": data, "b": pictures(), "c": data}, {"a": 1, "b": 1, "c": 1})
    assert contents_of(Guarded(mixture)) == Contents(True, (data, data))


def test_contents_of_the_first_samples(monkeypatch):
    monkeypatch.setitem(GENERATED._found, "stored", lambda seed, size: Stored())
    data = build_dataset("stored", samples=2, pairs="caption")
    assert len(data) == 2 and contents_of(data).stored and not contents_of(data).images
