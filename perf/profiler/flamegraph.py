"""Draws stacks as a flame graph: one SVG file that needs nothing else and zooms and searches in a browser.

Width is the share of samples, height the depth of the stack, the innermost function on top; the colour tells the kind
of work (groups.py). The idea is Brendan Gregg's: https://www.brendangregg.com/flamegraphs.html
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from html import escape

_WIDTH, _ROW, _TOP, _SIDE = 1600, 17, 76, 12
_NARROWEST = 0.4  # pixels: what is narrower is left out
_LETTER = 6.6  # pixels, about
_COLOURS = (
    *("#ef6f6c", "#f4a259", "#f6d55c", "#3caea3", "#7fa8ff", "#b388eb"),
    *("#f28ec2", "#a3a86a", "#8ecae6", "#90d26d", "#cfc8b8", "#b6bcc2"),
)

_SCRIPT = """
const frames=[...document.querySelectorAll('g.f')],info=document.getElementById('info');
const of=g=>['x','w','d'].map(k=>+g.dataset[k]);
function zoom(root){const [x0,w0,d0]=root?of(root):[0,1,0];
for(const g of frames){const [x,w,d]=of(g),r=g.children[1],t=g.children[2];
const inside=x>=x0-1e-9&&x+w<=x0+w0+1e-9,parent=d<d0&&x<=x0+1e-9&&x+w>=x0+w0-1e-9;
g.style.display=inside&&d>=d0||parent?'':'none';
const left=parent?0:(x-x0)/w0,wide=parent?1:w/w0,px=SIDE+left*SPAN,pw=wide*SPAN;
r.setAttribute('x',px);r.setAttribute('width',Math.max(pw-.5,.1));g.style.opacity=parent?.55:1;
t.setAttribute('x',px+3);const n=Math.floor((pw-4)/LETTER),s=g.dataset.n;t.textContent=n<3?'':s.length<=n?s:s.slice(0,n-1)+'…';}}
for(const g of frames){g.onclick=()=>zoom(g);g.onmouseover=()=>info.textContent=g.children[0].textContent;g.onmouseout=()=>info.textContent=''}
document.getElementById('reset').onclick=()=>zoom(null);
document.getElementById('search').onclick=()=>{const q=prompt('Regular expression');if(q===null)return;const e=new RegExp(q);let hit=0,end=-1;
for(const g of [...frames].sort((a,b)=>a.dataset.x-b.dataset.x||a.dataset.d-b.dataset.d)){const m=q!==''&&e.test(g.dataset.n);
g.children[1].style.stroke=m?'#d00':'';const [x,w]=of(g);if(m&&x>=end-1e-9){hit+=w;end=x+w}}
info.textContent=q===''?'':(100*hit).toFixed(1)+' % in '+q};
"""


@dataclasses.dataclass
class _Node:
    name: str
    group: str
    weight: int = 0
    children: dict = dataclasses.field(default_factory=dict)


def draw(title: str, stacks: Mapping[tuple[tuple[str, str], ...], int], groups: tuple[str, ...]) -> str:
    """The picture of weights by stack: (name, group) from the outermost inwards. Colours are in the order of `groups`."""
    root = _Node("all", "")
    for stack, weight in stacks.items():
        node = root
        node.weight += weight
        for name, group in stack:
            node = node.children.setdefault((name, group), _Node(name, group))
            node.weight += weight
    total = root.weight or 1
    span = _WIDTH - 2 * _SIDE
    boxes: list[tuple[int, float, _Node]] = []
    _place(root, 0, 0.0, total, span, boxes)
    depth = max((depth for depth, _, _ in boxes), default=0)
    height = _TOP + (depth + 1) * _ROW + 34
    parts = [_frame(depth, start, node, total, height, groups) for depth, start, node in boxes]
    script = _SCRIPT.replace("SIDE", str(_SIDE)).replace("SPAN", str(span)).replace("LETTER", str(_LETTER))
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {height}" width="{_WIDTH}" height="{height}">'
        "<style>text{font:11px Verdana,'DejaVu Sans',sans-serif;fill:#111}.t{font-size:16px;font-weight:600}"
        ".b{fill:#06c;cursor:pointer}g.f{cursor:pointer}g.f:hover rect{stroke:#000}g.f text{pointer-events:none}</style>"
        f'<rect width="100%" height="100%" fill="#fff"/><text class="t" x="{_SIDE}" y="24">{escape(title)}</text>'
        f"{_legend(groups)}<text class=\"b\" id=\"reset\" x=\"{_WIDTH - 190}\" y=\"24\">whole graph</text>"
        f'<text class="b" id="search" x="{_WIDTH - 90}" y="24">search</text>'
        f'<text id="info" x="{_SIDE}" y="{height - 12}"></text>{"".join(parts)}<script><![CDATA[{script}]]></script></svg>\n'
    )


def _place(node: _Node, depth: int, start: float, total: int, span: float, boxes: list) -> None:
    if node.weight / total * span < _NARROWEST:
        return
    boxes.append((depth, start / total, node))
    for child in sorted(node.children.values(), key=lambda child: (child.name, child.group)):
        _place(child, depth + 1, start, total, span, boxes)
        start += child.weight


def _frame(depth: int, start: float, node: _Node, total: int, height: int, groups: tuple[str, ...]) -> str:
    share = node.weight / total
    x, y = _SIDE + start * (_WIDTH - 2 * _SIDE), height - 34 - (depth + 1) * _ROW
    width = share * (_WIDTH - 2 * _SIDE)
    letters = int((width - 4) / _LETTER)
    text = "" if letters < 3 else node.name if len(node.name) <= letters else node.name[: letters - 1] + "…"
    name, kind = escape(node.name), f", {node.group}" if node.group else ""
    return (
        f'<g class="f" data-x="{start:.6f}" data-w="{share:.6f}" data-d="{depth}" data-n="{name}">'
        f"<title>{name} ({100 * share:.2f} %{kind})</title>"
        f'<rect x="{x:.1f}" y="{y}" width="{max(width - 0.5, 0.1):.1f}" height="{_ROW - 1}" rx="1.5" fill="{_colour(node.group, groups)}"/>'
        f'<text x="{x + 3:.1f}" y="{y + 12}">{escape(text)}</text></g>'
    )


def _legend(groups: tuple[str, ...]) -> str:
    parts, x = [], float(_SIDE)
    for group in groups:
        parts.append(f'<rect x="{x:.0f}" y="40" width="12" height="12" rx="2" fill="{_colour(group, groups)}"/>')
        parts.append(f'<text x="{x + 16:.0f}" y="50">{escape(group)}</text>')
        x += 34 + _LETTER * len(group)
    return "".join(parts)


def _colour(group: str, groups: tuple[str, ...]) -> str:
    return _COLOURS[groups.index(group) % len(_COLOURS)] if group in groups else "#dee2e6"
