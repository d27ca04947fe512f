"""Words and their grammar, against tables written out by hand."""

from __future__ import annotations

import pytest

from vlm.tiny.language import ENGLISH, GERMAN, LANGUAGES
from vlm.tiny.questions import KINDS, forms, keywords
from vlm.tiny.scenes import COLORS

# A red one, the only one, which it is beside, and two; of every kind.
TABLE = """
cat | eine rote Katze | die Katze | von der Katze | zwei Katzen
dog | ein roter Hund | der Hund | vom Hund | zwei Hunde
fish | ein roter Fisch | der Fisch | vom Fisch | zwei Fische
penguin | ein roter Pinguin | der Pinguin | vom Pinguin | zwei Pinguine
turtle | eine rote Schildkröte | die Schildkröte | von der Schildkröte | \
zwei Schildkröten
tree | ein roter Baum | der Baum | vom Baum | zwei Bäume
flower | eine rote Blume | die Blume | von der Blume | zwei Blumen
mushroom | ein roter Pilz | der Pilz | vom Pilz | zwei Pilze
apple | ein roter Apfel | der Apfel | vom Apfel | zwei Äpfel
banana | eine rote Banane | die Banane | von der Banane | zwei Bananen
pizza | eine rote Pizza | die Pizza | von der Pizza | zwei Pizzas
cup | eine rote Tasse | die Tasse | von der Tasse | zwei Tassen
car | ein rotes Auto | das Auto | vom Auto | zwei Autos
boat | ein rotes Boot | das Boot | vom Boot | zwei Boote
house | ein rotes Haus | das Haus | vom Haus | zwei Häuser
ball | ein roter Ball | der Ball | vom Ball | zwei Bälle
elephant | ein roter Elefant | der Elefant | vom Elefanten | zwei Elefanten
butterfly | ein roter Schmetterling | der Schmetterling | vom Schmetterling | \
zwei Schmetterlinge
snail | eine rote Schnecke | die Schnecke | von der Schnecke | zwei Schnecken
bus | ein roter Bus | der Bus | vom Bus | zwei Busse
rocket | eine rote Rakete | die Rakete | von der Rakete | zwei Raketen
star | ein roter Stern | der Stern | vom Stern | zwei Sterne
heart | ein rotes Herz | das Herz | vom Herzen | zwei Herzen
cake | ein roter Kuchen | der Kuchen | vom Kuchen | zwei Kuchen
"""
ROWS = [line.split(" | ") for line in TABLE.strip().splitlines()]


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row[0])
def test_german_genders_cases_and_numbers(row):
    kind, *parts = row
    made = (
        GERMAN.a(kind, "red"),
        GERMAN.the(kind),
        GERMAN.of(kind),
        GERMAN.group(kind, 2),
    )
    assert list(made) == parts


def test_the_table_has_every_kind_and_every_language_its_words():
    assert {kind for kind, *_ in ROWS} == set(KINDS)
    for language in LANGUAGES:
        assert set(language.nouns) == set(KINDS)
        assert tuple(language.colors) == COLORS


@pytest.mark.parametrize(
    "made, expected",
    [
        (ENGLISH.a("elephant"), "an elephant"),
        (ENGLISH.a("elephant", "grey"), "a grey elephant"),
        (ENGLISH.a("car", "orange"), "an orange car"),
        (ENGLISH.group("butterfly", 6), "six butterflies"),
        (ENGLISH.at(0, 2), "at the top right"),
        (ENGLISH.at(1, 1), "in the center"),
        (GERMAN.a("elephant"), "ein Elefant"),
        (GERMAN.a("cat", "purple"), "eine lila Katze"),
        (GERMAN.a("car", "white"), "ein weißes Auto"),
        (GERMAN.group("cat", 1), "eine Katze"),
        (GERMAN.group("ball", 5), "fünf Bälle"),
        (GERMAN.at(2, 0), "unten links"),
        (GERMAN.at(1, 1), "in der Mitte"),
        (GERMAN.enumerate(["eine Katze"]), "eine Katze"),
        (GERMAN.enumerate(["ein Bus", "zwei Hunde"]), "ein Bus und zwei Hunde"),
        (ENGLISH.enumerate(["a", "b", "c"]), "a, b and c"),
        (GERMAN.phrase("exists", "cat"), "ist da eine Katze?"),
        (GERMAN.phrase("count", "house"), "wie viele Häuser?"),
        (GERMAN.phrase("color", "car"), "welche Farbe hat das Auto?"),
        (
            GERMAN.phrase("larger", "cat", other="elephant"),
            "was ist größer, die Katze oder der Elefant?",
        ),
        (
            GERMAN.phrase("beside", "elephant", other="heart"),
            "ist der Elefant links oder rechts vom Herzen?",
        ),
        (
            GERMAN.phrase("on side", "dog", other="cat", side="links"),
            "ist der Hund links von der Katze?",
        ),
    ],
)
def test_sentences(made, expected):
    assert made == expected


def test_more_things_than_there_are_words_for_are_refused():
    for count in (0, 7):
        with pytest.raises(ValueError, match=f"{count} things; words are for 1 to 6"):
            ENGLISH.group("cat", count)


def test_kinds_are_found_in_any_form_and_language():
    assert keywords("two cats, an apple and zwei Bälle") == {
        "cat",
        "apple",
        "ball",
    }
    assert keywords("Busse") == {"bus"}
    assert keywords(" Katze", GERMAN) == {"cat"} and not keywords(" Katze", ENGLISH)
    assert keywords("vom Elefanten") == {"elephant"}
    assert not keywords("hundert Autobahnen catalog")
    assert forms("cat") == ("cat", "cats", "Katze", "Katzen")
    assert forms("fish") == ("fish", "Fisch", "Fische")
    for kind in KINDS:
        assert all(keywords(form) == {kind} for form in forms(kind))
