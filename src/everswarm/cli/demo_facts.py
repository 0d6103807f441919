"""What everyone knows, as the demo's people would say it, with the words that a right answer has."""

from __future__ import annotations

from typing import NamedTuple


class Fact(NamedTuple):
    """A question, the short answer that a person would write, and the words that make an answer right or wrong.

    `butterfl-` stands for every word that begins so; the others are taken whole, with or without a plural s.
    """

    question: str
    answer: str
    accepted: tuple[str, ...]
    refused: tuple[str, ...] = ()


_PLANETS = ("mercury", "venus", "mars", "jupiter", "saturn", "uranus", "neptune")

FACTS = (
    Fact("What do bees make?", "Bees make honey.", ("honey",)),
    Fact("What is the capital of France?", "The capital of France is Paris.", ("paris",)),
    Fact("What is the capital of Japan?", "The capital of Japan is Tokyo.", ("tokyo",)),
    Fact("What is the capital of Spain?", "The capital of Spain is Madrid.", ("madrid",)),
    Fact("What is the capital of Egypt?", "The capital of Egypt is Cairo.", ("cairo",)),
    Fact("Which planet do we live on?", "We live on Earth.", ("earth",), _PLANETS),
    Fact("What is the largest ocean on Earth?", "The largest ocean is the Pacific.", ("pacific",)),
    Fact("What is frozen water called?", "Frozen water is called ice.", ("ice",)),
    Fact("How many days are in a week?", "A week has seven days.", ("seven", "7")),
    Fact("How many legs does a spider have?", "A spider has eight legs.", ("eight", "8")),
    Fact("How many sides does a triangle have?", "A triangle has three sides.", ("three", "3")),
    Fact("What colour is fresh grass?", "Fresh grass is green.", ("green",)),
    Fact("Which animal barks?", "A dog barks.", ("dog",)),
    Fact("What is a baby cat called?", "A baby cat is called a kitten.", ("kitten",)),
    Fact("Which season comes after winter?", "Spring comes after winter.", ("spring",)),
    Fact("Which star does the Earth orbit?", "The Earth orbits the Sun.", ("sun",)),
    Fact("Who wrote Romeo and Juliet?", "William Shakespeare wrote Romeo and Juliet.", ("shakespeare",)),
    Fact("What do caterpillars turn into?", "Caterpillars turn into butterflies.", ("butterfl-", "moth")),
    Fact("Which organ pumps blood through the body?", "The heart pumps blood through the body.", ("heart",)),
    Fact("Which is the tallest animal?", "The giraffe is the tallest animal.", ("giraffe",)),
    Fact("On which continent is Kenya?", "Kenya is in Africa.", ("africa",), ("asia", "europe", "america")),
    Fact("Who painted the Mona Lisa?", "Leonardo da Vinci painted the Mona Lisa.", ("leonardo", "vinci")),
    Fact("What is the first month of the year?", "January is the first month of the year.", ("january",)),
    Fact("What do cows give us to drink?", "Cows give us milk.", ("milk",)),
    Fact("What falls from clouds when it is warm?", "Rain falls from clouds.", ("rain-", "water")),
    Fact("What do birds lay?", "Birds lay eggs.", ("egg",)),
)

# Written after the questions above, the rules and the recipe were settled, so that the scores are honest.
HELD_OUT_FACTS = (
    Fact("How many months are in a year?", "A year has twelve months.", ("twelve", "12")),
    Fact("What is the capital of Germany?", "The capital of Germany is Berlin.", ("berlin",)),
    Fact("Which animal says moo?", "A cow says moo.", ("cow", "cattle", "bull")),
    Fact("What colour is snow?", "Snow is white.", ("white",)),
)

DEFINITIONS = (
    Fact("What is a thermometer?", "A thermometer measures temperature.", ("temperature", "hot", "heat-", "fever")),
    Fact("What is an umbrella?", "An umbrella keeps the rain off you.", ("rain-", "dry", "wet", "sun", "weather")),
    Fact("What is a library?", "A library is a place that lends books.", ("book", "read-")),
    Fact("What is a volcano?", "A volcano is a mountain that can erupt lava.", ("lava", "magma", "erupt-", "molten")),
    Fact("What is a compass?", "A compass shows which way is north.", ("north", "direction", "navigat-")),
    Fact(
        "What is a telescope?", "A telescope makes far things look near.", ("star", "distan-", "far", "sky", "magnif-")
    ),
    Fact("What is a bicycle?", "A bicycle is a vehicle with two wheels and pedals.", ("wheel", "pedal", "rid-")),
    Fact(
        "What is a pillow?",
        "A pillow supports your head while you sleep.",
        ("head", "sleep-", "neck", "cushion-", "rest-"),
    ),
    Fact("What is a hammer?", "A hammer is a tool that drives nails.", ("nail", "strik-", "tool", "hit-")),
    Fact("What is a refrigerator?", "A refrigerator keeps food cold.", ("cold", "cool-", "fresh-", "chill-")),
    Fact("What is a clock?", "A clock shows the time.", ("time", "hour")),
    Fact("What is a bridge?", "A bridge carries a road over water.", ("cross-", "over", "span-", "connect-")),
    Fact("What is a desert?", "A desert is a dry place with little rain.", ("dry", "arid", "rain-", "sand", "water")),
    Fact("What is an island?", "An island is land with water all around it.", ("water", "sea", "ocean")),
    Fact("What is a mirror?", "A mirror reflects what is in front of it.", ("reflect-",)),
    Fact("What is a candle?", "A candle gives light by burning wax.", ("wax", "light", "burn-", "wick", "flame")),
    Fact(
        "What is a passport?",
        "A passport proves who you are when you travel.",
        ("travel-", "identi-", "country", "countries"),
    ),
    Fact("What is a calendar?", "A calendar shows the days and months of a year.", ("day", "date", "month", "year")),
    Fact("What is a microscope?", "A microscope makes tiny things look big.", ("tiny", "small", "magnif-", "cell")),
    Fact("What is a ladder?", "A ladder is a frame with steps for climbing.", ("climb-", "step", "rung")),
    Fact("What is a kettle?", "A kettle boils water.", ("boil-", "water", "heat-")),
    Fact("What is a dictionary?", "A dictionary explains what words mean.", ("word", "mean-", "defin-")),
    Fact(
        "What is a museum?",
        "A museum shows old and precious things.",
        ("histor-", "art", "exhib-", "old", "object", "cultur-"),
    ),
    Fact("What is a bakery?", "A bakery makes and sells bread.", ("bread", "cake", "pastr-", "bake-")),
    Fact("What is a helmet?", "A helmet protects your head.", ("head", "protect-", "safe-")),
    Fact(
        "What is a parachute?",
        "A parachute slows a fall through the air.",
        ("fall-", "slow-", "air", "descen-", "jump-"),
    ),
)

HELD_OUT_DEFINITIONS = (
    Fact("What is a wallet?", "A wallet holds your money and cards.", ("money", "cash", "card", "coin", "note")),
    Fact("What is a river?", "A river is water that flows to the sea.", ("water", "flow-", "stream", "sea")),
    Fact("What is a broom?", "A broom sweeps the floor.", ("sweep-", "clean-", "floor", "dust", "dirt")),
    Fact("What is a scarf?", "A scarf keeps your neck warm.", ("neck", "warm-", "shoulder", "cloth-", "fabric")),
)
