"""The frame of the HTML page: the styles beside those of the tab, and the document."""

from __future__ import annotations

STYLE = """
body > header, .words { padding: 16px clamp(12px, 3vw, 24px) 8px; max-width: 1100px; }
body > header p { margin: 4px 0; overflow-wrap: anywhere; }
/* The heading of the page has said it. */
#view .answer { display: none; }
#view .bn { min-height: 0; } #view .panel { max-height: 720px; }
h1 { font-size: 20px; margin: 0 0 4px; font-weight: 600; overflow-wrap: anywhere; }
.said { border-left: 3px solid var(--info); padding: 2px 0 2px 12px; margin: 14px 0; }
.said.error { border-color: var(--error); } .said.warning { border-color: var(--warning); }
.said p { margin: 3px 0; overflow-wrap: anywhere; }
.words table { border-collapse: collapse; margin: 16px 0 6px; }
.words th { text-align: left; font-weight: 400; color: var(--muted); border-bottom: 1px solid var(--line); }
.words th, .words td { padding: 3px 14px 3px 0; vertical-align: top; white-space: nowrap; }
.words :is(th, td):is(:first-child, :last-child) { overflow-wrap: anywhere; white-space: normal; min-width: 18ch; }
.words :is(th, td):is(:nth-child(2), :nth-child(4), :nth-child(5), :nth-child(6)) {
  text-align: right; font-variant-numeric: tabular-nums; }
.said.resolved { border-color: var(--info); color: var(--muted); }
.said details, .words > details { margin: 4px 0; color: var(--muted); }
.said li, .words li { margin: 2px 0; overflow-wrap: anywhere; }
.wide { overflow-x: auto; }
.words p { overflow-wrap: anywhere; }
/* On a phone there is no room for the names of the alerts, which the incidents say anyway, and for small drawings. */
@media (max-width: 600px) {
  .words :is(th, td):is(:last-child, :nth-child(3)) { display: none; }
  .words th { white-space: normal; vertical-align: bottom; }
  .words :is(th, td):first-child { min-width: 12ch; }
  .words :is(th, td) { padding-right: 8px; }
}
@media (max-width: 900px) { #view .panel { max-height: none; } }
/* What the panel lists, the words below say in full: each incident is printed once. */
@media print {
  #view .panel, #view .timeline { display: none; }
  #view .split { grid-template-columns: 1fr; }
  .said, tr { break-inside: avoid; }
  html, body { height: auto; }
}
"""

TEMPLATE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="{policy}">
<title>{title}</title>
<style>
{style}</style>
</head>
<body>
<header>
{verdict}
</header>
<div id="view"><p class="quiet" style="padding: 0 24px">The maps need JavaScript.</p></div>
<section class="words">
{summary}
</section>
<script type="application/json" id="content">{content}</script>
<script type="text/plain" id="numbers">{numbers}</script>
<script type="module">
{code}</script>
</body>
</html>
"""
