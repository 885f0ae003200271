"""The words that titles and searches are made of, by language and category."""

LANGUAGES = ("en", "zh", "es")
LANGUAGE_SHARES = (0.5, 0.3, 0.2)

COUNTRIES = {"en": ("US", "GB", "IN", "CA"), "zh": ("CN", "TW", "SG", "MY"), "es": ("ES", "MX", "AR", "CO")}

SEPARATORS = {"en": " ", "zh": "", "es": " "}
"""What stands between two words of a title."""

_STYLES = {
    "en": "tutorial review explained highlights beginners live",
    "zh": "教程 评测 讲解 精选 入门 直播",
    "es": "tutorial reseña explicado resumen principiantes directo",
}

_CATEGORIES = {
    "cooking": {
        "en": "recipe kitchen bread soup dinner noodles chicken baking sauce breakfast dessert vegetables",
        "zh": "食谱 厨房 面包 煲汤 晚餐 面条 鸡肉 烘焙 酱料 早餐 甜点 蔬菜",
        "es": "receta cocina pan sopa cena fideos pollo horno salsa desayuno postre verduras",
    },
    "music": {
        "en": "song guitar piano concert melody drums singer album dance jazz chorus rhythm",
        "zh": "歌曲 吉他 钢琴 音乐会 旋律 架子鼓 歌手 专辑 舞蹈 爵士 合唱 节奏",
        "es": "canción guitarra piano concierto melodía batería cantante álbum baile jazz coro ritmo",
    },
    "football": {
        "en": "football goal match league penalty striker keeper stadium coach transfer training final",
        "zh": "足球 进球 比赛 联赛 点球 前锋 门将 球场 教练 转会 训练 决赛",
        "es": "fútbol gol partido liga penalti delantero portero estadio técnico fichaje entreno final",
    },
    "gaming": {
        "en": "game boss level speedrun strategy quest console puzzle arena patch multiplayer castle",
        "zh": "游戏 首领 关卡 速通 攻略 任务 主机 解谜 竞技场 补丁 联机 城堡",
        "es": "juego jefe nivel carrera estrategia misión consola rompecabezas arena parche equipos castillo",
    },
    "travel": {
        "en": "travel beach mountain island train hotel market temple desert city road camping",
        "zh": "旅行 海滩 高山 岛屿 火车 酒店 市场 寺庙 沙漠 城市 公路 露营",
        "es": "viaje playa montaña isla tren hotel mercado templo desierto ciudad carretera acampada",
    },
    "science": {
        "en": "science planet atom gravity ocean brain energy fossil experiment galaxy climate light",
        "zh": "科学 行星 原子 引力 海洋 大脑 能量 化石 实验 银河 气候 光线",
        "es": "ciencia planeta átomo gravedad océano cerebro energía fósil experimento galaxia clima luz",
    },
    "technology": {
        "en": "phone laptop camera robot battery software screen processor network keyboard drone security",
        "zh": "手机 笔记本 相机 机器人 电池 软件 屏幕 处理器 网络 键盘 无人机 安全",
        "es": "móvil portátil cámara robot batería software pantalla procesador red teclado dron seguridad",
    },
    "fitness": {
        "en": "workout yoga running strength pilates cardio muscle marathon swimming cycling posture squat",
        "zh": "健身 瑜伽 跑步 力量 普拉提 有氧 肌肉 马拉松 游泳 骑行 体态 深蹲",
        "es": "ejercicio yoga correr fuerza pilates cardio músculo maratón nadar ciclismo postura sentadilla",
    },
    "comedy": {
        "en": "funny prank sketch joke standup parody cartoon cat bloopers awkward family party",
        "zh": "搞笑 恶作剧 小品 笑话 脱口秀 模仿 动画 猫咪 花絮 尴尬 家庭 聚会",
        "es": "gracioso broma parodia chiste monólogo imitación dibujos gato tomas ridículo familia fiesta",
    },
    "crafts": {
        "en": "garden wood knitting paper painting sewing pottery candle furniture leather beads repair",
        "zh": "园艺 木工 编织 折纸 绘画 缝纫 陶艺 蜡烛 家具 皮革 串珠 修理",
        "es": "jardín madera tejido papel pintura costura cerámica vela muebles cuero cuentas reparar",
    },
}

STYLE_WORDS = {language: words.split() for language, words in _STYLES.items()}
CATEGORY_WORDS = {
    category: {language: words.split() for language, words in languages.items()}
    for category, languages in _CATEGORIES.items()
}
"""Every category has the same number of words in every language."""

CATEGORIES = tuple(CATEGORY_WORDS)
WORDS_PER_CATEGORY = len(CATEGORY_WORDS["cooking"]["en"])
