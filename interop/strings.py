"""1,000 strings on which tokenizers tend to differ, the same in every run."""

import functools
import random

PIECES = """the of and a in to is was it for with as his on be at by I this had not are but from or have an they which
one you were her all she there would their we him been has when who will more no if out so what up its about into than
them can only other new some could time these two may then do first any my now such like our over man me even most made
after also did many before must through years where much your way well down should because each just those people
don't I'm we'll they've he'd it's CAN'T We're naïve café Ångström straße œuvre İstanbul ǅ ﬁﬂ ½ ² Ⅷ ٣ ५ 一二三 12 345 6789
1234567890 3.14 1,000 0xff 1e-5 -7 +1 a_b x=y; i++ foo() {} [] <tag> </tag> "quote" 'single' `code` #hash @at $5 50% ^
& * | \\ / ~ ... -- --- ___ === !== -> => :: // /* */ :) ¿qué? «oui» „ja“ “curly” ‘x’ — – … € £ 漢字かな交じり文 日本語 中文字符
한국어 русский Ελληνικά עברית العربية ไทย हिन्दी বাংলা தமிழ் ខ្មែរ አማርኛ 🙂 👩‍👩‍👧 🇩🇪 🏳️‍🌈 👍🏽 ❤️ ☃ ♞ 𝔘𝔫𝔦 𝟘𝟙 𐍈 e\u0301 o\u0308
\u200b \u200d \ufeff \u00ad \u202e \u2028 \u3000 \u00a0 \u2003 \ufffd \x00 \x01 \x7f \x85 <|endoftext|> <s> </s> <unk>
<|im_start|> [PAD] <0x0A> ▁ Ġ Ċ ##ing""".split(" ")
SPACES = [" ", "  ", "   ", "    ", "\t", "\t\t", "\n", "\n\n", "\r\n", " \n", "\n  ", "\u00a0", "\u3000", "        ", ""]
# Bytes that are no UTF-8, as a reader that replaces them gives them: no program of these takes bytes.
BROKEN = [b"\xff\xfe", b"a\xc3", b"\xe2\x82", b"\xf0\x9f\x99", b"\xed\xa0\x80", b"\x80abc", b"ok \xc0\xaf end"]


@functools.cache
def all():
    draw = random.Random(1)
    pieces = [piece for word in PIECES for piece in word.split("\n")]
    found = ["", " ", "\n", " " * 100, "\n" * 50, "\t \n" * 20, "a" * 300, "1" * 40, "!" * 60, "🙂" * 20, "日本" * 30]
    found += [text.decode("utf-8", errors="replace") for text in BROKEN]
    found += [space + piece for piece in pieces for space in ("", " ")]
    found += [piece + space for piece in SPACES[:-1] for space in SPACES[:-1]]
    while len(found) < 1000:
        count = draw.randint(2, 12)
        found.append("".join(draw.choice(pieces) + draw.choice(SPACES) for _ in range(count)))
    return found[:1000]
