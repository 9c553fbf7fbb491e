"""English words for tables and planted facts.

Cities, the needle test's kinds and phrases, and every word of its questions are left out on purpose: the evaluation
asks for kinds of facts that training never saw.
"""

from lengthen.synthesize.vocabulary import Category, Noun, Number

joint = " "

NOUNS = (
    Noun("item", "Items"), Noun("parcel", "Parcels"), Noun("crate", "Crates"), Noun("instrument", "Instruments"),
    Noun("sample", "Samples"), Noun("order", "Orders"), Noun("machine", "Machines"), Noun("painting", "Paintings"),
    Noun("boat", "Boats"), Noun("garden bed", "Garden beds"), Noun("ticket", "Tickets"), Noun("manuscript",
    "Manuscripts"),
    Noun("sensor", "Sensors"), Noun("lens", "Lenses"), Noun("recipe card", "Recipe cards"), Noun("tool", "Tools"),
    Noun("shipment", "Shipments"), Noun("specimen", "Specimens"), Noun("locker", "Lockers"), Noun("engine", "Engines"),
)  # fmt: skip
LINKED = (
    Noun("supplier", "Suppliers"), Noun("depot", "Depots"), Noun("workshop", "Workshops"), Noun("laboratory",
    "Laboratories"),
    Noun("carrier", "Carriers"), Noun("department", "Departments"), Noun("estate", "Estates"), Noun("guild", "Guilds"),
)  # fmt: skip
KEY_TITLES = ("id", "name", "label", "entry", "tag", "identifier", "mark", "handle")
REFERENCES = (
    "replaced by", "next in line", "spare for", "paired with", "stored beside", "derived from", "follows", "copy of",
)  # fmt: skip
INTEGERS = (
    Number("stock", 0, 5000), Number("weight", 10, 90000), Number("rating", 1, 1000), Number("height", 5, 4000),
    Number("code", 1000, 9999999), Number("shelf", 1, 900), Number("votes", 0, 250000), Number("mileage", 100, 900000),
    Number("pages", 8, 2400), Number("serial", 100000, 999999), Number("points", 0, 99999), Number("depth", 1, 11000),
    Number("pieces", 1, 600), Number("capacity", 20, 60000), Number("visits", 0, 80000), Number("voltage", 3, 9000),
)  # fmt: skip
DECIMALS = (
    Number("price", 50, 999999), Number("length", 10, 90000), Number("share", 1, 9999), Number("fee", 100, 50000),
    Number("density", 10, 3000), Number("deposit", 500, 400000), Number("score", 0, 10000), Number("tariff", 5, 20000),
    Number("width", 10, 60000), Number("cost", 100, 5000000), Number("margin", 1, 9900), Number("balance", 1, 900000),
)  # fmt: skip
DATES = (
    "received", "due date", "inspected", "issued", "built", "returned", "opened", "renewed",
    "shipped", "last repair", "registered", "expiry",
)  # fmt: skip
CATEGORIES = (
    Category("colour",
    ("crimson", "teal", "ivory", "ochre", "violet", "olive", "grey", "turquoise", "maroon", "beige")),
    Category("status", ("waiting", "packed", "damaged", "approved", "on hold", "cancelled", "tested")),
    Category("material", ("oak", "copper", "linen", "glass", "clay", "bronze", "wool", "leather", "slate", "cork")),
    Category("grade", ("first", "second", "third", "fourth", "fifth")),
    Category("size", ("tiny", "small", "medium", "large", "huge")),
    Category("shape", ("round", "square", "oval", "conical", "flat", "ribbed")),
    Category("origin", ("coast", "valley", "highland", "island", "plain", "delta", "steppe", "forest")),
    Category("season", ("spring", "summer", "autumn", "winter")),
    Category("priority", ("low", "normal", "raised", "urgent")),
    Category("finish", ("matt", "glossy", "brushed", "waxed", "raw", "enamelled", "lacquered")),
    Category("shift", ("morning", "noon", "evening", "night")),
    Category("class", ("A1", "A2", "B1", "B2", "C1", "C2", "D1", "D2", "E1", "E2", "F1", "F2")),
)  # fmt: skip
PEOPLE = ("keeper", "owner", "buyer", "clerk", "inspector", "author", "contact", "warden")
PLACES = ("location", "birthplace", "harbour", "destination", "quarry", "village", "station", "outpost")
FIRSTS = (
    "amber", "birch", "cobalt", "dapple", "ember", "fjord", "garnet", "hazel", "indigo", "juniper", "kelp", "lotus",
    "maple", "nectar", "onyx", "pearl", "quartz", "raven", "sable", "topaz", "umber", "velvet", "willow", "yarrow",
    "alder", "basalt", "cedar", "dusk", "elder", "fennel", "ginger", "heather", "iris", "jasper", "krill", "larch",
    "marble", "nutmeg", "opal", "pepper", "quince", "rowan", "saffron", "thistle", "ultra", "vesper", "walnut",
    "zephyr",
    "ashen", "bramble", "clover", "dune", "ebony", "frost", "granite", "hollow", "inky", "jade", "knotted", "lilac",
)  # fmt: skip
LASTS = (
    "lantern", "anvil", "barrel", "candle", "drawer", "easel", "ferry", "gasket", "hammer", "inkwell", "jacket",
    "kettle",
    "ladder", "mirror", "nutcracker", "oar", "pulley", "quill", "ribbon", "saddle", "trowel", "urn", "valve", "wagon",
    "axle", "bellows", "compass", "dial", "earring", "flask", "goblet", "hinge", "icebox", "jug", "knapsack", "loom",
    "mallet", "nozzle", "organ", "piston", "rudder", "spindle", "thimble", "umbrella", "violin", "whistle", "yoke",
    "zither",
    "awning", "bucket", "chisel", "dowel", "envelope", "funnel", "gauge", "hatchet", "ironing board", "jigsaw",
    "key ring",
    "lute", "mortar", "notebook", "oven", "padlock", "rake", "sextant", "tripod", "vase", "winch", "bobbin", "crucible",
)  # fmt: skip
GIVEN = (
    "Anneke", "Bertil", "Carmen", "Dorota", "Emeric", "Fenna", "Gideon", "Hilde", "Ismail", "Jovana", "Kasimir",
    "Leonie",
    "Mateus", "Nadia", "Otmar", "Paloma", "Quirin", "Rosalie", "Stellan", "Tamsin", "Ulrika", "Vasco", "Wanda", "Xenia",
    "Yusuf", "Zora", "Alaric", "Brigid", "Cosmo", "Delphine", "Eskil", "Freya", "Gaspar", "Henrike", "Ivo", "Jorun",
)  # fmt: skip
FAMILY = (
    "Abelson", "Brandvik", "Castellan", "Dunmore", "Eriksdal", "Farrow", "Grimaldo", "Hathersage", "Ilves", "Jankovic",
    "Kettering", "Lindqvist", "Marchetti", "Novotny", "Ostrander", "Pellegrin", "Quayle", "Rasmussen", "Sorrel",
    "Tremaine", "Ueland", "Vandermeer", "Whitlock", "Yarborough", "Zielinski", "Aldous", "Bexley", "Corvin",
    "Delacroix",
    "Emsworth", "Fairweather", "Galbraith", "Hollis", "Ingram", "Joubert", "Kirkby",
)  # fmt: skip
HEADS = (
    "Vel", "Kest", "Bram", "Thorn", "Mar", "Gald", "Nor", "Pell", "Row", "Sten", "Tarn", "Ulv", "Wex", "Yar", "Zan",
    "Dram", "Esk", "Fol", "Hux", "Jarn", "Lorn", "Quen", "Ash", "Brin", "Cald", "Dov",
)  # fmt: skip
TAILS = (
    "mora", "rin", "holt", "wick", "vale", "stead", "mere", "grove", "hythe", "combe", "garth", "beck", "moor",
    "strand",
    "ness", "tor", "fell", "dale", "croft", "haven",
)  # fmt: skip
