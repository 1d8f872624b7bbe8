"""The frozen encoders: what each makes, what decides its identity, how it is called.

An encoder is described before it is loaded: `column` needs only the files' hashes and configs, so a run
that has nothing to do, or that meets another identity, loads no weights. The calls are those of the
reference scripts and pipelines; where they matter the reason stands beside them.

Shapes: B pictures or captions, D embedding, N tokens, C latent channels, R resolution.
"""

from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from data_tools import images, models
from data_tools.cache.fields import Column, Field, Row
from data_tools.cache.identity import digest, hash_files
from data_tools.cache.manifest import VERSION
from data_tools.errors import UserError
from precompute.options import EncoderOptions

TORCH_DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


class ImageEncoder:
    """CLIP vision with projection: `image_embeds (D,)`, raw, of the picture as the processor crops it."""

    def __init__(self, repo: Path, options: EncoderOptions) -> None:
        self.folder, self.options = repo / "image_encoder", options
        self.processor_folder = repo / "image_processor"

    @cached_property
    def column(self) -> Column:
        config = models.config(self.folder, flag="--prior-model")
        processor = models.config(self.processor_folder, flag="--prior-model")
        identity = {
            **_identity(self.folder, "--prior-model", self.options),
            "image_processor": digest(_settings(processor)),
            "image_processor_backend": "pil",
            **_colours(self.options),
        }
        field = Field("image_embeds", self.options.dtype, (config["projection_dim"],))
        return _column("image", (field,), identity, self.options.prior_record)

    def load(self) -> None:
        import transformers
        from transformers import CLIPVisionModelWithProjection

        # transformers 5 made CLIPImageProcessor the torchvision one, with other pixels; theirs was PIL
        processor = getattr(transformers, "CLIPImageProcessorPil", None) or transformers.CLIPImageProcessor
        self.processor = processor.from_pretrained(self.processor_folder)
        self.model = _load(CLIPVisionModelWithProjection, self.folder, "--prior-model", self.options)

    def prepare(self, image: Image.Image) -> NDArray[np.float32]:
        """An RGB picture to `pixel_values` (3, H, W)."""
        pixels: NDArray[np.float32] = self.processor(images=image, return_tensors="np").pixel_values[0]
        return pixels

    def encode(self, pixel_values: NDArray[np.float32]) -> list[Row]:
        """(B, 3, H, W) to one row a picture."""
        embeds = self.model(pixel_values=_to(self.model, pixel_values)).image_embeds  # (B, D)
        return [{"image_embeds": row} for row in _stored(embeds, self.options.dtype)]

    def null(self) -> Row:
        """The pipelines' unconditional image: an all-zero *normalised* picture, not a zero embedding."""
        size = self.model.config.image_size
        return self.encode(np.zeros((1, 3, size, size), dtype=np.float32))[0]


class LatentsEncoder:
    """MoVQ: `latents (C, h, w)` of the centre square at one resolution, neither quantised nor scaled."""

    def __init__(self, repo: Path, options: EncoderOptions, resolution: int) -> None:
        self.folder, self.options, self.resolution = repo / "movq", options, resolution

    @cached_property
    def column(self) -> Column:
        config = models.config(self.folder, flag="--decoder-model")
        side = self.resolution // 2 ** (len(config["block_out_channels"]) - 1)
        identity = {
            **_identity(self.folder, "--decoder-model", self.options),
            "resolution": self.resolution,
            "crop": "center square",
            "resampling": "PIL bicubic, reducing_gap=1",
            **_colours(self.options),
        }
        field = Field("latents", self.options.dtype, (config["vq_embed_dim"], side, side))
        return _column(f"latents@{self.resolution}", (field,), identity, self.options.decoder_record)

    def load(self) -> None:
        from diffusers import VQModel

        self.model = _load(VQModel, self.folder, "--decoder-model", self.options)

    def prepare(self, image: Image.Image) -> NDArray[np.float32]:
        """An RGB picture to pixels (3, R, R) in -1 … 1."""
        return images.square(image, self.resolution)

    def encode(self, pixels: NDArray[np.float32]) -> list[Row]:
        """(B, 3, R, R) to one row a picture."""
        latents = self.model.encode(_to(self.model, pixels)).latents  # (B, C, h, w)
        return [{"latents": row} for row in _stored(latents, self.options.dtype)]


class TextEncoder:
    """CLIP text with projection: `prompt_embeds (D,)` and the valid `text_encoder_hidden_states (N, D)`.

    The encoder is causal and captions are padded on the right, so a caption encoded at its own length
    gives the rows it has among 77 (reference facts §4.1).
    """

    def __init__(self, repo: Path, options: EncoderOptions) -> None:
        self.folder, self.options = repo / "text_encoder", options
        self.tokenizer_folder = repo / "tokenizer"

    @cached_property
    def column(self) -> Column:
        config = models.config(self.folder, flag="--prior-model")
        identity = {
            **_identity(self.folder, "--prior-model", self.options),
            "tokenizer": digest(hash_files(self._tokenizer_files())),
        }
        fields = (
            Field("prompt_embeds", self.options.dtype, (config["projection_dim"],)),
            Field("text_encoder_hidden_states", self.options.dtype, ("n_tokens", config["hidden_size"])),
        )
        return _column("text", fields, identity, self.options.prior_record)

    def load(self) -> None:
        from transformers import CLIPTextModelWithProjection

        self.model = _load(CLIPTextModelWithProjection, self.folder, "--prior-model", self.options)
        size, known = self.model.config.vocab_size, len(self.tokenizer)
        if known > size:
            raise UserError(
                f"--prior-model: {self.tokenizer_folder} has {known} tokens, the text encoder {size}"
            )

    def _tokenizer_files(self) -> list[Path]:
        files = [path for path in self.tokenizer_folder.iterdir() if path.is_file()]
        names = {path.name for path in files}
        if "tokenizer.json" not in names and not {"vocab.json", "merges.txt"} <= names:
            wanted = "vocab.json and merges.txt, or tokenizer.json"
            raise UserError(f"--prior-model: {self.tokenizer_folder} wants {wanted}")
        return files

    @cached_property
    def tokenizer(self) -> Any:
        from transformers import CLIPTokenizer

        return CLIPTokenizer.from_pretrained(self.tokenizer_folder)

    def tokenize(self, captions: list[str]) -> list[list[int]]:
        """Token ids of each caption, BOS and EOS included, over-long ones truncated as in the pipelines."""
        if not captions:
            return []
        return list(self.tokenizer(captions, truncation=True, max_length=self.max_length).input_ids)

    def truncates(self, caption: str) -> bool:
        return len(self.tokenizer(caption, verbose=False).input_ids) > self.max_length

    @property
    def max_length(self) -> int:
        config = models.config(self.folder, flag="--prior-model")
        return min(int(self.tokenizer.model_max_length), int(config.get("max_position_embeddings", 77)))

    def encode(self, input_ids: list[list[int]]) -> list[Row]:
        """Captions of one length, (B, N) token ids, to one row each. No attention mask, as the reference."""
        ids = torch.tensor(input_ids, device=self.model.device)
        output = self.model(input_ids=ids)
        embeds = _stored(output.text_embeds, self.options.dtype)  # (B, D)
        hidden = _stored(output.last_hidden_state, self.options.dtype)  # (B, N, D), after the final norm
        return [{"prompt_embeds": e, "text_encoder_hidden_states": h} for e, h in zip(embeds, hidden)]

    def null(self) -> Row:
        """The pipelines' unconditional text: the empty prompt."""
        return self.encode(self.tokenize([""]))[0]


PictureEncoder = ImageEncoder | LatentsEncoder
Encoder = PictureEncoder | TextEncoder


def _identity(folder: Path, flag: str, options: EncoderOptions) -> dict[str, Any]:
    """What every encoder's identity holds: its weights, its config, precision and stored dtype."""
    return {
        "weights": hash_files(models.weight_files(folder, flag=flag)),
        "config": digest(_settings(models.config(folder, flag=flag))),
        "precision": options.precision,
        "dtype": options.dtype,
        "format": VERSION,
    }


def _colours(options: EncoderOptions) -> dict[str, Any]:
    """How pictures become RGB, for the identity; `icc` is only there where profiles are applied."""
    return {"alpha": options.alpha, **({"icc": "sRGB"} if options.icc else {})}


def _settings(config: dict[str, Any]) -> dict[str, Any]:
    """A config without what only says who saved it and when."""
    passing = {"transformers_version", "torch_dtype", "dtype", "architectures", "feature_extractor_type"}
    passing |= {"image_processor_type"}
    return {key: value for key, value in config.items() if not key.startswith("_") and key not in passing}


def _column(name: str, fields: tuple[Field, ...], identity: dict[str, Any], model: dict[str, str]) -> Column:
    from importlib.metadata import version

    names = ("torch", "diffusers", "transformers", "pillow", "numpy")
    return Column(name, fields, identity, model, {library: version(library) for library in names})


def _load(model_class: Any, folder: Path, flag: str, options: EncoderOptions) -> Any:
    """A frozen model on its device. Raises `UserError` as `models.load` does."""
    from diffusers.utils import logging as diffusers_logging
    from transformers.utils import logging as transformers_logging

    for logging in (diffusers_logging, transformers_logging):  # what they warn of is an error here
        logging.set_verbosity_error()
        logging.disable_progress_bar()
    model = models.load(model_class, folder, flag=flag, torch_dtype=TORCH_DTYPES[options.precision])
    return model.requires_grad_(False).eval().to(options.device)


def _to(model: Any, array: NDArray[np.float32]) -> torch.Tensor:
    return torch.from_numpy(array).to(model.device, model.dtype)


def _stored(tensor: torch.Tensor, dtype: str) -> NDArray[Any]:
    """On the CPU in the stored dtype; bfloat16 as the uint16 with the same bits."""
    tensor = tensor.to(TORCH_DTYPES[dtype]).cpu()
    return tensor.view(torch.uint16).numpy() if dtype == "bfloat16" else tensor.numpy()
