"""The words of the questions and answers, in each language.

    GERMAN.a("cat", "red")          # "eine rote Katze"
    GERMAN.group("dog", 2)          # "zwei Hunde"
    GERMAN.phrase("where", "cat")   # "wo ist die Katze?"

A kind of things has one name everywhere, the English one; only texts differ.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Noun:
    """A kind's name for one and for several, and the key of its articles."""

    one: str
    many: str
    gender: str = ""
    dative: str = ""  # where it is not as `one`: "vom Elefanten"


@dataclass(frozen=True)
class Articles:
    """What stands before a noun of one gender, and an adjective's ending after `a`."""

    a: str
    the: str
    of: str
    ending: str


@dataclass(frozen=True, eq=False)  # each language is itself
class Language:
    """One language's words, and how they are put together.

    Attributes:
        code: as it stands in a prompt.
        nouns: by kind.
        articles: by gender.
        elided: other articles before a vowel.
        colors: by their English names; the `uninflected` never take an ending.
        numbers: of things, from two on.
        rows, columns: of a picture, empty for the middle one; `center` is both.
        spot, middle: how to say where something is, outside and in the centre.
        phrases: what is asked, by form; see `phrase`.
    """

    code: str
    nouns: Mapping[str, Noun]
    articles: Mapping[str, Articles]
    elided: Mapping[str, str]
    colors: Mapping[str, str]
    uninflected: frozenset[str]
    numbers: tuple[str, ...]
    rows: tuple[str, str, str]
    columns: tuple[str, str, str]
    center: str
    spot: str
    middle: str
    yes: str
    no: str
    both: str
    nothing: str
    phrases: Mapping[str, str]

    def a(self, kind: str, color: str | None = None) -> str:
        """One of a kind: "a cat", "an orange cat"."""
        noun = self.nouns[kind]
        articles = self.articles[noun.gender]
        name = noun.one
        if color is not None:
            ending = "" if color in self.uninflected else articles.ending
            name = f"{self.colors[color]}{ending} {name}"
        elided = self.elided.get(articles.a, articles.a)
        return f"{elided if name[0] in 'aeiou' else articles.a} {name}"

    def the(self, kind: str) -> str:
        """The only one of a kind: "the cat"."""
        noun = self.nouns[kind]
        return f"{self.articles[noun.gender].the} {noun.one}"

    def of(self, kind: str) -> str:
        """As it stands behind left or right: "of the cat"."""
        noun = self.nouns[kind]
        return f"{self.articles[noun.gender].of} {noun.dative or noun.one}"

    def group(self, kind: str, count: int) -> str:
        """So many of a kind: "a cat", "two cats"."""
        if not 1 <= count <= len(self.numbers) + 1:
            raise ValueError(
                f"{count} things; words are for 1 to {len(self.numbers) + 1}"
            )
        if count == 1:
            return self.a(kind)
        return f"{self.numbers[count - 2]} {self.nouns[kind].many}"

    def place(self, row: int, column: int) -> str:
        """A ninth of the picture, row and column 0 to 2: "top left", "center"."""
        return f"{self.rows[row]} {self.columns[column]}".strip() or self.center

    def at(self, row: int, column: int) -> str:
        """Something's being there: "at the top left", "in the center"."""
        template = self.middle if row == column == 1 else self.spot
        return template.format(place=self.place(row, column))

    def enumerate(self, parts: list[str]) -> str:
        """Parts of a sentence: "a cat, a dog and a tree"."""
        listed = ", ".join(parts[:-1])
        return f" {self.both} ".join(filter(None, [listed, *parts[-1:]]))

    def phrase(
        self, form: str, kind: str, *, other: str | None = None, side: str = ""
    ) -> str:
        """A question about a kind, and about another where its form names two."""
        gaps = {"a": self.a(kind), "the": self.the(kind), "side": side}
        gaps["many"] = self.nouns[kind].many
        if other is not None:
            gaps |= {"other": self.the(other), "of": self.of(other)}
        return self.phrases[form].format(**gaps)

    def words(self) -> Iterator[str]:
        """Every word that any of its texts can hold; some come several times."""
        yield self.code
        for noun in self.nouns.values():
            yield from filter(None, (noun.one, noun.many, noun.dative))
        for articles in self.articles.values():
            for color, word in self.colors.items():
                yield word
                yield word + ("" if color in self.uninflected else articles.ending)
            yield from (*articles.a.split(), *articles.the.split())
            yield from articles.of.split()
        yield from (*self.elided.values(), *self.numbers)
        yield from filter(None, (*self.rows, *self.columns, self.center))
        yield from (self.yes, self.no, self.both, self.nothing)
        for template in (self.spot, self.middle, *self.phrases.values()):
            yield from re.findall(r"\w+", re.sub(r"{\w+}", "", template))


ENGLISH = Language(
    code="en",
    nouns={
        "cat": Noun("cat", "cats"),
        "dog": Noun("dog", "dogs"),
        "elephant": Noun("elephant", "elephants"),
        "fish": Noun("fish", "fish"),
        "penguin": Noun("penguin", "penguins"),
        "turtle": Noun("turtle", "turtles"),
        "butterfly": Noun("butterfly", "butterflies"),
        "snail": Noun("snail", "snails"),
        "tree": Noun("tree", "trees"),
        "flower": Noun("flower", "flowers"),
        "mushroom": Noun("mushroom", "mushrooms"),
        "apple": Noun("apple", "apples"),
        "banana": Noun("banana", "bananas"),
        "pizza": Noun("pizza", "pizzas"),
        "cake": Noun("cake", "cakes"),
        "cup": Noun("cup", "cups"),
        "car": Noun("car", "cars"),
        "bus": Noun("bus", "buses"),
        "boat": Noun("boat", "boats"),
        "rocket": Noun("rocket", "rockets"),
        "house": Noun("house", "houses"),
        "ball": Noun("ball", "balls"),
        "star": Noun("star", "stars"),
        "heart": Noun("heart", "hearts"),
    },
    articles={"": Articles(a="a", the="the", of="of the", ending="")},
    elided={"a": "an"},
    colors={
        color: color
        for color in (
            *("red", "orange", "yellow", "green", "blue", "purple", "pink", "brown"),
            *("black", "white", "grey"),
        )
    },
    uninflected=frozenset(),
    numbers=("two", "three", "four", "five", "six"),
    rows=("top", "", "bottom"),
    columns=("left", "", "right"),
    center="center",
    spot="at the {place}",
    middle="in the {place}",
    yes="yes",
    no="no",
    both="and",
    nothing="nothing",
    phrases={
        "exists": "is there {a}?",
        "count": "how many {many}?",
        "color": "what color is {the}?",
        "where": "where is {the}?",
        "larger": "which is larger, {the} or {other}?",
        "beside": "is {the} left or right {of}?",
        "on side": "is {the} {side} {of}?",
    },
)
GERMAN = Language(
    code="de",
    nouns={
        "cat": Noun("Katze", "Katzen", "f"),
        "dog": Noun("Hund", "Hunde", "m"),
        "elephant": Noun("Elefant", "Elefanten", "m", dative="Elefanten"),
        "fish": Noun("Fisch", "Fische", "m"),
        "penguin": Noun("Pinguin", "Pinguine", "m"),
        "turtle": Noun("Schildkröte", "Schildkröten", "f"),
        "butterfly": Noun("Schmetterling", "Schmetterlinge", "m"),
        "snail": Noun("Schnecke", "Schnecken", "f"),
        "tree": Noun("Baum", "Bäume", "m"),
        "flower": Noun("Blume", "Blumen", "f"),
        "mushroom": Noun("Pilz", "Pilze", "m"),
        "apple": Noun("Apfel", "Äpfel", "m"),
        "banana": Noun("Banane", "Bananen", "f"),
        "pizza": Noun("Pizza", "Pizzas", "f"),
        "cake": Noun("Kuchen", "Kuchen", "m"),
        "cup": Noun("Tasse", "Tassen", "f"),
        "car": Noun("Auto", "Autos", "n"),
        "bus": Noun("Bus", "Busse", "m"),
        "boat": Noun("Boot", "Boote", "n"),
        "rocket": Noun("Rakete", "Raketen", "f"),
        "house": Noun("Haus", "Häuser", "n"),
        "ball": Noun("Ball", "Bälle", "m"),
        "star": Noun("Stern", "Sterne", "m"),
        "heart": Noun("Herz", "Herzen", "n", dative="Herzen"),
    },
    articles={
        "m": Articles(a="ein", the="der", of="vom", ending="er"),
        "f": Articles(a="eine", the="die", of="von der", ending="e"),
        "n": Articles(a="ein", the="das", of="vom", ending="es"),
    },
    elided={},
    colors={
        "red": "rot",
        "orange": "orange",
        "yellow": "gelb",
        "green": "grün",
        "blue": "blau",
        "purple": "lila",
        "pink": "rosa",
        "brown": "braun",
        "black": "schwarz",
        "white": "weiß",
        "grey": "grau",
    },
    uninflected=frozenset({"orange", "purple", "pink"}),
    numbers=("zwei", "drei", "vier", "fünf", "sechs"),
    rows=("oben", "", "unten"),
    columns=("links", "", "rechts"),
    center="Mitte",
    spot="{place}",
    middle="in der {place}",
    yes="ja",
    no="nein",
    both="und",
    nothing="nichts",
    phrases={
        "exists": "ist da {a}?",
        "count": "wie viele {many}?",
        "color": "welche Farbe hat {the}?",
        "where": "wo ist {the}?",
        "larger": "was ist größer, {the} oder {other}?",
        "beside": "ist {the} links oder rechts {of}?",
        "on side": "ist {the} {side} {of}?",
    },
)
LANGUAGES = (ENGLISH, GERMAN)
