"""The words and patterns by which a request is told, in seven languages. Whoever adds one measures what it costs.

A pattern is tried only on texts that have one of its words. None may look further than a bounded way from where it
stands, or come back to what it has passed.
"""

from __future__ import annotations

import re
from collections.abc import Mapping


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


LANGUAGES: Mapping[str, frozenset[str]] = {  # by their most frequent words
    language: frozenset(words.split())
    for language, words in {
        "en": "the is are what how and of to in a that it with for you my can do does this from which why who i be",
        "de": "der die das und ist nicht ein eine wie was ich mit auf für von zu den dem wird kann sind warum wer mir",
        "fr": "le la les des est et un une dans pour que qui quel quelle comment pourquoi je vous avec sur du au il",
        "es": "el la los las es y un una en para que qué cómo por con como del se su cuál cuántos quién mi está más",
        "it": "il lo la gli di è e un una per che come con del della sono perché qual quale chi mi nel non quanti",
        "pt": "o a os as é e um uma em para que como com por não do da qual quem meu são você mais quantos no na",
        "nl": "de het een en van is ik wat hoe niet dat met voor op zijn waarom wie mijn kan te er aan wordt",
    }.items()
}
LANGUAGES_OF = {
    word: tuple(language for language, words in LANGUAGES.items() if word in words)
    for word in frozenset().union(*LANGUAGES.values())
}
SCRIPTS = (  # by the first character after their last
    (0x0370, ""),
    (0x0400, "greek"),
    (0x0530, "cyrillic"),
    (0x0590, "armenian"),
    (0x0600, "hebrew"),
    (0x0780, "arabic"),
    (0x0900, ""),
    (0x0980, "devanagari"),
    (0x0E00, "indic"),
    (0x0E80, "thai"),
    (0x1100, ""),
    (0x1200, "hangul"),
    (0x3040, ""),
    (0x3100, "kana"),
    (0x3400, ""),
    (0xA000, "han"),
    (0xAC00, ""),
    (0xD7B0, "hangul"),
    (0xF900, ""),
    (0xFB00, "han"),
)
SCRIPT_CHARACTERS = 200  # by which a script is told

CODE_WORDS = _words(
    "javascript typescript golang sql regex regexp dockerfile stacktrace traceback refactor debug compiler segfault "
    "kotlin php html css json yaml xml numpy pandas pytest django flask kubernetes docker github async stdin stdout "
    "python codebase unittest postgres mysql sqlite bash powershell"
)
MAYBE_CODE_WORDS = _words(  # code only beside one of the next set
    "java rust ruby swift go react shell algorithm compile git api recursion recursive"
)
CODE_COMPANIONS = _words(
    "function functions code script program programming variable loop array string method class bug error exception "
    "implement returns parameter library package install snippet syntax app funktion programm código codice función "
    "fonction função funzione functie"
)
LINE_STARTS = _words("def class import func fn public include")  # `from` counts with `import` alone
CODE_MARKS = ("```", "=>", "c++", "c#", "stack trace", "unit test", "null pointer")
CODE_LINE = re.compile(
    r"^[ \t]*(?:def \w+ ?\(|class \w+ ?[:({]|import [\w.]{1,80}[ \t]*(?:$|as\b|,|;)|from [\w.]{1,80} import\b"
    r"|func \w+ ?\(|fn \w+ ?[(<]|public (?:class|static|void|int|string|final)\b|#include\b)|\w\(\)|;[ \t]*$",
    re.MULTILINE,
)
TABLE_WORDS = _words("where join table tables query database having limit")

MATHEMATICS_WORDS = _words(  # beside a number, a sign or an unknown
    "solve equation integral derivative probability hypotenuse quadratic polynomial factorial logarithm remainder "
    "perimeter circumference sqrt modulo multiply multiplied divided divisible prime gcd lcm radius diameter cosine "
    "löse gleichung ableitung équation dérivée resuelve ecuación derivada risolvi equazione resolva equação"
)
QUANTITY_WORDS = _words(  # beside two numbers and a question
    "percent percentage average total altogether each left remaining remain half twice per sum product ratio area "
    "cost costs spend spent earn earns more fewer less older younger faster times profit price insgesamt prozent "
    "total reste chaque queda cada totale ciascuno restano totaal procent"
)
TEXT_TASK_WORDS = _words(  # at the beginning: whatever numbers follow are somebody's text
    "summarize summarise translate classify detect generate predict select rewrite paraphrase extract proofread edit "
    "title explain describe"
)
NUMBER_WORDS = _words(
    "two three four five six seven eight nine ten eleven twelve twenty thirty forty fifty hundred thousand dozen half "
    "twice double triple third quarter zwei drei vier fünf deux trois quatre cinq dos tres cuatro cinco"
)
HOW_MANY_WORDS = _words(
    "combien cuántos cuántas cuánto cuánta wieviel wieviele quanti quante quanto quanta quantos quantas hoeveel"
)
HOW_MANY = ("how many", "how much", "how long", "how far", "how old", "wie viel")
NUMBER = re.compile(r"\d+(?:[.,]\d+)*")
YEAR = re.compile(r"(?:1[5-9]|20)\d\d")
EQUATION = re.compile(r"\d ?[+*^×÷=] ?[\dx(]|\bx ?[\^²]|\d ?x ?[-+=]|\bx ?= ?-?\d")
EQUATION_SIGNS = ("=", "+", "*", "^", "×", "÷", "²", "x-", "x -")  # without any of them there is none
ASKED = ("?", "find ", "calculate", "compute", "what is", "determine", "solve")

OPTION = re.compile(r"(?:^|[\s(])([abc])[).:]\s")
OF_THE_FOLLOWING = ("which of the following", "which of these", "choose one of", "pick one of")

PLAN_WORDS = _words(
    "plan roadmap schedule itinerary milestone milestones organise organize planen planifier planifica "
    "pianifica planeje"
)
PLAN_CLUES = _words("step break pros first")
PLAN = re.compile(r"\b(?:step[ -]by[ -]step|break (?:it|this|that) down|pros and cons)\b")
LIST_ITEM = re.compile(r"^[ \t]*(?:\d{1,3}[.)]|[-*•])[ \t]+\S", re.MULTILINE)

TIME_WORDS = _words(
    "time date day days year month today tomorrow heute spät datum uhr wochentag heure jour date hora día fecha ore "
    "giorno data horas dia laat dag"
)
TIME = re.compile(
    r"\bwhat(?:'s| is|) (?:the )?(?:current |exact )?(?:time|date|day|year|month)(?: and (?:time|date))?"
    r"(?: (?:is|was|will) (?:it|today|tomorrow|yesterday)(?! set| open)| (?:right )?now\b| today\b"
    r"| in [a-z]+ ?\?| ?\?| ?$)"
    r"|\b(?:current|today's|tomorrow's|yesterday's|present) (?:date|time|day|year|month)\b|\bdate of today\b"
    r"|\bwhat time is it\b(?! set| open)"
    r"|\bhow many (?:days|weeks|months|hours) (?:are (?:there |left )?)?(?:until|till)\b"
    r"|\b(?:what|which) (?:day|month|year) (?:are we|do we have)\b|\bwhat day of the week is it\b|\bis it monday\b"
    r"|\bwie sp(?:ä|ae)t ist es\b|\bwieviel uhr\b|\bwie viel uhr\b"
    r"|\bwelche[rns]? (?:tag|wochentag|datum) (?:ist|haben wir)\b"
    r"|\bquelle heure\b|\bquel jour (?:sommes|est|on)\b|\bquelle est la date\b|\bqué hora es\b|\bqué día es\b"
    r"|\bqué fecha es\b|\bche or[ea] (?:sono|è)\b|\bche giorno è\b|\bque horas são\b|\bque dia é\b|\bhoe laat is\b"
    r"|\bwelke dag is\b"
)
DOCUMENT_WORDS = _words(
    "document documents note notes file files paper papers pdf pdfs upload uploads record records contract contracts "
    "report reports manual manuals minutes dokument dokumente dokumenten notizen unterlagen dateien fichiers "
    "notas archivos arquivos documenti appunti documenten notities bestanden documentos"
)
OWNERS = _words(
    "my our uploaded meine meinen meiner unsere unseren unserer mes nos mis nuestros nuestras miei mie nostri meus "
    "minhas nossos mijn onze"
)
_NOUN = rf"(?:{'|'.join(sorted(DOCUMENT_WORDS))})\b"
_MINE = rf"(?:the )?(?:{'|'.join(sorted(OWNERS))})"
DOCUMENTS = re.compile(
    rf"\b(?:in|from|to|of|through|across|among|search|per|says?|summari[sz]e|dans|selon|après|en|según|de|nei|nelle"
    rf"|secondo|nas|segundo|laut|aus|volgens) (?:all (?:of )?)?{_MINE} (?:own |uploaded |saved )?{_NOUN}"
    rf"|\b{_MINE} {_NOUN} (?:say|says|mention|contain|tell|have|state)"
)

TALK_WORDS = _words(
    "hi hello hey hiya howdy greetings thanks thank thx cheers bye goodbye goodnight welcome hallo danke tschüss "
    "bonjour salut merci hola gracias adiós ciao grazie olá obrigado obrigada hoi bedankt doei"
)
TALK_FILLERS = _words(
    "there everyone all again you so very much a lot for the your help my friend good morning afternoon evening night "
    "day nice great cool awesome perfect ok okay wow haha lol guten tag morgen abend viele vielen dank bon buenos días "
    "buongiorno bom dia dag goede"
)
THANKS = _words("thanks thank thx cheers danke merci gracias grazie obrigado obrigada bedankt")
REQUEST_WORDS = _words(
    "now write make can could would please also but what how why explain give translate show add another do change fix "
    "und jetzt aber mais maintenant pero ahora ma ora mas agora maar nu"
)
TALK = re.compile(
    r"\bhow are you\b|\bhow(?:'s| is) (?:it going|your day|life)\b|\bhow do you do\b|\bwho (?:are|made|created) you\b"
    r"|\bwhat(?:'s| is) (?:your name|up)\b|\bwhat can you do\b|\bwhat are you\b|\bnice to meet you\b|\btell me a joke\b"
    r"|\bare you (?:a |an )?(?:robot|human|ai|bot|real|ok|okay|there)\b|\bgood (?:morning|afternoon|evening|night)\b"
    r"|\bi love you\b|\bwie geht(?:'s| es| s)|\bwer bist du\b|\bcomment (?:ça va|vas[- ]tu|allez[- ]vous)\b"
    r"|\bcómo est[áa]s\b|\bquién eres\b|\bcome stai\b|\bchi sei\b|\bcomo vai\b|\btudo bem\b|\bhoe gaat het\b"
)

WORD = re.compile(r"[^\W\d_]+")
VOCABULARY = frozenset().union(
    LANGUAGES_OF,
    CODE_WORDS,
    MAYBE_CODE_WORDS,
    CODE_COMPANIONS,
    LINE_STARTS,
    TABLE_WORDS,
    ("select", "then"),
    MATHEMATICS_WORDS,
    QUANTITY_WORDS,
    NUMBER_WORDS,
    HOW_MANY_WORDS,
    PLAN_WORDS,
    PLAN_CLUES,
    TIME_WORDS,
    DOCUMENT_WORDS,
    OWNERS,
)
