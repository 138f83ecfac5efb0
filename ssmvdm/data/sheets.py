"""Still pictures of videos: frame strips, and x-t slices, which show flicker and motion at a glance. Needs Pillow."""

from pathlib import Path

import numpy as np

from ssmvdm.data.export import as_bytes, replacing

GAP = 2  # pixels between pictures
LEFT, TOP = 34, 20  # room for labels
GROUND, INK, MARK = (255, 255, 255), (60, 66, 76), (214, 40, 40)
LEAST_WIDTH = 480  # of a slice: fewer frames are drawn wider


def write_strips(path: Path, clips: np.ndarray, columns: int = 8, scale: int = 2, trained: int | None = None) -> None:
    """Clips (batch, 3, frames, height, width) in [0, 1]: a row per clip of `columns` frames evenly spaced in time.

    The frames' numbers, from 1, stand above. trained: a line before the first frame beyond this many.
    """
    frames = clips.shape[2]
    shown = np.unique(np.linspace(0, frames - 1, min(columns, frames)).round().astype(int))
    pictures = as_bytes(clips[:, :, shown].transpose(0, 2, 3, 4, 1), scale)  # (batch, shown, height, width, 3)
    spaced = np.pad(pictures, ((0, 0), (0, 0), (0, 0), (0, GAP), (0, 0)), constant_values=GROUND[0])
    rows = np.concatenate(list(spaced.transpose(1, 0, 2, 3, 4)), axis=2)  # (batch, height, shown (width + GAP), 3)
    step = spaced.shape[3]
    labels = [(i * step, str(frame + 1)) for i, frame in enumerate(shown)]
    beyond = None if trained is None else int(np.searchsorted(shown, trained)) * step - GAP
    _write_sheet(path, rows, labels, beyond, trained)


def write_slices(path: Path, clips: np.ndarray, scale: int = 2, trained: int | None = None) -> None:
    """Clips (batch, 3, frames, height, width) in [0, 1]: of each the middle row of pixels, over time to the right.

    What stands still is a horizontal line, what moves sideways a slanted one, flicker is vertical stripes.
    trained: a line where the frames beyond this many begin.
    """
    frames = clips.shape[2]
    wide = max(scale, -(-LEAST_WIDTH // frames))
    slices = as_bytes(clips[:, :, :, clips.shape[3] // 2].transpose(0, 3, 2, 1), 1)  # (batch, x, frames, 3)
    rows = slices.repeat(scale, axis=1).repeat(wide, axis=2)
    every = max(1, frames // 8)
    labels = [(frame * wide, str(frame + 1)) for frame in range(0, frames, every)]
    _write_sheet(path, rows, labels, None if trained is None else trained * wide - GAP // 2, trained)


def _write_sheet(path: Path, rows: np.ndarray, labels: list, beyond: int | None, trained: int | None) -> None:
    """rows (batch, height, width, 3) uint8 below each other with their numbers, labels (x, text) above them."""
    from PIL import Image, ImageDraw, ImageFont

    batch, height, width, _ = rows.shape
    below = TOP if beyond is None else 2 * TOP
    sheet = Image.new("RGB", (LEFT + width + LEFT, below + batch * (height + GAP)), GROUND)
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(11)
    for i, row in enumerate(rows):
        y = below + i * (height + GAP)
        sheet.paste(Image.fromarray(np.ascontiguousarray(row)), (LEFT, y))
        draw.text((LEFT - 6, y + height // 2), str(i), INK, font, anchor="rm")
    for x, text in labels:
        draw.text((LEFT + x, below - 3), text, INK, font, anchor="ls")
    if beyond is not None:
        draw.text((LEFT + beyond - 4, TOP - 6), f"trained on {trained} frames", MARK, font, anchor="rs")
        draw.text((LEFT + beyond + 6, TOP - 6), "beyond", MARK, font, anchor="ls")
        draw.rectangle([LEFT + beyond, 4, LEFT + beyond + GAP - 1, sheet.height], MARK)
    with replacing(path) as temporary:
        sheet.save(temporary, format="PNG")
