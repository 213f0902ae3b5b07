"""An explorer with the photographs and one image of the command line, and its visitors."""

import pytest
from PIL import Image

OWN = "own image.png"


@pytest.fixture(scope="module")
def own_file(tmp_path_factory):
    photographs = pytest.importorskip("setokim.data.photographs")
    path = tmp_path_factory.mktemp("images") / OWN
    photographs.photograph("chelsea").convert("RGB").resize((226, 150), Image.BILINEAR).save(path)
    return path


@pytest.fixture(scope="module")
def features(own_file):
    pytest.importorskip("gradio")
    from setokim import build_encoder
    from setokim.explorer.features import Features
    from setokim.explorer.images import Images

    encoder = build_encoder("patch-statistics")
    return Features(Images([own_file]), encoder, "patch-statistics")


@pytest.fixture(scope="module")
def served(features, browser):
    """Address of the explorer; without a browser it does not start."""
    from setokim.explorer.server import serve

    with serve(features) as address:
        yield address
