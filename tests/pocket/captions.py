"""What the pocket tokenizer learns from when nothing else is given, and how a folder's captions are read."""

import json
from pathlib import Path

CAPTIONS: tuple[str, ...] = (
    "a picture of a red apple",
    "a drawing of a green apple on a white background",
    "a bowl of strawberries and cherries on a wooden table",
    "a simple icon of a house with a garden",
    "a black cat sleeping on a yellow sofa",
    "an orange cat looking out of the window at night",
    "a small brown dog running through deep snow",
    "a portrait of a woman with curly hair and round glasses",
    "an old man reading a newspaper in the park",
    "a person playing the guitar in front of a crowd",
    "two children flying a kite above the beach",
    "a smiling face with sunglasses, flat colours, black outlines",
    "a bicycle leaning against a brick wall",
    "a police car with its blue lights switched on",
    "a sailing boat on a calm blue sea at sunset",
    "a rocket flying past the moon and the stars",
    "a steam locomotive crossing an iron bridge",
    "the Statue of Liberty seen from the water",
    "snowy mountains behind a quiet lake, oil painting",
    "a lighthouse in a heavy storm, watercolour",
    "a palm tree on a tropical island",
    "a bunch of grapes, a banana, a pear and half a lemon",
    "a cup of hot coffee next to an open book",
    "a slice of pizza with mushrooms and olives",
    "an isometric drawing of a factory with three chimneys",
    "a microscope and a test tube on a laboratory bench",
    "a polar bear and her cub on the ice",
    "an elephant, a giraffe and a zebra drinking together",
    "a butterfly sitting on a purple flower",
    "a green dragon guarding a treasure chest, fantasy art",
    "a football player kicking the ball, photograph",
    "a blackboard with mathematical formulas written in chalk",
    "a hand holding a pencil, close up, shallow depth of field",
    "a grey umbrella in the rain, minimalist poster",
    "a castle on a hill under a cloudy sky, 8 towers, 16 windows",
    "a photo of 3 keys, 2 locks & 1 envelope",
    "it's the dog's birthday: they've baked a cake!",
    "красное яблоко на белом фоне",
    "рисунок кошки, которая спит на диване",
    "маленький дом в зимнем лесу",
    "парусник в море на закате, акварель",
    "улыбающееся лицо в тёмных очках",
    "собака бежит по снегу за мячом",
    "чашка кофе и открытая книга на столе",
    "ракета летит к луне",
    "红苹果的图片",
    "一只黑猫在沙发上睡觉",
    "雪山下的湖泊,水彩画",
    "戴墨镜的笑脸",
    "白色背景上的自行车图标",
)


def read_captions(source: Path) -> list[str]:
    """Every caption of an ImageFolder's metadata, in file order.

    `source` is a metadata.jsonl or the folder that holds one; its `text` is a string, several, or absent.
    """
    path = source / "metadata.jsonl" if source.is_dir() else source
    found: list[str] = []
    for line in path.read_text(encoding="utf-8").splitlines():
        text = json.loads(line).get("text") or []
        found += [text] if isinstance(text, str) else text
    if not found:
        raise ValueError(
            f"{path}: no caption in it; wanted a field `text` with a string or a list of strings"
        )
    return found
