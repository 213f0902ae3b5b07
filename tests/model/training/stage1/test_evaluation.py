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
from setokim.training.stage1.evaluation import evaluate
from setokim.training.stage1.samples import draw_samples
from setokim.training.stage1.stage import Stage1, Stage1Collator

# Three pictures of 2 × 2 patches and 4 × 4 pixels: clusters of patches, true objects of pixels.
LABELS = torch.tensor([[0, 1, 1, 1], [0, 1, 2, 2], [0, 1, 2, 3]])
OBJECTS = [
    [[0, 0, 1, 1], [0, 0, 1, 1], [1, 1, 1, 1], [1, 1, 1, 1]],
    [[1, 1, 2, 2], [1, 1, 2, 2], [0, 0, 0, 0], [0, 0, 0, 0]],
    [[1, 1, 2, 2], [1, 1, 2, 2], [3, 3, 3, 0], [3, 3, 3, 0]],
]
# Of pictures and texts: the second picture finds the third text.
SIMILARITY = torch.tensor([[0.9, 0.1, 0.2], [0.1, 0.5, 0.6], [0.3, 0.2, 0.4]])


class Stub:
    """Knows the answers; picture i is recognised by its first pixel."""

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

    def similarity(self, tokens, occupied, words):
        return SIMILARITY[tokens[:, 0, 0].long()][:, words[:, 0, 0] - 1]


def collate(samples):
    pictures = np.stack([np.asarray(sample.image, np.float32) / 255 for sample in samples])
    pixels = torch.from_numpy(pictures).permute(0, 3, 1, 2)
    ids = [[[int(sample.concepts[0])]] if sample.concepts else [[0]] for sample in samples]
    return {"pixels": pixels, "target": pixels, "words": torch.tensor(ids)}


def samples(masks=OBJECTS, words=True):
    pictures = [Image.new("RGB", (4, 4), (i, 100, 100)) for i in range(3)]
    return [
        Sample(
            picture,
            "",
            (str(i + 1),) if words else (),
            None if mask is None else np.array(mask),
            str(i),
        )
        for i, (picture, mask) in enumerate(zip(pictures, masks, strict=True))
    ]


@pytest.mark.parametrize("batch_size", [1, 2, 3, 7])
def test_figures_by_hand(batch_size):
    # Peak 1 over a squared error of 0.01 are 20 dB.
    found = evaluate(Stub(error=0.1), collate, samples(), batch_size)
    # Only the third picture's last object is torn: clusters of 4, 4, 4 and 2 of the 14 pixels that
    # count, in objects of 4, 4 and 6. Pairs of pixels together in both, in objects, and in all:
    pairs, truth, total = 6 + 6 + 6 + 1, 6 + 6 + 15, 91
    by_chance = pairs * truth / total
    torn = (pairs - by_chance) / ((pairs + truth) / 2 - by_chance)
    expected = {
        "psnr": 20,
        "tokens": 3,
        "fg_ari": (1 + 1 + torn) / 3,
        # One cluster of 4 lies in that object of 6.
        "best_overlap_iou": (1 + 1 + (1 + 1 + 4 / 6) / 3) / 3,
        "token_object_correlation": 1,
        "recall_at_1": 2 / 3,
        "recall_at_1_chance": 1 / 3,
    }
    assert found.pop("sharpness") is None  # flat pictures have none
    assert found.keys() == expected.keys()
    assert found == pytest.approx(expected, rel=1e-6)


def test_what_is_not_defined_is_null_in_json():
    equal = [OBJECTS[1], OBJECTS[1], OBJECTS[1]]
    found = evaluate(Stub(), collate, samples(equal), 2)
    assert found["psnr"] is None and found["token_object_correlation"] is None
    assert json.loads(json.dumps(found, allow_nan=False)) == found
    nearly = evaluate(Stub(error=1e-4), collate, samples(equal), 2)
    assert nearly["psnr"] == pytest.approx(80, abs=0.01)
    without_objects = evaluate(Stub(), collate, samples([np.zeros((4, 4), int)] * 3), 2)
    assert without_objects["fg_ari"] is None and without_objects["best_overlap_iou"] is None


def test_figures_that_need_masks_or_texts_are_left_out():
    always = {"psnr", "tokens", "sharpness"}
    retrieval = {"recall_at_1", "recall_at_1_chance"}
    masks = [None, None, None]
    assert evaluate(Stub(), collate, samples(masks), 2).keys() == always | retrieval
    assert evaluate(Stub(), collate, samples(masks, words=False), 2).keys() == always
    silent = Stub(contrastive=0.0)
    assert evaluate(silent, collate, samples(masks), 2).keys() == always
    some = evaluate(silent, collate, samples([None, OBJECTS[1], None]), 2)
    assert some == {**some, "fg_ari": 1, "best_overlap_iou": 1}
    assert some.keys() == always | {"fg_ari", "best_overlap_iou"}


def test_batches_do_not_change_the_figures(tmp_path):
    torch.manual_seed(0)
    stage = Stage1(tiny_settings(tmp_path))
    collate, held_out = Stage1Collator(stage), [ShapesWorld(3, size=32)[i] for i in range(7)]
    whole = evaluate(stage, collate, held_out, 7)
    assert evaluate(stage, collate, held_out, 3) == pytest.approx(whole, rel=1e-5)
    assert whole["recall_at_1_chance"] == 1 / 7


def test_sheet_of_pictures(tmp_path):
    path = tmp_path / "new" / "sheet.png"
    draw_samples(Stub(error=1.0), collate, samples([OBJECTS[0], None, OBJECTS[2]]), path)
    sheet = np.asarray(Image.open(path))
    # Three columns of picture, drawing, clusters and truth; 128 pixels each, 4 between them.
    assert sheet.shape == (4 * 132 + 4, 3 * 132 + 4, 3)
    cells = [[sheet[132 * y + 4 :, 132 * x + 4 :][:128, :128] for x in range(3)] for y in range(4)]
    assert (cells[0][2] == (2, 100, 100)).all()
    # Cut to what a picture can show.
    assert (cells[1][0] == 255).all()
    assert len(np.unique(cells[2][2].reshape(-1, 3), axis=0)) == 4
    assert len(np.unique(cells[3][2].reshape(-1, 3), axis=0)) == 4
    assert (cells[3][1] == 255).all() and not (cells[3][0] == 255).all()
    # Clusters are patches: the last picture's have a quarter of the cell each.
    quarter = cells[2][2][:64, :64].reshape(-1, 3)
    assert len(np.unique(quarter, axis=0)) == 1
