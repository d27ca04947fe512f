"""What is true of a scene, and clear enough to be asked."""

from collections.abc import Iterator
from itertools import permutations

from vlm.tiny.scenes import Scene, Thing

# Their colours are several at once, or not those that a person would name.
UNCOLORED = {
    *("banana", "bus", "butterfly", "cake", "penguin", "pizza", "rocket", "snail"),
}
MARGIN = 0.04  # nearer to the line between two places it is hard to tell
APART = 0.1  # of the width, between the middles of things that lie side by side
LARGER = 1.5  # how often the smaller of two boxes fits into the larger
SHARED = 0.3  # of the smaller of two boxes; more, and a box does not say which it means


def left_to_right(scene: Scene) -> list[Thing]:
    return sorted(scene.things, key=lambda thing: thing.box[0] + thing.box[2])


def kinds_of(scene: Scene) -> list[str]:
    """Each kind that is there, once."""
    return list(dict.fromkeys(thing.kind for thing in left_to_right(scene)))


def find(scene: Scene, kind: str) -> list[Thing]:
    """The things of a kind, from left to right."""
    return [thing for thing in left_to_right(scene) if thing.kind == kind]


def lone(scene: Scene) -> list[Thing]:
    """The things that are the only ones of their kind."""
    return [thing for thing in scene.things if len(find(scene, thing.kind)) == 1]


def color_of(thing: Thing) -> str | None:
    """The colour that a person would name."""
    return None if thing.kind in UNCOLORED else thing.color


def place_of(thing: Thing, scene: Scene) -> tuple[int, int]:
    """Row and column, 0 to 2, of the ninth of the scene that its middle lies in."""
    x, y = middle(thing, scene)
    return min(2, int(3 * y)), min(2, int(3 * x))


def is_clearly_placed(thing: Thing, scene: Scene) -> bool:
    """It is not near the line between two places."""
    lines = (1 / 3, 2 / 3)
    values = middle(thing, scene)
    return all(abs(value - line) >= MARGIN for value in values for line in lines)


def is_set_apart(thing: Thing, scene: Scene) -> bool:
    """Its box can be no other thing's."""
    others = (other for other in scene.things if other is not thing)
    return all(_shared(thing.box, other.box) <= SHARED for other in others)


def unlike_in_size(scene: Scene) -> Iterator[tuple[Thing, Thing]]:
    """Lone things of which one is clearly larger; each pair in both orders."""
    for one, other in permutations(lone(scene), 2):
        small, large = sorted((area(one.box), area(other.box)))
        if large >= LARGER * small:
            yield one, other


def side_by_side(scene: Scene) -> Iterator[tuple[Thing, Thing]]:
    """Lone things of which one is clearly further left; each pair in both orders."""
    for one, other in permutations(lone(scene), 2):
        if abs(middle(one, scene)[0] - middle(other, scene)[0]) >= APART:
            yield one, other


def middle(thing: Thing, scene: Scene) -> tuple[float, float]:
    """x, y of its box's middle, as shares of the scene."""
    x1, y1, x2, y2 = thing.box
    return (x1 + x2) / 2 / scene.image.width, (y1 + y2) / 2 / scene.image.height


def area(box: tuple[float, float, float, float]) -> float:
    x1, y1, x2, y2 = box
    return max(0.0, x2 - x1) * max(0.0, y2 - y1)


def _shared(
    a: tuple[float, float, float, float], b: tuple[float, float, float, float]
) -> float:
    """How much of the smaller box lies in the other."""
    common = max(a[0], b[0]), max(a[1], b[1]), min(a[2], b[2]), min(a[3], b[3])
    return area(common) / min(area(a), area(b))
