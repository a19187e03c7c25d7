"""Texts in drawings, in any script: letters come from the machine's fonts, or from those inside OpenCV 5.

Fonts are looked for in the usual folders, and only when a text needs them. A letter that no font has is spelled as its
code point, `[U+732B]`, so that two names never look alike; a line on stderr says so once.
"""

from __future__ import annotations

import functools
import itertools
import os
import sys
import unicodedata
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import cv2
import numpy as np
from PIL import Image, ImageDraw, ImageFont, features
from tqdm import tqdm

from .terminal import printable

Ink = tuple[int, int, int]  # RGB
FOLDERS = (
    "/usr/share/fonts",
    "/usr/local/share/fonts",
    "~/.local/share/fonts",
    "~/.fonts",
    "/System/Library/Fonts",
    "/Library/Fonts",
    "~/Library/Fonts",
    r"%WINDIR%\\Fonts",
    r"%LOCALAPPDATA%\\Microsoft\\Windows\\Fonts",
)
SUFFIXES = (".ttf", ".otf", ".ttc", ".otc")
MOST_FONTS = 3000  # that are looked at
MOST_SEARCHES = 20  # through all fonts: each takes up to a second
_PLAIN = ("dejavusans", "notosans", "liberationsans", "arial", "segoeui", "freesans", "wqy", "droidsans", "unifont")
_ODD = ("bold", "italic", "oblique", "light", "thin", "black", "condensed", "mono", "serif", "math", "extra")
_PROBE = 16  # px, the size at which a font is asked for its letters
_BITMAPS = (109, 136, 128, 160, 96, 64)  # px, sizes of fonts whose letters are coloured images
_NO_LETTER = "\U0010ffff"  # never assigned: a font draws its sign for a missing letter


class Lettering(Protocol):
    """What draws a text in one go."""

    def __hash__(self) -> int: ...

    def has(self, letter: str) -> bool:
        """Whether it draws this letter, and not a sign for a missing one."""
        ...

    def draw(self, text: str, size: int, ink: Ink) -> tuple[np.ndarray, int]:
        """The text, uint8 [h, w, 4] RGBA, and the row of its baseline."""
        ...


@dataclass(frozen=True)
class _FontFile:
    path: str

    @functools.lru_cache(maxsize=16)  # noqa: B019 - fonts live as long as the process
    def _at(self, size: int, engine: ImageFont.Layout | None = None) -> tuple[Any, float]:
        """The font, and by how much its letters are enlarged to be of this size. Raises OSError."""
        for offered in (size, *_BITMAPS):
            try:
                return ImageFont.truetype(self.path, offered, layout_engine=engine), size / offered
            except (OSError, ValueError):
                continue
        raise OSError(f"{self.path}: not a font")

    def has(self, letter: str) -> bool:
        font, _ = self._at(_PROBE, ImageFont.Layout.BASIC)  # the other engine would put a vowel sign on a circle
        shown, missing = font.getmask(letter), font.getmask(_NO_LETTER)
        return shown.getbbox() is not None and (shown.size, bytes(shown)) != (missing.size, bytes(missing))

    def draw(self, text: str, size: int, ink: Ink) -> tuple[np.ndarray, int]:
        font, scale = self._at(size)
        # Letters that run from right to left do so inside a text that runs from left to right, as a score needs it.
        direction = "ltr" if features.check("raqm") else None
        ascent, descent = font.getmetrics()
        width = max(1, int(np.ceil(font.getlength(text, direction=direction))))
        drawn = Image.new("RGBA", (width, ascent + descent), (*ink, 0))
        ImageDraw.Draw(drawn).text((0, 0), text, (*ink, 255), font, direction=direction, embedded_color=True)
        pixels = np.asarray(drawn)
        if scale == 1:
            return pixels, ascent
        wanted_wh = max(1, round(pixels.shape[1] * scale)), max(1, round(pixels.shape[0] * scale))
        return np.asarray(cv2.resize(pixels, wanted_wh, interpolation=cv2.INTER_AREA)), round(ascent * scale)


class _InsideOpenCV:
    """OpenCV 5 carries a font with Latin, Greek, Cyrillic, Chinese, Japanese and Korean letters."""

    def __init__(self) -> None:
        self._font = cv2.FontFace("uni")

    def has(self, letter: str) -> bool:
        if unicodedata.bidirectional(letter) in ("R", "AL", "AN"):
            return False  # it would draw them from left to right, and unjoined
        shown, missing = (self.draw(one, _PROBE, (0, 0, 0))[0] for one in (letter, _NO_LETTER))
        return bool(shown[..., 3].any()) and not np.array_equal(shown, missing)

    def draw(self, text: str, size: int, ink: Ink) -> tuple[np.ndarray, int]:
        ascent, height = size, round(1.3 * size)
        empty = np.zeros((height, 2 * size * len(text) + size), np.uint8)
        (end, _), mask = cv2.putText(empty, text, (0, ascent), (255, 255, 255), self._font, size)
        mask = mask[:, : max(1, end + 1)]
        return _inked(mask, ink), ascent


@dataclass(frozen=True)
class _Hershey:
    """OpenCV's strokes for ASCII."""

    def has(self, letter: str) -> bool:
        return " " <= letter <= "~"

    def draw(self, text: str, size: int, ink: Ink) -> tuple[np.ndarray, int]:
        (width, height), base = cv2.getTextSize(text, cv2.FONT_HERSHEY_SIMPLEX, size / 30, 1)
        mask = np.zeros((height + base + 2, max(1, width)), np.uint8)
        cv2.putText(mask, text, (0, height), cv2.FONT_HERSHEY_SIMPLEX, size / 30, (255,), 1, cv2.LINE_AA)
        return _inked(mask, ink), height


def _inked(mask: np.ndarray, ink: Ink) -> np.ndarray:
    pixels = np.empty((*mask.shape, 4), np.uint8)
    pixels[..., :3], pixels[..., 3] = ink, mask
    return pixels


_used: list[Lettering] = []  # what draws the letters found so far, in the order in which it is preferred
_of_letter: dict[str, Lettering | None] = {}  # None: nothing has it
_searches = itertools.count()


@functools.lru_cache(maxsize=2048)
def draw_text(text: str, size: int, ink: Ink, paper: Ink) -> tuple[np.ndarray, int]:
    """A text in letters `size` px high on `paper`: uint8 [h, w, 3] RGB, and the row of its baseline.

    The array is kept for the next call, and can't be changed.
    """
    look_for(text)
    pieces = [who.draw(part, size, ink) for who, part in _runs(text)]
    above = max(baseline for _, baseline in pieces)
    below = max(len(pixels) - baseline for pixels, baseline in pieces)
    row = np.empty((above + below, sum(pixels.shape[1] for pixels, _ in pieces), 3), np.uint8)
    row[:] = paper
    left = 0
    for pixels, baseline in pieces:
        top, right = above - baseline, left + pixels.shape[1]
        under, alpha = row[top : top + len(pixels), left:right], pixels[..., 3:].astype(np.uint16)
        under[:] = (pixels[..., :3] * alpha + under * (255 - alpha) + 127) // 255
        left = right
    row.setflags(write=False)
    return row, above


@functools.lru_cache(maxsize=64)
def look_for(text: str) -> None:
    """Find what draws the letters of a text, unless they are all ASCII. It is faster to ask for many at once."""
    if text.isascii():
        return
    wanted = {letter for letter in text if not _follows(letter)} - _of_letter.keys()
    _assign(wanted, _used)
    if wanted and next(_searches) < MOST_SEARCHES:
        _assign(wanted, itertools.chain(map(_FontFile, font_files()), _inside_opencv(), [_Hershey()]))
    _of_letter.update(dict.fromkeys(wanted, None))
    if wanted:
        missing = sorted(wanted)
        few = printable(" ".join(missing[:8])) + (" …" if len(missing) > 8 else "")
        tqdm.write(
            f"warning: no font here has the letters {few}; drawings spell them: [{_code(missing[0])}]. "
            "Install a font that has them, Noto Sans for instance",
            file=sys.stderr,
        )


def _assign(wanted: set[str], offered: Iterable[Lettering]) -> None:
    """Note for each wanted letter the first on offer that has it, and take it out of `wanted`."""
    for one in list(offered) if offered is _used else offered:
        if not wanted:
            return
        found = {letter for letter in wanted if _has(one, letter)}
        if found and one not in _used:
            _used.append(one)
        _of_letter.update(dict.fromkeys(found, one))
        wanted -= found


@functools.lru_cache(maxsize=8192)
def _has(one: Lettering, letter: str) -> bool:
    try:
        return one.has(letter)
    except OSError:
        return False


def spelled(text: str) -> str:
    """The text with each letter that no font file has as its code point: for libraries that use font files."""
    look_for(text)
    return "".join(letter if _is_in_a_file(letter) else _code(letter) for letter in text)


def _is_in_a_file(letter: str) -> bool:
    return letter.isascii() or _follows(letter) or isinstance(_of_letter[letter], _FontFile)


def font_paths(text: str) -> list[str]:
    """The font files that have the letters of a text which are not ASCII."""
    look_for(text)
    fonts = (_of_letter.get(letter) for letter in text if not letter.isascii())
    return list(dict.fromkeys(font.path for font in fonts if isinstance(font, _FontFile)))


@functools.cache
def font_files() -> tuple[str, ...]:
    """The machine's font files: plain, upright ones of usual families first."""
    found = itertools.chain.from_iterable(_below(os.path.expandvars(os.path.expanduser(name))) for name in FOLDERS)
    return tuple(sorted(itertools.islice(found, MOST_FONTS), key=_preference))


def _below(folder: str) -> Iterator[str]:
    for above, _, names in os.walk(folder):
        yield from (os.path.join(above, name) for name in names if name.lower().endswith(SUFFIXES))


def _preference(path: str) -> tuple[int, int, str]:
    name = Path(path).stem.lower().replace("-", "").replace("_", "").replace(" ", "")
    family = next((rank for rank, plain in enumerate(_PLAIN) if name.startswith(plain)), len(_PLAIN))
    return sum(odd in name for odd in _ODD), family, path


def _inside_opencv() -> list[Lettering]:
    return [_InsideOpenCV()] if hasattr(cv2, "FontFace") else []


def _runs(text: str) -> Iterator[tuple[Lettering, str]]:
    """The parts of a text that are drawn in one go each, and what draws them."""
    named = [found for letter in text if not letter.isascii() and (found := _of_letter.get(letter)) is not None]
    usual = named[0] if named else _Hershey()
    for who, pairs in itertools.groupby(_assigned(text, usual), key=lambda pair: pair[0]):
        yield who, "".join(letter for _, letter in pairs)


def _assigned(text: str, usual: Lettering) -> Iterator[tuple[Lettering, str]]:
    """Each letter with what draws it: what draws those around it, where that has it too."""
    who = usual
    for found, letters in itertools.groupby(text, key=_found):
        if found is None:
            codes = " ".join(f"{ord(letter):04X}" for letter in letters)
            yield from ((usual if _has(usual, "U") else _Hershey(), sign) for sign in f"[U+{codes}]")
            continue
        for letter in letters:
            if not _follows(letter):
                who = next((one for one in (who, usual) if _has(one, letter)), found)
            yield who, letter


def _found(letter: str) -> Lettering | None:
    """What draws a letter; any for ASCII and for what follows others, since they go along with those."""
    return _Hershey() if letter.isascii() or _follows(letter) else _of_letter.get(letter)


def _follows(letter: str) -> bool:
    """Whether a letter only changes those beside it, and so needs no font of its own: joiners, variants, blanks."""
    return letter.isspace() or unicodedata.category(letter) == "Cf" or "\ufe00" <= letter <= "\ufe0f"


def _code(letter: str) -> str:
    return f"U+{ord(letter):04X}"


def texts_for_matplotlib(texts: Iterable[str]) -> list[str]:
    """Texts as matplotlib draws them: letters that it can draw, no formulas. Its fonts are set up for them."""
    import matplotlib
    from matplotlib import font_manager

    texts = list(map(printable, texts))
    families = []
    for path in font_paths("".join(texts)):
        try:
            font_manager.fontManager.addfont(path)
            families.append(font_manager.FontProperties(fname=path).get_name())
        except (OSError, RuntimeError):  # a kind of font that matplotlib doesn't read
            continue
    matplotlib.rcParams["font.family"] = list(dict.fromkeys([*matplotlib.rcParams["font.family"], *families]))
    return [spelled(text).replace("$", r"\$") for text in texts]
