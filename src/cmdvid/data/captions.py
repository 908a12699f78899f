"""Scenes in words: several phrasings of each, and the way back from words to attributes."""

import re
from collections.abc import Iterable

import numpy as np

from cmdvid.data.scene import BACKGROUNDS, COLOURS, MOTIONS, SHAPES, SIZES, ShapeAttributes

_PHRASES = {  # after "moving" or "moves"
    "left": ("left", "to the left"),
    "right": ("right", "to the right"),
    "up": ("up", "upwards"),
    "down": ("down", "downwards"),
    "up left": ("to the upper left", "up and to the left"),
    "up right": ("to the upper right", "up and to the right"),
    "down left": ("to the lower left", "down and to the left"),
    "down right": ("to the lower right", "down and to the right"),
}
_VERBS = (("moving", "moves"), ("going", "goes"), ("drifting", "drifts"))
_STAYING = {
    "rotating": (("rotating", "rotates"), ("spinning", "spins")),
    "growing": (("growing", "grows"), ("getting bigger", "gets bigger")),
    "bouncing": (("bouncing up and down", "bounces up and down"), ("bouncing", "bounces")),
}
_ORDERS = (  # noun, motion as participle and as verb, background
    "a {noun} {doing} on a {background} background",
    "on a {background} background a {noun} {does}",
    "a {noun} {does} over a {background} background",
    "a {noun} {doing}, {background} background",
    "{background} background, a {noun} {doing}",
)
_MOTION_OF = {
    f"{verb} {phrase}": motion
    for motion, phrases in _PHRASES.items()
    for phrase in phrases
    for pair in _VERBS
    for verb in pair
} | {verb: motion for motion, pairs in _STAYING.items() for pair in pairs for verb in pair}


def _any_of(words: Iterable[str]) -> str:
    return "|".join(sorted(map(re.escape, words), key=len, reverse=True))


_NOUN = f"(?P<colour>{_any_of(COLOURS)}) (?P<shape>{_any_of(SHAPES)})"
_SIZED = f"an? (?:(?P<size>{_any_of(SIZES)}) )?{_NOUN}"
_SCENE = f"{_SIZED} (?:is )?(?P<motion>{_any_of(_MOTION_OF)})"
_BACKDROP = f"(?P<background>{_any_of(BACKGROUNDS)}) background"
_PATTERNS = tuple(
    re.compile(pattern)
    for pattern in (
        f"{_SCENE}(?:(?: on a| over a|,) {_BACKDROP})?",
        f"(?:(?:on|over) a )?{_BACKDROP},? {_SCENE}",
    )
)


def write_caption(attributes: ShapeAttributes, rng: np.random.Generator) -> str:
    """Put a scene into one of its phrasings; half of them leave the size out.

    Args:
        attributes: With a background, which each caption mentions.
        rng: Picks the phrasing.
    """
    pairs = _STAYING.get(attributes.motion) or [
        (f"{doing} {phrase}", f"{does} {phrase}")
        for doing, does in _VERBS
        for phrase in _PHRASES[attributes.motion]
    ]
    doing, does = pairs[rng.integers(len(pairs))]
    said = attributes.size if attributes.size and rng.random() < 0.5 else ""
    noun = f"{said} {attributes.colour} {attributes.shape}".strip()
    order = _ORDERS[rng.integers(len(_ORDERS))]
    return order.format(noun=noun, doing=doing, does=does, background=attributes.background)


def parse_caption(text: str) -> ShapeAttributes:
    """Recover what a caption says; background and size are None where it does not mention them.

    Raises:
        ValueError: If the text is not one of this language's phrasings.
    """
    plain = " ".join(text.lower().split()).rstrip(".")
    for pattern in _PATTERNS:
        if match := pattern.fullmatch(plain):
            words = match.groupdict()
            return ShapeAttributes(**words | {"motion": _MOTION_OF[words["motion"]]})
    raise ValueError(
        f"{text!r} does not describe a scene; write it like 'a red circle moving left on a dark "
        f"background', with one of the shapes {', '.join(SHAPES)}, the colours "
        f"{', '.join(COLOURS)}, the motions {', '.join(MOTIONS)} and the backgrounds "
        f"{', '.join(BACKGROUNDS)}"
    )
