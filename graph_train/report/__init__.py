"""The report of a run: a self-contained page, `report.html`, and its data, `report.json`.

`hooks` follows the run, `content` collects the data as plain values, and `page` renders them as HTML with the help of
`page.html`, `page.css`, `charts.js` (charts and tables) and `page.js` (the sections of the page).
"""

from graph_train.report.hooks import ReportHooks

__all__ = ["ReportHooks"]
