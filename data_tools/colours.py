"""A decoded picture of any PIL mode to RGB: bit depths, palettes, colour spaces, profiles, transparency."""

import io

import numpy as np
from PIL import Image, ImageCms

from data_tools.sources.sample import Unusable

STRIP_PIXELS = 1 << 22
"Alpha is composited so many pixels at a time, which bounds the memory it takes beside the picture."

Box = tuple[int, int, int, int]
"Left, top, right, bottom."


def to_rgb(image: Image.Image, *, alpha: str, icc: bool = False, frame: Box | None = None) -> Image.Image:
    """Any PIL mode to RGB. All around `frame` (left, top, right, bottom) is taken for transparent."""
    rgb = _colours(image, icc=icc)
    opacity = None if alpha == "drop" else _opacity(image, frame)
    if opacity is None:
        return rgb
    rgb = rgb.copy() if rgb is image else rgb
    rows = max(1, STRIP_PIXELS // rgb.width)
    for top in range(0, rgb.height, rows):
        box = (0, top, rgb.width, min(top + rows, rgb.height))
        strip = rgb.crop(box).convert("RGBA")
        strip.putalpha(opacity.crop(box))
        white = Image.new("RGBA", strip.size, "white")
        rgb.paste(Image.alpha_composite(white, strip).convert("RGB"), box)
    return rgb


def _opacity(image: Image.Image, frame: Box | None) -> Image.Image | None:
    """Mode L, 255 where the picture is opaque; None if all of it is."""
    opacity = None
    key = image.info.get("transparency")
    if image.mode.startswith("I;16") and key is not None:
        opacity = Image.fromarray(np.where(np.asarray(image) == key, 0, 255).astype(np.uint8))
    elif image.mode in ("LA", "PA", "RGBA"):
        opacity = image.getchannel("A")
    elif image.has_transparency_data:
        opacity = image.convert("RGBA").getchannel("A")
    if frame is not None:
        inside = Image.new("L", image.size)
        inside.paste(opacity.crop(frame) if opacity else 255, frame)
        opacity = inside
    return opacity


def _colours(image: Image.Image, *, icc: bool) -> Image.Image:
    """RGB without regard to transparency."""
    profile = image.info.get("icc_profile")
    if image.mode.startswith("I;16"):
        image = _from_16_bits(image)
    elif image.mode in ("I", "F"):
        image = _from_range(image)
    if icc and isinstance(profile, bytes):
        image = _to_srgb(image, profile)
    if image.mode != "RGB":
        return image.convert("RGB")
    return image


def _from_16_bits(image: Image.Image) -> Image.Image:
    """Mode L: 0 … 65535 to 0 … 255, rounded; TIFF's 12 bits and its white that is zero, too."""
    tags = getattr(image, "tag_v2", {})
    levels = 2 ** tags.get(258, (16,))[0]  # BitsPerSample
    table = np.rint(np.arange(65536).clip(max=levels - 1) * (255 / (levels - 1))).astype(np.uint8)
    if tags.get(262) == 0:  # PhotometricInterpretation: WhiteIsZero
        table = 255 - table
    return Image.fromarray(table[np.asarray(image)])


def _from_range(image: Image.Image) -> Image.Image:
    """Mode L from 32-bit grey, whose files do not say what white is: taken from the largest value.

    Whole numbers: 255 if none is above it, else 65535. Floats: 1, 255 or 65535, the first that is more than
    half of the largest value, as resampling overshoots. Below zero is black. Raises `Unusable` for more.
    """
    values = np.asarray(image)
    highest = float(values.max(initial=0))
    whites, slack = ((255, 65535), 1) if image.mode == "I" else ((1, 255, 65535), 2)
    white = next((white for white in whites if highest <= white * slack), None)
    if white is None or not np.isfinite(values.min(initial=0)):
        raise Unusable(f"grey values up to {highest:.6g}, wanted finite ones up to {whites}")
    scaled = np.multiply(values, 255 / white, dtype=np.float32)
    return Image.fromarray(np.rint(scaled.clip(0, 255, out=scaled), out=scaled).astype(np.uint8))


def _to_srgb(image: Image.Image, icc_profile: bytes) -> Image.Image:
    """RGB by the profile, perceptual intent; as it is if the profile is broken or not of its kind."""
    try:
        profile = ImageCms.ImageCmsProfile(io.BytesIO(icc_profile))
        space = profile.profile.xcolor_space.strip()
        grey = Image.getmodebase(image.mode) == "L"
        if space == "CMYK" and image.mode == "CMYK":
            mode = "CMYK"
        elif space == "GRAY" and grey:
            mode = "L"
        elif space == "RGB" and image.mode not in ("CMYK", "LAB"):
            mode = "RGB"
        else:
            return image
        srgb = ImageCms.createProfile("sRGB")
        rgb = ImageCms.profileToProfile(image.convert(mode), profile, srgb, outputMode="RGB")
        return rgb or image
    except (ImageCms.PyCMSError, OSError):
        return image
