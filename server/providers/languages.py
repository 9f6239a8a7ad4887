"""The languages that can be asked for, under their two names, and which one a text is written in."""

import re

AUTO = "Auto"

# Clients and the realtime API say names, the APIs that make voices say ISO codes.
_ISO = {
    "Chinese": "zh",
    "English": "en",
    "German": "de",
    "Italian": "it",
    "Portuguese": "pt",
    "Spanish": "es",
    "Japanese": "ja",
    "Korean": "ko",
    "French": "fr",
    "Russian": "ru",
}

LANGUAGES: tuple[str, ...] = tuple(_ISO)
"""The ten names, without ``Auto``."""

# What a voice is heard saying where nothing else is known of it: some fifteen seconds, and for those that are sent as a
# preview text no more than the 200 characters that the provider takes.
_PASSAGES = {
    "zh": "早上好。今天的天气很好，我打算去河边走一走。路上有一家小书店，店主总是笑着和每个人打招呼。"
    "下午我会给朋友打电话，告诉他我读到的那个故事，然后慢慢走回家。",
    "en": "Good morning. The weather is fine today, and I am going for a walk along the river. There is a small"
    " bookshop on the way. In the afternoon I will call a friend, and then walk slowly home.",
    "de": "Guten Morgen. Das Wetter ist schön, und ich gehe am Fluss spazieren. Unterwegs gibt es einen kleinen"
    " Buchladen. Am Nachmittag rufe ich einen Freund an und gehe dann langsam nach Hause.",
    "it": "Buongiorno. Oggi il tempo è bello e vado a passeggiare lungo il fiume. Per strada c'è una piccola libreria."
    " Nel pomeriggio telefonerò a un amico, e poi tornerò a casa con calma.",
    "pt": "Bom dia. O tempo está bonito hoje e vou caminhar ao longo do rio. No caminho há uma pequena livraria."
    " À tarde vou telefonar a um amigo e depois volto devagar para casa.",
    "es": "Buenos días. Hoy hace buen tiempo y voy a pasear junto al río. Por el camino hay una pequeña librería."
    " Por la tarde llamaré a un amigo y después volveré a casa sin prisa.",
    "ja": "おはようございます。今日は天気がいいので、川沿いを散歩します。途中に小さな本屋があります。"
    "午後は友だちに電話をして、読んだ物語の話をします。それから、ゆっくり歩いて家に帰ります。",
    "ko": "좋은 아침입니다. 오늘은 날씨가 좋아서 강을 따라 산책하려고 합니다. 가는 길에 작은 서점이 하나 있습니다."
    " 오후에는 친구에게 전화를 걸고, 천천히 걸어서 집으로 돌아오겠습니다.",
    "fr": "Bonjour. Il fait beau aujourd'hui et je vais me promener le long de la rivière. Il y a une petite librairie"
    " en chemin. Cet après-midi, j'appellerai un ami, puis je rentrerai tranquillement.",
    "ru": "Доброе утро. Сегодня хорошая погода, и я иду гулять вдоль реки. По дороге есть маленький книжный магазин."
    " Днём я позвоню другу, а потом не спеша пойду домой.",
}

HAN = "\u3005\u3007\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U000323af"
"""CJK ideographs, as the inside of a character class: hanzi, kanji and hanja, with the two signs used like one."""

# Halfwidth katakana count, the halfwidth punctuation before them does not.
_SCRIPTS = {
    "Japanese": re.compile("[\u3041-\u3096\u30a1-\u30fa\u30fc\u31f0-\u31ff\uff66-\uff9f]"),
    "Chinese": re.compile(f"[{HAN}]"),
    "Korean": re.compile("[\u1100-\u11ff\u3131-\u318e\uac00-\ud7a3]"),
    "Russian": re.compile("[\u0400-\u052f]"),
    "English": re.compile("[A-Za-z\u00c0-\u024f]"),
}
# An ideograph or a syllable says about as much as three letters; without this "我爱用 Python 编程" would be English.
_LETTERS_WORTH = {"Japanese": 3, "Chinese": 3, "Korean": 3, "Russian": 1, "English": 1}


def language_iso(name: str) -> str | None:
    """The ISO code of a v1 language name, in any case; None for ``Auto``.

    Raises:
        KeyError: For a name that the provider does not speak.
    """
    if name.casefold() == AUTO.casefold():
        return None
    return {known.casefold(): code for known, code in _ISO.items()}[name.casefold()]


def script_language(text: str) -> str:
    """The name of the language that the text's script tells: Han, kana, Hangul, Cyrillic; anything else is English.

    Kana make Han characters Japanese. In a mixed text the script that says most decides.
    """
    weights = {name: len(script.findall(text)) * _LETTERS_WORTH[name] for name, script in _SCRIPTS.items()}
    if weights["Japanese"]:
        weights["Japanese"] += weights.pop("Chinese")
    # On a tie the earlier one wins, and English is last.
    return max(weights, key=lambda name: weights[name]) if any(weights.values()) else "English"


def spoken_iso(name: str, text: str) -> str:
    """The ISO code to name where the provider must be told one: that of the name, for ``Auto`` that of the script."""
    return language_iso(name) or _ISO[script_language(text)]


def passage(name: str, text: str = "", *, only: tuple[str, ...] = tuple(_ISO.values())) -> tuple[str, str]:
    """Something to say in a language that ``name`` names or, for ``Auto``, the script of ``text`` tells.

    Args:
        only: The ISO codes of the languages to choose from; English stands in for the others.

    Returns:
        The name of the language, and what is said in it.
    """
    code = spoken_iso(name, text)
    code = code if code in only else "en"
    return next(known for known, iso in _ISO.items() if iso == code), _PASSAGES[code]
