import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from helpers.tiny_stage1 import tiny_settings
from setokim.data import Sample, ShapesWorld
from setokim.tokenizer.modeling_setok import VisualTokens
from setokim.training.settings import LossSettings
from setokim.training.stage1.collator import Stage1Collator
from setokim.training.stage1.evaluation import evaluate, reconstructed
from setokim.training.stage1.samples import write_samples
from setokim.training.stage1.stage import Stage1

# Three images of 2 × 2 patches and 4 × 4 pixels: clusters of patches, true objects of pixels.
LABELS = torch.tensor([[0, 1, 1, 1], [0, 1, 2, 2], [0, 1, 2, 3]])
OBJECTS = [
    [[0, 0, 1, 1], [0, 0, 1, 1], [1, 1, 1, 1], [1, 1, 1, 1]],
    [[1, 1, 2, 2], [1, 1, 2, 2], [0, 0, 0, 0], [0, 0, 0, 0]],
    [[1, 1, 2, 2], [1, 1, 2, 2], [3, 3, 3, 0], [3, 3, 3, 0]],
]
# Similarities of images and texts: the second image retrieves the third text.
SIMILARITY = torch.tensor([[0.9, 0.1, 0.2], [0.1, 0.5, 0.6], [0.3, 0.2, 0.4]])


class Stub:
    """Stage with fixed results; the first pixel of an image is its index."""

    def __init__(self, error=0.0, **losses):
        self.losses = LossSettings(**losses)
        self.error = error

    def parameters(self):
        yield torch.zeros(())

    def setok(self, pixels):
        numbers = (pixels[:, 0, 0, 0] * 255).round().long()  # (B,)
        labels = LABELS[numbers]
        occupied = torch.arange(4) <= labels.amax(1, keepdim=True)  # (B, 4)
        tokens = numbers[:, None, None].float().expand(-1, 4, 1)
        visual = VisualTokens(tokens, occupied, SimpleNamespace(labels=labels), (2, 2))
        return visual, pixels + self.error

    def similarity(self, tokens, occupied, text_ids):
        return SIMILARITY[tokens[:, 0, 0].long()][:, text_ids[:, 0, 0] - 1]


def collate(samples):
    images = np.stack([np.asarray(sample.image, np.float32) / 255 for sample in samples])
    pixels = torch.from_numpy(images).permute(0, 3, 1, 2)
    ids = [[[int(sample.concepts[0])]] if sample.concepts else [[0]] for sample in samples]
    return {"pixels": pixels, "target": pixels, "words": torch.tensor(ids)}


def samples(masks=OBJECTS, texts=True):
    images = [Image.new("RGB", (4, 4), (i, 100, 100)) for i in range(3)]
    return [
        Sample(
            image,
            "",
            (str(i + 1),) if texts else (),
            None if mask is None else np.array(mask),
            str(i),
        )
        for i, (image, mask) in enumerate(zip(images, masks, strict=True))
    ]


@pytest.mark.parametrize("batch_size", [1, 2, 3, 7])
def test_metrics_by_hand(batch_size):
    # Peak 1 over a squared error of 0.01 are 20 dB.
    found = evaluate(Stub(error=0.1), collate, samples(), batch_size)
    # Only the last object of the third image is split: clusters of 4, 4, 4 and 2 of the 14 pixels
    # of objects, in objects of 4, 4 and 6. Pairs of pixels in both, in objects, and in total:
    pairs, truth, total = 6 + 6 + 6 + 1, 6 + 6 + 15, 91
    by_chance = pairs * truth / total
    split = (pairs - by_chance) / ((pairs + truth) / 2 - by_chance)
    expected = {
        "psnr": 20,
        "tokens": 3,
        "fg_ari": (1 + 1 + split) / 3,
        # The object of 6 overlaps best with a cluster of 4 inside it.
        "best_overlap_iou": (1 + 1 + (1 + 1 + 4 / 6) / 3) / 3,
        "token_object_correlation": 1,
        "recall_at_1": 2 / 3,
        "recall_at_1_chance": 1 / 3,
    }
    assert found.pop("sharpness") is None  # constant images have none
    assert found.keys() == expected.keys()
    assert found == pytest.approx(expected, rel=1e-6)


def test_undefined_metrics_are_null_in_json():
    equal = [OBJECTS[1], OBJECTS[1], OBJECTS[1]]
    found = evaluate(Stub(), collate, samples(equal), 2)
    assert found["psnr"] is None and found["token_object_correlation"] is None
    assert json.loads(json.dumps(found, allow_nan=False)) == found
    nearly = evaluate(Stub(error=1e-4), collate, samples(equal), 2)
    assert nearly["psnr"] == pytest.approx(80, abs=0.01)
    without_objects = evaluate(Stub(), collate, samples([np.zeros((4, 4), int)] * 3), 2)
    assert without_objects["fg_ari"] is None and without_objects["best_overlap_iou"] is None


def test_metrics_that_need_masks_or_texts_are_left_out():
    always = {"psnr", "tokens", "sharpness"}
    retrieval = {"recall_at_1", "recall_at_1_chance"}
    masks = [None, None, None]
    assert evaluate(Stub(), collate, samples(masks), 2).keys() == always | retrieval
    assert evaluate(Stub(), collate, samples(masks, texts=False), 2).keys() == always
    silent = Stub(contrastive=0.0)
    assert evaluate(silent, collate, samples(masks), 2).keys() == always
    some = evaluate(silent, collate, samples([None, OBJECTS[1], None]), 2)
    assert some == {**some, "fg_ari": 1, "best_overlap_iou": 1}
    assert some.keys() == always | {"fg_ari", "best_overlap_iou"}


def test_metrics_do_not_depend_on_the_batch_size(tmp_path):
    torch.manual_seed(0)
    stage = Stage1(tiny_settings(tmp_path))
    collate, held_out = (
        Stage1Collator(stage.setok, stage.text.tokenize),
        [ShapesWorld(3, size=32)[i] for i in range(7)],
    )
    whole = evaluate(stage, collate, held_out, 7)
    assert evaluate(stage, collate, held_out, 3) == pytest.approx(whole, rel=1e-5)
    assert whole["recall_at_1_chance"] == 1 / 7


def test_image_sheet(tmp_path):
    path = tmp_path / "new" / "sheet.png"
    shown = samples([OBJECTS[0], None, OBJECTS[2]])
    write_samples(reconstructed(Stub(error=1.0), collate, shown, 3), path)
    sheet = np.asarray(Image.open(path))
    # Three columns of image, reconstruction, clusters and truth; 128 pixels each, 4 between them.
    assert sheet.shape == (4 * 132 + 4, 3 * 132 + 4, 3)
    cells = [[sheet[132 * y + 4 :, 132 * x + 4 :][:128, :128] for x in range(3)] for y in range(4)]
    assert (cells[0][2] == (2, 100, 100)).all()
    # Values above 1 are clipped.
    assert (cells[1][0] == 255).all()
    assert len(np.unique(cells[2][2].reshape(-1, 3), axis=0)) == 4
    assert len(np.unique(cells[3][2].reshape(-1, 3), axis=0)) == 4
    assert (cells[3][1] == 255).all() and not (cells[3][0] == 255).all()
    # Clusters are patches: those of the last image have a quarter of the cell each.
    quarter = cells[2][2][:64, :64].reshape(-1, 3)
    assert len(np.unique(quarter, axis=0)) == 1
