"""The lineage of a run drawn in layers from left to right: what was made from what.

Layers are longest paths from the raw files; an artifact that nothing feeds stands just left of its first use; a long edge is led through
the layers between by waypoints; rows are ordered by the mean place of their neighbours (Sugiyama's method, a few sweeps).
"""

from dataclasses import dataclass, field
from graphlib import CycleError, TopologicalSorter

from markupsafe import Markup, escape

from tasks.errors import UserError
from tasks.readable import duration
from tasks.report_data import Artifact

_WIDTH, _HEIGHT, _GAP_X, _GAP_Y, _WAYPOINT = 152, 46, 44, 12, 6  # units of the SVG
_SWEEPS = 12


@dataclass
class _Place:
    """A node, or a waypoint of an edge (no artifact)."""

    layer: int
    artifact: Artifact | None = None
    before: list["_Place"] = field(default_factory=list)
    after: list["_Place"] = field(default_factory=list)
    row: float = 0.0  # place in its layer while ordering
    y: float = 0.0  # centre

    @property
    def height(self) -> float:
        return _HEIGHT if self.artifact else _WAYPOINT

    @property
    def x(self) -> int:
        return self.layer * (_WIDTH + _GAP_X)


def lineage(artifacts: list[Artifact]) -> Markup:
    """The graph as one SVG. Inputs that are not among the artifacts are left out. Raises UserError for a cycle."""
    if not artifacts:
        return Markup("")
    layers = _ordered(_placed(artifacts))
    _align(layers)
    places = [place for layer in layers for place in layer]
    top = min(place.y - place.height / 2 for place in places)
    bottom = max(place.y + place.height / 2 for place in places)
    width, height = len(layers) * (_WIDTH + _GAP_X) - _GAP_X + 4, bottom - top + 4
    edges = [_edge(start, end) for start in places if start.artifact for end in start.after]
    nodes = [_node(place) for place in places if place.artifact]
    svg = (
        f'<svg class="lineage" viewBox="-2 {top - 2:.0f} {width} {height:.0f}" role="img" aria-label="Lineage" '
        f'style="min-width:{0.74 * width:.0f}px;max-width:{1.1 * width:.0f}px">{"".join(edges)}{"".join(nodes)}</svg>'
    )
    return Markup(svg)


def _placed(artifacts: list[Artifact]) -> list[_Place]:
    known = {artifact.id: artifact for artifact in artifacts}
    inputs = {artifact.id: [name for name in dict.fromkeys(artifact.inputs) if name in known] for artifact in artifacts}
    try:
        order = list(TopologicalSorter(inputs).static_order())
    except CycleError as error:
        raise UserError(f"the lineage goes in a circle through the artifacts {', '.join(error.args[1])}") from error
    layer: dict[str, int] = {}
    for name in order:
        layer[name] = max((layer[item] + 1 for item in inputs[name]), default=0)
    inputs = _direct(inputs, order)
    users = {name: [other for other in order if name in inputs[other]] for name in order}
    for name in reversed(order):
        if not inputs[name] and users[name]:
            layer[name] = min(layer[other] for other in users[name]) - 1
    places = {name: _Place(layer[name], known[name]) for name in known}
    waypoints = []
    for name, place in places.items():
        for user in users[name]:
            waypoints += _joined(place, places[user])
    return [*places.values(), *waypoints]


def _direct(inputs: dict[str, list[str]], order: list[str]) -> dict[str, list[str]]:
    """Inputs without those that another input is made of: the way to them is drawn already (a transitive reduction)."""
    behind: dict[str, set[str]] = {}
    for name in order:  # inputs first
        behind[name] = set(inputs[name]).union(*(behind[item] for item in inputs[name]))
    return {name: [item for item in items if not any(item in behind[other] for other in items)] for name, items in inputs.items()}


def _joined(start: _Place, end: _Place) -> list[_Place]:
    """Link two places through a waypoint in each layer between them; returns the waypoints."""
    chain = [_Place(layer) for layer in range(start.layer + 1, end.layer)]
    for before, after in zip([start, *chain], [*chain, end], strict=True):
        before.after.append(after)
        after.before.append(before)
    return chain


def _ordered(places: list[_Place]) -> list[list[_Place]]:
    layers: list[list[_Place]] = [[] for _ in range(max(place.layer for place in places) + 1)]
    for place in places:
        layers[place.layer].append(place)
    for sweep in range(_SWEEPS):
        forward = sweep % 2 == 0
        for layer in layers if forward else reversed(layers):
            for place in layer:
                near = (place.before if forward else place.after) or place.before or place.after
                if near:
                    place.row = sum(item.row for item in near) / len(near)
            layer.sort(key=lambda place: place.row)
            for row, place in enumerate(layer):
                place.row = row - (len(layer) - 1) / 2
    return layers


def _align(layers: list[list[_Place]]) -> None:
    """Heights: pull every place towards its neighbours, then push apart what overlaps, centred on where it wanted to be."""
    for layer in layers:
        _spread(layer, [place.row * (_HEIGHT + _GAP_Y) for place in layer])
    for sweep in range(_SWEEPS):
        for layer in layers if sweep % 2 else reversed(layers):
            wanted = []
            for place in layer:
                near = [*place.before, *place.after]
                wanted.append(sum(item.y for item in near) / len(near) if near else place.y)
            _spread(layer, wanted)


def _spread(layer: list[_Place], wanted: list[float]) -> None:
    """Places as near as may be to where they want to be, in this order and without overlap: blocks that touch share their mean shift."""
    blocks: list[tuple[list[_Place], list[float]]] = []  # places, and what each wants for the block's first centre
    for place, want in zip(layer, wanted, strict=True):
        blocks.append(([place], [want]))
        while len(blocks) > 1 and _start(blocks[-2]) + _extent(blocks[-2][0], place_after=blocks[-1][0][0]) > _start(blocks[-1]):
            places, starts = blocks.pop()
            offset = _extent(blocks[-1][0], place_after=places[0])
            blocks[-1][0].extend(places)
            blocks[-1][1].extend(start - offset for start in starts)
    for places, starts in blocks:
        y = sum(starts) / len(starts)
        for index, place in enumerate(places):
            place.y = y
            if index + 1 < len(places):
                y += _distance(place, places[index + 1])


def _start(block: tuple[list[_Place], list[float]]) -> float:
    return sum(block[1]) / len(block[1])


def _extent(places: list[_Place], place_after: _Place) -> float:
    """From the centre of a block's first place to the centre of the place that comes after the block."""
    return sum(_distance(a, b) for a, b in zip(places, [*places[1:], place_after], strict=True))


def _distance(above: _Place, below: _Place) -> float:
    return (above.height + below.height) / 2 + _GAP_Y


def _edge(start: _Place, end: _Place) -> str:
    assert start.artifact
    x, y, path = start.x + _WIDTH, start.y, f"M{start.x + _WIDTH},{start.y:.1f}"
    while True:
        middle = x + (end.x - x) / 2
        path += f" C{middle:.0f},{y:.1f} {middle:.0f},{end.y:.1f} {end.x},{end.y:.1f}"
        if end.artifact:
            break
        path += f" H{end.x + _WIDTH}"
        x, y, end = end.x + _WIDTH, end.y, end.after[0]
    return f'<path class="edge" d="{path}" data-from="{escape(start.artifact.id)}" data-to="{escape(end.artifact.id)}"/>'


def _node(place: _Place) -> str:
    item = place.artifact
    assert item
    title = f"{item.step} {item.name}\n{item.id}\n{item.shards:,} shards, {duration(item.seconds)}, {'reused' if item.reused else 'made'}"
    below = f"{item.id[:8]} · {item.shards:,} sh · {'reused' if item.reused else duration(item.seconds)}"
    y = place.y - _HEIGHT / 2
    return (
        f'<g class="node {"reused" if item.reused else "made"}" data-id="{escape(item.id)}" data-tip="{escape(title)}" tabindex="0">'
        f'<rect x="{place.x}" y="{y:.1f}" width="{_WIDTH}" height="{_HEIGHT}" rx="6"/>'
        f'<rect class="mark" x="{place.x}" y="{y:.1f}" width="4" height="{_HEIGHT}" rx="2"/>'
        f'<text class="step" x="{place.x + 12}" y="{y + 14:.1f}">{escape(_cut(item.step, 20))}</text>'
        f'<text class="name" x="{place.x + 12}" y="{y + 28:.1f}">{escape(_cut(item.name, 20))}</text>'
        f'<text class="small" x="{place.x + 12}" y="{y + 40:.1f}">{escape(below)}</text></g>'
    )


def _cut(text: str, most: int) -> str:
    return text if len(text) <= most else text[: most - 1] + "…"
