"""Identity: what decides whether a column may be reused.

A flat dictionary of JSON values: hashes of the encoder's weight and config files, of the tokenizer, the
preprocessing (image processor, crop, resampling, resolution), the precision and the format version.
Two columns with the same identity hold the same thing; a run that meets another one stops.
"""

import hashlib
import json
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any


def digest(identity: dict[str, Any]) -> str:
    """Hex sha256 of an identity, independent of the order of its keys."""
    text = json.dumps(identity, sort_keys=True, ensure_ascii=False, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def differences(found: dict[str, Any], wanted: dict[str, Any]) -> list[str]:
    """The keys in which two identities differ, with both values, as a person would read them."""
    old, new = _flat(found), _flat(wanted)
    keys = sorted(k for k in old.keys() | new.keys() if old.get(k) != new.get(k))
    return [f"{key} {_short(old.get(key))} → {_short(new.get(key))}" for key in keys]


def _flat(identity: dict[str, Any]) -> dict[str, Any]:
    """Nested keys as paths: `weights/model.safetensors`."""
    flat: dict[str, Any] = {}
    for key, value in identity.items():
        if isinstance(value, dict):
            flat.update({f"{key}/{name}": item for name, item in _flat(value).items()})
        else:
            flat[key] = value
    return flat


def _short(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 24 else f"{text[:12]}…"


def hash_files(files: Iterable[Path]) -> dict[str, str]:
    """File name → hex sha256 (the hash that the model hub publishes), read in parallel."""
    paths = sorted(files, key=lambda path: path.name)
    with ThreadPoolExecutor() as pool:
        return {path.name: value for path, value in zip(paths, pool.map(_sha256, paths))}


def _sha256(path: Path) -> str:
    sha, buffer = hashlib.sha256(), bytearray(1 << 20)
    with path.open("rb", buffering=0) as file:
        while count := file.readinto(buffer):
            sha.update(memoryview(buffer)[:count])
    return sha.hexdigest()
