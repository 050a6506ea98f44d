"""A plain background and an arrow pointer for the root window."""

import Xlib.display
import Xlib.X

_COLOUR = 0x2F4858
_LEFT_ARROW_GLYPH = 68


def paint(display_name: str) -> None:
    """Colour the root window of `display_name` and give it the usual arrow.

    Raises:
        Xlib.error.DisplayError: no X server answers.
    """
    display = Xlib.display.Display(display_name)
    screen = display.screen()
    pixel = screen.default_colormap.alloc_color(
        *(((_COLOUR >> shift) & 0xFF) * 257 for shift in (16, 8, 0))
    ).pixel
    font = display.open_font("cursor")
    cursor = font.create_glyph_cursor(
        font, _LEFT_ARROW_GLYPH, _LEFT_ARROW_GLYPH + 1, (0, 0, 0), (0xFFFF, 0xFFFF, 0xFFFF)
    )
    screen.root.change_attributes(background_pixel=pixel, cursor=cursor)
    screen.root.clear_area()
    display.sync()
    display.close()
