"""The text behind a caption file's bytes, and what it was written in.

It is never a guess that could be wrong: bytes that make sense in two ways are an error.
Most bytes that are Chinese in GBK are also valid EUC-JP and Shift-JIS, so validity alone decides
nothing. Each valid reading is therefore weighed by how many of its characters are everyday ones in
the language of its encoding.
"""

import codecs
import re
from dataclasses import dataclass
from typing import NamedTuple

from konomi.errors import DataError, printable

UNICODE = "UTF-8"
"""What goes without saying."""

# UTF-32's marks start with UTF-16's, so they come first.
_MARKS = (
    (codecs.BOM_UTF8, "utf-8", UNICODE),
    (codecs.BOM_UTF32_LE, "utf-32-le", "UTF-32"),
    (codecs.BOM_UTF32_BE, "utf-32-be", "UTF-32"),
    (codecs.BOM_UTF16_LE, "utf-16-le", "UTF-16"),
    (codecs.BOM_UTF16_BE, "utf-16-be", "UTF-16"),
)
_SENSIBLE = 0.6
"""Share of everyday characters that a reading needs."""
_MARGIN = 0.15
_CHANCE = 3.0
"""By how much it must exceed every other reading: `_MARGIN + _CHANCE / n ** 1.5` for n different
characters: a few make sense by chance."""
_OTHER_CHARACTER = 0.35
_HALF_WIDTH_KANA = 0.15
"""Every byte from 0xA1 to 0xDF is one in Shift-JIS, so a row of them more often is something
else."""

# fmt: off
_KANJI = frozenset(
    "一二三四五六七八九十百千万円年月日時分間週曜今前後午朝昼夜晩夕春夏秋冬上下左右中外内東西南北大小長短高低新古多少早近遠強弱"
    "広明暗赤青白黒黄緑紫茶色金銀人男女子供少親父母兄弟姉妹友達彼私自己家族名主者生先学校教室文字本書語英国世界地図社会町村市"
    "道路駅車電気水火木土山川海空天星雲雨雪風花草林森田畑石岩砂島池湖港橋門庭園公店屋建物部屋窓戸机椅床階段壁屋根食飲料理肉魚"
    "米飯麦野菜果実茶酒牛豚鳥馬犬猫虫羽尾角牙耳目口鼻手足頭顔首肩腕指胸腹背腰脚膝体身心毛髪眉唇歯舌服着物帽靴袖襟裾布糸紐飾"
    "眼鏡傘鞄剣刀銃杖弓矢槍盾鎧仮面立座寝歩走飛泳見聞読書話言思知考作使持取入出行来帰開閉始終待会合送受買売切打投押引止動働休"
    "遊笑泣怒喜悲怖愛好嫌楽苦美可能力同何全半正向対表裏元気無有不非未最的性化式用法方向回度番号第次目個匹枚冊点線形丸角平面"
    "写真画像絵描景色背景正面横向全身上半身少女少年制服和洋風着浴衣振袖水着下着制服髪型長髪短髪金髪黒髪銀髪茶髪青空夕焼夜空草原"
    "海岸街中室内屋外教会神社寺城鳥居桜梅松竹葉枝根種実落紅椿菊光影闇炎氷雷虹月光太陽宇宙機械人形玩具旗紙箱瓶皿杯鍋缶球鈴鎖"
    "輪玉王姫騎士魔法使竜鬼妖精霊兎狐狼熊虎獅象猿鹿羊蛇亀蝶蜂蛙鯨龍悪善重軽深浅太細厚薄若老静速遅熱冷暖寒甘辛安全品質"
    "代事業員長議民連対選政経現定実戦意関通調問題結果必要過進解決増減産制約束運報告集団期間場所位置館院病医薬科研究音楽歌"
    "詞曲演奏映像組続終初旅客船旧例共記録由局島原守係紀温付録育横柱坂局起放勝負追部曲返助変様"
)
_HANZI = frozenset(
    "一二三四五六七八九十百千万青赤服纯淡的是不了在有我他这个们中来上大为和国地到以说时要就出会可也你对生能而子那得于着下自之年过发后作里"
    "用道行所然家种事成方多经么去法学如都同现当没动面起看定天分还进好小部其些主样理心她本前开但因只从想实日军者意无力它与长把"
    "机民第公此已工使情明性知全间门见问话气走向美手高东西南北左右头脸眼睛耳朵鼻嘴唇牙舌发型脖肩臂指胸腹背腰腿脚身体毛眉男女孩"
    "人少儿父母亲姐妹兄弟朋友老师生王公主骑士红黄蓝绿白黑紫灰粉棕金银色彩深浅亮暗光影太阳月星云雨雪风雷电火水冰山河湖海洋岸沙"
    "滩石岩土田野草地树木林森花叶枝果桃梅兰竹菊樱荷春夏秋冬早晨晚夜午街路城市村镇房屋楼桥窗墙床桌椅灯室内外园店校车船飞机"
    "站笔书纸画像片照图景背前正侧全半特写风格动漫插卡通写实油水墨素描摄影质量最佳杰作穿衣服裙裤鞋帽袜手套围巾外衬衫毛衣校服泳装和"
    "戴拿抱握举坐躺跪跑跳笑哭怒喜悲害羞表情看着张开闭短长直卷双马尾辫刘海单独猫狗兔狐狼熊虎狮象猴鹿羊牛猪鸡鸭鸟鱼龙蛇龟蝴蝶虫"
    "吃喝饭菜肉蛋奶茶酒杯碗盘瓶刀剑枪弓盾旗伞包箱球铃链宝石玩具娃机器魔女巫精灵天使恶鬼神仙古代未来科幻中式汉唐日系传统"
    "很非常太更最又再已经正请让被给向从关系新旧真假坏强弱快慢近远轻重热冷干净脏满空安静世界社会重要名字声音乐歌舞打球游泳"
    "位两些每各另别什怎吗呢吧啊哦此该将并且或即却虽比较教育活思想做认识相信应战斗数据条件文化口走四处论党程原建结社别场先"
)
_HANGUL = frozenset(
    "가각간갈감강같개거것게겨결경계고공과관교구국군그글금기길김까꽃끝나난날남내너네녀년노녹눈는늘니다단달당대더도동되된두드든들등"
    "때또라람랑래러런레려로록료루르른를름리린마만많말망머메면명모목무문물미민바밖반발밝방배백번변별보복본봄부북분불붉비빛빨사산살상"
    "새색생서석선설성세소속손송수순술스시식신실심아안않앉앞야약양어언얼없에여역연열영예오온옷와왕요용우운원월위유으은을음의이인일입"
    "있자작장재저전정제조족좋주중즐지직진집차창처천철첫청체초최추출치카커코크키타태터토트특파판편평포표푸풀품프피하학한할함해했행"
    "향허현형호화환활황회후흐흰히머리짧긴모란녹검"
)
# fmt: on
# Half-width: a mark or small kana that no kana comes before, or a Latin letter at a word's edge.
_NO_KANA_WORD = re.compile(
    "(?<![\uff66-\uff9f])[\uff67-\uff70\uff9e\uff9f]|[A-Za-z][\uff61-\uff9f]|[\uff61-\uff9f][A-Za-z]"
)
_NEUTRAL = re.compile(
    r"[\u2000-\u206f\u3000-\u3040\u00a0-\u00bf\u00d7\u00f7\uff01-\uff20\uff3b-\uff40\uff5b-\uff60]"
)


@dataclass(frozen=True, slots=True)
class Decoded:
    """A text, and the encoding it was in."""

    text: str
    encoding: str
    """As people name it: UTF-8, UTF-16, Shift-JIS, EUC-JP, GBK, ..."""


class _Reading(NamedTuple):
    text: str
    encoding: str
    sense: float
    """How much it looks like its language; 1 entirely."""
    counted: int
    """Different characters behind that."""


def decode_text(data: bytes, where: str) -> str:
    """Text of a caption or metadata file; see `decoded`."""
    return decoded(data, where).text


def decoded(data: bytes, where: str) -> Decoded:
    """Text of a caption or metadata file: UTF-8; UTF-16 or UTF-32 with a mark; Shift-JIS (cp932),
    EUC-JP, GBK or EUC-KR where that is the only reading that makes sense.

    Raises:
        DataError: names `where`, the byte offset and the byte, or the encodings between which it
        cannot be told.
    """
    for mark, codec, name in _MARKS:
        if data.startswith(mark):
            return Decoded(_strict(data[len(mark) :], codec, where, len(mark)), name)
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        return _east_asian(data, where, error.start)
    if "\0" not in text:
        return Decoded(text, UNICODE)
    # Plain ASCII saved as UTF-16 without a mark: every other byte is zero.
    if not any(data[1::2]):
        return Decoded(_strict(data, "utf-16-le", where, 0), "UTF-16")
    if not any(data[::2]):
        return Decoded(_strict(data, "utf-16-be", where, 0), "UTF-16")
    raise DataError(
        f"{printable(where)}: byte {data.index(0)} is zero: not a text file. Save the caption as "
        "UTF-8 text."
    )


def _strict(data: bytes, encoding: str, where: str, skipped: int) -> str:
    try:
        return data.decode(encoding)
    except UnicodeDecodeError as error:
        offset = skipped + error.start
        raise DataError(
            f"{printable(where)}: byte {offset} is not valid {encoding.upper()}. Save the file as "
            "UTF-8."
        ) from error


def _east_asian(data: bytes, where: str, offset: int) -> Decoded:
    readings = sorted(_readings(data), key=lambda reading: -reading.sense)
    # Half-width kana alone are rare but real, as long as they look like words and nothing else
    # reads them.
    kana_alone = [r.encoding for r in readings] == ["Shift-JIS"] and not _NO_KANA_WORD.search(
        readings[0].text
    )
    if not kana_alone and (not readings or readings[0].sense < _SENSIBLE):
        raise DataError(
            f"{printable(where)}: byte {offset} (0x{data[offset]:02x}) is neither UTF-8 nor text "
            "in Shift-JIS, EUC-JP, GBK or EUC-KR that makes sense. Save the file as UTF-8."
        )
    best = readings[0]
    margin = _MARGIN + _CHANCE / max(best.counted, 1) ** 1.5
    for other in readings[1:]:
        if (
            other.text != best.text
            and other.sense >= _SENSIBLE / 2
            and best.sense - other.sense < margin
        ):
            raise DataError(
                f"{printable(where)}: byte {offset} (0x{data[offset]:02x}) is not UTF-8, and the "
                f"text may be {best.encoding} ({_start(best.text)!r}) or {other.encoding} "
                f"({_start(other.text)!r}). Save the file as UTF-8."
            )
    return Decoded(best.text, best.encoding)


def _start(text: str) -> str:
    return " ".join(text.split())[:16]


def _readings(data: bytes) -> list[_Reading]:
    found = []
    for codec, name, everyday in (
        ("cp932", "Shift-JIS", _KANJI),
        ("euc_jp", "EUC-JP", _KANJI),
        ("gbk", "GBK", _HANZI),
        ("euc_kr", "EUC-KR", _HANGUL),
    ):
        try:
            text = data.decode(codec)
        except UnicodeDecodeError:
            continue
        # Bytes 0x80, 0xA0 and 0xFD to 0xFF mean nothing in Shift-JIS; the codec makes unnamed
        # characters of them.
        if re.search(r"[\0\x80-\xa0\ue000-\uf8ff]", text) or (
            codec == "cp932" and _looks_western(text)
        ):
            continue
        found.append(_reading(text, name, everyday))
    return found


def _reading(text: str, name: str, everyday: frozenset[str]) -> _Reading:
    counted = [
        character for character in text if not character.isascii() and not _NEUTRAL.match(character)
    ]
    if not counted:
        # Brackets and commas alone.
        return _Reading(text, name, _SENSIBLE, 0)
    weights = [_weight(character, everyday) for character in counted]
    return _Reading(text, name, sum(weights) / len(weights), len(set(counted)))


def _weight(character: str, everyday: frozenset[str]) -> float:
    if character in everyday:
        return 1.0
    if "\u3041" <= character <= "\u30ff":
        # No Chinese or Korean text holds kana: they speak for the other readings.
        return 1.0 if everyday is _KANJI else -1.0
    if "\uff61" <= character <= "\uff9f":
        return _HALF_WIDTH_KANA if everyday is _KANJI else 0.0
    if everyday is _HANGUL:
        return _OTHER_CHARACTER if "\uac00" <= character <= "\ud7a3" else 0.0
    try:
        # Level 1 of the national standards: the characters in ordinary use.
        lead = character.encode("gb2312" if everyday is _HANZI else "euc_jp")[0]
    except UnicodeEncodeError:
        return 0.0
    return _OTHER_CHARACTER if 0xB0 <= lead <= (0xD7 if everyday is _HANZI else 0xCF) else 0.0


def _looks_western(text: str) -> bool:
    """Whether cp932 made Japanese out of Western European bytes: "crée", "Straße", "don’t" all
    decode as cp932.

    Their accents (bytes 0xC0 to 0xFF) become half-width kana or rare kanji, and curly quotes and
    dashes (0x91 to 0x97) swallow the letter after them; either way they touch a Latin letter,
    where Japanese writers hardly put such.
    """
    for run in re.finditer(r"[^\x00-\x7f]+", text):
        before = text[run.start() - 1 : run.start()]
        after = text[run.end() : run.end() + 1]
        if not re.match("[A-Za-z]", before) and not re.match("[A-Za-z]", after):
            continue
        codes = [character.encode("cp932") for character in run[0]]
        if all(code[0] >= 0xC0 for code in codes):
            return True
        quote = len(codes) == 1 and len(codes[0]) == 2 and 0x91 <= codes[0][0] <= 0x97
        if quote and codes[0][1:].isalpha():
            return True
    return False
