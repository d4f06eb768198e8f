"""The validation report as one self-contained HTML page: no scripts, no other files."""

from __future__ import annotations

from collections import Counter
from typing import Any

from iwm.data.expectations.report import ValidationReport, figure

_BINS = 24

_TEMPLATE = """\
<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>Validation of the index</title>
<meta name="viewport" content="width=device-width, initial-scale=1">
<style>
body{font:15px/1.45 system-ui,sans-serif;max-width:1080px;margin:2rem auto;
padding:0 1rem;color:#1d2330}
table{border-collapse:collapse;width:100%;margin:.5rem 0 2rem}
th,td{text-align:left;padding:.35rem .6rem;border-bottom:1px solid #dde1e8}
th{font-weight:600;color:#596275}td.n,th.n{text-align:right;font-variant-numeric:tabular-nums}
.ok{color:#116b3a}.error{color:#b3181f;font-weight:600}.warning{color:#8a5a00;font-weight:600}
.bar{background:#4c6fbf;height:.8em;display:inline-block;vertical-align:middle}
h1 small{font-size:1rem;font-weight:400;color:#596275}
</style></head><body>
<h1>Validation of the index <small class="{{ 'ok' if r.passed else 'error' }}">
{{ 'passed' if r.passed else 'failed' }}: {{ r.failed|length }} errors,
{{ r.warned|length }} warnings</small></h1>
<p>{{ '{:,}'.format(r.splits.values()|sum) }} good frames in
{{ '{:,}'.format(r.episode_steps|length) }} episodes:
{% for name, count in r.splits.items() %}{{ name }} {{ '{:,}'.format(count) }}
{{- ', ' if not loop.last }}{% endfor %}.</p>
<table><thead><tr><th>Expectation</th><th>Severity</th><th>Figure</th><th class="n">Observed</th>
<th class="n">Bound</th><th class="n">Rows</th><th>Verdict</th></tr></thead><tbody>
{% for f in r.findings %}<tr><td>{{ f.name }}</td><td>{{ f.severity }}</td>
<td>{{ f.error or f.says }}</td>
<td class="n">{{ figure(f.observed) }}</td>
<td class="n">{{ figure(f.bound) }}</td><td class="n">{{ '{:,}'.format(f.rows) }}</td>
{% set verdict = 'ok' if f.success else f.severity %}
<td class="{{ verdict }}">{{ verdict }}</td></tr>
{% endfor %}</tbody></table>
{% if r.notes %}<h2>Not checked</h2><ul>
{% for note in r.notes %}<li>{{ note }}</li>{% endfor %}</ul>
{% endif %}
{% macro bars(rows, head) %}<table><thead><tr><th>{{ head }}</th><th class="n">Count</th>
<th style="width:50%"></th></tr></thead><tbody>
{% for row in rows %}<tr><td>{{ row.label }}</td><td class="n">{{ '{:,}'.format(row.count) }}</td>
<td><span class="bar" style="width:{{ '%.1f'|format(row.width) }}%"></span></td></tr>
{% endfor %}</tbody></table>{% endmacro %}
{% if actions %}<h2>Actions</h2>{{ bars(actions, 'Game / action') }}{% endif %}
{% if lengths %}<h2>Episode lengths</h2>{{ bars(lengths, 'Steps') }}{% endif %}
<h2>Set aside</h2>
{% if r.quarantine %}<table><thead><tr><th>Reason</th><th class="n">Frames</th></tr></thead><tbody>
{% for row in r.quarantine %}<tr><td>{{ row.reason }}</td>
<td class="n">{{ '{:,}'.format(row.frames) }}</td></tr>{% endfor %}</tbody></table>
{% else %}<p>Nothing.</p>{% endif %}
{% if r.worst %}<h2>Darkest and least sharp frames</h2><table><thead><tr><th>Frame</th>
<th class="n">Luma</th><th class="n">Sharpness</th></tr></thead><tbody>
{% for row in r.worst %}<tr><td>{{ row.key }}</td>
<td class="n">{{ '%.1f'|format(row.luma_mean) }}</td>
<td class="n">{{ '%.1f'|format(row.sharpness) }}</td></tr>{% endfor %}</tbody></table>{% endif %}
</body></html>
"""


def render_page(report: ValidationReport) -> str:
    """The page's HTML; every text from the data is escaped."""
    from jinja2 import Environment

    template = Environment(autoescape=True).from_string(_TEMPLATE)
    return template.render(
        r=report,
        figure=figure,
        actions=_bars(list(report.actions.items())),
        lengths=_bars(_histogram(report.episode_steps)),
    )


def _bars(rows: list[tuple[str, int]]) -> list[dict[str, Any]]:
    most = max((count for _, count in rows), default=1)
    return [{"label": label, "count": count, "width": 100 * count / most} for label, count in rows]


def _histogram(values: tuple[int, ...]) -> list[tuple[str, int]]:
    """Counts of whole numbers in at most ``_BINS`` equal bins, empty ones between too."""
    if not values:
        return []
    low, high = min(values), max(values)
    width = (high - low) // _BINS + 1
    counts = Counter((value - low) // width for value in values)
    return [
        (
            str(low + index * width)
            if width == 1
            else f"{low + index * width} to {low + (index + 1) * width - 1}",
            counts[index],
        )
        for index in range(max(counts) + 1)
    ]
