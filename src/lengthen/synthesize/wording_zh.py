"""Chinese wordings of questions and answers. The last of each list belongs to the test split."""

CONDITION = {
    "=": ("{column}为{value}", "{column}是{value}", "{column}等于{value}"),
    ">": ("{column}大于{value}", "{column}高于{value}", "{column}超过{value}"),
    "<": ("{column}小于{value}", "{column}低于{value}", "{column}不足{value}"),
}
AND, LIST, KEYS = "且", ", ", "和"
MOST = (("最大", "最小"), ("最高", "最低"), ("最多", "最少"))
SIDE = (("后", "前"), ("下", "上"), ("后面", "前面"))
ORDER = (("升序", "降序"), ("从小到大", "从大到小"), ("递增", "递减"))
WORDS = {"yes": "是", "no": "否", "absent": "表中没有"}
WORKED = ("请写出步骤，最后一行只写答案。", "请给出推算过程，并以只含答案的一行结尾。", "逐步推算，末行单独写出答案。")
BARE = ("最后一行只写答案。", "请把答案单独写在最后一行。", "末行单独给出答案。")
LEAVE_OUT = ("没有{column}的行不计。", "缺少{column}的行请略去。", "忽略未给出{column}的行。")
INTRODUCTION = ("", "", "下面是一份{items}。\n\n", "请仔细阅读以下记录。\n\n", "请研究下列数据。\n\n")
CAPTION = "表{number}：{name}"
QUESTIONS = {
    "cell": (
        "{key}的{column}是什么？",
        "表中{key}的{column}是多少或是什么？",
        "请查出{key}对应的{column}。",
        "在{column}这一列，{key}的值是什么？",
    ),
    "row": (
        "请按列的顺序列出{key}除{title}以外的所有值。",
        "表中关于{key}记录了什么？请按列序给出{title}以外的每个值。",
        "从左到右抄出{key}这一行，{title}除外。",
    ),
    "match": (
        "哪些行满足：{where}？请给出所有{title}。",
        "列出{where}的每一行的{title}。",
        "找出所有{where}的行，写出其{title}。",
    ),
    "kth": (
        "第一行数据记为1，第{k}行的{title}是什么？",
        "第{k}行数据的{title}是哪一个？",
        "从1数起，排在第{k}的数据行的{title}是什么？",
    ),
    "neighbour": (
        "紧接在{key}之{side}的{title}是什么？",
        "{key}的{side}一行的{title}是什么？",
        "与{key}相邻、在它{side}的是哪个{title}？",
    ),
    "difference": (
        "{keys}的{column}相差多少？",
        "{keys}的{column}之差（大减小）是多少？",
        "就{column}而言，{keys}差多少？",
    ),
    "sum": ("{keys}的{column}合计多少？", "{keys}的{column}之和是多少？", "把{keys}的{column}相加，得多少？"),
    "ratio": (
        "{first}的{column}除以{second}的{column}，保留两位小数，是多少？",
        "{first}与{second}的{column}之比是多少（两位小数）？",
        "{first}的{column}是{second}的多少倍？保留两位小数。",
    ),
    "compare": (
        "{keys}中，哪一个的{column}{most}？",
        "比较{keys}的{column}，{most}的是哪一个？",
        "{keys}之中{column}{most}者为何？",
    ),
    "two_hop": (
        "{key}的“{by}”指向另一行，那一行的{column}是什么？",
        "{key}在“{by}”下所列条目的{column}是什么？",
        "由{key}沿“{by}”找到另一行，它的{column}是什么？",
    ),
    "filter_lookup": (
        "在{where}的行中，{by}{most}的那一行的{column}是什么？",
        "只看{where}的行，{by}{most}者的{column}是什么？",
        "限于{where}的各行，给出{by}{most}一行的{column}。",
    ),
    "date_difference": (
        "{keys}的“{column}”相隔多少天？",
        "按“{column}”计，{keys}之间有多少天？",
        "{keys}在“{column}”上差几天？",
    ),
    "join": (
        "{key}的{by}的{linked}是什么？",
        "先在表1查{key}的{by}，再在表2查其{linked}，结果是什么？",
        "{key}所属的{by}，其{linked}为何？",
    ),
    "count": ("{where}的行共有多少？", "有多少行满足{where}？", "数一数{where}的行数。"),
    "total": ("{scope}的{column}总和是多少？", "请把{scope}的{column}加起来。", "求{scope}的{column}合计。"),
    "mean": (
        "{scope}的{column}平均值是多少（两位小数）？",
        "求{scope}的平均{column}，保留两位小数。",
        "{scope}的{column}均值为多少？两位小数。",
    ),
    "extreme": (
        "表中{column}{most}的值是多少，属于哪个{title}？请依次给出值和{title}。",
        "找出{column}{most}的一行，先写值，再写{title}。",
        "{column}在哪里{most}？先答该值，后答{title}。",
    ),
    "mode": ("{column}中出现次数最多的是什么？", "哪个{column}最常见？", "拥有行数最多的{column}是哪个？"),
    "group_best": (
        "按{by}汇总{column}，总和{most}的是哪个{by}，总和是多少？",
        "以{by}分组，{column}之和{most}的是哪一组？请给出{by}及其和。",
        "对每个{by}求{column}之和，写出和{most}的{by}及该和。",
    ),
    "top_k": (
        "{column}{most}的{k}行是哪些？请依次给出{title}。",
        "按{column}排名，列出{most}的{k}行的{title}，最突出者在前。",
        "写出{column}{most}的{k}个{title}，按名次排列。",
    ),
    "distinct": ("{column}共有多少种不同的值？", "{column}有几个不同的值？", "去掉重复后，{column}有多少个值？"),
    "duplicates": ("{column}中哪些值出现不止一次？", "列出{column}中重复出现的每个值。", "找出{column}里重复的值。"),
    "sorted": (
        "各行是否按{column}{order}排列？请答是或否。",
        "自上而下，{column}是否始终{order}（是或否）？",
        "{column}从头到尾是否{order}？答是或否。",
    ),
    "join_count": (
        "表1中有多少行，其{by}在表2中满足{where}？",
        "数一数{by}在表2中{where}的行。",
        "其{by}于表2{where}者共有几行？",
    ),
    "join_total": (
        "{by}在表2中满足{where}的各行，{column}合计多少？",
        "把{by}在表2中{where}的所有行的{column}加起来。",
        "其{by}于表2{where}者，求{column}之和。",
    ),
}
QUESTIONS["absent"] = QUESTIONS["cell"]
ALL_ROWS = ("所有行", "全表", "每一行")
SOME_ROWS = ("{where}的行", "满足{where}的各行", "限{where}诸行")
SENTENCES = {
    "cell": ("{key}的{column}是{answer}。", "{key}这一行的{column}是{answer}。", "所查{key}的{column}为{answer}。"),
    "row": ("{key}的各值是：{answer}。", "{key}的记录从左到右为：{answer}。", "{key}一行依次为：{answer}。"),
    "match": ("符合的行是：{answer}。", "满足这些条件的是：{answer}。", "满足条件者：{answer}。"),
    "kth": ("第{k}行的{title}是{answer}。", "第{k}行数据为{answer}。", "排在第{k}的是{answer}。"),
    "neighbour": ("{key}之{side}的{title}是{answer}。", "{key}的{side}一行是{answer}。", "与{key}相邻的是{answer}。"),
    "absent": ("查询{key}：{answer}。", "就{key}而言：{answer}。", "关于{key}，结果为{answer}。"),
    "difference": ("{column}之差是{answer}。", "它们的{column}差{answer}。", "{column}相差{answer}。"),
    "sum": ("{column}之和是{answer}。", "{column}加起来是{answer}。", "{column}合计{answer}。"),
    "ratio": ("{column}之比是{answer}。", "两者{column}的比值为{answer}。", "{column}相除得{answer}。"),
    "compare": ("{column}{most}的是{answer}。", "{column}{most}者是{answer}。", "就{column}论，{most}者为{answer}。"),
    "two_hop": (
        "{key}所指一行的{column}是{answer}。",
        "沿{key}找到的行，{column}为{answer}。",
        "由{key}查得{column}为{answer}。",
    ),
    "filter_lookup": ("那一行的{column}是{answer}。", "所求一行的{column}为{answer}。", "该行{column}为{answer}。"),
    "date_difference": ("相隔的天数是{answer}。", "两个日期之间的天数为{answer}。", "天数之差为{answer}。"),
    "join": (
        "{key}的{by}的{linked}是{answer}。",
        "经由{by}，{key}的{linked}为{answer}。",
        "{key}所属{by}，其{linked}为{answer}。",
    ),
    "count": ("行数是{answer}。", "满足条件的行数为{answer}。", "共计行数{answer}。"),
    "total": ("{column}的总和是{answer}。", "{column}加起来是{answer}。", "{column}总计{answer}。"),
    "mean": ("{column}的平均值是{answer}。", "平均{column}为{answer}。", "{column}均值为{answer}。"),
    "extreme": (
        "{column}{most}的值及其行是：{answer}。",
        "{column}{most}的值与所在行：{answer}。",
        "{column}{most}处：{answer}。",
    ),
    "mode": ("最常见的{column}是{answer}。", "{column}中出现最多的是{answer}。", "行数最多的{column}为{answer}。"),
    "group_best": (
        "{column}总和{most}的{by}及总和是：{answer}。",
        "按{by}汇总，{column}之和{most}的是：{answer}。",
        "和{most}者：{answer}。",
    ),
    "top_k": (
        "{column}{most}的{k}行是：{answer}。",
        "{column}{most}的依次是：{answer}。",
        "按{column}排名为：{answer}。",
    ),
    "distinct": (
        "{column}不同值的个数是{answer}。",
        "{column}中不同值的数目为{answer}。",
        "{column}去重后个数为{answer}。",
    ),
    "duplicates": (
        "{column}中重复的值是：{answer}。",
        "{column}中不止一次出现的是：{answer}。",
        "{column}里重复者：{answer}。",
    ),
    "sorted": (
        "{column}是否{order}排列：{answer}。",
        "{column}是不是{order}排列：{answer}。",
        "{column}是否始终{order}：{answer}。",
    ),
    "join_count": ("行数是{answer}。", "满足条件的行数为{answer}。", "共计行数{answer}。"),
    "join_total": ("{column}的总和是{answer}。", "这些行的{column}加起来是{answer}。", "{column}总计{answer}。"),
}
STEPS = {
    "look": "{0}的{1}：{2}",
    "calc": "{0}",
    "found": "符合的行（{1}）：{0}",
    "counted": "符合的行数：{0}",
    "group": "{0}：{1}",
    "place": "第{0}行是{1}。",
    "break": "{0}（{1}）之后是{2}（{3}），顺序在此打破。",
}
