"""Chinese facts to plant, and questions about them (see `facts_en`)."""

KINDS = (
    "门禁码",
    "柜号",
    "票号",
    "暗号",
    "目录号",
    "发票号",
    "座位号",
    "档案号",
    "维修单号",
    "开门码",
    "架位码",
    "报关码",
    "呼号",
    "序列号",
    "账号",
    "仓储码",
)
PROPERTIES = ("押金", "重量", "保额", "租金", "容量", "日费", "出厂号", "面积")
HOLDERS = ("保险柜", "小屋", "货位", "铁箱", "工作台", "信箱", "橱柜", "泊位")
EVENTS = (
    ("东楼的钟响了", "东楼的钟响了"),
    ("信使在门口留下一封密信", "信使在门口留下密信"),
    ("守夜人换了锁", "守夜人换锁"),
    ("作坊门上的灯灭了", "作坊门上的灯灭"),
    ("书记员在黄色表格上盖了章", "书记员在黄色表格上盖章"),
    ("一只灰鹭落在屋顶上", "灰鹭落在屋顶上"),
    ("地窖的水泵启动了", "地窖的水泵启动"),
    ("一只木箱从车上卸下", "木箱从车上卸下"),
)
STATEMENTS = (
    "{subject}的{kind}是{value}。",
    "{subject}的{kind}为{value}。",
    "请注意，{subject}的{kind}是{value}。",
    "关于{subject}，其{kind}记作{value}。",
)
HOLDS = (
    "{subject}分到的{holder}叫作{place}。",
    "{subject}的{holder}名为{place}。",
    "归{subject}所有的{holder}称为{place}。",
)
PLACE_FACTS = (
    "{holder}{place}的{property}是{value}。",
    "{holder}{place}的{property}为{value}。",
    "据记载，{holder}{place}，其{property}达{value}。",
)
EVENT_FACTS = ("在{subject}日，{event}。", "那天是{subject}日，{event}。", "到了{subject}日，{event}。")
SINGLE = (
    "{subject}的{kind}是什么？",
    "文中提到的{subject}的{kind}是什么？",
    "根据上述文字，{subject}的{kind}是多少？",
    "按文中所述，哪个{kind}属于{subject}？",
)
SEVERAL = (
    "请依次给出以下各项的值：{list}。",
    "文中提到了{list}，请按此顺序写出它们的值。",
    "逐一写出文中所说的{list}。",
)
PART = "{subject}的{kind}"
TWO_HOP = (
    "{subject}的{holder}的{property}是多少？",
    "{subject}有一个{holder}，它的{property}是多少？",
    "找到属于{subject}的{holder}：其{property}为多少？",
)
ORDER = (
    "文中提到{list}的{kind}的先后顺序是什么？请从最先提到的写起。",
    "请按文中给出{kind}的位置，从前到后排列：{list}。",
    "文中给出了{list}各自的{kind}，请按出现次序列出。",
)
COUNTING = ("文中有多少次说到{event}？", "据文中所述，共有多少天{question}？", "数一数{event}的日子有几天。")
WORKED = (
    "请写出所找到的内容，最后一行只写答案。",
    "请引用相关内容，并以只含答案的一行结尾。",
    "逐步推算，末行单独写出答案。",
)
SENTENCES = {
    "single": (
        "{subject}的{kind}是{answer}。",
        "文中{subject}的{kind}是{answer}。",
        "据文中所述，{subject}的{kind}为{answer}。",
    ),
    "several": ("各项的值是{answer}。", "按问题的顺序，各值是{answer}。", "依次为{answer}。"),
    "two_hop": (
        "{subject}的{holder}的{property}是{answer}。",
        "该{holder}的{property}是{answer}。",
        "其{property}为{answer}。",
    ),
    "order": ("顺序是{answer}。", "文中提到的先后是{answer}。", "从前到后为{answer}。"),
    "counting": ("次数是{answer}。", "文中说到的次数为{answer}。", "共计天数{answer}。"),
}
INTRODUCTION = ("", "", "请阅读以下文字。\n\n", "下文含有一些事实，请记住。\n\n", "请细读这段文字。\n\n")
LIST, AND = ", ", "和"
