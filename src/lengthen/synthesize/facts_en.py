"""English facts to plant, and questions about them. The last wording of each list belongs to the test split; kinds are
cut like the words of `vocabulary`. The evaluation's kinds and phrases are left out on purpose."""

KINDS = (
    "access key",
    "locker number",
    "ticket number",
    "secret code",
    "catalogue number",
    "invoice number",
    "seat number",
    "file number",
    "repair order",
    "door code",
    "shelf mark",
    "customs code",
    "radio call sign",
    "serial number",
    "account number",
    "storage code",
    "claim number",
    "badge number",
    "meter reading",
    "permit number",
)
PROPERTIES = ("deposit", "weight", "insured value", "rent", "capacity", "daily fee", "production number", "floor area")
HOLDERS = ("strongbox", "cabin", "warehouse bay", "safe", "workbench", "mailbox", "cupboard", "berth")
EVENTS = (
    ("the bell in the east tower rang", "the bell in the east tower ring"),
    ("a courier left a sealed envelope at the gate", "a courier leave a sealed envelope at the gate"),
    ("the night watch changed the lock", "the night watch change the lock"),
    ("the lamp above the workshop door went out", "the lamp above the workshop door go out"),
    ("the clerk stamped a yellow form", "the clerk stamp a yellow form"),
    ("a grey heron landed on the roof", "a grey heron land on the roof"),
    ("the pump in the cellar was started", "somebody start the pump in the cellar"),
    ("a wooden crate was lifted from the cart", "somebody lift a wooden crate from the cart"),
)
STATEMENTS = (
    "The {kind} of {subject} is {value}.",
    "The {kind} for {subject} is {value}.",
    "For {subject}, the {kind} is {value}.",
    "Note that {subject} has the {kind} {value}.",
)
HOLDS = (
    "Now {subject} has the {holder} {place}.",
    "The {holder} of {subject} is called {place}.",
    "To {subject} belongs the {holder} {place}.",
)
PLACE_FACTS = (
    "The {property} of the {holder} {place} is {value}.",
    "For the {holder} {place}, the {property} is {value}.",
    "It is known of the {holder} {place} that its {property} is {value}.",
)
EVENT_FACTS = (
    "On the day of {subject}, {event}.",
    "It was the day of {subject} when {event}.",
    "The day of {subject} came, and {event}.",
)
SINGLE = (
    "What is the {kind} of {subject}?",
    "What is the {kind} of {subject} mentioned in the text?",
    "What is the {kind} for {subject} that the text mentions?",
    "The text above gives a {kind} for {subject}. Which is it?",
    "Which {kind} belongs to {subject} according to the text?",
)
SEVERAL = (
    "What are the values of these, in this order: {list}?",
    "The text mentions {list}. Give their values in this order.",
    "State one after the other what the text says of {list}.",
)
PART = "the {kind} of {subject}"
TWO_HOP = (
    "What is the {property} of the {holder} of {subject}?",
    "{subject} has a {holder}. What is its {property}?",
    "Find the {holder} that belongs to {subject}: how much is its {property}?",
)
ORDER = (
    "In which order does the text mention the {kind} of {list}? Name them, the first mentioned first.",
    "Sort these by where the text gives their {kind}, earliest first: {list}.",
    "The text gives a {kind} for each of {list}. List them as they appear from beginning to end.",
)
COUNTING = (
    "How many times does the text say that {event}?",
    "On how many days did {question}, according to the text?",
    "Count the days on which {event}.",
)
WORKED = (
    "Write what you find, then the bare answer on the last line.",
    "Quote what matters and end with a line that holds only the answer.",
    "Work it out; the last line must be the answer alone.",
)
SENTENCES = {
    "single": (
        "The {kind} of {subject} is {answer}.",
        "For {subject} the text gives the {kind} {answer}.",
        "As the text has it, the {kind} of {subject} is {answer}.",
    ),
    "several": (
        "The values are {answer}.",
        "In the order of the question: {answer}.",
        "One after the other: {answer}.",
    ),
    "two_hop": (
        "The {property} of the {holder} of {subject} is {answer}.",
        "That {holder} has a {property} of {answer}.",
        "Its {property} is {answer}.",
    ),
    "order": (
        "The order is {answer}.",
        "The text mentions them like this: {answer}.",
        "From beginning to end: {answer}.",
    ),
    "counting": (
        "The number of times is {answer}.",
        "The text says so this many times: {answer}.",
        "Counted, the days are {answer}.",
    ),
}
INTRODUCTION = (
    "",
    "",
    "Read the following text.\n\n",
    "The text below holds some facts. Keep them in mind.\n\n",
    "Go through this text with care.\n\n",
)
LIST, AND = ", ", " and "
