"""The clustering explorer as a Space of Hugging Face, or on any server that runs Gradio's apps."""

from setokim import build_encoder
from setokim.explorer.features import Features
from setokim.explorer.images import Images
from setokim.explorer.page import build_page
from setokim.explorer.server import launch

# Or the name of a vision model, such as "google/siglip-so400m-patch14-384".
ENCODER = "patch-statistics"

page = build_page(Features(Images(), build_encoder(ENCODER), ENCODER))

if __name__ == "__main__":
    launch(page)
