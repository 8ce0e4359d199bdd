"""Texts in pictures: a font that has their letters, and how they fit the width there is.

The font is Pillow's own, or else one of this machine's. What none of them has is said: in the
picture by a class's number or by NO_FONT, and once on standard error.
"""

import functools
import os
import re
import unicodedata
from bisect import bisect_right
from collections import defaultdict

from PIL import ImageFont

from terminal import print_note

# Pillow's own font has Latin letters without accents. These are looked for where it lacks a letter;
# those for Chinese, Japanese and Korean stand last.
FONTS = (
    *("DejaVuSans.ttf", "NotoSans-Regular.ttf", "arial.ttf", "Arial.ttf", "Arial Unicode.ttf"),
    *("NotoSansCJK-Regular.ttc", "Hiragino Sans GB.ttc", "YuGothM.ttc", "msgothic.ttc"),
    *("msyh.ttc", "malgun.ttf"),
)
NO_LETTER = "\uffff"  # a font draws its sign for a missing letter
NO_FONT = "[no font]"  # stands for letters that no font has
ELLIPSIS = "…"  # Pillow's own font has it
NAMED = 6  # classes listed in a legend; of more, the first ones


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


# ---------------------------------------------------------------- letters that no font has


def readable(text, otherwise):
    """A text as a picture can show it: without its accents if need be, or else `otherwise`."""
    plain = without_accents(text)
    for shown in (text, plain):
        if shown.isascii() or has_letters(font(13, shown), shown):
            return shown
    say_that_a_font_is_missing()
    return otherwise


def without_accents(text):
    """A text in letters without accents, where Unicode can take them apart."""
    plain = unicodedata.normalize("NFKD", text)
    return "".join(letter for letter in plain if not unicodedata.combining(letter))


@functools.cache
def drawable(text):
    """A text as a picture can show it: NO_FONT in the place of each run of letters no font has."""
    shown = readable(text, None)
    if shown is not None:
        return shown
    letters = font(13)
    parts = [part if has_letters(letters, part) else "\0" for part in without_accents(text)]
    return re.sub("\0+", NO_FONT, "".join(parts))


@functools.cache
def say_that_a_font_is_missing():
    """Says on standard error, once, that names could not be drawn, and what would draw them."""
    print_note(
        "Some names cannot be drawn in the pictures, for no font here has their letters:"
        " a font such as Noto Sans CJK, once installed, draws them."
    )


def class_name(classes, k):
    """The name of class k in a picture; "class K" where no font has its letters: see legend."""
    return readable(classes[k], f"class {k}")


def legend(classes, file):
    """A line for the end of a footer on the classes that go by their numbers, or "".

    file: the JSON beside the picture that has the names.
    """
    by_number = [k for k, name in enumerate(classes) if readable(name, None) is None]
    if not by_number:
        return ""
    more = f" and {len(by_number) - NAMED} more" if len(by_number) > NAMED else ""
    named = ", ".join(f"class {k}" for k in by_number[:NAMED])
    return f'\n{named}{more}: see "classes" in {file}'


# ---------------------------------------------------------------- the width there is


def clipped(text, size, width):
    """A text of at most `width` pixels in a font of this size, its middle an ellipsis if need be.

    The end stays: names differ there, and a caption has its figure there.
    """
    letters = font(size, text)
    if letters.getlength(text) <= width:
        return text

    def cut(kept):
        return text[: (kept + 1) // 2] + ELLIPSIS + text[len(text) - kept // 2 :]

    kept = bisect_right(range(1, len(text)), width, key=lambda n: letters.getlength(cut(n)))
    return cut(kept)


def told_apart(texts, size, width):
    """{text: what is drawn of it}, each clipped to `width` pixels, different ones differently.

    Of texts that would look the same, what they have in common at the beginning is left out.
    """
    shown = {text: clipped(text, size, width) for text in texts}
    alike = defaultdict(list)
    for text, short in shown.items():
        alike[short].append(text)
    for group in alike.values():
        common = len(os.path.commonprefix(group))
        if len(group) > 1 and common > 2:  # else their beginnings differ, or there is no room
            rests = {text: ELLIPSIS + text[common - 1 :] for text in group}
            again = told_apart(rests.values(), size, width)
            shown |= {text: again[rest] for text, rest in rests.items()}
    return shown


def fitting(texts, size, width):
    """{text: what is drawn of it}, of one line or several, each at most `width` pixels.

    Different lines are drawn differently.
    """
    parts = {text: drawable(text).split("\n") for text in texts}
    shown = told_apart({line for lines in parts.values() for line in lines}, size, width)
    return {text: "\n".join(shown[line] for line in lines) for text, lines in parts.items()}


def lines_of(text, size, width):
    """Lines of a text, each at most `width` pixels, broken between words; a long word is cut."""
    lines = []
    for paragraph in text.split("\n"):
        line = ""
        for word in paragraph.split(" "):
            longer = f"{line} {word}" if line else word
            if line and font(size, longer).getlength(longer) > width:
                lines.append(line)
                longer = word
            line = clipped(longer, size, width)
        lines.append(line)
    return lines
