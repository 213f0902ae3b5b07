"""ShapesTasks with stored tokens in place of images, as the data sets "stored-tasks".

It imports no other helper, so that the setting `imports` can name this file.
"""

import dataclasses

import torch

from setokim import SetokModel
from setokim.data.build import GENERATED
from setokim.data.conversations import Conversation
from setokim.data.tokens.layout import KINDS
from setokim.shapes_world.dataset import ShapesWorld
from setokim.shapes_world.tasks import ShapesTasks
from setokim.tokenizer.identity import folder_identity
from setokim.tokenizer.stored_tokens import to_stored


class StoredTasks:
    """Conversations of ShapesTasks whose images are stored by a tokenizer, each on its own.

    Args:
        seed: random seed of the samples.
        size: side of the images in pixels.
        model: folder of the tokenizer.
        what: what is stored.
        dtype: name of the dtype of tokens, masks and features.
        captions: flag of captioned images of ShapesWorld instead.
        options: further options of ShapesTasks.
    """

    def __init__(self, seed, size, model, what=KINDS, dtype="float32", captions=False, **options):
        make = ShapesWorld if captions else ShapesTasks
        self._samples = make(seed, size=size, **options)
        self._setok = SetokModel.from_pretrained(model).eval()
        self._dtype = getattr(torch, dtype)
        self.what = tuple(what)
        self.model = {
            "fingerprint": folder_identity(model),
            "rows": self._setok.max_tokens(),
            "token_dim": self._setok.config.token_dim,
            "dtype": dtype,
        }

    def __len__(self):
        return len(self._samples)

    def __getitem__(self, index):
        sample = self._samples[index]
        if not isinstance(sample, Conversation):
            return dataclasses.replace(sample, image=self._stored(sample.image))
        messages = tuple(
            {
                **message,
                "content": [
                    {**part, "image": self._stored(part["image"])} if "image" in part else part
                    for part in message["content"]
                ],
            }
            for message in sample.messages
        )
        return dataclasses.replace(sample, messages=messages)

    @torch.no_grad()
    def _stored(self, image):
        visual = self._setok.tokenize([image])
        return to_stored(visual, [(image.height, image.width)], self.what, self._dtype)[0]


if "stored-tasks" not in GENERATED:
    GENERATED.register("stored-tasks")(StoredTasks)
