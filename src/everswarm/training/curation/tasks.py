"""What a question asks for, by the words of its beginning and its end, where people say it: for balance, not judgement.

English, German, French and Spanish; a question in another language is told by its signs, or is `other`.
"""

from __future__ import annotations

from typing import Final

import polars as pl

MATHEMATICS: Final = "mathematics"
CODE: Final = "code"
TRANSLATION: Final = "translation"
SUMMARY: Final = "summary"
REWRITING: Final = "rewriting"
EXTRACTION: Final = "extraction"
CREATIVE: Final = "creative"
QUESTION: Final = "question"
CHAT: Final = "chat"
OTHER: Final = "other"
TASKS: Final = (
    MATHEMATICS,
    CODE,
    TRANSLATION,
    SUMMARY,
    REWRITING,
    EXTRACTION,
    CREATIVE,
    QUESTION,
    CHAT,
    OTHER,
)

_PART = 240  # characters of the beginning, and of the end, that are read
_CHAT_CHARACTERS = 80  # a greeting of more has something else to say
_BEFORE = r"(?:^|[^a-z0-9à-ÿ])"  # a word; \b would take the slow way through every text with an accent
_AFTER = r"(?:[^a-z0-9à-ÿ]|$)"


def _one_of(*alternatives: str) -> str:
    """Return a pattern of words that begin at a border; one argument a language, or an idea."""
    return _BEFORE + "(?:" + "|".join(alternatives) + ")"


_NUMBER = r"[0-9]+|" + _one_of(
    r"(?:half|twice|double|triple|thrice|thirds?|quarter|fourth|fifth|dozen|one|two|three|four|five|six|seven|eight|nine"
    r"|ten|eleven|twelve|twenty|thirty|forty|fifty|hundred|percent|zwei|drei|vier|fünf|deux|trois|quatre|cinq|dos|tres"
    rf"|cuatro|cinco){_AFTER}"
)
_AMOUNT = _one_of(  # beside two numbers
    r"how (?:many|much|old|long|far|tall|fast|big|heavy|high)|calculate|compute|what percent[a-z]*|what fraction",
    r"what(?:'s|’s| is| was| will be| would be| are| were) (?:[a-z'’]+ ){0,4}(?:total|average|sum"
    r"|difference|percent[a-z]*|cost|price|area|perimeter|volume|ratio|chances?|number|value|speed|age|profit|salary|length"
    r"|weight|height|distance|score|pay|bill|change|income|width|median|mean)",
    r"find the (?:[a-z]+ )?(?:total|sum|average|number|area|volume|value|cost|price)",
    r"wie ?viele?|wie (?:alt|lange|weit|hoch|groß|schnell)|berechne|wie hoch",
    r"combien|calcule|quel(?:le)? est (?:la|le) (?:somme|total|moyenne|aire|vitesse|prix)",
    r"cuánt[oa]s?|calcula|cuál es (?:la|el|su) (?:suma|total|promedio|área|precio)",
)
_ASKED_LAST = r"(?:what|how|which|determine|find|express|combien|wie|was|cuánt)[^.?]{0,90}[.?]?\s*$"  # beside three
_FORMULA = (
    r"[0-9)] ?[+*×÷^=] ?[-0-9a-z(_]|[a-z)] ?[=^] ?-?[0-9]|[0-9)] [-/] [0-9(]|[0-9][a-z] ?[-+] ?[0-9]"
    r"|√|∫|\\frac|[0-9] ?% (?:of|von|de) "
)
_MATHEMATICS = _one_of(
    r"solve (?:for|the (?:equation|system|inequality))|equations?|integral|derivative|square root"
    r"|prime (?:number|factor)|perfect numbers?|set of numbers|probability that|hypotenuse|logarithm|polynomial"
    r"|factorial|greatest common"
    r"|simplify (?:the (?:expression|fraction)|-?[0-9(])|math(?:s|ematics|ematical)? (?:word )?(?:problems?|questions?)"
    r"|convert[a-z]* [0-9]|[0-9]+ ?(?:ft|km|cm|kg|lbs?|miles|degrees) (?:to|in) |prove that|theorem",
    r"gleichung|ableitung|wurzel (?:aus|von)|primzahl|wahrscheinlichkeit|löse|satz des pythagoras",
    r"équation|dérivée|racine carrée|nombres? premiers?|probabilité|résous|résoudre",
    r"ecuaci[oó]n|derivada|raíz cuadrada|números? primos?|probabilidad|resuelve",
)
_CODE_SIGNS = (
    r"```|c\+\+|c#|\(\) ?\{|;[ \t]*\n"
    r"|(?m:^[ \t]*(?:def [a-z0-9_]+\(|class [a-z0-9_]+[:({]|from [a-z0-9_.]+ import|#include|public static))"
    r"|select [a-z0-9_*., ]{1,60} from [a-z0-9_]+ (?:where|join|order by|group by|limit)"
)
_CODE = _one_of(
    r"(?:python|javascript|typescript|java|rust|golang|kotlin|php|html|css|json|yaml|xml|sql|regexp?|regular expression"
    r"|bash|powershell|dockerfile|docker|kubernetes|git|github|django|flask|react|typeerror|nullpointerexception"
    r"|numpy|pandas|unit tests?|stack trace|traceback|segfault|segmentation fault|refactor|debug"
    r"|compiler|codebase|source code|pseudocode|api endpoint)" + _AFTER,
    r"(?:write|implement|fix|explain|review|optimi[sz]e|run|following|this|the|some|my|a) (?:[a-z]+ )?"
    r"(?:code|computer program|script)" + _AFTER,
    r"write a program|(?:write|implement|create|define) an? (?:[a-z]+ ){0,2}(?:function|method|class|algorithm|query)"
    + _AFTER,
    r"(?:schreibe?|programmiere|implementiere) (?:[a-zà-ÿ]+ ){0,3}(?:funktion|programm|skript|code)",
    r"(?:écri[a-zà-ÿ]+|implémente) (?:[a-zà-ÿ]+ ){0,3}(?:fonction|programme|script|code)",
    r"(?:escrib[a-zà-ÿ]+|programa|implementa) (?:[a-zà-ÿ]+ ){0,3}(?:función|programa|script|código)",
)
_TRANSLATION = _one_of(
    r"translat(?:e|ion|ing)|into (?:english|french|german|spanish|italian|japanese|chinese)",
    r"how (?:do|would|to|can) (?:you |i |we )?say .{1,80} in [a-z]+",
    r"übersetz|wie sagt man .{1,60} auf [a-z]+|was heißt .{1,60} auf [a-z]+",
    r"tradui|traduction|comment (?:dit|dire)(?:-on)? .{1,60} en [a-z]+",
    r"traduc|tradúc|traduzca|se dice .{1,60} en [a-z]+",
)
_SUMMARY = _one_of(
    r"summari[sz]|summary|tl;?dr|key (?:points|takeaways)|main (?:points|ideas?)|in a nutshell|condense|the gist"
    r"|sum (?:\w+ )?up",
    r"zusammenfass|fass\w* .{0,120}zusammen|kurzfassung",
    r"résum|synthétise",
    r"resum|resúm|sintetiza",
)
_REWRITING = _one_of(
    r"re-?writ|rephras|paraphras|reword|proof-?read|polish (?:this|the|my)|shorten"
    r"|simplify (?:this|the) (?:text|sent|para)",
    r"(?:correct|fix|improve|check|edit) (?:the |my |this |any |all )?(?:\w+ )?"
    r"(?:grammar|spelling|sentence|text|paragraph|essay|email|wording|style|errors|mistakes|typos|punctuation)",
    r"(?:make|turn|convert|change) (?:this|it|the following|the sentence|the given) .{0,60}"
    r"(?:more|less|shorter|longer|formal|professional|polite|passive|active|past|tense|voice)" + _AFTER,
    r"sound (?:more|less|[a-z]+er"
    + _AFTER
    + r")|convert it to a sentence|more (?:formal|professional|polite|concise)|misspelling",
    r"umformulier|formulier\w* .{0,80} um|umschreib|überarbeite|korrigier"
    r"|verbesser\w* (?:den|die|das|diesen|meinen|meine)",
    r"reformul|réécri|corrige|améliore",
    r"reescrib|parafrase|mejora (?:el|la|este|esta|mi)",
)
_EXTRACTION = _one_of(
    r"(?:extract|extracting|extraction) |identify (?:all|the|any|which|if|whether)|list (?:all|every)(?: of)? the"
    r"|find (?:all|every) (?:the )?"
    r"|pull out|named entit|classif|categori[sz]e|sentiment|highlight the|label each|detect (?:if|whether|the)"
    r"|tell (?:me )?(?:if|whether) the (?:sentence|following|text|email|review)"
    r"|is (?:this|the following) .{1,60}(?:positive|negative|spam)",
    r"extrahier|nenne alle .{1,60} (?:im|aus dem|in diesem)|klassifizier|ordne .{1,80} zu",
    r"extrai|extraction|classe[rz]? |repère",
    r"extrae|clasifica|identifica",
)
_CREATIVE = _one_of(
    r"(?:poems?|haiku|sonnet|limerick|lyrics|story|stories|fairy tale|screenplay|novel|jokes?|riddle|metaphors?"
    r"|slogans?|tagline|songs? about|fiction|blog post|brainstorm|imagine|pretend|invent|creative|role-?play)" + _AFTER,
    r"come up with|make up an?|(?:a name|names|ideas) for",
    r"(?:write|draft|compose) (?:me )?(?:an? |the |some )?(?:\w+ ){0,3}(?:letter|e-?mail|post|speech"
    r"|essay|review|tweet|ad|article|introduction|caption|description|paragraph|toast|scene|message|invitation)"
    + _AFTER,
    r"gedicht|märchen|witz|erfinde|(?:schreib|erzähl)\w* (?:mir )?eine?n? (?:\w+ )?"
    r"(?:brief|e-?mail|rede|text|geschichte|lied|aufsatz|einladung)",
    r"poème|blague|chanson|invente",
    r"(?:écri|rédig|racont)\w+(?:-moi)? une? (?:\w+ )?(?:histoire|conte|lettre|texte|discours|mail)",
    r"poema|cuento|chiste|canción|inventa|escrib\w+ una? (?:\w+ )?(?:historia|carta|texto|discurso|correo)",
)
_MAKE = (
    r"^\W{0,3}(?:please )?(?:write|create|generate|design|compose|draft|make an?|plan|you need to (?:write|create))"
    + _AFTER
)
_GREETING = (
    r"^\W{0,3}(?:hi|hello|hey|yo|good (?:morning|evening|afternoon|night)|thanks?|thank you|thx|bye|goodbye|see you"
    r"|ok(?:ay)?|cool|great|nice|lol|haha\w*|how are you|how's it going|what's up|sup|who are you"
    r"|what(?:'s| is) your name|are you (?:there|ok|human|a bot)|tell me about yourself"
    r"|hallo|guten (?:tag|morgen|abend)|danke\w*|tschüss|wie geht'?s?(?: es (?:dir|ihnen))?|wer bist du|moin|servus"
    r"|bonjour|salut|merci|bonsoir|au revoir|ça va|comment (?:ça va|vas-tu|allez-vous|tu t'appelles)|qui es-tu|coucou"
    r"|hola|buenos días|buenas (?:tardes|noches)|gracias|adiós|qué tal|cómo (?:estás|te llamas)|quién eres)(?:\W|$)"
)
_FEELING = (
    r"^\W{0,3}(?:i(?:'m| am) (?:so |feeling |really |very )?"
    r"(?:sad|happy|tired|lonely|bored|anxious|stressed|depressed|excited|angry)|i(?:'ve)? had an? \w+ day|i feel "
    r"|ich bin (?:so |sehr )?(?:traurig|müde|glücklich|einsam)|mir ist langweilig"
    r"|je suis (?:si |très )?(?:triste|fatigué|content|seule?)|estoy (?:muy )?(?:triste|cansad|feliz|aburrid))"
)
_QUESTION = r"[?？]|^\W{0,3}¿|" + _one_of(
    r"(?:what|why|who|whom|whose|when|where|which|how|is it|are there|explain|describe|define|tell me"
    r"|give (?:me )?(?:an?|some|the)|compare|difference between|recommend|suggest|list"
    r"|name (?:a|an|the|some|two|three|five)"
    r"|was ist|warum|wer|wann|wo|welche[rs]?|wie|erkläre?|beschreibe?|nenne"
    r"|pourquoi|qui|quand|où|quell?e?s?|comment|explique\w*|décri[st]\w*"
    rf"|qué|quién|cuándo|dónde|cuál|cómo|explica|describe){_AFTER}"
)


def tasks(questions: pl.Series) -> pl.Series:
    """Return the task of each question, one of `TASKS`; `questions` are last messages of users."""
    frame = pl.DataFrame({"question": questions.fill_null("")}).select(_what_is_said().str.to_lowercase().alias("said"))
    said = pl.col("said")
    numbers = said.str.count_matches(_NUMBER)
    amount = ((numbers >= 2) & said.str.contains(_AMOUNT)) | ((numbers >= 3) & said.str.contains(_ASKED_LAST))
    short = said.str.len_chars() <= _CHAT_CHARACTERS
    first_that_holds = (
        (CODE, said.str.contains(_CODE_SIGNS) | said.str.contains(_CODE)),
        (TRANSLATION, said.str.contains(_TRANSLATION)),
        (SUMMARY, said.str.contains(_SUMMARY)),
        (MATHEMATICS, said.str.contains(_MATHEMATICS)),
        (EXTRACTION, said.str.contains(_EXTRACTION)),
        (MATHEMATICS, amount),
        (REWRITING, said.str.contains(_REWRITING)),
        (CREATIVE, said.str.contains(_CREATIVE)),
        (MATHEMATICS, said.str.contains(_FORMULA)),
        (CHAT, (short & said.str.contains(_GREETING)) | said.str.contains(_FEELING)),
        (CREATIVE, said.str.contains(_MAKE)),
        (QUESTION, said.str.contains(_QUESTION)),
    )
    task = pl.coalesce(*(pl.when(holds).then(pl.lit(name)) for name, holds in first_that_holds), pl.lit(OTHER))
    return frame.select(task.alias("task")).to_series()


def _what_is_said() -> pl.Expr:
    """Return the question, or the beginning and the end of a long one."""
    question = pl.col("question")
    parts = pl.concat_str(question.str.head(_PART), pl.lit("\n"), question.str.tail(_PART))
    return pl.when(question.str.len_chars() <= 2 * _PART).then(question).otherwise(parts)
