"""English wordings of questions and answers. The last of each list belongs to the test split."""

CONDITION = {
    "=": ("{column} is {value}", "{column} equals {value}", "{value} stands under {column}"),
    ">": ("{column} is above {value}", "{column} is greater than {value}", "{column} exceeds {value}"),
    "<": ("{column} is below {value}", "{column} is less than {value}", "{column} falls short of {value}"),
}
AND, LIST, KEYS = " and ", ", ", " and "
MOST = (("largest", "smallest"), ("highest", "lowest"), ("greatest", "least"))
SIDE = (("after", "before"), ("below", "above"), ("following", "preceding"))
ORDER = (("ascending", "descending"), ("rising", "falling"), ("increasing", "decreasing"))
WORDS = {"yes": "yes", "no": "no", "absent": "not in the table"}
WORKED = (
    "Write the steps, then the bare answer on the last line.",
    "Show how you get there and end with a line that holds only the answer.",
    "Work it out step by step; the last line must be the answer alone.",
)
BARE = (
    "End with a line that holds only the answer.",
    "Put the bare answer on the last line.",
    "Close with the answer by itself on one line.",
)
LEAVE_OUT = (
    "Leave out rows without a value for {column}.",
    "Rows in which {column} is missing do not count.",
    "Ignore the rows that give no {column}.",
)
INTRODUCTION = (
    "",
    "",
    "Here is a table of {items}.\n\n",
    "Read these records carefully.\n\n",
    "Study the data that follows.\n\n",
)
CAPTION = "Table {number}: {name}"
QUESTIONS = {
    "cell": (
        "What is the {column} of {key}?",
        "What is the {column} of {key} in the table?",
        "Look up {key}: which {column} does it have?",
        "Tell me the {column} listed for {key}.",
        "Which value does the column {column} hold for {key}?",
    ),
    "row": (
        "List all values of {key} after its {title}, in the order of the columns.",
        "What does the table say about {key}? Give every value except the {title}, in column order.",
        "Copy out the entries of {key} from left to right, leaving out its {title}.",
    ),
    "match": (
        "Which {items} have this: {where}? Give every {title}.",
        "List each {title} of the rows where {where}.",
        "Find all rows in which {where}, and name them by {title}.",
    ),
    "kth": (
        "What is the {title} in row {k}, counting the first row of data as 1?",
        "Which {title} stands in data row number {k}?",
        "Count the rows of data from 1: whose {title} comes as number {k}?",
    ),
    "neighbour": (
        "Which {title} comes directly {side} {key}?",
        "Name the {title} in the row immediately {side} {key}.",
        "Whose row is the one right {side} that of {key}? Give the {title}.",
    ),
    "difference": (
        "By how much do {keys} differ in {column}?",
        "What is the difference between {keys} in {column} (the larger minus the smaller)?",
        "How far apart are the values of {column} for {keys}?",
    ),
    "sum": (
        "What do {keys} add up to in {column}?",
        "What is the sum of the {column} of {keys}?",
        "Add together the {column} of {keys}: what comes out?",
    ),
    "ratio": (
        "Divide the {column} of {first} by that of {second}; round to two decimals.",
        "What is the ratio of the {column} of {first} to that of {second}, to two decimals?",
        "How many times the {column} of {second} is that of {first}? Two decimals.",
    ),
    "compare": (
        "Which has the {most} {column}: {keys}?",
        "Of {keys}, which one has the {most} value of {column}?",
        "Compare {keys} in {column} and name the one with the {most}.",
    ),
    "two_hop": (
        "{key} names another row under '{by}'. What is the {column} of that row?",
        "What is the {column} of the entry that stands under '{by}' of {key}?",
        "Follow '{by}' from {key} to another row: which {column} has it?",
    ),
    "filter_lookup": (
        "Among the rows where {where}, find the one with the {most} {by}. What is its {column}?",
        "Take only rows where {where}. Which {column} has the row whose {by} is {most}?",
        "Restrict the table to rows in which {where}; give the {column} of the row with the {most} {by}.",
    ),
    "date_difference": (
        "How many days lie between the dates of {keys} under '{column}'?",
        "Count the days between {keys} by the column '{column}'.",
        "By how many days are {keys} apart in '{column}'?",
    ),
    "join": (
        "What is the {linked} of the {by} of {key}?",
        "Find the {by} of {key} in the first table, then its {linked} in the second.",
        "Which {linked} does the {by} that belongs to {key} have?",
    ),
    "count": (
        "How many {items} are there for which {where}?",
        "In how many rows do we find that {where}?",
        "Count the rows where this holds: {where}.",
    ),
    "total": (
        "What is the total of {column} over {scope}?",
        "Add up the column {column} over {scope}.",
        "Sum the values of {column} for {scope}.",
    ),
    "mean": (
        "What is the mean {column} of {scope}, to two decimals?",
        "Compute the average of {column} over {scope}; round to two decimals.",
        "Averaged over {scope}, how much is {column}? Two decimals.",
    ),
    "extreme": (
        "What is the {most} {column} in the table, and which {title} has it? Give value, {title}.",
        "Find the {most} value of {column} and its row. Answer with the value, then the {title}.",
        "Where does {column} reach its {most} value? State this value and then the {title}.",
    ),
    "mode": (
        "Which value is the most frequent one under {column}?",
        "Which {column} occurs most often?",
        "Name the {column} that the most rows share.",
    ),
    "group_best": (
        "Add up {column} for each {by}. Which {by} has the {most} total, and how much is it?",
        "Grouped by {by}, where is the sum of {column} {most}? Give the {by} and the sum.",
        "For every {by}, total the {column}; report the {by} with the {most} total, then that total.",
    ),
    "top_k": (
        "Which {k} rows have the {most} {column}? Give each {title}, the most extreme one first.",
        "Rank the rows by {column} and list the {title} of the {k} with the {most} values, best first.",
        "Name the {k} {items} whose {column} is {most}, beginning with the extreme one, by {title}.",
    ),
    "distinct": (
        "How many different values occur under {column}?",
        "Count the distinct values of {column}.",
        "How many values of {column} are there when repetitions count once?",
    ),
    "duplicates": (
        "Which values of {column} occur more than once?",
        "List each value that the column {column} holds twice or more.",
        "Find the repeated values of {column}.",
    ),
    "sorted": (
        "Are the rows sorted by {column} in {order} order? Answer yes or no.",
        "Going down the table, is {column} in {order} order throughout (yes or no)?",
        "Yes or no: does {column} run in {order} order from top to bottom?",
    ),
    "join_count": (
        "How many rows of the first table belong to a {by} for which {where}?",
        "Count the {items} whose {by} has this in the second table: {where}.",
        "For how many {items} does the second table say of their {by} that {where}?",
    ),
    "join_total": (
        "What is the total {column} of the {items} whose {by} has this in the second table: {where}?",
        "Add up the {column} of all rows that belong to a {by} for which {where}.",
        "Sum {column} over those {items} of whose {by} the second table says that {where}.",
    ),
}
QUESTIONS["absent"] = QUESTIONS["cell"]
ALL_ROWS = ("all rows", "the whole table", "every row there is")
SOME_ROWS = ("the rows where {where}", "those rows in which {where}", "just the rows for which {where}")
SENTENCES = {
    "cell": (
        "The {column} of {key} is {answer}.",
        "The entry of {key} under {column} is {answer}.",
        "The {column} listed for {key} is {answer}.",
    ),
    "row": (
        "The values of {key} are: {answer}.",
        "Row {key} holds, from left to right: {answer}.",
        "For {key} the row reads: {answer}.",
    ),
    "match": ("The rows that match are: {answer}.", "This holds for: {answer}.", "Matching rows: {answer}."),
    "kth": (
        "The {title} in row {k} is {answer}.",
        "In data row {k} stands {answer}.",
        "Row {k} holds the {title} {answer}.",
    ),
    "neighbour": (
        "The {title} directly {side} {key} is {answer}.",
        "In the row {side} {key} stands {answer}.",
        "Right {side} {key} we find {answer}.",
    ),
    "absent": ("{key} is {answer}.", "As to {key}, it is {answer}.", "An entry {key} is {answer}."),
    "difference": (
        "The difference in {column} is {answer}.",
        "They differ in {column} by {answer}.",
        "In {column} they are apart by {answer}.",
    ),
    "sum": (
        "The sum of the {column} is {answer}.",
        "Added up, the {column} comes to {answer}.",
        "In {column}, together they make {answer}.",
    ),
    "ratio": (
        "The ratio of the {column} is {answer}.",
        "One {column} divided by the other is {answer}.",
        "Divided, the {column} gives {answer}.",
    ),
    "compare": (
        "The one with the {most} {column} is {answer}.",
        "The {most} {column} belongs to {answer}.",
        "In {column}, the {most} is that of {answer}.",
    ),
    "two_hop": (
        "The {column} of the row that {key} names is {answer}.",
        "{key} leads to a row whose {column} is {answer}.",
        "From {key} we come to the {column} {answer}.",
    ),
    "filter_lookup": (
        "The {column} of that row is {answer}.",
        "In that row the {column} is {answer}.",
        "That row has the {column} {answer}.",
    ),
    "date_difference": (
        "The number of days between them is {answer}.",
        "Between the two dates lie this many days: {answer}.",
        "Counted in days they are apart by {answer}.",
    ),
    "join": (
        "The {linked} of the {by} of {key} is {answer}.",
        "By way of its {by}, {key} has the {linked} {answer}.",
        "For {key}, its {by} has the {linked} {answer}.",
    ),
    "count": (
        "The number of rows is {answer}.",
        "So many rows match: {answer}.",
        "Counted, the rows come to {answer}.",
    ),
    "total": (
        "The total of {column} is {answer}.",
        "Added up, {column} makes {answer}.",
        "Summed up, {column} comes to {answer}.",
    ),
    "mean": (
        "The mean {column} is {answer}.",
        "The average of {column} is {answer}.",
        "On average {column} is {answer}.",
    ),
    "extreme": (
        "The {most} {column} and its row are: {answer}.",
        "The {most} value of {column}, and where it stands: {answer}.",
        "{column} is {most} here: {answer}.",
    ),
    "mode": (
        "The most frequent {column} is {answer}.",
        "The {column} that comes up most often is {answer}.",
        "Most rows share the {column} {answer}.",
    ),
    "group_best": (
        "The {by} with the {most} total {column}, and the total: {answer}.",
        "Grouped by {by}, {column} has its {most} sum here: {answer}.",
        "Here the sum is {most}: {answer}.",
    ),
    "top_k": (
        "The {k} rows with the {most} {column} are: {answer}.",
        "With the {most} {column}, in order of rank: {answer}.",
        "Ranked by {column}: {answer}.",
    ),
    "distinct": (
        "The number of different values of {column} is {answer}.",
        "Under {column}, the different values number {answer}.",
        "Distinct values of {column}: {answer}.",
    ),
    "duplicates": (
        "The values of {column} that occur more than once are: {answer}.",
        "More than once under {column} we find: {answer}.",
        "Repeated under {column}: {answer}.",
    ),
    "sorted": (
        "Is {column} in {order} order: {answer}.",
        "Whether {column} is in {order} order: {answer}.",
        "Does {column} run in {order} order: {answer}.",
    ),
    "join_count": (
        "The number of rows is {answer}.",
        "So many rows belong to it: {answer}.",
        "Counted, the rows come to {answer}.",
    ),
    "join_total": (
        "The total of {column} is {answer}.",
        "Over those rows, {column} adds up to {answer}.",
        "Summed up, {column} comes to {answer}.",
    ),
}
STEPS = {
    "look": "{1} of {0}: {2}",
    "calc": "{0}",
    "found": "Rows that match ({1}): {0}",
    "counted": "Rows that match: {0}",
    "group": "{0}: {1}",
    "place": "Row {0} is {1}.",
    "break": "{0} ({1}) is followed by {2} ({3}), which breaks the order.",
}
