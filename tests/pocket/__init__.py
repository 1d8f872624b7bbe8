"""The pocket Kandinsky 2.2: real classes and folder layout, random weights, 7.6 M parameters.

Block types, special ids and schedules are the published model's and only the widths are small, so code that
works on the pocket works on the real one. `python -m tests.pocket DIR` writes the two repositories.
"""

from tests.pocket.build import build_pocket
from tests.pocket.captions import CAPTIONS
from tests.pocket.models import (
    EMBED_DIM,
    IMAGE_SIZE,
    pocket_image_processor,
    pocket_movq,
    pocket_prior,
    pocket_text_encoder,
    pocket_unet,
    pocket_vision,
)
from tests.pocket.tokenizer import pocket_tokenizer

__all__ = [
    "CAPTIONS",
    "EMBED_DIM",
    "IMAGE_SIZE",
    "build_pocket",
    "pocket_image_processor",
    "pocket_movq",
    "pocket_prior",
    "pocket_text_encoder",
    "pocket_tokenizer",
    "pocket_unet",
    "pocket_vision",
]
