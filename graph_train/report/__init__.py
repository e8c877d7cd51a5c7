"""The report of a run: one page, `report.html`, that needs nothing but itself, and its numbers, `report.json`.

`hooks` collects what a run does, `content` turns that into plain values, `page` into HTML. Looks and behaviour of the
page are in `page.html`, `page.css`, `charts.js` (text, charts, tables) and `page.js` (its parts).
"""

from graph_train.report.hooks import ReportHooks

__all__ = ["ReportHooks"]
