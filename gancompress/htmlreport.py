"""One HTML file that needs nothing else: no script, no network, pictures inside. Whatever is no ``Html`` already is escaped."""

from __future__ import annotations

import base64
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from html import escape
from string import Template
from typing import NewType

#: text that may stand in a page as it is
Html = NewType("Html", str)


@dataclass(frozen=True)
class Table:
    """Rows of text, for the terminal, Markdown or a page; the first column names the row."""

    title: str
    columns: list[str]
    rows: list[list[str]]


# the policy keeps a browser from running or fetching anything, whatever a name in a checkpoint says
_PAGE = Template("""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; img-src data:; style-src 'unsafe-inline'">
<meta name="generator" content="gancompress"><title>$title</title><style>
:root{color-scheme:light dark;--fg:#1c2128;--bg:#fff;--soft:#57606a;--line:#d5dbe1;--panel:#f4f6f8;--c0:#0b62c4;--c1:#c2410c;--c2:#15803d;--c3:#9333ea;
--c4:#b91c5c;--c5:#0f766e;--c6:#92610a;--c7:#4b5563}
@media(prefers-color-scheme:dark){:root{--fg:#e4e9ee;--bg:#101418;--soft:#9aa5b1;--line:#353d46;--panel:#1a2027;--c0:#6cb0ff;--c1:#ff9a5c;--c2:#6ddc8b;
--c3:#c99bff;--c4:#ff8fb8;--c5:#5fd9cb;--c6:#e6bd5a;--c7:#b4bec9}}
*{box-sizing:border-box}
body{margin:0 auto;max-width:66rem;padding:1.2rem 1rem 3rem;background:var(--bg);color:var(--fg);
font:16px/1.5 system-ui,-apple-system,"Segoe UI",Roboto,sans-serif;
overflow-wrap:anywhere}
h1{font-size:1.55rem;line-height:1.25;margin:.2rem 0 .5rem}h2{font-size:1.15rem;margin:2.2rem 0 .6rem;padding-top:.9rem;border-top:1px solid var(--line)}
p{margin:.5rem 0;max-width:48rem}.soft,figcaption{color:var(--soft);font-size:.9rem}
.scroll{overflow-x:auto;margin:.8rem 0}
table{border-collapse:collapse;font-size:.92rem;font-variant-numeric:tabular-nums}caption{text-align:left;font-weight:600;padding:.2rem 0}
th,td{padding:.35rem .8rem .35rem 0;text-align:right;border-bottom:1px solid var(--line);vertical-align:top;white-space:nowrap;overflow-wrap:normal}
th{font-weight:600;color:var(--soft);vertical-align:bottom}thead th{white-space:normal;min-width:4.6rem}
th:first-child{position:sticky;left:0;background:var(--bg);text-align:left;color:var(--fg);white-space:normal;overflow-wrap:anywhere;min-width:min(13rem,33vw);max-width:18rem}
.grid{display:grid;grid-template-columns:repeat(auto-fill,minmax(min(100%,19rem),1fr));gap:1rem}
.pair{display:grid;grid-template-columns:minmax(0,1fr);gap:.3rem;align-content:start}
figure{margin:0 0 .5rem;min-width:0}figure img{display:block;width:100%;max-width:34rem;image-rendering:pixelated;border-radius:3px}
.chart{background:var(--panel);border-radius:8px;padding:.6rem}svg{display:block;width:100%;height:auto}
svg text{font-size:11px;fill:var(--soft)}svg .t{font-size:13px;font-weight:600;fill:var(--fg)}svg .b{font-weight:600;fill:var(--fg)}
svg .g{stroke:var(--line);stroke-width:1;fill:none}svg .l{fill:none;stroke-width:1.8}svg .front{stroke:var(--soft);stroke-dasharray:4 3;stroke-width:1.3}
$colours
.key{display:flex;flex-wrap:wrap;gap:.2rem 1rem}
pre{background:var(--panel);padding:.7rem .9rem;border-radius:8px;overflow-x:auto;font-size:.85rem;line-height:1.45;overflow-wrap:normal}
dl{display:grid;grid-template-columns:minmax(6rem,max-content) minmax(0,1fr);gap:.25rem 1rem;margin:.6rem 0}dt{color:var(--soft)}dd{margin:0}
@media(max-width:36rem){dl{grid-template-columns:minmax(0,1fr);gap:0}dd{margin-bottom:.45rem}}
.big{display:flex;flex-wrap:wrap;gap:.6rem;margin:1rem 0}.big div{background:var(--panel);border-radius:8px;padding:.6rem 1rem;flex:1 1 8.5rem}
.big b{display:block;font-size:1.5rem;line-height:1.2}.big span{color:var(--soft);font-size:.85rem}summary{cursor:pointer}
</style></head><body>
<h1>$title</h1>
$body
</body></html>
""")
_COLOURS = "".join(f"svg .l.c{i}{{stroke:var(--c{i})}}svg circle.c{i}{{fill:var(--c{i})}}.key .c{i}{{color:var(--c{i})}}" for i in range(8))


def page(title: str, parts: Iterable[Html]) -> bytes:
    return _PAGE.substitute(title=escape(title), colours=_COLOURS, body="\n".join(parts)).encode()


def section(title: str, *parts: Html) -> Html:
    return Html(f"<section><h2>{escape(title)}</h2>{''.join(parts)}</section>")


def paragraph(text: str, soft: bool = False) -> Html:
    return Html(f"<p{' class=soft' if soft else ''}>{escape(text)}</p>")


def table(made: Table) -> Html:
    """It scrolls by itself where the screen is narrow, its first column staying in sight."""
    head = "".join(f'<th scope="col">{escape(c)}</th>' for c in made.columns)
    rows = "".join(f'<tr><th scope="row">{escape(row[0])}</th>{"".join(f"<td>{escape(v)}</td>" for v in row[1:])}</tr>' for row in made.rows)
    return Html(
        f'<div class="scroll" tabindex="0" role="group" aria-label="{escape(made.title)}"><table><caption>{escape(made.title)}</caption>'
        f"<thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table></div>"
    )


def markdown(made: Table) -> str:
    """The same as a Markdown table."""
    lines = [list(map(plain, line)) for line in (made.columns, *made.rows)]
    lines.insert(1, ["---"] + ["---:"] * (len(made.columns) - 1))
    return f"**{plain(made.title)}**\n\n" + "".join(f"| {' | '.join(line)} |\n" for line in lines)


def plain(text: str) -> str:
    """Text that Markdown shows as it is, on one line."""
    return re.sub(r"([\\`*\[\]|])", r"\\\1", " ".join(escape(text, quote=False).split()))


def picture(png: bytes, alt: str, caption: str = "") -> Html:
    said = f"<figcaption>{escape(caption)}</figcaption>" if caption else ""
    return Html(f'<figure>{said}<img alt="{escape(alt)}" src="data:image/png;base64,{base64.b64encode(png).decode()}"></figure>')


def block(kind: str, parts: Iterable[Html]) -> Html:
    """``kind``: grid (side by side where there is room) or pair (close below each other)."""
    return Html(f'<div class="{kind}">{"".join(parts)}</div>')


def code(text: str) -> Html:
    return Html(f"<pre><code>{escape(text)}</code></pre>")


def folded(summary: str, part: Html) -> Html:
    return Html(f"<details><summary>{escape(summary)}</summary>{part}</details>")


def facts(pairs: Sequence[tuple[str, str]]) -> Html:
    return Html("<dl>" + "".join(f"<dt>{escape(k)}</dt><dd>{escape(v)}</dd>" for k, v in pairs) + "</dl>")


def figures(pairs: Sequence[tuple[str, str]]) -> Html:
    """(large text, what it says) as cards."""
    return Html('<div class="big">' + "".join(f"<div><b>{escape(big)}</b><span>{escape(small)}</span></div>" for big, small in pairs) + "</div>")
