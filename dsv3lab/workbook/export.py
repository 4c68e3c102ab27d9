"""An executed notebook as one HTML file that is readable offline: nothing is loaded from anywhere.

nbconvert's template loads require.js, MathJax and mermaid from a CDN. Here those blocks are empty, and each formula is
drawn by matplotlib's mathtext as an SVG inside the page; what mathtext cannot parse stays as readable TeX.
"""

import base64
import html
import io
import re
from pathlib import Path
from typing import Any

_TEMPLATE = """{%- extends 'lab/index.html.j2' -%}
{%- block html_head_js -%}{%- endblock -%}
{%- block jupyter_widgets -%}{%- endblock -%}
{%- block html_head_js_mathjax -%}{%- endblock -%}
{%- block html_head_js_mermaidjs -%}{%- endblock -%}
{%- block extra_css -%}
<style>
.formula { display: block; margin: 0.6em auto; text-align: center; }
.formula img, .formula-inline { display: inline; margin: 0; max-width: 100%; }
.formula .tex, .formula-inline.tex { font-family: monospace; white-space: pre-wrap; }
</style>
{%- endblock -%}
"""
_FONT_SIZE = 12.5  # points; matches the text size of the template
_ENVIRONMENT = re.compile(
    r"\\(begin|end)\{(aligned|align|align\*|gathered|split|equation|equation\*|array)\}(\{[lcr|]*\})?"
)
_SYNONYMS = {  # common TeX that mathtext lacks -> what it has
    **{"le": r"\leq", "ge": r"\geq", "ne": r"\neq", "to": r"\rightarrow", "gets": r"\leftarrow", "dots": r"\ldots"},
    **{"tfrac": r"\frac", "dfrac": r"\frac", "textrm": r"\mathrm", "boldsymbol": r"\mathbf", "land": r"\wedge"},
    **{"lVert": r"\|", "rVert": r"\|", "lvert": "|", "rvert": "|", "mid": r"\,|\,", "qquad": r"\quad\quad"},
    **{name: "" for name in ("big", "Big", "bigl", "bigr", "Bigl", "Bigr", "limits", "nolimits", "displaystyle")},
}
_TAG = re.compile(r"\\tag\{([^}]*)\}")
_BREAK = re.compile(r"\\\\(?:\[[^\]]*\])?")
_CASES = re.compile(r"\\begin\{cases\}(.*?)\\end\{cases\}", re.DOTALL)
_BARE = re.compile(r"\\(mathbf|mathrm|mathcal|mathbb|mathit|frac|sqrt)\s+(\w)")


def to_html(notebook: Path) -> str:
    """The notebook at `notebook` as one HTML page without references to other files or hosts."""
    import nbformat
    from nbconvert.exporters import HTMLExporter
    from nbconvert.filters.markdown_mistune import IPythonRenderer, MarkdownWithMath

    class Renderer(IPythonRenderer):
        def block_math(self, body: str) -> str:
            return f'<span class="formula">{"<br/>".join(formula(row) for row in rows(body))}</span>'

        def inline_math(self, body: str) -> str:
            return formula(body, inline=True)

    exporter = HTMLExporter(raw_template=_TEMPLATE, anchor_link_text="")
    exporter.register_filter(
        "markdown2html", lambda source: MarkdownWithMath(renderer=Renderer(escape=False)).render(source)
    )
    exporter.log.setLevel("ERROR")
    page, _ = exporter.from_notebook_node(
        nbformat.read(notebook, 4), resources={"metadata": {"name": notebook.parent.name}}
    )
    return page


def warm_up() -> None:
    """Load nbconvert, matplotlib and its fonts."""
    import nbconvert.exporters  # noqa: F401

    formula("x")


def rows(tex: str) -> list[str]:
    r"""The rows of a displayed formula: `aligned` and its like are split at `\\`, which mathtext does not know."""
    body = _ENVIRONMENT.sub("", _CASES.sub(_cases, tex))
    if "\\begin" in body:  # a matrix, which mathtext cannot draw: it stays whole
        return [tex.strip()]
    return [row.replace("&", " ").strip() for row in _BREAK.split(body) if row.strip()]


def formula(tex: str, *, inline: bool = False) -> str:
    """One formula as an `<img>` with an inline SVG, or as escaped TeX where mathtext cannot parse it."""
    import matplotlib
    from matplotlib.font_manager import FontProperties
    from matplotlib.mathtext import math_to_image

    text = _TAG.sub(r"\\quad\\quad (\1)", " ".join(_underbraces(tex).split()))
    text = re.sub(r"\\([a-zA-Z]+)", lambda match: _SYNONYMS.get(match[1], match[0]), text)
    text = _BARE.sub(r"\\\1{\2}", text)
    buffer = io.BytesIO()
    try:
        with matplotlib.rc_context({"svg.hashsalt": "dsv3lab", "mathtext.fontset": "stix"}):
            depth = math_to_image(f"${text}$", buffer, prop=FontProperties(size=_FONT_SIZE), format="svg")
    except ValueError:
        kind = "formula-inline tex" if inline else "tex"
        return f'<span class="{kind}">{html.escape(f"${tex}$" if inline else tex)}</span>'
    source = base64.b64encode(buffer.getvalue()).decode()
    alternative = html.escape(" ".join(tex.split()), quote=True)
    kind = ' class="formula-inline"' if inline else ""
    style = f"vertical-align: -{_points(depth):.2f}pt"
    return f'<img{kind} style="{style}" alt="{alternative}" src="data:image/svg+xml;base64,{source}"/>'


def _cases(match: re.Match[str]) -> str:
    """`cases` as a brace before rows, one above the other."""
    lines = [line.replace("&", r" \quad ").strip() for line in _BREAK.split(match[1]) if line.strip()] or [""]
    stack = lines[-1]
    for line in reversed(lines[:-1]):
        stack = r"\genfrac{}{}{0}{0}{" + line + "}{" + stack + "}"
    return r"\left\{" + stack + r"\right."


def _underbraces(tex: str) -> str:
    r"""`\underbrace{body}_{label}` as `\underset{label}{body}`."""
    name = r"\underbrace"
    start = tex.find(name + "{")
    if start < 0:
        return tex
    end = _closing(tex, start + len(name))
    body, rest, label = tex[start + len(name) + 1 : end], tex[end + 1 :], r"\,"
    if rest.startswith("_{"):
        stop = _closing(rest, 1)
        label, rest = rest[2:stop], rest[stop + 1 :]
    return rf"{tex[:start]}\underset{{{label}}}{{{_underbraces(body)}}}{_underbraces(rest)}"


def _closing(tex: str, start: int) -> int:
    """Where the brace that opens at `start` is closed; the end of the text if it never is."""
    depth = 0
    for index in range(start, len(tex)):
        if tex[index] in "{}" and tex[index - 1] != "\\":
            depth += 1 if tex[index] == "{" else -1
            if depth == 0:
                return index
    return len(tex)


def _points(depth: Any) -> float:
    """Depth below the baseline, which mathtext gives in pixels at 72 dpi."""
    return max(0.0, float(depth))
