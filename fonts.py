"""A font that has the letters of a text: Pillow's own, or else one of this machine's."""

import functools
import unicodedata

from PIL import ImageFont

# Pillow's own font has Latin letters without accents. These are looked for where it lacks a letter;
# those for Chinese, Japanese and Korean stand last.
FONTS = (
    *("DejaVuSans.ttf", "NotoSans-Regular.ttf", "arial.ttf", "Arial.ttf", "Arial Unicode.ttf"),
    *("NotoSansCJK-Regular.ttc", "Hiragino Sans GB.ttc", "YuGothM.ttc", "msgothic.ttc"),
    *("msyh.ttc", "malgun.ttf"),
)
NO_LETTER = "\uffff"  # a font draws its sign for a missing letter


@functools.cache
def load(name, size):
    """The font in a file of this name, or Pillow's own for None; None if it is not here."""
    try:
        return ImageFont.load_default(size) if name is None else ImageFont.truetype(name, size)
    except OSError:
        return None


def has_letters(letters, text):
    """Whether a font has every letter of a text."""
    missing = bytes(letters.getmask(NO_LETTER))
    seen = {letter for letter in text if not letter.isspace()}
    return all(bytes(letters.getmask(letter)) != missing for letter in seen)


def font(size, text=""):
    """The first font that has every letter of a text, or Pillow's own; size in pixels."""
    if not text.isascii():
        for name in (None, *FONTS):
            letters = load(name, size)
            if letters is not None and has_letters(letters, text):
                return letters
    return load(None, size)


def readable(text, otherwise):
    """A text as a picture can show it: without its accents if need be, or else `otherwise`."""
    plain = unicodedata.normalize("NFKD", text)
    plain = "".join(letter for letter in plain if not unicodedata.combining(letter))
    for shown in (text, plain):
        if shown.isascii() or has_letters(font(13, shown), shown):
            return shown
    return otherwise
