"""Kitchens: who does what when, and where everything is at any time."""

from collections.abc import Sequence
import dataclasses
import math

from mmrl.errors import UserError
from mmrl.worlds.draws import Draws
from mmrl.worlds.kitchens.plan import DOORS, Fixture, Plan, Point

# Things of training, and others.
THINGS = ("cup", "knife", "box", "bowl")
OTHER_THINGS = ("bottle", "plate", "pan")
HANDS = "hands"
_ROOM = 2  # Things that one fixture holds.
# Seconds, in tenths: least and greatest.
_WALK, _TURN, _ACT, _HOLD = (8, 14), (3, 5), (6, 8), (5, 7)
# Seconds of the longest video.
LONGEST = 40.0


@dataclasses.dataclass(frozen=True, slots=True)
class Event:
  """Something that happens to a fixture or a thing.

  Attributes:
    start, end: seconds.
    kind: "open", "close", "pick up", "put down"; or "move", from the begin of
      picking up to the end of putting down.
    thing: that is moved; "" of a door.
    from_, to: names of fixtures; "" where it is neither.
  """

  start: float
  end: float
  kind: str
  thing: str
  from_: str
  to: str


@dataclasses.dataclass(frozen=True, slots=True)
class Thing:
  """Something that can be moved.

  Attributes:
    name: one of `THINGS` or `OTHER_THINGS`, none twice.
    fixture: name of where it is at the begin.
    slot: 0 to 3, its corner of whatever fixture it is on.
  """

  name: str
  fixture: str
  slot: int


@dataclasses.dataclass(frozen=True, slots=True)
class Stand:
  """Where the viewer is at a time.

  Attributes:
    time: seconds.
    place: metres.
    heading: radians from east, counterclockwise.
  """

  time: float
  place: Point
  heading: float


@dataclasses.dataclass(frozen=True)
class Kitchen:
  """A video, as data.

  Attributes:
    plan: the fixtures.
    things: what can be moved.
    events: in the order of their begins.
    path: the viewer's, straight in between.
    seconds: length.
  """

  plan: Plan
  things: tuple[Thing, ...]
  events: tuple[Event, ...]
  path: tuple[Stand, ...]
  seconds: float

  def done(self, kind: str, fixture: str) -> list[Event]:
    """Lists when a fixture was opened or closed."""
    return [e for e in self.events if e.kind == kind and fixture == e.from_]

  def thing(self, name: str) -> Thing:
    """Returns the thing of a name."""
    return next(one for one in self.things if one.name == name)

  def moves(self, thing: str) -> list[Event]:
    """Lists the moves of a thing."""
    return [e for e in self.events if e.kind == "move" and e.thing == thing]

  def rests(self, thing: str) -> list[tuple[float, float]]:
    """Lists begin and end of a thing's rests, before the first move too."""
    moves = self.moves(thing)
    starts = [0.0, *(e.end for e in moves)]
    return list(
      zip(starts, [*(e.start for e in moves), self.seconds], strict=True)
    )

  def place(self, thing: str, time: float) -> str:
    """Returns the fixture where a thing is, or "hands".

    It leaves in the middle of picking up, and is there in that of putting down.
    """
    found = self.thing(thing).fixture
    for event in self.events:
      if event.thing == thing and (event.start + event.end) / 2 <= time:
        if event.kind == "pick up":
          found = HANDS
        elif event.kind == "put down":
          found = event.to
    return found

  def is_open(self, fixture: str, time: float) -> bool:
    """Tells whether a door is open: from its opening's middle on."""
    open_ = False
    for event in self.events:
      door = event.from_ == fixture and event.kind in ("open", "close")
      if door and (event.start + event.end) / 2 <= time:
        open_ = event.kind == "open"
    return open_

  def viewer(self, time: float) -> Stand:
    """Returns where the viewer is, turning by the shorter way."""
    before = max((s for s in self.path if s.time <= time), key=lambda s: s.time)
    after = min(
      (s for s in self.path if s.time > time),
      key=lambda s: s.time,
      default=before,
    )
    if after is before:
      return Stand(time, before.place, before.heading)
    share = (time - before.time) / (after.time - before.time)
    turn = (after.heading - before.heading + math.pi) % (2 * math.pi) - math.pi
    x, y = (
      a + share * (b - a)
      for a, b in zip(before.place, after.place, strict=True)
    )
    return Stand(time, (x, y), before.heading + share * turn)


def remove(kitchen: Kitchen, thing: str) -> Kitchen:
  """Returns the kitchen without a thing; all else happens as it did.

  Raises:
    UserError: if there is no such thing.
  """
  _check(kitchen, thing)
  things = tuple(one for one in kitchen.things if one.name != thing)
  events = tuple(e for e in kitchen.events if e.thing != thing)
  return dataclasses.replace(kitchen, things=things, events=events)


def replace(kitchen: Kitchen, thing: str, other: str) -> Kitchen:
  """Returns the kitchen with another thing in a thing's place at all times.

  Raises:
    UserError: if there is no such thing, or the other is there already.
  """
  _check(kitchen, thing)
  there = [one.name for one in kitchen.things]
  known = [t for t in (*THINGS, *OTHER_THINGS) if t not in there]
  if other not in known:
    raise UserError(
      f"thing: expected one of {', '.join(known)}, found {other!r:.80}"
    )
  things = tuple(
    dataclasses.replace(one, name=other) if one.name == thing else one
    for one in kitchen.things
  )
  events = tuple(
    dataclasses.replace(e, thing=other) if e.thing == thing else e
    for e in kitchen.events
  )
  return dataclasses.replace(kitchen, things=things, events=events)


def move(kitchen: Kitchen, thing: str, fixture: str) -> Kitchen:
  """Returns the kitchen with a thing that nobody moves at another fixture.

  Raises:
    UserError: if there is no such thing or fixture, or the thing is moved.
  """
  _check(kitchen, thing)
  if kitchen.moves(thing):
    raise UserError(
      f"thing: expected one that stays where it is, found {thing!r}, which is"
      " moved; choose another"
    )
  known = [one.name for one in kitchen.plan.fixtures]
  if fixture not in known:
    raise UserError(
      f"fixture: expected one of {', '.join(known)}, found {fixture!r:.80}"
    )
  things = tuple(
    dataclasses.replace(one, fixture=fixture) if one.name == thing else one
    for one in kitchen.things
  )
  return dataclasses.replace(kitchen, things=things)


def _check(kitchen: Kitchen, thing: str) -> None:
  known = [one.name for one in kitchen.things]
  if thing not in known:
    raise UserError(
      f"thing: expected one of {', '.join(known)}, found {thing!r:.80}"
    )


class Script:
  """Writes a kitchen action by action, and keeps the books."""

  def __init__(
    self, draws: Draws, plan: Plan, things: Sequence[str], tick: int
  ):
    """Begins somewhere, with things on different fixtures.

    Args:
      draws: of the item.
      plan: the fixtures.
      things: names.
      tick: tenths of a second before the first action.
    """
    self.plan, self._draws, self._tick = plan, draws, tick
    fixtures = draws.some(plan.fixtures, len(things) + 1)
    self.places = {
      thing: one.name for thing, one in zip(things, fixtures[1:], strict=True)
    }
    self._things = tuple(
      Thing(name, fixture, slot)
      for slot, (name, fixture) in enumerate(self.places.items())
    )
    self._events: list[Event] = []
    self._path: list[Stand] = []
    self._stand(fixtures[0])
    self._path = [dataclasses.replace(self._path[0], time=0.0), *self._path]

  @property
  def seconds(self) -> float:
    """Time that has passed."""
    return self._tick / 10

  def free(self, thing: str) -> list[Fixture]:
    """Lists fixtures that a thing can be moved to."""
    taken = [*self.places.values()]
    return [
      one
      for one in self.plan.fixtures
      if one.name != self.places[thing] and taken.count(one.name) < _ROOM
    ]

  def wait(self, tenths: int) -> None:
    """Stays and looks on."""
    self._tick += tenths
    last = self._path[-1]
    self._path.append(dataclasses.replace(last, time=self.seconds))

  def use(self, fixture: Fixture, verbs: Sequence[str] = ("open", "close")):
    """Goes to a fixture with a door, opens and closes it."""
    self._go(fixture)
    for i, verb in enumerate(verbs):
      if i:
        self.wait(self._draws.between(*_HOLD))
      self._act(verb, "", fixture.name, "")

  def carry(self, thing: str, target: Fixture) -> None:
    """Takes a thing where it is and puts it elsewhere, through doors."""
    source = self.plan.fixture(self.places[thing])
    self._go(source)
    if source.kind in DOORS:
      self._act("open", "", source.name, "")
    start = self.seconds
    self._act("pick up", thing, source.name, "")
    if source.kind in DOORS:
      self._act("close", "", source.name, "")
    self._go(target)
    if target.kind in DOORS:
      self._act("open", "", target.name, "")
    self._act("put down", thing, "", target.name)
    move = Event(start, self.seconds, "move", thing, source.name, target.name)
    self._events.append(move)
    self.places[thing] = target.name
    if target.kind in DOORS:
      self.wait(self._draws.between(*_HOLD))
      self._act("close", "", target.name, "")

  def end(self, tenths: int) -> Kitchen:
    """Waits, and returns what was written."""
    self.wait(tenths)
    events = tuple(sorted(self._events, key=lambda e: (e.start, e.end)))
    path = tuple(self._path)
    return Kitchen(self.plan, self._things, events, path, self.seconds)

  def _act(self, verb: str, thing: str, from_: str, to: str) -> None:
    start = self.seconds
    self.wait(self._draws.between(*_ACT))
    self._events.append(Event(start, self.seconds, verb, thing, from_, to))

  def _go(self, fixture: Fixture) -> None:
    stays = self._path[-1].place == fixture.stand
    self._tick += self._draws.between(*(_TURN if stays else _WALK))
    self._stand(fixture)

  def _stand(self, fixture: Fixture) -> None:
    (x, y), (u, v) = fixture.stand, fixture.middle
    heading = math.atan2(v - y, u - x)
    self._path.append(Stand(self.seconds, (x, y), heading))
