"""Small exact worlds, drawn here: scenes, kitchens and figures.

A world is data first: frozen dataclasses say what there is, where and when;
questions, answers, facts, boxes and masks are computed from them and never
from pixels. Item `index` of a split under a seed is a pure function of (seed,
split, index). Nothing is downloaded.

    python -m mmrl.worlds --world scenes --output sheet.png

draws a sheet of examples; docs/worlds.md says what there is to ask.
`mmrl.data` has the sources that a config names: Scenes, Kitchens, Figures.
"""
